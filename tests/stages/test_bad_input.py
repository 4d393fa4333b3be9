"""What a user gets wrong: each says what, where and what was expected, exits non-zero and leaves nothing half."""

import errno
import shutil
from types import SimpleNamespace

import pytest

from components.stage import FOLDERS, STAGES, Stage, main
from tests.stages.test_run import subpixel
from tests.stages.tiny import TINY, write_config
from tests.unit.geotiffs import field, product, write_product, write_tiff

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


FILES = """
name: files
source: {{kind: files, path: {folder}}}
grid: {{cell_m: 640, buffer_m: 0, anchor: source}}
quality_gate: {{pairing: wald, chip_px: 8}}
"""


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def leave(folder):
    """The files are in order; what they show is not."""


def hold_nothing(folder):
    shutil.rmtree(folder)
    folder.mkdir()


SPOILED = {
    "a missing folder": (shutil.rmtree, False, ["plan_shards", "series", "missing", "folder"]),
    "an empty folder": (hold_nothing, False, ["plan_shards", "series", "the folder is empty", "expected GeoTIFFs"]),
    "a truncated band": (lambda folder: truncate(next(folder.glob("*/*b04.tif"))), False, ["download", "b04.tif"]),
    "a band of another size": (
        lambda folder: write_tiff(next(folder.glob("*/*b04.tif")), field(32)[0]),
        False,
        ["plan_shards", "b04.tif", "32", "64"],
    ),
    "a band in another system": (
        lambda folder: write_tiff(next(folder.glob("*/*b04.tif")), field()[0], epsg=32632),
        False,
        ["plan_shards", "b04.tif", "32632", "32631"],
    ),
    "only cloudy dates": (leave, True, ["cloud_shadow_filter", "only cloudy dates", "6"]),
}


@pytest.mark.parametrize("mistake", SPOILED)
def test_a_mistake_in_the_files_is_named_and_no_stage_finishes_on_it(mistake, tmp_path):
    spoil, cloudy, words = SPOILED[mistake]
    for day in range(1, 7):
        write_product(tmp_path / "series", product(f"2020050{day}"), field(seed=1, cloudy=cloudy))
    spoil(tmp_path / "series")
    config = write_config(tmp_path, FILES.format(folder=tmp_path / "series"))
    done = subpixel("run", config, "--out", tmp_path / "run")
    assert done.returncode == 1
    assert all(word in done.stderr for word in words), done.stderr
    assert "Traceback" not in done.stderr
    # who plans the shards keeps no record; what follows it is download
    assert not (tmp_path / "run" / FOLDERS.get(words[0], FOLDERS["download"]) / "run.json").exists()


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


def test_a_place_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").touch()
    done = subpixel("run", write_config(tmp_path), "--out", tmp_path / "file" / "run")
    assert done.returncode == 1 and "cannot be written to" in done.stderr and "Traceback" not in done.stderr


def test_a_full_disk_ends_a_stage_with_a_sentence_and_without_a_record(tmp_path, monkeypatch, capfd):
    def work(context):
        raise OSError(errno.ENOSPC, "No space left on device", str(context.output / "s2"))

    monkeypatch.setattr(Stage, "program", lambda stage: SimpleNamespace(work=work, fingerprint=lambda config: None))
    arguments = ["--config", str(write_config(tmp_path)), "--root", str(tmp_path / "run")]
    assert main(STAGES["download"], arguments) == 1
    said = capfd.readouterr().err
    assert "No space left on device" in said and "patches/s2" in said and "Traceback" not in said
    assert not (tmp_path / "run" / "patches" / "run.json").exists()
