"""What real instruments say of a model where there is no truth at 2.5 m.

Wald's protocol judges a model on frames that were made, through a point-spread function that was assumed. These checks
use frames that real instruments delivered, each against bicubic interpolation as the yardstick:

- `cross_band`: Sentinel-2's 20 m band B8A, an instrument of its own, through the model, against the real 10 m band B08
  of the same pass;
- `held_out_pass`: the model's 2.5 m image of one pass, sampled where the next pass lies (a fraction of a pixel beside),
  against that pass, which it has not seen;
- `wald`: the protocol that does need an assumption, over the whole place, to be compared with published figures;
- `consistency`: the image degraded back, against the frame that it was made from;
- `noise_gain`: its fine detail on the flattest ground, where there is nothing but noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from sr_core import BANDS, REFLECTANCE_SCALE, SCALE
from sr_core.errors import DataError, SourceError
from sr_core.evaluation.baselines import bicubic_latest, temporal_mean
from sr_core.models.alignment import translate
from sr_core.models.bundle import SuperResolver
from sr_core.models.normalization import Normalization
from sr_core.radiometry.resample import bicubic_upsample, degrade
from sr_core.samples.frames import choose_frames
from sr_core.samples.pairs import degrade_clear
from sr_core.series import S2Series

Image = NDArray[np.float32]

NIR = BANDS.index("nir")
MAX_AGE_DAYS = 100
MAX_CLOUD = 0.02
"""Frames cloudier than this are left out: judged is the image, not the mask."""
MAX_WALD_CLOUD = 0.05
WALD_MTF = 0.3
BORDER_PX = 4
"""Pixels of 10 m at each side that are not judged."""
MTFS = (0.15, 0.2, 0.25, 0.3, 0.35)
"""The instrument's own is not known better: each arm is judged at the one that suits it best."""
VISIBLE_MTF = 0.25
"""At the 20 m Nyquist frequency, of the visible bands that keep B8A company."""
LEAST_SHIFT_PX = 0.2
"""Passes that lie on each other ask nothing of an image's fine detail."""
MAX_DAYS_APART = 12
FLATTEST = 0.02
WINDOW_PX = 8
"""Side of the windows that are searched for flat ground, pixels of 10 m."""


@dataclass(frozen=True)
class Stack:
    """What a model is given for one target date, on that date's own grid: latest first."""

    frames: NDArray[np.uint16]
    """(T,4,H,W)"""
    clear: NDArray[np.bool_]
    shifts: NDArray[np.float32]
    dates: list[int]
    """Places in the series."""

    def super_resolved(self, resolver: SuperResolver, place: Normalization) -> Image:
        """(4,4H,4W) in reflectance."""
        return resolver.predict(self.frames, self.clear, place, "float32", self.shifts)

    @property
    def latest(self) -> Image:
        """(4,H,W) in reflectance."""
        latest: Image = self.frames[0].astype(np.float32) / REFLECTANCE_SCALE
        return latest


def held_out_pass(resolver: SuperResolver, series: S2Series, place: Normalization, most: int = 8) -> dict[str, Any]:
    """How well the pass before predicts a pass that lies a fraction of a pixel beside it.

    Each band's gain and offset are fitted, in all arms. `interpolated`: the earlier frame moved by Lanczos
    interpolation; `bicubic` and `sr`: its 2.5 m image seen through Sentinel-2's point-spread function where the later
    pass lies. Returns the mean PSNR of each arm in dB over at most `most` pairs.
    """
    pairs = list(_displaced_pairs(series))
    if not pairs:
        return {"pairs": 0}
    rows: list[dict[str, float]] = []
    for first, second in _spread(pairs, most):
        stack = _stack(series, first)
        shift = series.shifts[second] - series.shifts[first]
        truth = np.moveaxis(series.bands[second], -1, 0).astype(np.float32) / REFLECTANCE_SCALE
        seen = series.clear[first] & series.clear[second]
        moved = translate(torch.from_numpy(stack.latest)[None], torch.from_numpy(-shift)[None])[0].numpy()
        at = (float(shift[0]), float(shift[1]))
        arms = {
            "interpolated": [moved],
            "bicubic": [degrade(bicubic_upsample(stack.latest), SCALE, mtf, at) for mtf in MTFS],
            "sr": [degrade(image, SCALE, mtf, at) for image in [stack.super_resolved(resolver, place)] for mtf in MTFS],
        }
        rows.append({arm: max(_fitted_psnr(image, truth, seen) for image in images) for arm, images in arms.items()})
    return {"pairs": len(rows), "psnr": {arm: float(np.mean([row[arm] for row in rows])) for arm in rows[0]}}


