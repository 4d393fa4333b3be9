"""Clouds, haze and cloud shadows in a Sentinel-2 series of four bands, from how each date departs from clear ground.

There is no thermal, cirrus or short-wave band to go by, so time does the work: bright sand is bright on every date,
a cloud is not; a harvested field stays bright, a cloud goes. Method, after Zhang et al., An image transform to
characterize and compensate for spatial variations in thin cloud contamination (HOT), 2002, and Hagolle et al., A
multi-temporal method for cloud detection (MTCD), 2010. The thresholds are our own, in reflectance; the figures behind
them are from a dry-land L1C series (Okavango) and two farmland L2A series (Belgium) with SCL.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from sr_core.masks.morphology import Mask, closing, dilate, opening

Reflectance = NDArray[np.float32]

CLEAR_QUANTILE = 0.25
"""A pixel's clear look over the whole series: most series have more clear dates than that, and fewer in shadow."""
SIDE_FRAMES = 5
"""Its look before and after a date comes from this many frames on each side, ..."""
SIDE_RANK = 1
"""... from the second darkest of them: the darkest may be in shadow."""
MOST_CHANGE = 0.04
"""Ground departs from its clear look by less than this in blue, however it changes; more was cloud."""
BRIGHTEST_GROUND = 0.20
"""Blue of the brightest ground wider than a few pixels (salt, sand); a brighter look was cloudy."""

CLOUD_RISE = 0.025
"""A cloud raises blue by this over the ground before and after."""
CLOUD_HOT = 0.018
"""And it raises blue - red / 2: bare soil raises red twice as much as blue, so that this stays."""
RELATIVE_RISE = 0.4
"""And it raises blue by this share of the ground's own: sun and gain change bright ground most."""
MIN_CLOUD_BLUE = 0.06
"""Nothing darker in blue is cloud."""

SHADOW_NIR = 0.72
"""A shadow leaves at most this share of the darker of the near infrareds before and after, ..."""
SHADOW_RED = 0.9
"""... and of the red: a ploughed or flooded field darkens one of the two only."""
SHADOW_REACH_PX = 150
"""Shadows fall within this many pixels (1.5 km) of a cloud: those of tops at 1.3 km under a sun 50 degrees from
zenith, and farther away dark ground is more often something else."""

DEEP_NIR, DEEP_RED = 0.65, 0.8
"""So dark in both, and wider than twice `DEEP_PX` pixels, it is the shadow of a cloud outside the patch."""
DEEP_PX = 3.0

SMOOTH_PX = 1.0
"""Noise and misregistered edges are narrower than clouds."""
SMALLEST_PX = 2.0
"""Clouds and shadows are wider than twice this many pixels; roofs and edges are not."""
GAP_PX = 3.0

VEIL_FROM = 0.05
"""A frame with more cloud than this may hold thin cloud between, ..."""
VEIL_CORRELATION = 0.7
"""... if its open ground does not correlate with that of any neighbour: clear frames among clear ones reach 0.74."""
VEIL_NEIGHBOURS = 4
MIN_OPEN = 0.3
"""Less open ground than this has too little detail to compare."""
VEIL_RISE = 0.010
VEIL_HOT = 0.008
"""Then these smaller rises, over the darker of the ground before and after, are cloud."""

HAZE_CONTRAST = 0.8
"""A frame under haze or cirrus keeps less than this of the contrast of clear ground in every visible band, ..."""
HAZE_RISE = 0.01
"""... and its darkest ground is brighter than on clearer dates by this in every band."""
HAZE_HOT = 0.007
"""Its darkest ground gains this in blue - red / 2: haze scatters blue, fields of another season do not."""
DARK_PERCENT = 1.0
DETAIL_PX = 6.0
"""Contrast is measured on detail finer than this many pixels."""
COVERED = 0.8
"""A frame with more cloud and shadow than this shows no ground that can be trusted: it is flagged whole."""


