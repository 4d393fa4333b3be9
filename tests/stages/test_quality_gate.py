"""The stage quality_gate on small artifacts made here: its outputs, its errors, and being killed in between."""

import datetime as dt
import hashlib
import json
import warnings
from pathlib import Path

import numpy as np
import pytest

from components import stage
from components.quality_gate import main as program
from sr_core.config import FilesSource, parse_config
from sr_core.coregistration import UNKNOWN
from sr_core.errors import DataError
from sr_core.masks.acquisitions import Acquisition, write_acquisitions
from sr_core.patches import EOPatch, Patch, make_patch, part_path, save_part, write_index
from sr_core.radiometry.normalize import BandStatistics, Normalization, write_normalization
from sr_core.radiometry.resample import bicubic_upsample, degrade
from sr_core.samples.pairs import cut, wald_pairs
from sr_core.samples.split import chip_windows, split_ground
from sr_core.samples.store import SampleStore
from sr_core.series import S2Series

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from eolearn.core import FeatureType

DATES = [dt.datetime(2020, 6, 1, 10) + n * dt.timedelta(days=5) for n in range(5)]
VHR_DATE = dt.datetime(2020, 6, 22, 12)
RADIANCE_SCALE = 100.0
GATE = {
    "chip_px": 16,
    "stride_px": 16,
    "frames": 4,
    "max_latest_age_days": 10,
    "min_samples": {"train": 8, "val": 1, "test": 1},
    "split": {"block_m": 640, "val": 0.2, "test": 0.2, "guard_m": 0},
}


def config(**gate):
    return parse_config(
        {
            "name": "tiny",
            "source": {"kind": "simulated"},
            "area": {"bbox": [21, 55, 21.01, 55.01]},
            "period": {"start": "2020-06-01", "end": "2020-06-30"},
            # in this process, where a test can step in
            "preparation": {"workers": 1},
            "quality_gate": {**GATE, **gate},
        }
    )


def write_inputs(root: Path, *, vhr: bool = True, s2_reason: str = "", vhr_reason: str = "") -> list[Patch]:
    """Five cells of 640 m in a row, each with five Sentinel-2 dates and one VHR acquisition of the same land."""
    patches = [make_patch("farm", 32634, (5e5 + i * 640, 6e6, 5e5 + (i + 1) * 640, 6e6 + 640), 80) for i in range(5)]
    rows = []
    for seed, patch in enumerate(patches):
        fine = np.random.default_rng(seed).integers(300, 4000, (4, 40, 40)).repeat(8, axis=1).repeat(8, axis=2)
        s2 = np.moveaxis(degrade(fine.astype(np.float32)), 0, -1)
        bands = np.stack([s2 + n for n in range(len(DATES))]).astype(np.uint16)
        rows += write_series(root, patch, "s2", bands, DATES, {"product_ids": [f"p{n}" for n in range(5)]}, s2_reason)
        if vhr:
            meta = {"tile_ids": ["t0"], "radiance_scale": RADIANCE_SCALE}
            image = np.moveaxis(fine, 0, -1)[None].astype(np.uint16)
            rows += write_series(root, patch, "vhr", image, [VHR_DATE], meta, vhr_reason)
    write_index(root / "patches", patches)
    write_acquisitions(root / "masks", rows)
    (root / "normalization").mkdir()
    bands = ("blue", "green", "red", "nir")
    reflectance = dict.fromkeys(bands, BandStatistics(0.2, 0.2, 0.05, 0.0, 1.0, 9999))
    radiance = dict.fromkeys(bands, BandStatistics(20.0, 20.0, 5.0, 0.0, 100.0, 9999))
    write_normalization(root / "normalization", Normalization({"farm": reflectance}, {"t0": radiance}, (1, 99)))
    for name in ("patches", "masks", "normalization"):
        (root / name / "run.json").write_text(json.dumps({"key": name, "counts": {}}))
    return patches


