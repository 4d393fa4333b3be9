"""Which workers have requests in hand: what a server has to wait for before it is ended.

A worker holds a lock on a file of its own for as long as it works; that a process ends, however it does, frees it.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FOLDER = "busy"
"""Below the folder for temporary files that a server and its workers share."""


@contextmanager
def busy() -> Iterator[None]:
    """For a worker: it has requests in hand."""
    folder = Path(tempfile.gettempdir()) / FOLDER
    folder.mkdir(exist_ok=True)
    with (folder / str(os.getpid())).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def anyone_busy(temporary: Path) -> bool:
    """Whether some worker of the server with this folder for temporary files has."""
    for path in (temporary / FOLDER).glob("*"):
        with path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    return False
