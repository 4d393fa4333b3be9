"""What a Kubernetes Service does with connections: each goes to one of the servers that are ready at that moment.

Connections that are open when a server is taken away stay where they are, as they do behind kube-proxy.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

CHUNK_BYTES = 1 << 16


@dataclass
class Balancer:
    """Its address, and the ports of 127.0.0.1 that new connections go to in turn; change them at any time."""

    url: str = ""
    ready: list[int] = field(default_factory=list)
    taken: dict[int, int] = field(default_factory=dict)
    """Connections that each port got."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until either side ends it."""
        port = self.ready[next(self._turn) % len(self.ready)]
        self.taken[port] = self.taken.get(port, 0) + 1
        with contextlib.suppress(OSError):
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.gather(_copy(reader, there_writer), _copy(there_reader, writer))
        writer.close()

    def __post_init__(self) -> None:
        self._turn = itertools.count()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while chunk := await reader.read(CHUNK_BYTES):
            writer.write(chunk)
            await writer.drain()
    except OSError:
        pass  # one side is gone: the other must hear of it
    finally:
        writer.close()


@contextmanager
def balance(*ports: int) -> Iterator[Balancer]:
    """A balancer in front of ports of this machine, in a thread of its own, until the block ends."""
    balancer = Balancer(ready=list(ports))
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(balancer.serve, "127.0.0.1", 0))
    balancer.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    thread = threading.Thread(target=loop.run_forever, name="balancer")
    thread.start()
    try:
        yield balancer
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        server.close()
        loop.close()