def cloud_mask(bands: Reflectance, valid: Mask) -> Mask:
    """Clouds, haze that hides the ground, and cloud shadows: (T, H, W), True where the ground is not seen well.

    `bands` (T, H, W, 4) is reflectance (blue, green, red, near infrared), top or bottom of atmosphere; `valid` is
    (T, H, W). Frames are compared with each other, so more dates give better masks; few dates are judged mostly by
    their brightness. Thin haze that keeps most of the contrast stays clear.
    """
    seen = np.where(valid[..., None], bands, np.nan).astype(np.float32)
    clear = _clear_look(seen)
    cloud = np.zeros(valid.shape, bool)
    for index in range(len(bands)):
        look = _brighter_side(seen, clear, index)
        cloud[index] = _clouds(seen[index], look, CLOUD_RISE, CLOUD_HOT, RELATIVE_RISE) & valid[index]
    hidden = cloud.copy()
    ground = np.where(cloud[..., None], np.nan, seen)
    for index in range(len(bands)):
        hidden[index] |= _shadows(seen[index], _darker_side(ground, clear, index), cloud[index]) & valid[index]
    for index in _veiled_frames(seen, hidden):
        ground_look = _darker_side(ground, clear, index)
        hidden[index] |= _clouds(seen[index], ground_look, VEIL_RISE, VEIL_HOT, 0.0) & valid[index]
    hazed = _hazed_frames(seen, hidden, clear)
    hidden[hazed] = valid[hazed]
    return hidden


def shadow_mask(bands: Reflectance, valid: Mask, cloud: Mask) -> Mask:
    """Shadows (T, H, W) beside clouds (T, H, W) that another method found; other arguments as for `cloud_mask`.

    Ground near a cloud that is darker than on the dates before and after, or so dark and wide that a cloud outside the
    patch must be the cause.
    """
    seen = np.where(valid[..., None], bands, np.nan).astype(np.float32)
    ground = np.where(cloud[..., None], np.nan, seen)
    clear = _clear_look(seen)
    return np.stack(
        [
            _shadows(seen[index], _darker_side(ground, clear, index), cloud[index]) & valid[index]
            for index in range(len(bands))
        ]
    )


def _clear_look(seen: Reflectance) -> Reflectance:
    """Each pixel's clear reflectance (H, W, 4) over the whole series."""
    look = _low(seen, CLEAR_QUANTILE)
    look[..., 0] = np.fmin(look[..., 0], BRIGHTEST_GROUND)
    return look


def _low(stack: Reflectance, quantile: float) -> Reflectance:
    """Quantile over time of the numbers, by rank; NaN where there are none."""
    ordered = np.sort(stack, axis=0)
    count = np.isfinite(stack).sum(axis=0)
    rank = np.floor(quantile * np.maximum(count - 1, 0)).astype(int)
    taken: Reflectance = np.take_along_axis(ordered, rank[None], axis=0)[0]
    return taken


def _side(frames: Reflectance) -> Reflectance:
    """How clear ground looked in the frames on one side of a date (H, W, 4)."""
    ordered = np.sort(frames, axis=0)
    second: Reflectance = ordered[min(SIDE_RANK, len(frames) - 1)]
    return np.where(np.isfinite(second), second, ordered[0])


def _brighter_side(seen: Reflectance, clear: Reflectance, index: int) -> Reflectance:
    """The brighter of the ground before and after a date, at most `MOST_CHANGE` above its clear look."""
    before, after = seen[max(0, index - SIDE_FRAMES) : index], seen[index + 1 : index + 1 + SIDE_FRAMES]
    sides = [_side(frames) for frames in (before, after) if len(frames)]
    look = np.fmax.reduce(sides) if sides else clear
    look = np.fmin(look, clear + MOST_CHANGE)
    return np.where(np.isfinite(look), look, clear)


def _darker_side(ground: Reflectance, clear: Reflectance, index: int) -> Reflectance:
    """The darker of the last look at the ground before a date and the next after it, clouds left out."""
    sides = []
    for frames in (ground[:index][::-1], ground[index + 1 :]):
        look = np.full(clear.shape, np.nan, np.float32)
        for frame in frames[:SIDE_FRAMES]:
            look = np.where(np.isfinite(look), look, frame)
        sides.append(look)
    look = np.fmin(*sides)
    return np.where(np.isfinite(look), look, clear)


def _clouds(frame: Reflectance, ground: Reflectance, least_rise: float, least_hot: float, share: float) -> Mask:
    """Where a frame (H, W, 4) is brighter than the ground by `least_rise` and by `share` of the ground's blue."""
    rise = _smooth(frame[..., 0] - ground[..., 0])
    hot = _smooth((frame[..., 0] - ground[..., 0]) - 0.5 * (frame[..., 2] - ground[..., 2]))
    cloud = (rise > np.maximum(least_rise, share * ground[..., 0])) & (hot > least_hot)
    cloud &= frame[..., 0] > MIN_CLOUD_BLUE
    return closing(opening(cloud, SMALLEST_PX), GAP_PX)


