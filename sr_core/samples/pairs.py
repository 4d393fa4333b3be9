"""Making pairs: frames in, the truth out.

Two ways to a truth. With VHR, the truth is a VHR acquisition brought to Sentinel-2's radiometry, and the
frames are the 10 m dates before it. Without, Wald's protocol: everything one step coarser, so that the frames
are degraded to 40 m and the truth is the real 10 m frame of the target date.

Source: Wald, Ranchin, Mangolini, Fusion of satellite images of different spatial resolutions: assessing the
quality of resulting images, Photogrammetric Engineering and Remote Sensing 63, 1997.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt

from sr_core import BANDS, REFLECTANCE_SCALE, SCALE
from sr_core.config import QualityGate
from sr_core.errors import ArtifactError
from sr_core.patches import S2_GSD, Patch
from sr_core.quality.scores import Scores, score
from sr_core.radiometry.histogram import agreeing
from sr_core.radiometry.resample import bicubic_upsample, degrade
from sr_core.samples.frames import age_days, choose_frames
from sr_core.samples.land import kind_of_land
from sr_core.samples.split import ChipWindow, footprint
from sr_core.samples.store import Candidate, Samples
from sr_core.series import S2Series, VHRSeries

Reasons = Mapping[tuple[dt.datetime, str], str]
"""Timestamp and tile of each acquisition to why it was dropped; "" where it is kept."""

ToReflectance = Callable[[NDArray[np.float32], str], NDArray[np.float32]]
"""VHR radiance (..., 4) and its tile id to reflectance in Sentinel-2's radiometry."""

MatchHistogram = Callable[
    [NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]], NDArray[np.float32]
]
"""Source and reference (H, W, 4) and their masks (H, W) to the source with the reference's histogram."""

S2_MTF = 0.3
"""Modulation transfer function of Sentinel-2's 10 m bands at their Nyquist frequency (specified: 0.15 to 0.30)."""

_NO_SCORES = Scores(float("nan"), float("nan"), float("nan"), (0, 0))


@dataclass(frozen=True)
class Frames:
    """What a model may see of one patch, time ascending."""

    patch: Patch
    gsd_m: float
    bands: NDArray[np.uint16]
    """(T, 4, h, w) reflectance x 10000."""
    clear: NDArray[np.bool_]
    """(T, h, w)."""
    timestamps: list[dt.datetime]
    shifts: NDArray[np.float32]
    """(T, 2) rows and columns by which each frame is displaced, in its own pixels."""


@dataclass(frozen=True)
class Truth:
    """What a model should make of it at one date."""

    timestamp: dt.datetime
    tile: str
    clear: NDArray[np.bool_]
    """(4h, 4w): to be compared."""
    data: NDArray[np.bool_]
    """(4h, 4w): measured at all."""
    shadow: NDArray[np.bool_] | None
    """(4h, 4w): flagged as shadow of a neighbour's cloud; None where nothing is flagged."""
    reason: str
    """Why the whole acquisition is dropped; "" where it is kept."""
    bands: Callable[[int], NDArray[np.uint16]]
    """Index of the latest frame to (4, 4h, 4w) reflectance x 10000, which may depend on it; 0 where not clear."""
    own_frame: int | None
    """The truth's own date among the frames: it has to be the latest; None for another sensor's truth."""


def vhr_pairs(
    s2: S2Series, vhr: VHRSeries, reasons: Reasons, to_reflectance: ToReflectance, match: MatchHistogram | None
) -> tuple[Frames, list[Truth]]:
    """Sentinel-2 frames at 10 m, and each VHR acquisition as a truth at 2.5 m.

    The truth is `to_reflectance(radiance, tile)`, then taken through the mapping that `match`es VHR, as Sentinel-2
    would see it, to the latest frame. The mapping is found at 10 m, because the histogram of a blurred image is
    narrower: matched to that, the truth would lose the very contrast that is to be learnt. It is found over the
    patch, not over a chip, where a handful of fields would make the histogram, and over the pixels that agree.
    """
    frames = Frames(s2.patch, S2_GSD, np.moveaxis(s2.bands, -1, 1), s2.clear, s2.timestamps, s2.shifts)
    truths = []
    for index, (timestamp, tile) in enumerate(zip(vhr.timestamps, vhr.tile_ids, strict=True)):
        clear = vhr.clear[index] & ~vhr.shadow[index]
        truths.append(
            Truth(
                timestamp,
                tile,
                clear,
                vhr.bands[index].any(axis=-1),
                vhr.shadow[index],
                _reason(reasons, s2.patch, timestamp, tile),
                _vhr_truth(frames, vhr, index, clear, to_reflectance, match),
                None,
            )
        )
    return frames, truths


