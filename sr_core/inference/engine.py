"""Three things at a time: the next windows are read and the last ones written while the network is at work."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")
Read = TypeVar("Read")
Made = TypeVar("Made")
Done = TypeVar("Done")

AHEAD = 2
"""Windows that wait before the network, and behind it: enough to even out a slow one, and all the memory it takes."""


@dataclass
class Shares:
    """Seconds that each part was at work; they overlap, so that their sum is more than `wall`."""

    reading: float = 0.0
    inference: float = 0.0
    writing: float = 0.0
    finishing: float = 0.0
    """Making the files of a date from its windows; nothing else goes on meanwhile."""
    wall: float = 0.0

    @contextmanager
    def while_finishing(self) -> Iterator[None]:
        """Counts the time of a block as `finishing`."""
        started = time.perf_counter()
        yield
        passed = time.perf_counter() - started
        self.finishing += passed
        self.wall += passed

    def __add__(self, other: Shares) -> Shares:
        return Shares(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    def __str__(self) -> str:
        wall = max(self.wall, 1e-9)
        parts = (
            f"{name} {getattr(self, name) / wall:.0%}" for name in ("reading", "inference", "writing", "finishing")
        )
        return ", ".join(parts)


def overlapped(
    items: Iterable[Item],
    read: Callable[[Item], Read],
    infer: Callable[[Item, Read], Made],
    write: Callable[[Item, Made], None],
    shares: Shares,
) -> Iterator[Item]:
    """`write(item, infer(item, read(item)))` for each item, in order; yields those that are written.

    `read` runs in one thread and `write` in another, `infer` in the caller's; at most `AHEAD` items wait before it
    and behind it. What one raises is raised here, after the others have ended. Adds to `shares`.
    """

    def timed(part: str, work: Callable[..., Done], *arguments: object) -> Done:
        started = time.perf_counter()
        try:
            return work(*arguments)
        finally:
            setattr(shares, part, getattr(shares, part) + time.perf_counter() - started)

    upcoming = iter(items)
    before: deque[tuple[Item, Future[Read]]] = deque()
    behind: deque[tuple[Item, Future[None]]] = deque()
    started = time.perf_counter()
    with ThreadPoolExecutor(1, "reader") as reader, ThreadPoolExecutor(1, "writer") as writer:

        def read_ahead() -> None:
            while len(before) < AHEAD and (item := next(upcoming, None)) is not None:
                before.append((item, reader.submit(timed, "reading", read, item)))

        try:
            read_ahead()
            while before:
                item, data = before.popleft()
                found = data.result()
                read_ahead()
                made = timed("inference", infer, item, found)
                while len(behind) >= AHEAD:
                    done, written = behind.popleft()
                    written.result()
                    yield done
                behind.append((item, writer.submit(timed, "writing", write, item, made)))
                del found, data, made
            while behind:
                done, written = behind.popleft()
                written.result()
                yield done
        finally:
            reader.shutdown(cancel_futures=True)
            writer.shutdown()  # what the network has made is kept, whatever happened
            shares.wall += time.perf_counter() - started
