"""Co-registration of VHR with Sentinel-2: by how much an acquisition is displaced over a patch, and how sure that is.

The VHR image, degraded to 10 m, is compared by phase correlation with the clear Sentinel-2 frames nearest in time, each
on the series' common grid. The cross-power spectra of all frames and bands are summed before their peak is sought: each
frame folds detail beyond its Nyquist frequency in another way, and what they do not agree on averages out. Spectra are
whitened by half (divided by the root of their magnitude): whitened fully, the highest frequencies, where the folded
detail lies, weigh as much as the sound ones; not at all, the largest fields decide.

Source: Kuglin and Hines, The phase correlation image alignment method, 1975.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.fft import fft2

from sr_core import REFLECTANCE_SCALE
from sr_core.coregistration import (
    FINE_STEP,
    MIN_COMMON,
    MIN_CONFIDENCE,
    UNKNOWN,
    Registration,
    correlation_peak,
    fine_detail,
)
from sr_core.patches import S2_GSD
from sr_core.samples.pairs import S2_MTF, degrade_clear
from sr_core.series import S2Series

FRAMES = 6
"""An acquisition is compared with so many clear frames; more are farther away in time and show other crops."""
MAX_AGE_DAYS = 45
"""Frames farther away in time than this are not compared."""
MAX_SHIFT_M = 40.0
"""Larger displacements are not searched for."""
PART_SHIFT_M = 20.0
"""How far a part of the patch is sought from where the whole patch lies."""
COARSE_STEP = 0.1
CONTRAST = 0.02
"""Standard deviation of farmland's reflectance in a visible band, as an order of magnitude."""
PARTS = 2
"""The patch is cut into so many rows and columns of parts, to see whether they are displaced alike."""
TAPER_PX = 8
"""Edges are faded out over this many pixels: an image's opposite edges are neighbours to a Fourier transform."""

Spectrum = NDArray[np.complex128]
Detail = NDArray[np.float64]


def register_vhr(
    images: NDArray[np.uint16], clear: NDArray[np.bool_], timestamps: Sequence[dt.datetime], s2: S2Series
) -> list[Registration]:
    """Displacement of each VHR acquisition (T, 4H, 4W, 4), `clear` (T, 4H, 4W), relative to Sentinel-2's frames.

    Of the patch's frames the nearest in time count that show at least `MIN_COMMON` of the patch clearly together with
    the acquisition. The simulation's displacements are found to about 0.3 m.
    """
    frame_detail = lru_cache(maxsize=None)(lambda index: fine_detail(s2.bands[index], s2.clear[index]))
    found = []
    for image, seen_clearly, timestamp in zip(images, clear, timestamps, strict=True):
        if not seen_clearly.any():
            found.append(UNKNOWN)
            continue
        seen, common = degrade_clear(image, seen_clearly, S2_MTF)
        detail = fine_detail(_as_reflectance(seen, common), common)
        chosen = _nearest_frames(s2, common, timestamp)
        found.append(
            _register(detail, common, [_Frame(frame_detail(i), s2.clear[i] & common, s2.shifts[i]) for i in chosen])
        )
    return found


class _Frame(NamedTuple):
    detail: Detail
    common: NDArray[np.bool_]
    """Clear in this frame and in the VHR image."""
    shift: NDArray[np.float32]


def _register(detail: Detail, clear: NDArray[np.bool_], frames: Sequence[_Frame]) -> Registration:
    whole = _displacement(detail, frames, (0.0, 0.0), MAX_SHIFT_M / S2_GSD)
    if whole is None:
        return UNKNOWN
    rows, columns, confidence = whole
    offsets = []
    for window in _parts(clear.shape):
        cut = [_Frame(frame.detail[window], frame.common[window], frame.shift) for frame in frames]
        cut = [frame for frame in cut if frame.common.mean() >= MIN_COMMON]
        part = _displacement(detail[window], cut, (rows, columns), PART_SHIFT_M / S2_GSD)
        if part is not None and part[2] >= MIN_CONFIDENCE:
            offsets.append((part[0] - rows, part[1] - columns))
    spread = float(np.sqrt(np.mean(np.sum(np.square(offsets), axis=1)))) if len(offsets) > 1 else math.nan
    return Registration(rows * S2_GSD, columns * S2_GSD, confidence, spread * S2_GSD)


