"""Cloud shadows in VHR, by one of two rules.

The neighbour rule drops patches: one that touches a cloudy patch at the same VHR time is suspect. Source: Sinergise,
Multi-temporal Super-Resolution on Sentinel-2 Imagery, 2021.

The geometric rule drops pixels: clouds, those of the patch and of others around it, are projected along the sun's rays
for all heights that they may have, and of the ground that they may shade what is darker than Sentinel-2's clear frames
show it is taken for shadow. Source of the idea: Zhu and Woodcock, Object-based cloud and cloud shadow detection in
Landsat imagery, 2012. The satellite is taken to look straight down.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from shapely import STRtree
from shapely.geometry import box

from sr_core import SCALE
from sr_core.masks.morphology import Mask, closing, dilate, opening
from sr_core.masks.sun import Sun
from sr_core.patches import S2_GSD, Patch

Image = NDArray[np.float32]

CloudCover = Mapping[Patch, Mapping[dt.datetime, float]]

LOWEST_M, HIGHEST_M = 200.0, 4000.0
"""Heights of the clouds that cast shadows with an edge. Cumulus and stratus, which do, lie below; cirrus above hardly
darkens the ground."""
REACH_M = 6000.0
"""Shadows farther from their cloud than this (the highest under a sun 34 degrees high) are not looked for."""
DARK_NIR, DARK_RED = 0.75, 0.85
"""A shadow leaves at most this share of a clear day's light; a ploughed or flooded field darkens only one of them."""
SMOOTH_PX = 1.0
SMALLEST_PX = 2.0
"""Shadows are wider than twice this many pixels of 10 m; misregistered edges and single crowns are not."""
GAP_PX = 3.0
FIT_ROUNDS = 4


def shadowed_patches(cloud_cover: CloudCover, max_cloud_cover: float) -> set[tuple[Patch, dt.datetime]]:
    """Patches and times with a touching patch, in the same UTM zone, cloudier than `max_cloud_cover` at that time.

    Bounds touch when they share ground, an edge or a corner. A patch is not its own neighbour.
    """
    flagged: set[tuple[Patch, dt.datetime]] = set()
    for epsg in {patch.epsg for patch in cloud_cover}:
        patches = [patch for patch in cloud_cover if patch.epsg == epsg]
        outlines = [box(*patch.bounds) for patch in patches]
        for first, second in STRtree(outlines).query(outlines, predicate="intersects").T:
            patch, neighbour = patches[first], patches[second]
            if patch == neighbour:
                continue
            for time, cover in cloud_cover[neighbour].items():
                if cover > max_cloud_cover and time in cloud_cover[patch]:
                    flagged.add((patch, time))
    return flagged


def patches_that_may_shade(cloud_cover: CloudCover) -> dict[Patch, list[Patch]]:
    """To each patch the others of its UTM zone, within `REACH_M`, that are cloudy at a time at which it is seen."""
    near: dict[Patch, list[Patch]] = {patch: [] for patch in cloud_cover}
    for epsg in {patch.epsg for patch in cloud_cover}:
        patches = [patch for patch in cloud_cover if patch.epsg == epsg]
        outlines = [box(*patch.bounds) for patch in patches]
        for first, second in STRtree(outlines).query(outlines, predicate="dwithin", distance=REACH_M).T:
            patch, other = patches[first], patches[second]
            if patch != other and any(
                cover and time in cloud_cover[patch] for time, cover in cloud_cover[other].items()
            ):
                near[patch].append(other)
    return near


def shadow_offsets(sun: Sun) -> tuple[float, float, float, float]:
    """Unit vector from a shadow to its cloud (rows down, columns right), and the least and largest distance, metres."""
    azimuth, slope = math.radians(sun.azimuth), math.tan(math.radians(max(sun.elevation, 1.0)))
    return -math.cos(azimuth), math.sin(azimuth), LOWEST_M / slope, min(HIGHEST_M / slope, REACH_M)


def shade_zone(patch: Patch, clouds: Iterable[tuple[Patch, Mask]], sun: Sun) -> Mask:
    """Ground (H, W) of a patch, 10 m, that clouds of any height from `LOWEST_M` to `HIGHEST_M` may shade.

    `clouds` are masks (h, w) at 10 m of patches of the same UTM zone, the patch itself and any others.
    """
    down, right, least, most = shadow_offsets(sun)
    margin = math.ceil(most / S2_GSD) + 1
    rows, columns = patch.shape
    sky = np.zeros((rows + 2 * margin, columns + 2 * margin), bool)
    for other, mask in clouds:
        top = round((patch.bounds[3] - other.bounds[3]) / S2_GSD) + margin
        left = round((other.bounds[0] - patch.bounds[0]) / S2_GSD) + margin
        _paint(sky, mask, top, left)
    zone = np.zeros(patch.shape, bool)
    for distance in np.arange(least, most + S2_GSD, S2_GSD) / S2_GSD:
        row, column = margin + round(distance * down), margin + round(distance * right)
        zone |= sky[row : row + rows, column : column + columns]
    return zone


