"""How well a sample's truth agrees with its input: MSE, PSNR and SSIM against the bicubic latest frame.

A low score means that the two do not show the same ground: land that changed between the dates, a cloud that no
mask caught, a coarse misregistration. A small shift alone should not count, so the scores are taken at the best
integer shift, found on NIR, where vegetation gives the most contrast.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate1d

from sr_core import BANDS

MAX_SHIFT = 3
"""High-resolution pixels that the truth may be displaced by in each direction."""

_NIR = BANDS.index("nir")
_RADIUS = 5
_K1, _K2 = 0.01, 0.03
_BEST_PSNR = 100.0

Image = NDArray[np.float32]


@dataclass(frozen=True)
class Scores:
    """Agreement of two images on reflectance; NaN where no pixel is clear."""

    mse: float
    psnr: float
    """dB, peak 1, all bands pooled; at most 100, so that identical images have a finite score."""
    ssim: float
    """Mean over bands and clear pixels."""
    shift: tuple[int, int]
    """Rows and columns by which `truth` was moved to fit."""


def score(truth: Image, estimate: Image, clear: NDArray[np.bool_], max_shift: int = MAX_SHIFT) -> Scores:
    """Compare `truth` with `estimate`, both (4, H, W) reflectance, over the pixels where `clear` (H, W) of `truth`.

    The truth is moved by every integer shift within +-`max_shift` pixels; the one of least NIR error counts. All
    shifts are compared on the same central pixels of `estimate`, so that none gains from leaving some out.
    """
    rows, columns = clear.shape
    if min(rows, columns) <= 2 * max_shift:
        raise ValueError(f"image of {rows} x {columns} pixels: too small for shifts of +-{max_shift}")

    def moved(shift: tuple[int, int]) -> tuple[slice, slice]:
        return (
            slice(max_shift - shift[0], rows - max_shift - shift[0]),
            slice(max_shift - shift[1], columns - max_shift - shift[1]),
        )

    centre = (..., *moved((0, 0)))
    fixed = estimate[centre]

    def nir_error(shift: tuple[int, int]) -> float:
        usable = clear[moved(shift)]
        difference = truth[_NIR][moved(shift)] - fixed[_NIR]
        return float(np.mean(difference[usable] ** 2, dtype=np.float64)) if usable.any() else math.inf

    span = range(-max_shift, max_shift + 1)
    # of equal errors the smallest shift
    shifts = sorted(((dy, dx) for dy in span for dx in span), key=lambda s: (abs(s[0]) + abs(s[1]), s))
    best = min(shifts, key=nir_error)
    usable = clear[moved(best)]
    if not usable.any():
        return Scores(math.nan, math.nan, math.nan, (0, 0))
    # where the truth is hidden both show the same, so that windows reaching over the edge see no difference
    placed = np.where(usable, truth[(..., *moved(best))], fixed)
    mse = float(np.mean((placed - fixed)[:, usable] ** 2, dtype=np.float64))
    return Scores(mse, psnr_of(mse), _mean_ssim(placed, fixed, usable), best)


def psnr_of(mse: float) -> float:
    """Peak signal-to-noise ratio in dB of reflectance in [0, 1], at most 100."""
    return min(-10.0 * math.log10(mse), _BEST_PSNR) if mse > 0 else _BEST_PSNR


def ssim_map(one: Image, other: Image, data_range: float = 1.0) -> Image:
    """Structural similarity (..., H, W) in an 11 x 11 Gaussian window of 1.5 pixels; edges mirrored.

    Source: Wang, Bovik, Sheikh, Simoncelli, Image quality assessment: from error visibility to structural
    similarity, IEEE Transactions on Image Processing 13, 2004.
    """
    x, y = one.astype(np.float64), other.astype(np.float64)
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = (_K1 * data_range) ** 2, (_K2 * data_range) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity /= (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    result: Image = similarity.astype(np.float32)
    return result


def _mean_ssim(one: Image, other: Image, usable: NDArray[np.bool_]) -> float:
    inner = np.zeros_like(usable)
    inner[_RADIUS:-_RADIUS, _RADIUS:-_RADIUS] = True
    # a sliver of clear ground along the edge has no whole window
    counted = usable & inner if (usable & inner).any() else usable
    return float(np.mean(ssim_map(one, other)[:, counted], dtype=np.float64))


def _blur(image: NDArray[np.float64]) -> NDArray[np.float64]:
    taps = np.exp(-0.5 * (np.arange(-_RADIUS, _RADIUS + 1) / 1.5) ** 2)
    taps /= taps.sum()
    blurred = correlate1d(correlate1d(image, taps, axis=-1), taps, axis=-2)
    return np.asarray(blurred, np.float64)