def wald(resolver: SuperResolver, series: S2Series, place: Normalization, most: int = 8) -> dict[str, Any]:
    """Frames degraded to 40 m (MTF 0.3 at Nyquist), super-resolved to 10 m, against the real 10 m frame.

    Of the latest `most` dates that are clear by 95 %, from as many clear frames as the model sees. Returns the mean
    PSNR over dates, dB on reflectance over clear pixels inside the border, of `bicubic`, `temporal_mean` and `sr`.
    """
    enough = np.flatnonzero(series.clear.mean(axis=(1, 2)) >= 1.0 - MAX_WALD_CLOUD)
    rows = []
    for date in enough[-most:].tolist():
        stack = _stack(series, date, MAX_WALD_CLOUD)
        chosen = stack.dates[: resolver.frames]
        degraded = [degrade_clear(series.bands[one], series.clear[one], WALD_MTF) for one in chosen]
        frames = np.stack([np.moveaxis(image, -1, 0) for image, _ in degraded])
        clear = np.stack([seen for _, seen in degraded])
        shifts = stack.shifts[: resolver.frames] / np.float32(SCALE)
        integers = frames.round().astype(np.uint16)
        tensors = torch.from_numpy(integers.astype(np.float32) / REFLECTANCE_SCALE)[None], torch.from_numpy(clear)[None]
        images = {
            "bicubic": bicubic_latest(*tensors)[0].numpy(),
            "temporal_mean": temporal_mean(*tensors)[0].numpy(),
            "sr": resolver.predict(integers, clear, place, "float32", shifts),
        }
        truth = np.moveaxis(series.bands[date], -1, 0).astype(np.float32) / REFLECTANCE_SCALE
        inner = (slice(BORDER_PX, -BORDER_PX), slice(BORDER_PX, -BORDER_PX))
        seen = series.clear[date][inner]
        rows.append({arm: _psnr(np.square(image - truth)[:, *inner][:, seen]) for arm, image in images.items()})
    mean = {arm: float(np.mean([row[arm] for row in rows])) for arm in rows[0]} if rows else {}
    return {"dates": len(rows), "psnr": mean}


def consistency(resolver: SuperResolver, series: S2Series, place: Normalization, most: int = 8) -> dict[str, Any]:
    """Mean absolute difference, in reflectance, between the latest frame and the image of it degraded back, of `sr` and
    `bicubic`, at each MTF of `MTFS`; mean over at most `most` dates."""
    found: dict[str, dict[float, list[float]]] = {arm: {mtf: [] for mtf in MTFS} for arm in ("bicubic", "sr")}
    dates = _spread(_targets(series), most)
    for date in dates:
        stack = _stack(series, date)
        images = {"bicubic": bicubic_upsample(stack.latest), "sr": stack.super_resolved(resolver, place)}
        for arm, image in images.items():
            for mtf in MTFS:
                difference = np.abs(degrade(image, SCALE, mtf) - stack.latest)
                found[arm][mtf].append(float(difference[:, stack.clear[0]].mean()))
    return {
        "dates": len(dates),
        "mae": {arm: {f"{mtf:g}": float(np.mean(found[arm][mtf])) for mtf in MTFS} for arm in found},
    }


def noise_gain(resolver: SuperResolver, series: S2Series, place: Normalization, most: int = 8) -> dict[str, Any]:
    """Fine detail of `sr` over that of `bicubic` on the flattest ground, a value a band.

    Flat are the windows whose mean over the other dates has least detail; detail is the standard deviation within a
    window less its plane. Above 1 the model amplifies noise, below it takes noise away. Median over windows and dates.
    """
    dates = _targets(series)
    ratios = []
    for date in _spread(dates, most) if len(dates) > 1 else []:
        stack = _stack(series, date)
        others = [other for other in dates if other != date]
        ground = series.bands[others].astype(np.float64).mean(axis=0)
        roughness = (_detail(ground, WINDOW_PX) / ground.std(axis=(0, 1))).mean(axis=1)
        flat = np.argsort(roughness, kind="stable")[: max(4, int(len(roughness) * FLATTEST))]
        detail = {
            arm: _detail(np.moveaxis(image, 0, -1), WINDOW_PX * SCALE)[flat]
            for arm, image in (
                ("bicubic", bicubic_upsample(stack.latest)),
                ("sr", stack.super_resolved(resolver, place)),
            )
        }
        ratios.append(np.median(detail["sr"] / detail["bicubic"], axis=0))
    gain = dict(zip(BANDS, np.median(ratios, axis=0).tolist(), strict=True)) if ratios else {}
    return {"dates": len(ratios), "ratio": gain}