def _paint(sky: Mask, mask: Mask, top: int, left: int) -> None:
    """Add a mask to the sky at a place of it, as far as it lies inside."""
    bottom, right = top + mask.shape[0], left + mask.shape[1]
    inside = sky[max(0, top) : max(0, bottom), max(0, left) : max(0, right)]
    inside |= mask[max(0, -top) :, max(0, -left) :][: inside.shape[0], : inside.shape[1]]


def dark_ground(seen: Image, clear: Mask, frames: Image, frames_clear: Mask) -> Mask:
    """Ground (H, W) that is darker in red and near infrared than Sentinel-2's frames lead to expect.

    `seen` (H, W, 4) is VHR at 10 m in any unit, `clear` (H, W) without its clouds; `frames` (T, H, W, 4) with their
    `frames_clear` (T, H, W) show the same ground without shadow. False where no frame shows it.
    """
    known = np.where(frames_clear[..., None], frames.astype(np.float32), np.nan)
    shown = frames_clear.any(axis=0) & clear
    if not shown.any():
        return np.zeros(clear.shape, bool)
    dark = shown.copy()
    for band, share in ((2, DARK_RED), (3, DARK_NIR)):
        usual = np.zeros(clear.shape, np.float32)
        usual[shown] = np.nanmedian(known[..., band][:, shown], axis=0)
        gain, offset = _sunlit_line(usual[shown], seen[..., band][shown])
        lit = _smooth(seen[..., band] - offset, shown) / np.maximum(_smooth(gain * usual, shown), 1e-6)
        dark &= lit < share
    return dark


def _sunlit_line(usual: Image, seen: Image) -> tuple[float, float]:
    """Gain and offset from reflectance to the other unit, from the pixels that are not much darker than it says."""
    gain, offset = 1.0, 0.0
    used = np.ones(len(usual), bool)
    for _ in range(FIT_ROUNDS):
        centre = float(usual[used].mean())
        variance = float(((usual[used] - centre) ** 2).mean())
        gain = float(((usual[used] - centre) * seen[used]).mean()) / max(variance, 1e-12)
        offset = float(seen[used].mean()) - gain * centre
        # light that the atmosphere adds is none below zero, and no more than the darkest ground shows
        offset = min(max(offset, 0.0), float(np.percentile(seen, 1)))
        gain = float(np.median((seen[used] - offset) / np.maximum(usual[used], 1e-6)))
        used = seen - offset > 0.8 * gain * usual
        if used.mean() < 0.1:
            break
    return gain, offset


def _smooth(image: Image, known: Mask) -> Image:
    weight = np.maximum(gaussian_filter(known.astype(np.float32), SMOOTH_PX), 1e-6)
    smoothed: Image = gaussian_filter(np.where(known, image, 0).astype(np.float32), SMOOTH_PX) / weight
    return smoothed


def geometric_shadow(
    patch: Patch,
    clouds: Iterable[tuple[Patch, Mask]],
    sun: Sun,
    seen: Image,
    clear: Mask,
    frames: Image,
    frames_clear: Mask,
    dilate_px: float,
) -> Mask:
    """Shadow (H, W) at 10 m: dark ground that a cloud may shade, wider than edges and crowns are, grown by `dilate_px`.

    `clouds` and `sun` as for `shade_zone`, the rest as for `dark_ground`.
    """
    zone = shade_zone(patch, clouds, sun)
    if not (zone & clear).any():
        return zone & clear
    dark = zone & dark_ground(seen, clear, frames, frames_clear)
    return dilate(closing(opening(dark, SMALLEST_PX), GAP_PX), dilate_px) & clear


def coarse(mask: Mask) -> Mask:
    """A mask (4H, 4W) at 2.5 m at 10 m: True where any of its pixels is."""
    rows, columns = (size // SCALE for size in mask.shape)
    return np.asarray(mask.reshape(rows, SCALE, columns, SCALE).any(axis=(1, 3)), bool)
