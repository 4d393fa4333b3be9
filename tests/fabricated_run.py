"""A run's artifacts without the run: small files in the formats of docs/architecture.md, for tests of the report."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
from PIL import Image
from shapely.geometry import box

from sr_core.config import Config, parse_config
from sr_core.masks.acquisitions import Acquisition, write_acquisitions
from sr_core.patches import make_patch, write_index

FOLDERS = {
    "download": "patches",
    "cloud_shadow_filter": "masks",
    "normalize": "normalization",
    "quality_gate": "samples",
    "train_hrn": "model",
    "evaluate": "evaluation",
    "delineate": "delineation",
    "package": "archive",
    "publish": "published",
    "super_resolve": "products",
}
INPUTS = {
    "cloud_shadow_filter": ["download"],
    "normalize": ["download", "cloud_shadow_filter"],
    "quality_gate": ["download", "cloud_shadow_filter", "normalize"],
    "train_hrn": ["quality_gate"],
    "evaluate": ["quality_gate", "train_hrn"],
    "delineate": ["download", "train_hrn"],
    "package": ["train_hrn"],
    "publish": ["train_hrn", "evaluate", "package"],
    "super_resolve": ["download", "train_hrn"],
}
EPSG = 32634
CELL = 960
CORNER = (500_160.0, 5_700_000.0)
ARMS = ("bicubic", "temporal_mean", "sr")


def configuration(**changes: Any) -> Config:
    """A simulated run named `trial`; `changes` replace top-level keys."""
    west, south = CORNER
    raw: dict[str, Any] = {
        "name": "trial",
        "area": {"bbox": [west, south, west + 3 * CELL, south + 3 * CELL], "crs": f"EPSG:{EPSG}", "region": "farmland"},
        "period": {"start": "2022-04-01", "end": "2022-08-31"},
        "source": {"kind": "simulated", "seed": 7, "vhr_dates": ["2022-06-20"]},
        "grid": {"cell_m": CELL, "buffer_m": 80},
    }
    return parse_config(raw | changes)


def fabricate(root: Path, config: Config, stages: Iterable[str] = FOLDERS, chip: int = 32) -> dict[str, Path]:
    """Write the artifacts of `stages` below `root`. Returns their folders, as a stage's context has them."""
    rng = np.random.default_rng(11)
    for stage in stages:
        folder = root / FOLDERS[stage]
        folder.mkdir(parents=True)
        WRITERS[stage](folder, rng, chip)
        write_record(folder, config, stage, 4.0 * len(stage))
    return {stage: root / FOLDERS[stage] for stage in stages}


def write_record(folder: Path, config: Config, stage: str, seconds: float = 1.0, **changes: Any) -> None:
    record = {
        "stage": stage,
        "key": f"{stage}-key".ljust(32, "0"),
        "inputs": {name: f"{name}-key".ljust(32, "0") for name in INPUTS.get(stage, [])},
        "parameters": json.loads(config.model_dump_json(include={"name", "source", stage})),
        "counts": {"things": 12, "dropped": {"cloud": 3}},
        "metrics": {},
        "outputs": {},
        "skipped": None,
        "started": "2026-01-05T10:00:00+00:00",
        "seconds": seconds,
        "versions": {"python": "3.11.2", "numpy": "2.4.6"},
        "git_commit": "0123456789abcdef0123456789abcdef01234567",
    }
    (folder / "run.json").write_text(json.dumps(record | changes), encoding="utf-8")


def fail_gate(folder: Path, name: str = "Kept test samples") -> None:
    """Turn the verdict of a fabricated `samples/` folder to a failure of one expectation."""
    gate = json.loads((folder / "gate.json").read_text())
    gate["verdict"] = "fail"
    gate["expectations"].append(expectation(name, "at least 8", "3", False))
    (folder / "gate.json").write_text(json.dumps(gate))


def expectation(
    name: str, expected: str, found: str, success: bool = True, severity: str = "critical"
) -> dict[str, Any]:
    """An entry of `gate.json`."""
    return {"name": name, "expected": expected, "found": found, "success": success, "severity": severity}


def _patches() -> list[Any]:
    west, south = CORNER
    cells = [(west + CELL * i, south + CELL * j) for j in range(3) for i in range(3)]
    return [make_patch("farmland", EPSG, (x, y, x + CELL, y + CELL), 80) for x, y in cells]


def _download(folder: Path, rng: np.random.Generator, chip: int) -> None:
    write_index(folder, _patches())