def cross_band(resolver: SuperResolver, series: S2Series, b8a: NDArray[np.uint16], most: int = 24) -> dict[str, Any]:
    """B8A, which is real at 20 m, super-resolved to 5 m and averaged to 10 m, against the real B08 of the same pass.

    `series` at 10 m, `b8a` (T,H/2,W/2) of the same dates. The visible bands are brought to 20 m. B8A and B08 differ a
    little in wavelength: gain and offset are fitted. Returns means over at most `most` dates: `correlation`, and `psnr`
    (dB, cPSNR with the fit in place of the bias and a search of a fraction of a pixel), of `bicubic` and `sr`.
    """
    coarse = _at_20m(series, b8a)
    place = Normalization.from_series(np.moveaxis(coarse.bands, -1, 1), coarse.clear)
    rows = []
    dates = _spread(_targets(coarse), most)
    for date in dates:
        stack = _stack(coarse, date)
        truth = series.bands[None, date, :, :, NIR].astype(np.float32) / np.float32(REFLECTANCE_SCALE)
        images = {"bicubic": bicubic_upsample(stack.latest[NIR:]), "sr": stack.super_resolved(resolver, place)[NIR:]}
        row = {}
        for arm, image in images.items():
            row[arm] = _registered(_halved(image), truth, series.clear[date])
        rows.append(row)
    if not rows:
        return {"dates": 0}
    means = {arm: np.mean([row[arm] for row in rows], axis=0) for arm in ("bicubic", "sr")}
    return {
        "dates": len(rows),
        "correlation": {arm: float(mean[0]) for arm, mean in means.items()},
        "psnr": {arm: float(mean[1]) for arm, mean in means.items()},
        "win_rate": float(np.mean([row["sr"][1] > row["bicubic"][1] for row in rows])),
    }


def read_20m(folder: Path, series: S2Series, band: str = "B8A") -> NDArray[np.uint16]:
    """A 20 m band (T,H/2,W/2) of the NetCDF site in `folder` that the series was read from, at the series' dates.

    `series.product_ids` name file and place. Raises `SourceError` for a series of another kind, or a missing file.
    """
    names = {name.rpartition("#")[0] for name in series.product_ids}
    name = names.pop() if len(names) == 1 else ""
    path = folder / (name.replace("_10m_", "_20m_") + ".nc")
    if "_10m_" not in name or not path.is_file():
        raise SourceError(
            f"{folder}: no 20 m file beside {name or 'the series'}; expected NetCDF sites S2_L2A_20m_*.nc"
        )
    with h5py.File(path) as file:
        if band not in file:
            raise SourceError(f"{path}: {band} is missing; found {', '.join(sorted(file))}")
        values = np.asarray(file[band])
    chosen: NDArray[np.uint16] = values[[int(name.rpartition("#")[2]) for name in series.product_ids]]
    return chosen


