"""What is said before products are made: that it is what is then found, and that a full disk is refused."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from sr_core.errors import StorageError
from sr_core.inference.estimate import COMPRESSED, Estimate, estimate, probe
from sr_core.models.bundle import SHIPPED, load_bundle
from sr_core.patches import make_patch

USAGE = namedtuple("USAGE", "total used free")
PATCHES = [make_patch("farm", 32634, (500_000 + x, 5_998_000, 502_000 + x, 6_000_000), 200) for x in (0, 2000)]


@pytest.fixture(scope="module")
def work() -> Estimate:
    return estimate(PATCHES, dates=3, frames=10, resolver=load_bundle(SHIPPED), window_px=128)


def test_windows_and_pixels_are_counted(work: Estimate) -> None:
    assert work.dates == 3
    assert work.windows == 3 * 2 * 4  # 200 x 400 pixels at 10 m, in windows of 100 x 100
    assert work.megapixels == pytest.approx(3 * 800 * 1600 / 1e6)
    assert work.network_px > 3 * 200 * 400  # halos are work too


def test_disk_is_that_of_files_and_of_what_they_are_made_from(work: Estimate) -> None:
    fine, coarse = 800 * 1600 * 8, 200 * 400 * 8
    assert work.product_bytes == pytest.approx(COMPRESSED * 3 * 4 / 3 * (2 * fine + 2 * coarse), rel=1e-3)
    assert work.working_bytes == 2 * fine + coarse + 10 * (240 * 440) * 10


def test_regions_share_the_disk_that_is_needed_on_the_way(work: Estimate) -> None:
    both = work + work
    assert (both.dates, both.product_bytes) == (6, 2 * work.product_bytes)
    assert both.working_bytes == work.working_bytes


def test_time_is_measured_on_this_machine(work: Estimate) -> None:
    seconds = probe(load_bundle(SHIPPED), 32, "float32")
    assert 1e-7 < seconds < 1e-1
    assert work.timed(1e-4).seconds == pytest.approx(work.network_px * 1e-4)
    assert "3 dates, 3.8 megapixels at 2.5 m in 24 windows, about " in str(work.timed(1e-4))


def test_a_full_disk_is_refused(work: Estimate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work.check(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: USAGE(10**9, 9 * 10**8, 10**7))
    with pytest.raises(StorageError, match=r"found 10\.0 MB free, expected 97\.0 MB for 3 dates of 1 megapixels"):
        work.check(tmp_path)
