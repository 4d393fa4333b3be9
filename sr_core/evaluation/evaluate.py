"""Super-resolution against its baselines on held-out samples: a table, the means, and pictures."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from sr_core import BANDS, SCALE
from sr_core.config import Evaluate
from sr_core.errors import DataError
from sr_core.evaluation import metrics
from sr_core.evaluation.baselines import bicubic_latest, temporal_mean
from sr_core.models.alignment import align
from sr_core.models.bundle import SuperResolver
from sr_core.models.normalization import Normalization
from sr_core.progress import track
from sr_core.samples.dataset import SampleSet, to_reflectance, whole_batch

ARMS = ("bicubic", "temporal_mean", "sr")
PICTURES = ("latest", "bicubic", "sr", "truth")
METRICS = ("psnr", "cpsnr", "ssim", "mae")
BATCH = 8
_RGB = [BANDS.index(band) for band in ("red", "green", "blue")]


def evaluate(
    resolver: SuperResolver,
    samples: SampleSet,
    statistics: Mapping[str, Normalization],
    settings: Evaluate,
    split: str = "test",
) -> pd.DataFrame:
    """A row a sample: `sample_id, split, target_date, region`, and `<metric>_<arm>` for each of METRICS and ARMS.

    PSNR is plain: neither registered nor bias-corrected. `settings.border_px` high-resolution pixels at each side
    are left out. Raises `DataError` without samples, or where they are smaller than the borders.
    """
    if not len(samples):
        raise DataError(f"samples: found none of split {split}; expected at least one to evaluate on")
    border = settings.border_px
    if min(samples.hr.shape[-2:]) <= 2 * (border + settings.max_shift_px):
        raise DataError(
            f"evaluate.border_px and evaluate.max_shift_px: {border} + {settings.max_shift_px} pixels at each side"
            f" leave nothing of samples of {samples.hr.shape[-2]} x {samples.hr.shape[-1]} pixels; lower them"
        )
    parts = []
    inner = (..., slice(border, -border or None), slice(border, -border or None))
    for first in track(range(0, len(samples), BATCH), "evaluating"):
        rows = range(first, min(first + BATCH, len(samples)))
        images, hr, clear = predictions(resolver, samples, statistics, rows)
        columns: dict[str, Any] = {
            "sample_id": [samples.ids[row] for row in rows],
            "split": split,
            "target_date": [samples.target_date[row] for row in rows],
            "region": [samples.region[row] for row in rows],
        }
        hr, clear = hr[inner], clear[inner]
        for arm, image in images.items():
            scores = {
                "psnr": metrics.psnr(image[inner], hr, clear),
                "cpsnr": metrics.cpsnr(image[inner], hr, clear, settings.max_shift_px),
                "ssim": metrics.ssim(image[inner], hr, clear),
                "mae": metrics.mae(image[inner], hr, clear),
            }
            columns |= {f"{metric}_{arm}": values.double().numpy() for metric, values in scores.items()}
        parts.append(pd.DataFrame(columns))
    fixed = ["sample_id", "split", "target_date", "region"]
    return pd.concat(parts, ignore_index=True)[[*fixed, *(f"{metric}_{arm}" for metric in METRICS for arm in ARMS)]]


@torch.inference_mode()
def predictions(
    resolver: SuperResolver,
    samples: SampleSet,
    statistics: Mapping[str, Normalization],
    rows: Sequence[int],
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Images of each arm (B,C,4h,4w), the truth of the same shape, both in reflectance, and its mask (B,4h,4w)."""
    batch = whole_batch(samples, rows, statistics).to(next(resolver.model.parameters()).device)
    mean, std = batch.mean, batch.std
    frames = (batch.lr - mean[:, None]) / std[:, None]
    seen = slice(resolver.frames)
    aligned = align(frames, batch.clear, batch.shift)
    images = {
        "bicubic": bicubic_latest(frames, batch.clear),
        "temporal_mean": temporal_mean(frames, batch.clear),
        "sr": resolver.model(aligned[:, seen], batch.clear[:, seen], batch.shift[:, seen]).image,
    }
    reflectance = {arm: (image * std + mean).cpu() for arm, image in images.items()}
    return reflectance, batch.hr.cpu(), batch.hr_clear.cpu()