def _nearest_frames(s2: S2Series, clear: NDArray[np.bool_], timestamp: dt.datetime) -> list[int]:
    away = [abs(time - timestamp) for time in s2.timestamps]
    usable = [
        index
        for index, distance in enumerate(away)
        if distance <= dt.timedelta(days=MAX_AGE_DAYS) and (s2.clear[index] & clear).mean() >= MIN_COMMON
    ]
    return sorted(usable, key=away.__getitem__)[:FRAMES]


def _as_reflectance(seen: NDArray[np.float32], clear: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Whatever VHR's unit is, brought to the contrast of farmland in reflectance x 10000."""
    spread = seen[clear].std(axis=0) if clear.any() else np.ones(seen.shape[-1], np.float32)
    return seen * (CONTRAST * REFLECTANCE_SCALE / np.where(spread > 0, spread, 1)).astype(np.float32)


def _displacement(
    detail: Detail, frames: Sequence[_Frame], centre: tuple[float, float], reach: float
) -> tuple[float, float, float] | None:
    """Rows, columns (10 m pixels) and confidence of a VHR image's detail relative to the frames' common grid.

    Sought within `reach` of `centre`; None where there is no frame or the search ends at its edge.
    """
    if not frames:
        return None
    height, width = detail.shape[:2]
    fade = _fade(height)[:, None] * _fade(width)[None, :]
    summed, magnitude = np.zeros((height, width), np.complex128), np.zeros((height, width))
    for frame in frames:
        shown = (fade * frame.common)[..., None]
        one, other = (fft2(image * shown, axes=(0, 1)) for image in (detail, frame.detail))
        cross = one * other.conj()
        summed += cross.sum(axis=-1) * _moved(height, width, frame.shift)
        magnitude += np.abs(cross).sum(axis=-1)
    power = summed / np.sqrt(magnitude + np.finfo(float).tiny)
    coarse = np.arange(-round(reach / COARSE_STEP), round(reach / COARSE_STEP) + 1) * COARSE_STEP
    rows, columns = correlation_peak(power, coarse - centre[0], coarse - centre[1])
    if max(abs(rows + centre[0]), abs(columns + centre[1])) > reach - COARSE_STEP:
        return None
    fine = np.arange(-10, 11) * FINE_STEP
    rows, columns = correlation_peak(power, rows + fine, columns + fine)
    # the peak is where the frames have to move to lie on the VHR image; what a pixel shows moves the other way
    height_of_peak = float((power * _moved(height, width, (rows, columns))).real.sum())
    return -rows, -columns, max(0.0, height_of_peak / max(float(np.sqrt(magnitude).sum()), np.finfo(float).tiny))


def _moved(height: int, width: int, shift: Sequence[float] | NDArray[np.float32]) -> Spectrum:
    """Spectrum factor (H, W) of what lies at p + shift and is wanted at p."""
    down = np.fft.fftfreq(height)[:, None] * float(shift[0])
    across = np.fft.fftfreq(width)[None, :] * float(shift[1])
    return np.asarray(np.exp(2j * np.pi * (down + across)), np.complex128)


def _fade(size: int) -> NDArray[np.float64]:
    width = min(TAPER_PX, size // 4)
    ramp = 0.5 - 0.5 * np.cos(np.pi * (np.arange(width) + 0.5) / width)
    return np.concatenate([ramp, np.ones(size - 2 * width), ramp[::-1]])


def _parts(shape: tuple[int, ...]) -> Iterator[tuple[slice, slice]]:
    rows, columns = (np.linspace(0, size, PARTS + 1).astype(int) for size in shape[:2])
    for top, bottom in pairwise(rows):
        for left, right in pairwise(columns):
            yield slice(top, bottom), slice(left, right)