def _masks(folder: Path, rng: np.random.Generator, chip: int) -> None:
    rows = []
    for i in range(30):
        cloudy = rng.random() < 0.4
        for patch in _patches():
            cover = float(np.clip(rng.normal(0.6, 0.25), 0, 1)) if cloudy else float(rng.exponential(0.02))
            kept = cover <= 0.1
            stamp = dt.datetime(2022, 4, 1, 9, 40) + dt.timedelta(days=5 * i)
            row = Acquisition(
                "farmland", patch.id, "s2", stamp, f"pass-{i}", cover, 1.0, False, kept, "" if kept else "cloud"
            )
            rows.append(row)
    for i, patch in enumerate(_patches()):
        reason = {0: "cloud", 1: "shadow"}.get(i, "")
        stamp = dt.datetime(2022, 6, 20, 11, 30)
        rows.append(
            Acquisition(
                "farmland", patch.id, "vhr", stamp, "tile", 0.3 if i == 0 else 0.01, 1.0, i == 1, not reason, reason
            )
        )
    write_acquisitions(folder, rows)


def _normalization(folder: Path, rng: np.random.Generator, chip: int) -> None:
    (folder / "normalization.json").write_text("{}")


def _samples(folder: Path, rng: np.random.Generator, chip: int) -> None:
    rows = []
    side = 320
    for patch in _patches():
        west, south, _, _ = patch.cell
        split = {0: "train", 1: "val", 2: "test"}[round((west - CORNER[0]) / CELL)]
        for i in range(9):
            x, y = west + side * (i % 3), south + side * (i // 3)
            for month in (6, 7, 8):
                ssim = float(np.clip(rng.normal(0.62, 0.17), 0, 1))
                cloudy = rng.random() < 0.1
                reason = "cloud" if cloudy else "ssim" if ssim < 0.2 else ""
                rows.append(
                    {
                        "sample_id": f"{patch.id}_{i}_{month}",
                        "row": -1 if reason else len(rows),
                        "region": "farmland",
                        "patch": patch.id,
                        "tile": "tile",
                        "split": split,
                        "target_date": dt.date(2022, month, 20),
                        "latest_date": dt.date(2022, month, 18),
                        "n_frames": 8,
                        "lr_row": 0,
                        "lr_col": 0,
                        "ssim": np.nan if cloudy else ssim,
                        "psnr": np.nan if cloudy else 18 + 14 * ssim + rng.normal(0, 1.2),
                        "mse": 0.001,
                        "kept": not reason,
                        "reason": reason,
                        "geometry": box(x, y, x + side, y + side),
                    }
                )
    gpd.GeoDataFrame(rows, crs=EPSG).to_parquet(folder / "samples.parquet")
    kept = sum(row["kept"] for row in rows)
    (folder / "gate.json").write_text(
        json.dumps(
            {
                "verdict": "pass",
                "expectations": [
                    expectation("Kept train samples", "at least 32", "77"),
                    expectation("Share dropped", "at most 90%", "0.11"),
                    expectation("Full stacks of frames", "half of the samples", "0.4", False, "warning"),
                ],
                "counts": {"samples": len(rows), "kept": kept},
            }
        )
    )
    (folder / "gate.html").write_text("<!doctype html><title>gate</title>")
    (folder / "samples.zarr").mkdir()
    attributes = {"scale": 4, "bands": ["blue", "green", "red", "nir"], "gsd_m": 10.0, "pairing": "vhr"}
    (folder / "samples.zarr" / "zarr.json").write_text(json.dumps({"zarr_format": 3, "attributes": attributes}))


def _model(folder: Path, rng: np.random.Generator, chip: int) -> None:
    with (folder / "metrics.jsonl").open("w") as lines:
        for step in range(1, 401):
            row = {
                "step": step,
                "loss": 0.08 + 0.3 * np.exp(-step / 60) + rng.normal(0, 0.012),
                "lr": 1e-3,
                "seconds": step,
            }
            if step % 50 == 0:
                row |= {"val_psnr": 33.5 - 2.2 * np.exp(-step / 90), "val_psnr_bicubic": 31.2}
            lines.write(json.dumps(row) + "\n")


def _evaluation(folder: Path, rng: np.random.Generator, chip: int) -> None:
    n = 72
    bicubic = rng.normal(31.0, 1.6, n)
    psnr = {
        "bicubic": bicubic,
        "temporal_mean": bicubic + rng.normal(0.6, 0.4, n),
        "sr": bicubic + rng.normal(2.1, 0.9, n),
    }
    table = pd.DataFrame({"sample_id": [f"sample-{i}" for i in range(n)], "split": "test", "region": "farmland"})
    table["target_date"] = [dt.date(2022, 6 + i % 3, 20) for i in range(n)]
    for arm, values in psnr.items():
        table[f"psnr_{arm}"] = values
    table.to_parquet(folder / "per_sample.parquet", index=False)
    means = {arm: float(values.mean()) for arm, values in psnr.items()}
    test = {
        "n_samples": n,
        "psnr": means,
        "cpsnr": {arm: value + 0.8 for arm, value in means.items()},
        "ssim": {"bicubic": 0.8312, "temporal_mean": 0.8461, "sr": 0.8894},
        "mae": {"bicubic": 0.01921, "temporal_mean": 0.01763, "sr": 0.01402},
        "win_rate_vs_bicubic": float((psnr["sr"] > psnr["bicubic"]).mean()),
    }
    (folder / "metrics.json").write_text(json.dumps({"test": test}))
    items = []
    (folder / "gallery").mkdir()
    for i in range(6):
        files = {}
        for arm, image in farmland_views(rng, chip).items():
            files[arm] = f"{i}-{arm}.png"
            image.save(folder / "gallery" / files[arm])
        scores = {arm: float(psnr[arm][i]) for arm in ARMS}
        date = f"2022-0{6 + i % 3}-20"
        items.append(
            {"sample_id": f"sample-{i}", "target_date": date, "region": "farmland", "psnr": scores, "files": files}
        )
    (folder / "gallery" / "gallery.json").write_text(json.dumps(items))


def _delineation(folder: Path, rng: np.random.Generator, chip: int) -> None:
    metrics = {
        "raster": {
            "bicubic": {"extent_mcc": 0.812, "boundary_mcc": 0.433, "distance_mcc": 0.702},
            "sr": {"extent_mcc": 0.853, "boundary_mcc": 0.561, "distance_mcc": 0.761},
        },
        "vector": {
            "bicubic": {"over_segmentation": 0.251, "under_segmentation": 0.222, "border_error": 0.391},
            "sr": {"over_segmentation": 0.203, "under_segmentation": 0.226, "border_error": 0.312},
        },
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "gallery").mkdir()
    for arm in ("bicubic", "sr"):
        farmland_views(rng, chip * 2)["truth"].save(folder / "gallery" / f"{arm}.png")
    legend = {"reference": "#00dcff", "predicted": "#ffaa00"}
    shared = {"region": "farmland", "patch": _patches()[0].id, "side_m": 320.0, "legend": legend}
    items = [{"file": f"{arm}.png", "arm": arm} | shared for arm in ("bicubic", "sr")]
    (folder / "gallery" / "gallery.json").write_text(json.dumps(items))


def _archive(folder: Path, rng: np.random.Generator, chip: int) -> None:
    (folder / "archive.json").write_text("{}")


def _published(folder: Path, rng: np.random.Generator, chip: int) -> None:
    """It leaves its record only."""


def _products(folder: Path, rng: np.random.Generator, chip: int) -> None:
    entries: list[dict[str, Any]] = []
    for day in ("2022-07-05", "2022-08-14"):
        entry = {"region": "farmland", "datetime": f"{day}T09:40:00Z", "path": f"farmland/{day}"}
        entries.append(entry | {"frames": 8, "valid_share": 1.0, "consistency_mae": 0.0012})
        place = folder / entry["path"]
        place.mkdir(parents=True)
        farmland_views(rng, chip * 2)["sr"].save(place / "quicklook.png")
    (folder / "products.json").write_text(
        json.dumps({"model": {"transfer": "trained and applied from 10 m to 2.5 m"}, "products": entries})
    )


WRITERS = {
    "download": _download,
    "cloud_shadow_filter": _masks,
    "normalize": _normalization,
    "quality_gate": _samples,
    "train_hrn": _model,
    "evaluate": _evaluation,
    "delineate": _delineation,
    "package": _archive,
    "publish": _published,
    "super_resolve": _products,
}


def farmland_views(rng: np.random.Generator, size: int) -> dict[str, Image.Image]:
    """Coloured fields of `size` x `size` pixels, and what coarser images of them look like."""
    seeds = rng.uniform(0, size, (14, 2))
    rows, columns = np.mgrid[:size, :size]
    fields = np.argmin((rows[..., None] - seeds[:, 0]) ** 2 + (columns[..., None] - seeds[:, 1]) ** 2, axis=-1)
    colours = rng.uniform((50, 70, 30), (170, 150, 100), (14, 3))
    truth = Image.fromarray(np.clip(colours[fields] + rng.normal(0, 6, (size, size, 3)), 0, 255).astype(np.uint8))
    coarse = truth.resize((size // 4, size // 4), Image.Resampling.BOX)
    fine = truth.resize((size // 2, size // 2), Image.Resampling.BOX)
    return {
        "latest": coarse.resize((size, size), Image.Resampling.NEAREST),
        "bicubic": coarse.resize((size, size), Image.Resampling.BICUBIC),
        "sr": fine.resize((size, size), Image.Resampling.BICUBIC),
        "truth": truth,
    }