def pictures(
    resolver: SuperResolver, samples: SampleSet, statistics: Mapping[str, Normalization], row: int
) -> dict[str, NDArray[np.uint8]]:
    """The sample at `row` as PICTURES (4h,4w,3), in true colour: red, green, blue, with one stretch for all."""
    images, hr, clear = predictions(resolver, samples, statistics, [row])
    latest = to_reflectance(samples.lr[row, 0])
    shown = {
        "latest": latest.repeat_interleave(SCALE, dim=-1).repeat_interleave(SCALE, dim=-2),
        "bicubic": images["bicubic"][0],
        "sr": images["sr"][0],
        "truth": hr[0],
    }
    truth = hr[0, _RGB].flatten(1)
    usable = truth[:, clear[0].flatten() > 0.5]
    low, high = (usable if usable.numel() else truth).quantile(torch.tensor([0.01, 0.99]), dim=1)
    low, high = low[:, None, None], high[:, None, None]
    found = {}
    for name in PICTURES:
        stretched = ((shown[name][_RGB] - low) / (high - low).clamp(min=1e-3)).clamp(0, 1)
        found[name] = (stretched * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    return found


def summary(table: pd.DataFrame) -> dict[str, Any]:
    """Means over the samples, as the entry of a split in metrics.json."""
    found: dict[str, Any] = {"n_samples": len(table)}
    for metric in METRICS:
        found[metric] = {arm: float(table[f"{metric}_{arm}"].mean()) for arm in ARMS}
    found["win_rate_vs_bicubic"] = float((table["psnr_sr"] > table["psnr_bicubic"]).mean())
    return found


def smallest_gain(means: Mapping[str, Any]) -> float:
    """The gain of `summary` over its baselines, dB: the smallest of those in PSNR and in cPSNR over each of them.

    PSNR alone would credit a model for lying on the grid where the latest frame does not, cPSNR alone would forgive it
    a bias: a model is better when both say so. NaN where one of them is.
    """
    gains = [
        means[metric]["sr"] - means[metric][baseline]
        for metric in ("psnr", "cpsnr")
        for baseline in ARMS
        if baseline != "sr"
    ]
    return float(np.min(gains))


def write_gallery(
    folder: Path,
    table: pd.DataFrame,
    resolver: SuperResolver,
    samples: SampleSet,
    statistics: Mapping[str, Normalization],
    count: int,
    real: bool,
) -> list[dict[str, Any]]:
    """Write `<sample_id>_{latest,bicubic,sr,truth}.png` and gallery.json for `count` samples into `folder`.

    The samples are spread over the range of gains in PSNR, from the best to the worst. True colour, one stretch
    for all pictures of a sample. `real` says that the pictures show Sentinel-2, whose attribution they then carry.
    """
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    listing = []
    for row in _spread_over_gains(table, count):
        entry = table.iloc[row]
        # ids hold what a file name may not
        stem = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in entry["sample_id"])
        files = {name: f"{stem}_{name}.png" for name in PICTURES}
        attribution = f"Contains modified Copernicus Sentinel data {entry['target_date'][:4]}" if real else ""
        note = {"Copyright": attribution} if attribution else {}
        for name, picture in pictures(resolver, samples, statistics, row).items():
            matplotlib.image.imsave(aside / files[name], picture, metadata=note)
        listing.append(
            {
                "sample_id": entry["sample_id"],
                "target_date": entry["target_date"],
                "region": entry["region"],
                "psnr": {arm: float(entry[f"psnr_{arm}"]) for arm in ARMS},
                "files": files,
                "attribution": attribution,
            }
        )
    (aside / "gallery.json").write_text(json.dumps(listing, indent=1), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)
    return listing


def _spread_over_gains(table: pd.DataFrame, count: int) -> list[int]:
    gain = (table["psnr_sr"] - table["psnr_bicubic"]).to_numpy()
    order = np.argsort(-gain, kind="stable")
    order = order[np.isfinite(gain[order])]
    places = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)
    return [int(row) for row in order[places]]