def write_series(root, patch, sensor, bands, timestamps, meta, reason):
    images, masks = (EOPatch(bbox=patch.bbox, timestamps=timestamps) for _ in range(2))
    clear = np.full((*bands.shape[:3], 1), not reason)
    images[FeatureType.DATA]["BANDS"] = bands
    images[FeatureType.MASK]["VALID"] = np.ones_like(clear)
    for key, value in meta.items():
        images[FeatureType.META_INFO][key] = value
    masks[FeatureType.MASK]["CLEAR"] = clear
    masks[FeatureType.MASK]["SHADOW"] = np.zeros_like(clear)
    masks[FeatureType.META_INFO]["registration"] = [UNKNOWN.to_json()] * len(timestamps)
    save_part(images, part_path(root / "patches", patch, sensor))
    save_part(masks, part_path(root / "masks", patch, sensor))
    tiles = meta["product_ids"] if sensor == "s2" else meta["tile_ids"]
    return [
        Acquisition("farm", patch.id, sensor, timestamp, tile, float(bool(reason)), 1.0, False, not reason, reason)
        for timestamp, tile in zip(timestamps, tiles, strict=True)
    ]


def digests(folder: Path) -> dict[str, str]:
    """Of all that has to be the same after another run; the Data Docs carry the time of day."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "run.json" and "data_docs" not in path.parts
    }


def test_vhr_pairs_through_the_stage(tmp_path):
    write_inputs(tmp_path)
    record = stage.run(program.STAGE, config(), str(tmp_path))
    assert record["outputs"] == {"verdict": "pass"}
    store = SampleStore(tmp_path / "samples")
    assert (store.pairing, store.gsd_m, store.shape) == ("vhr", 10.0, (4, 4, 16, 16))
    counts = record["counts"]
    # a VHR acquisition over 16 chips a cell; a cell a block, one of five for each of validation and test
    assert counts == {"samples": 80, "kept": 80, "dropped": {}, "train": 48, "val": 16, "test": 16}
    assert record["metrics"] == {"samples": 80, "kept": 80}
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == [
        ".key", "data_docs", "gate.html", "gate.json", "run.json", "samples.parquet", "samples.zarr",
        "unexpected.parquet",
    ]  # fmt: skip
    # radiance / 100 is reflectance in these statistics, and the land did not change: the truth is sharper than bicubic
    sample = store.read([0])
    truth, latest = sample.hr[0] / 1e4, bicubic_upsample(sample.lr[0, 0].astype(np.float32) / 1e4)
    assert np.corrcoef(truth.ravel(), latest.ravel())[0, 1] > 0.85 and truth.std() > latest.std()
    assert sample.lr_age.tolist() == [[1, 6, 11, 16]]


def test_wald_pairs_where_there_is_no_vhr(tmp_path):
    write_inputs(tmp_path, vhr=False)
    record = stage.run(program.STAGE, config(), str(tmp_path))
    store = SampleStore(tmp_path / "samples")
    assert (store.pairing, store.gsd_m) == ("wald", 40.0)
    # 16 pixels of 40 m a cell: one chip, five dates, the first of them without an earlier frame
    assert record["counts"]["samples"] == 5 * 5
    assert record["counts"]["dropped"] == {"frames": 5} and record["metrics"]["dropped_frames"] == 5


def test_a_set_that_fails_ends_well_with_its_verdict(tmp_path):
    write_inputs(tmp_path)
    record = stage.run(program.STAGE, config(min_samples={"train": 1000}), str(tmp_path))
    assert record["outputs"] == {"verdict": "fail"}
    assert json.loads((tmp_path / "samples" / "gate.json").read_text())["verdict"] == "fail"


def test_killed_after_a_patch_it_goes_on_and_ends_in_the_same_bytes(tmp_path, monkeypatch):
    for name in ("undisturbed", "killed"):
        write_inputs(tmp_path / name)
    stage.run(program.STAGE, config(), str(tmp_path / "undisturbed"))
    written = []

    def write_one(folder, *contents):
        if written:
            raise KeyboardInterrupt
        written.append(folder)
        write_part(folder, *contents)

    write_part = program.write_part
    monkeypatch.setattr(program, "write_part", write_one)
    with pytest.raises(KeyboardInterrupt):
        stage.run(program.STAGE, config(), str(tmp_path / "killed"))
    assert len(written) == 1 and not (tmp_path / "killed" / "samples" / "run.json").exists()

    def write_rest(folder, *contents):
        assert folder not in written, "a finished patch is not cut again"
        write_part(folder, *contents)

    monkeypatch.setattr(program, "write_part", write_rest)
    stage.run(program.STAGE, config(), str(tmp_path / "killed"))
    assert digests(tmp_path / "killed" / "samples") == digests(tmp_path / "undisturbed" / "samples")


@pytest.mark.parametrize(
    ("inputs", "gate", "message"),
    [
        ({"vhr": False, "s2_reason": "cloud"}, {}, r"none of 25 candidate samples .* 25 times the truth is cloudy"),
        ({"vhr_reason": "shadow"}, {}, r"none of 80 candidate samples .* 80 times the truth may be shadowed"),
        ({"s2_reason": "cloud"}, {}, r"80 times fewer than quality_gate.min_frames = 2 clear frames"),
        ({"vhr": False}, {"pairing": "vhr"}, r"pairing: found 'vhr', but none of 5 patches has VHR"),
        ({"vhr": False}, {"chip_px": 32}, r"chip_px: a chip of 32 pixels of 40 m is 1280 m wide and fits nowhere"),
        ({"vhr": False}, {"split": {"test_boxes": [[0, 0, 9e6, 9e6]], "test_from": "2021-01-01"}}, r"no candidate"),
    ],
)
def test_nothing_to_train_on_is_an_error_that_says_why(tmp_path, inputs, gate, message):
    write_inputs(tmp_path, **inputs)
    with pytest.raises(DataError, match=message):
        stage.run(program.STAGE, config(**gate), str(tmp_path))
    assert not (tmp_path / "samples" / "run.json").exists()


@pytest.mark.realdata
def test_bicubic_has_the_known_psnr_on_okavango(sample_data):
    """The figure that every other is measured against: 80 chips on columns 192-300, eight clear dates."""
    from sr_core.sources.files import FileSeries

    source = FileSeries(FilesSource(kind="files", path=sample_data / "okavango", region="okavango"))
    (region,) = source.regions()
    west, south, east, north = region.bounds
    patch = make_patch(region.name, region.epsg, region.bounds, 0)
    images = source.s2(patch, None)
    bands, timestamps = images[FeatureType.DATA]["BANDS"], list(images.timestamps)
    ids = [str(n) for n in range(len(timestamps))]
    hazy = {dt.date(2017, 7, 30)}
    s2 = S2Series(patch, bands, np.ones(bands.shape[:3], bool), timestamps, ids, np.zeros((len(ids), 2), np.float32))
    reasons = {
        (timestamp, tile): "cloud" if timestamp.date() in hazy else ""
        for timestamp, tile in zip(timestamps, ids, strict=True)
    }
    gate = config(
        chip_px=16,
        frames=8,
        max_age_days=100,
        split={"test_boxes": [[west + 1920, south, east, north]], "test_from": "2017-06-10"},
    ).quality_gate
    split = split_ground([patch], gate.split, 0)
    windows = chip_windows(split, patch, gsd=40.0, chip_px=16, stride_px=8, guard_m=80)
    _, samples = cut(*wald_pairs(s2, reasons, 0.3), [w for w in windows if w.split == "test"], gate)
    truth = samples.hr.astype(np.float32) / 1e4
    latest = bicubic_upsample(samples.lr[:, 0].astype(np.float32) / 1e4)
    psnr = -10 * np.log10(((latest - truth) ** 2).mean(axis=(1, 2, 3)))
    assert len(psnr) == 80
    assert psnr.mean() == pytest.approx(37.38, abs=0.01)
