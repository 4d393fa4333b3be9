"""Reading, inference and writing go on at the same time, in order, and stop together."""

import threading
import time

import pytest

from sr_core.inference.engine import AHEAD, Shares, overlapped


def test_results_are_those_of_one_after_the_other() -> None:
    written: list[tuple[int, int]] = []
    done = overlapped(
        range(9), lambda item: item * 10, lambda item, data: data + item, lambda *pair: written.append(pair), Shares()
    )
    assert list(done) == list(range(9))
    assert written == [(item, 11 * item) for item in range(9)]


def test_the_three_overlap() -> None:
    shares = Shares()

    def slow(*_: object) -> None:
        time.sleep(0.02)

    list(overlapped(range(10), slow, slow, slow, shares))
    assert min(shares.reading, shares.inference, shares.writing) >= 0.2
    assert shares.wall < 0.9 * (shares.reading + shares.inference + shares.writing)


def test_no_more_is_read_than_can_wait() -> None:
    """Memory is that of a few windows, however slow the writer is."""
    read, held = [0], []
    gate = threading.Semaphore(0)

    def write(item: int, _: object) -> None:
        assert gate.acquire(timeout=10)
        held.append(read[0] - item)

    def count(_: int) -> None:
        read[0] += 1

    work = overlapped(range(20), count, lambda item, data: data, write, Shares())
    opener = threading.Thread(target=lambda: [(time.sleep(0.01), gate.release()) for _ in range(20)])
    opener.start()
    assert list(work) == list(range(20))
    opener.join()
    assert max(held) <= 2 * AHEAD + 2


@pytest.mark.parametrize("broken", ["read", "infer", "write"])
def test_what_one_raises_is_raised(broken: str) -> None:
    threads = threading.active_count()

    def step(name: str):
        def work(item: int, *_: object) -> int:
            if name == broken and item == 3:
                raise OSError(f"{name}: disk is gone")
            return item

        return work

    with pytest.raises(OSError, match=f"{broken}: disk is gone"):
        list(overlapped(range(50), step("read"), step("infer"), step("write"), Shares()))
    assert threading.active_count() == threads


def test_who_stops_listening_stops_the_work() -> None:
    read: list[int] = []
    threads = threading.active_count()
    work = overlapped(range(1000), read.append, lambda item, data: item, lambda *_: None, Shares())
    next(work)
    work.close()
    assert len(read) < 20
    assert threading.active_count() == threads