def _veiled_frames(seen: Reflectance, hidden: Mask) -> list[int]:
    """Frames with some cloud whose open ground looks like that of none of their neighbours."""
    open_ground = np.isfinite(seen[..., 0]) & ~hidden
    area = np.isfinite(seen[..., 0]).sum(axis=(1, 2))
    veiled = []
    for index in range(len(seen)):
        share = open_ground[index].sum() / max(1, area[index])
        if not MIN_OPEN < share < 1 - VEIL_FROM:
            continue
        around = [near for near in range(index - VEIL_NEIGHBOURS, index + VEIL_NEIGHBOURS + 1) if near != index]
        likeness = [
            _likeness(seen[index], seen[near], open_ground[index] & open_ground[near])
            for near in around
            if 0 <= near < len(seen) and (open_ground[index] & open_ground[near]).sum() > MIN_OPEN * area[index] / 2
        ]
        if likeness and max(likeness) < VEIL_CORRELATION:
            veiled.append(index)
    return veiled


def _likeness(frame: Reflectance, other: Reflectance, both: Mask) -> float:
    """Correlation of two frames' fine detail over the ground open in both; the least of the visible bands."""
    details = [[_detail(image[..., band], both)[both] for image in (frame, other)] for band in range(3)]
    return min(float(np.corrcoef(now, then)[0, 1]) for now, then in details)


def _shadows(frame: Reflectance, ground: Reflectance, cloud: Mask) -> Mask:
    nir = _smooth(frame[..., 3]) / np.maximum(_smooth(ground[..., 3]), 1e-4)
    red = _smooth(frame[..., 2]) / np.maximum(_smooth(ground[..., 2]), 1e-4)
    near = (nir < SHADOW_NIR) & (red < SHADOW_RED) & ~cloud & dilate(cloud, SHADOW_REACH_PX)
    deep = (nir < DEEP_NIR) & (red < DEEP_RED) & ~cloud
    return opening(near, SMALLEST_PX) | opening(deep, DEEP_PX)


def _hazed_frames(seen: Reflectance, hidden: Mask, clear: Reflectance) -> Mask:
    """Frames (T,) whose ground is veiled as a whole, or hidden for the most part."""
    known: Mask = np.isfinite(seen[..., 0])
    frames = np.where((hidden | ~known)[..., None], np.nan, seen)
    area = known.sum(axis=(1, 2))
    open_ground = np.isfinite(frames[..., 0]).sum(axis=(1, 2))
    hazed: Mask = np.asarray(open_ground < (1 - COVERED) * area, bool)
    usable = np.flatnonzero(~hazed & (area > 0))
    if len(usable) < 2:
        return hazed
    dark = np.stack([np.nanpercentile(frames[index], DARK_PERCENT, axis=(0, 1)) for index in usable])
    rise = dark - np.quantile(dark, CLEAR_QUANTILE, axis=0)
    for index, risen in zip(usable, rise, strict=True):
        veil = (risen > HAZE_RISE).all() and risen[0] - 0.5 * risen[2] > HAZE_HOT
        hazed[index] = veil and (_contrast(frames[index], clear) < HAZE_CONTRAST).all()
    return hazed


def _contrast(frame: Reflectance, clear: Reflectance) -> NDArray[np.float64]:
    """Slope of the frame's fine detail on that of clear ground, in each visible band."""
    slopes = []
    for band in range(3):
        both = np.isfinite(frame[..., band]) & np.isfinite(clear[..., band])
        now, usual = (_detail(image[..., band], both)[both] for image in (frame, clear))
        slopes.append(float(now @ usual) / max(float(usual @ usual), 1e-12))
    return np.array(slopes)


def _detail(image: Reflectance, known: Mask) -> Reflectance:
    filled = np.where(known, image, 0)
    weight = np.maximum(gaussian_filter(known.astype(np.float32), DETAIL_PX), 1e-6)
    detail: Reflectance = filled - gaussian_filter(filled, DETAIL_PX) / weight
    return detail


def _smooth(image: Reflectance) -> Reflectance:
    smoothed: Reflectance = gaussian_filter(np.nan_to_num(image), SMOOTH_PX)
    return smoothed
