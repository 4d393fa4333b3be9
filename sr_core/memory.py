"""What a long-running process does with memory that it has freed."""

from __future__ import annotations

import ctypes

LARGE_BYTES = 8 << 20
"""Smaller arrays are worth keeping: asking the system for them again costs more time than they take room."""
ARENAS = 2
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8
"""From glibc's malloc.h."""


def return_large_arrays() -> bool:
    """Have freed arrays above `LARGE_BYTES` go back to the system at once. Returns whether this C library does that.

    glibc raises that bound by itself with every large array that is freed, and keeps pools for many threads: a process
    that makes windows of changing sizes then grows for as long as it runs (`mallopt(3)`).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)) and bool(mallopt(_M_ARENA_MAX, ARENAS))


def return_what_is_free() -> None:
    """Give the system all whole pages that hold nothing any more, also between what is still in use (`malloc_trim(3)`).

    Takes some milliseconds: for the end of a piece of work, not for its inner loop.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