def wald_pairs(s2: S2Series, reasons: Reasons, mtf: float) -> tuple[Frames, list[Truth]]:
    """Frames degraded to 40 m through a point-spread function of `mtf` at the 40 m Nyquist frequency, and each
    real 10 m frame as the truth of its own date.

    A degraded pixel is clear where all its 10 m pixels and the ring around them are.
    """
    count, rows, columns = s2.clear.shape
    low = (rows // SCALE, columns // SCALE)
    bands = np.zeros((count, len(BANDS), *low), np.uint16)
    clear = np.zeros((count, *low), bool)
    for index in range(count):
        if s2.clear[index].any():
            image, clear[index] = degrade_clear(s2.bands[index], s2.clear[index], mtf)
            bands[index] = _to_integers(np.moveaxis(image, -1, 0))
    frames = Frames(s2.patch, S2_GSD * SCALE, bands, clear, s2.timestamps, s2.shifts / np.float32(SCALE))
    truths = [
        Truth(
            timestamp,
            s2.product_ids[index],
            s2.clear[index],
            s2.bands[index].any(axis=-1),
            None,
            _reason(reasons, s2.patch, timestamp, s2.product_ids[index]),
            _real_frame(s2, index),
            index,
        )
        for index, timestamp in enumerate(s2.timestamps)
    ]
    return frames, truths


def degrade_clear(
    image: NDArray[np.floating | np.integer], clear: NDArray[np.bool_], mtf: float
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """An image (H, W, C) through the point-spread function, (H / 4, W / 4, C), and where the result is clear: where all
    4 x 4 pixels and the ring around them are.

    Before blurring, pixels that are not clear take the value of the nearest clear one, so that a cloud does not shine
    on its surroundings. At least one pixel has to be clear.
    """
    filled = image
    if not clear.all():
        nearest = distance_transform_edt(~clear, return_distances=False, return_indices=True)
        filled = image[tuple(nearest)]
    degraded = degrade(np.moveaxis(filled, -1, 0).astype(np.float32), SCALE, mtf)
    ringed = binary_erosion(clear, np.ones((3, 3), bool), border_value=1)
    rows, columns = degraded.shape[1:]
    return np.moveaxis(degraded, 0, -1), ringed.reshape(rows, SCALE, columns, SCALE).all(axis=(1, 3))


def cut(
    frames: Frames, truths: Sequence[Truth], windows: Sequence[ChipWindow], config: QualityGate
) -> tuple[list[Candidate], Samples]:
    """Cut the pair of every truth and window and score it, or say why there is none.

    Returns the candidates, truth by truth in the windows' order, and the samples of those that have scores; whether
    these are good enough is decided on the whole set (`sr_core.quality.selection`). A test candidate exists from
    `config.split.test_from` on only.
    """
    side = config.chip_px
    fractions = [frames.clear[:, w.row : w.row + side, w.column : w.column + side].mean(axis=(1, 2)) for w in windows]
    footprints = [footprint(frames.patch, window, frames.gsd_m, side) for window in windows]
    candidates: list[Candidate] = []
    kept: list[Samples] = []
    names: dict[str, int] = {}
    for truth in truths:
        for window, clear_fraction, geometry in zip(windows, fractions, footprints, strict=True):
            if window.split == "test" and not _in_test_period(truth.timestamp, config):
                continue
            reason = _unusable_truth(truth, window, clear_fraction, config)
            chosen: list[int] = []
            if not reason:
                # of Wald's truth, its own date is the latest frame
                upto = len(frames.timestamps) if truth.own_frame is None else truth.own_frame + 1
                chosen = choose_frames(
                    frames.timestamps[:upto],
                    clear_fraction[:upto],
                    truth.timestamp,
                    frames=config.frames,
                    max_age_days=config.max_age_days,
                    max_cloud=config.max_frame_cloud,
                )
                reason = _unusable_frames(frames, truth, chosen, config)
            scores, bias, land = _NO_SCORES, (math.nan,) * len(BANDS), ""
            if not reason:
                sample = _sample(frames, truth, window, chosen, config.frames, side)
                scores = _score(sample)
                if math.isnan(scores.psnr):
                    reason = "cloud"  # clear each, but nowhere together
                else:
                    kept.append(sample)
                    bias = _bias(sample)
                    land = kind_of_land(sample.lr[0, 0], sample.lr_clear[0, 0])
            name = f"{frames.patch.region}_{frames.patch.id}_{window.row:03d}_{window.column:03d}"
            name += f"_{truth.timestamp:%Y%m%dT%H%M%S}"
            # tiles of one pass overlap: the same chip and time, another truth
            names[name] = names.get(name, 0) + 1
            candidates.append(
                Candidate(
                    sample_id=name if names[name] == 1 else f"{name}-{names[name]}",
                    region=frames.patch.region,
                    patch=frames.patch.id,
                    tile=truth.tile,
                    split=window.split,
                    target_date=truth.timestamp,
                    latest_date=frames.timestamps[chosen[0]] if chosen else None,
                    n_frames=len(chosen),
                    lr_row=window.row,
                    lr_col=window.column,
                    ssim=scores.ssim,
                    psnr=scores.psnr,
                    mse=scores.mse,
                    bias_blue=bias[0],
                    bias_green=bias[1],
                    bias_red=bias[2],
                    bias_nir=bias[3],
                    land=land,
                    kept=not reason,
                    reason=reason,
                    geometry=geometry,
                )
            )
    return candidates, Samples.stack([Samples.zeros(0, config.frames, side), *kept])


def dropped_acquisitions(acquisitions: pd.DataFrame, patch: Patch, sensor: str) -> Reasons:
    """Reasons of one patch and sensor ("s2" or "vhr") from the table of acquisitions."""
    here = acquisitions[
        (acquisitions["region"] == patch.region)
        & (acquisitions["patch"] == patch.id)
        & (acquisitions["sensor"] == sensor)
    ]
    rows = zip(here["timestamp"], here["tile"], here["kept"], here["reason"], strict=True)
    return {
        (pd.Timestamp(timestamp).to_pydatetime(), str(tile)): "" if kept else str(reason)
        for timestamp, tile, kept, reason in rows
    }


def _reason(reasons: Reasons, patch: Patch, timestamp: dt.datetime, tile: str) -> str:
    try:
        return reasons[timestamp, tile]
    except KeyError:
        raise ArtifactError(
            f"acquisitions: no row for patch {patch.id}, {timestamp}, tile {tile!r}; run cloud_shadow_filter again"
        ) from None


def _in_test_period(timestamp: dt.datetime, config: QualityGate) -> bool:
    return config.split.test_from is None or timestamp.date() >= config.split.test_from


def _unusable_truth(truth: Truth, window: ChipWindow, clear_fraction: NDArray[np.floating], config: QualityGate) -> str:
    if truth.reason:
        return truth.reason
    chip = _high(window, config.chip_px)
    enough = 1.0 - config.max_frame_cloud
    if truth.clear[chip].mean() >= enough:
        own_is_cloudy = truth.own_frame is not None and clear_fraction[truth.own_frame] < enough
        return "cloud" if own_is_cloudy else ""
    if truth.data[chip].mean() < enough:
        return "nodata"
    return "shadow" if truth.shadow is not None and truth.shadow[chip].mean() > config.max_frame_cloud else "cloud"


def _unusable_frames(frames: Frames, truth: Truth, chosen: Sequence[int], config: QualityGate) -> str:
    if len(chosen) < config.min_frames:
        return "frames"
    age = age_days(frames.timestamps[chosen[0]], truth.timestamp)
    return "latest_age" if age > config.max_latest_age_days else ""


def _sample(frames: Frames, truth: Truth, window: ChipWindow, chosen: Sequence[int], count: int, side: int) -> Samples:
    """One sample; frames that are missing are zeros and not valid."""
    sample = Samples.zeros(1, count, side)
    low = (..., slice(window.row, window.row + side), slice(window.column, window.column + side))
    sample.lr[0, : len(chosen)] = frames.bands[list(chosen)][low]
    sample.lr_clear[0, : len(chosen)] = frames.clear[list(chosen)][low]
    sample.lr_valid[0, : len(chosen)] = True
    sample.lr_age[0] = -1
    sample.lr_age[0, : len(chosen)] = [age_days(frames.timestamps[index], truth.timestamp) for index in chosen]
    sample.lr_shift[0, : len(chosen)] = frames.shifts[list(chosen)]
    if truth.own_frame is not None:
        # the truth is the latest frame itself, so its grid is the one to be on
        sample.lr_shift[0, : len(chosen)] -= frames.shifts[truth.own_frame]
    high = _high(window, side)
    sample.hr[0] = truth.bands(chosen[0])[(slice(None), *high)]
    sample.hr_clear[0] = truth.clear[high]
    return sample


def _score(sample: Samples) -> Scores:
    truth = sample.hr[0].astype(np.float32) / REFLECTANCE_SCALE
    latest = bicubic_upsample(sample.lr[0, 0].astype(np.float32) / REFLECTANCE_SCALE)
    return score(truth, latest, sample.hr_clear[0] & _upsample_mask(sample.lr_clear[0, 0]))


def _bias(sample: Samples) -> tuple[float, ...]:
    """Median of each band of the truth less that of the latest frame, reflectance, each over its clear pixels."""
    truth = np.median(sample.hr[0][:, sample.hr_clear[0]], axis=1)
    latest = np.median(sample.lr[0, 0][:, sample.lr_clear[0, 0]], axis=1)
    return tuple(((truth - latest) / REFLECTANCE_SCALE).tolist())


def _vhr_truth(
    frames: Frames,
    vhr: VHRSeries,
    index: int,
    clear: NDArray[np.bool_],
    to_reflectance: ToReflectance,
    match: MatchHistogram | None,
) -> Callable[[int], NDArray[np.uint16]]:
    @lru_cache(maxsize=2)
    def bands(latest: int) -> NDArray[np.uint16]:
        radiance = vhr.bands[index].astype(np.float32) / np.float32(vhr.radiance_scale)
        image = to_reflectance(radiance, vhr.tile_ids[index])
        if match is not None:
            image = _match_as_seen(image, clear, frames, latest, match)
        integers = _to_integers(np.moveaxis(image, -1, 0) * np.float32(REFLECTANCE_SCALE))
        return np.where(clear, integers, np.uint16(0))

    return bands


def _match_as_seen(
    image: NDArray[np.float32], clear: NDArray[np.bool_], frames: Frames, latest: int, match: MatchHistogram
) -> NDArray[np.float32]:
    seen, seen_clear = degrade_clear(image, clear, S2_MTF)
    common = seen_clear & frames.clear[latest]
    if not common.any():
        return image
    frame = np.moveaxis(frames.bands[latest], 0, -1).astype(np.float32) / REFLECTANCE_SCALE
    same = agreeing(seen[common], frame[common])
    taken, wanted = seen[common][same], frame[common][same][:, None]
    # a mask chooses what makes the histogram, and all pixels are mapped: one column of pixels, coarse ones first
    pixels = np.concatenate([taken, image.reshape(-1, image.shape[-1])])[:, None]
    makes_histogram = np.arange(len(pixels))[:, None] < len(taken)
    mapped = match(pixels, wanted, makes_histogram, np.ones(wanted.shape[:2], bool))
    return mapped[len(taken) :, 0].reshape(image.shape)


def _real_frame(s2: S2Series, index: int) -> Callable[[int], NDArray[np.uint16]]:
    def bands(latest: int) -> NDArray[np.uint16]:
        return np.where(s2.clear[index], np.moveaxis(s2.bands[index], -1, 0), np.uint16(0))

    return bands


def _high(window: ChipWindow, side: int) -> tuple[slice, slice]:
    return (
        slice(window.row * SCALE, (window.row + side) * SCALE),
        slice(window.column * SCALE, (window.column + side) * SCALE),
    )


def _upsample_mask(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return mask.repeat(SCALE, axis=-2).repeat(SCALE, axis=-1)


def _to_integers(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Reflectance x 10000 in uint16; 0 stays for nodata."""
    return np.clip(np.rint(values), 1, np.iinfo(np.uint16).max).astype(np.uint16)