def _at_20m(series: S2Series, b8a: NDArray[np.uint16]) -> S2Series:
    count, rows, columns = series.clear.shape
    if b8a.shape != (count, rows // 2, columns // 2):
        raise DataError(f"20 m band: found shape {b8a.shape}, expected {(count, rows // 2, columns // 2)}")
    visible = degrade(np.moveaxis(series.bands[..., :NIR], -1, 1).astype(np.float32), 2, VISIBLE_MTF)
    bands = np.concatenate([np.moveaxis(visible.round().astype(np.uint16), 1, -1), b8a[..., None]], axis=-1)
    clear = series.clear.reshape(count, rows // 2, 2, columns // 2, 2).all(axis=(2, 4)) & (b8a > 0)
    return replace(series, bands=bands, clear=clear, shifts=series.shifts / np.float32(2))


def _stack(series: S2Series, target: int, max_cloud: float = MAX_CLOUD) -> Stack:
    """The frames of a target date, as `choose_frames` takes them, on the target's grid."""
    clearness = series.clear[: target + 1].mean(axis=(1, 2))
    dates = choose_frames(
        series.timestamps[: target + 1],
        clearness,
        series.timestamps[target],
        frames=16,
        max_age_days=MAX_AGE_DAYS,
        max_cloud=max_cloud,
    )
    return Stack(
        np.moveaxis(series.bands[dates], -1, 1),
        series.clear[dates],
        series.shifts[dates] - series.shifts[target],
        dates,
    )


def _targets(series: S2Series) -> list[int]:
    """Dates that are clear throughout: nothing in them has to be filled."""
    return [int(date) for date in np.flatnonzero(series.clear.all(axis=(1, 2)))]


def _displaced_pairs(series: S2Series) -> Iterator[tuple[int, int]]:
    """Clear dates and the clear date next to each, a fraction of a pixel beside it."""
    dates = _targets(series)
    for first, second in pairwise(dates):
        near = (series.timestamps[second] - series.timestamps[first]).days <= MAX_DAYS_APART
        fraction = np.abs(series.shifts[second] - series.shifts[first])
        if near and np.abs(fraction - fraction.round()).max() >= LEAST_SHIFT_PX:
            yield first, second


def _halved(image: Image) -> Image:
    """The mean of each 2 x 2 pixels of (C,H,W)."""
    bands, rows, columns = image.shape
    halved: Image = image.reshape(bands, rows // 2, 2, columns // 2, 2).mean(axis=(2, 4), dtype=np.float32)
    return halved


def _registered(image: Image, truth: Image, clear: NDArray[np.bool_]) -> tuple[float, float]:
    """Correlation and fitted PSNR at the shift, of up to half a pixel in steps of an eighth, that fits best."""
    steps = np.arange(-4, 5) / 8
    shifts = torch.tensor([(down, across) for down in steps for across in steps], dtype=torch.float32)
    moved = translate(torch.from_numpy(image)[None].expand(len(shifts), -1, -1, -1), shifts).numpy()
    inner = (slice(BORDER_PX, -BORDER_PX), slice(BORDER_PX, -BORDER_PX))
    seen = clear[inner]
    wanted = truth[0][inner][seen]
    correlations = [float(np.corrcoef(one[0][inner][seen], wanted)[0, 1]) for one in moved]
    best = int(np.nanargmax(correlations))
    return correlations[best], _fitted_psnr(moved[best], truth, clear)


def _fitted_psnr(image: Image, truth: Image, clear: NDArray[np.bool_]) -> float:
    """PSNR in dB of (C,H,W) over clear pixels inside the border, each band's gain and offset fitted."""
    inner = (slice(BORDER_PX, -BORDER_PX), slice(BORDER_PX, -BORDER_PX))
    seen = clear[inner]
    errors = []
    for band, wanted in zip(image, truth, strict=True):
        x, y = band[inner][seen].astype(np.float64), wanted[inner][seen].astype(np.float64)
        gain = np.cov(x, y)[0, 1] / max(x.var(ddof=1), 1e-12)
        errors.append(((y - y.mean() - gain * (x - x.mean())) ** 2).mean())
    return _psnr(np.asarray(errors))


def _psnr(squared: NDArray[np.floating]) -> float:
    """dB, of squared differences of reflectance."""
    return float(-10 * np.log10(max(float(squared.mean(dtype=np.float64)), 1e-12)))


def _detail(image: NDArray[Any], side: int) -> NDArray[np.float64]:
    """Standard deviation less the plane in each window of `side` pixels of (H,W,C): (windows, C)."""
    rows, columns = image.shape[0] // side, image.shape[1] // side
    blocks = image[: rows * side, : columns * side].reshape(rows, side, columns, side, -1).astype(np.float64)
    pixels = blocks.swapaxes(1, 2).reshape(rows * columns, side**2, -1)
    down, across = np.mgrid[:side, :side]
    plane, _ = np.linalg.qr(np.stack([np.ones(side**2), down.ravel(), across.ravel()], axis=1))
    deviation: NDArray[np.float64] = (pixels - plane @ (plane.T @ pixels)).std(axis=1)
    return deviation


def _spread(items: Sequence[Any], most: int) -> list[Any]:
    return [items[index * len(items) // most] for index in range(most)] if len(items) > most else list(items)
