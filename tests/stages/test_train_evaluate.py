"""The stages train_hrn and evaluate on a small store made by hand."""

import json
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest

from components.evaluate.main import STAGE as EVALUATE
from components.stage import Stage, run
from components.train_hrn.main import STAGE as TRAIN
from sr_core import BANDS
from sr_core.config import Config, parse_config
from sr_core.errors import ConfigError, DataError
from sr_core.models.bundle import load_bundle
from sr_core.radiometry.normalize import BandStatistics, Normalization, write_normalization
from tests.sample_sets import sample_set

REPOSITORY = Path(__file__).resolve().parents[2]
SPLITS = ("train",) * 8 + ("val",) * 3 + ("test",) * 5


def write_inputs(root: Path, splits=SPLITS) -> None:
    """Finished outputs of quality_gate and normalize, as docs/architecture.md describes them."""
    import geopandas as gpd
    import zarr
    from shapely.geometry import box

    samples = sample_set(len(splits), frames=3, side=12)
    folder = root / "samples"
    group = zarr.create_group(folder / "samples.zarr", zarr_format=3)
    group.attrs.update({"scale": 4, "bands": list(BANDS), "gsd_m": 10.0, "pairing": "vhr"})
    arrays = {"lr": samples.lr, "lr_clear": samples.clear, "lr_valid": samples.valid, "hr": samples.hr}
    arrays |= {"hr_clear": samples.hr_clear}
    for name, values in arrays.items():
        group.create_array(name, data=values.numpy())
    group.create_array("lr_age", data=np.zeros((len(splits), 3), np.int16))
    group.create_array("lr_shift", data=np.zeros((len(splits), 3, 2), np.float32))
    rows = [
        {"sample_id": samples.ids[row], "row": row, "region": "here", "split": split, "kept": True}
        for row, split in enumerate(splits)
    ]
    rows.append({"sample_id": "dropped", "row": -1, "region": "here", "split": "test", "kept": False})
    table = gpd.GeoDataFrame(rows, geometry=[box(0, 0, 1, 1)] * len(rows), crs="EPSG:4326")
    table["target_date"] = pd.Timestamp("2024-06-01")
    table.to_parquet(folder / "samples.parquet")
    (root / "normalization").mkdir()
    band = BandStatistics(median=0.2, mean=0.2, std=0.05, p_low=0.1, p_high=0.3, n_pixels=9)
    write_normalization(root / "normalization", Normalization({"here": dict.fromkeys(BANDS, band)}, {}, (1, 99)))
    for name in ("samples", "normalization"):
        (root / name / "run.json").write_text(json.dumps({"key": name, "counts": {}}))


def config(**train) -> Config:
    small = {"channels": 8, "residual_blocks": 1, "steps": 60, "batch_size": 4, "learning_rate": 5e-3}
    small |= {"validate_every": 20, "registration": "none", "precision": "float32", "threads": 1}
    return parse_config(
        {
            "name": "hand-made",
            "source": {"kind": "files", "path": "."},
            "train_hrn": small | train,
            "evaluate": {"gallery": 3},
        }
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_inputs(folder)
    run(TRAIN, config(), str(folder))
    run(EVALUATE, config(), str(folder))
    return folder


def test_training_leaves_a_bundle_with_its_lineage(root):
    description = load_bundle(root / "model").description
    assert description["lineage"]["samples"] == {"train": 8, "val": 3}
    assert description["lineage"]["train_hrn"]["steps"] == 60
    assert description["normalization"]["here"]["nir"] == {"mean": 0.2, "std": 0.05}
    assert description["frames"] == 3
    assert description["scores"]["val_psnr"] > description["scores"]["val_psnr_bicubic"]
    steps = [json.loads(line)["step"] for line in (root / "model" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [10, 20, 30, 40, 50, 60]


def test_training_is_tracked_without_a_key(root):
    assert list((root / "model" / "wandb").glob("offline-run-*/*.wandb"))


def test_evaluation_measures_the_test_split(root):
    test = json.loads((root / "evaluation" / "metrics.json").read_text())["test"]
    assert test["n_samples"] == 5
    assert set(test) == {"n_samples", "psnr", "cpsnr", "ssim", "mae", "win_rate_vs_bicubic"}
    assert set(test["psnr"]) == {"bicubic", "temporal_mean", "sr"}
    assert test["psnr"]["sr"] > test["psnr"]["bicubic"]
    table = pd.read_parquet(root / "evaluation" / "per_sample.parquet")
    assert table["sample_id"].tolist() == [f"chip-{row}" for row in range(11, 16)]
    assert table["psnr_sr"].mean() == pytest.approx(test["psnr"]["sr"])
    assert (table["psnr_sr"] > table["psnr_bicubic"]).mean() == test["win_rate_vs_bicubic"]


def test_the_gallery_spans_the_gains_and_names_its_source(root):
    gallery = json.loads((root / "evaluation" / "gallery" / "gallery.json").read_text())
    gains = [item["psnr"]["sr"] - item["psnr"]["bicubic"] for item in gallery]
    assert len(gains) == 3 and gains == sorted(gains, reverse=True)
    for item in gallery:
        assert item["attribution"] == "Contains modified Copernicus Sentinel data 2024"
        shapes = {
            matplotlib.image.imread(root / "evaluation" / "gallery" / name).shape[:2] for name in item["files"].values()
        }
        assert set(item["files"]) == {"latest", "bicubic", "sr", "truth"} and shapes == {(48, 48)}
        assert b"Copernicus" in (root / "evaluation" / "gallery" / item["files"]["sr"]).read_bytes()


@pytest.mark.parametrize(
    ("stage", "splits", "message"),
    [
        (TRAIN, ("val", "test"), "found none of split train"),
        (EVALUATE, ("train", "val"), "found none of split test"),
    ],
)
def test_a_split_without_samples_is_named(root, tmp_path, stage: Stage, splits, message):
    write_inputs(tmp_path, splits)
    if stage is EVALUATE:
        (tmp_path / "model").symlink_to(root / "model")
    with pytest.raises(DataError, match=message):
        run(stage, config(), str(tmp_path))
    assert not (tmp_path / stage.folder / "run.json").exists()


def test_several_processes_train_one_model_and_keep_one_record(root, tmp_path):
    write_inputs(tmp_path)
    settings = config(processes=2, steps=20)
    command = [sys.executable, "-m", "components.train_hrn", "--config", settings.model_dump_json()]
    done = subprocess.run([*command, "--root", str(tmp_path)], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "train_hrn: 2 processes" in done.stderr
    record = json.loads((tmp_path / "model" / "run.json").read_text())
    assert record["counts"]["steps"] == 20
    lines = [json.loads(line) for line in (tmp_path / "model" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20]
    alone = json.loads((root / "model" / "metrics.jsonl").read_text().splitlines()[0])
    assert lines[0]["loss"] == pytest.approx(alone["loss"], rel=1e-4)
    assert load_bundle(tmp_path / "model").frames == 3


def test_stages_of_one_process_refuse_several(root, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"evaluate: found 2 processes, started by torchrun, expected one"):
        run(EVALUATE, config(), str(root))
