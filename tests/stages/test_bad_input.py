"""What a user gets wrong: each says what, where and what was expected, exits non-zero and leaves nothing half."""

import pytest

from tests.stages.test_run import subpixel
from tests.stages.tiny import TINY, write_config

WRONG = {
    "a typo": ("frames: 4", "framse: 4", ["quality_gate.framse", "unknown key", "frames"]),
    "a value out of range": ("cell_m: 640", "cell_m: 120", ["grid.cell_m", "found 120", "160"]),
    "dates swapped": (
        "start: 2020-05-01, end: 2020-06-30",
        "start: 2020-06-30, end: 2020-05-01",
        ["period", "2020-06-30", "after", "2020-05-01"],
    ),
    "an area beyond UTM": (
        "crs: EPSG:32634, bbox: [682240, 6134400, 684160, 6135680]",
        "bbox: [10.0, 85.0, 10.1, 85.1]",
        ["area", "85", "80 S to 84 N"],
    ),
    "an area too large": (
        "bbox: [682240, 6134400, 684160, 6135680]",
        "bbox: [600000, 6000000, 900000, 6300000]",
        ["area", "found 8", "max_area_km2 = 20000 km2"],
    ),
    "an unknown reference system": ("EPSG:32634", "EPSG:99999", ["area.crs", "EPSG:99999"]),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_in_the_configuration_is_named(mistake, tmp_path):
    right, wrong, words = WRONG[mistake]
    assert right in TINY
    done = subpixel("run", write_config(tmp_path, TINY.replace(right, wrong)), "--out", tmp_path / "run")
    assert done.returncode == 1
    assert all(word in done.stderr for word in words), done.stderr
    assert "Traceback" not in done.stderr
    left = [path for path in (tmp_path / "run").rglob("*") if path.is_file() and not path.name.startswith(".")]
    assert not [path for path in left if path.parts[-2] == "patches"], left


def test_a_missing_configuration_is_named(tmp_path):
    done = subpixel("run", tmp_path / "nowhere.yaml")
    assert done.returncode == 1 and "nowhere.yaml" in done.stderr and "Traceback" not in done.stderr


def test_two_runs_do_not_write_into_each_other(tmp_path):
    import fcntl

    root = tmp_path / "run"
    root.mkdir()
    with (root / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subpixel("run", write_config(tmp_path), "--out", root)
    assert done.returncode == 1 and "another run is writing here" in done.stderr
