"""Between the grids: degradation through a Gaussian point-spread function, and bicubic upsampling.

Both keep pixel edges aligned: one low-resolution pixel is exactly `scale` x `scale` high-resolution ones.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sr_core import SCALE

Image = NDArray[np.float32]
CUBIC_A = -0.75
"""Keys' parameter; the value torch and OpenCV use."""


def psf_sigma(mtf: float, scale: int = SCALE) -> float:
    """Standard deviation, in high-resolution pixels, of the Gaussian whose modulation transfer function is
    `mtf` at the Nyquist frequency of the low-resolution grid."""
    return math.sqrt(-math.log(mtf) / 2.0) * 2.0 * scale / math.pi


def degrade(image: Image, scale: int = SCALE, mtf: float = 0.3, shift: tuple[float, float] = (0.0, 0.0)) -> Image:
    """Blur (..., H, W) through the point-spread function and sample it on the grid `scale` times coarser.

    `shift` (rows, columns) moves the sampling points, in low-resolution pixels: a misregistered acquisition.
    Edges are replicated. Returns (..., H / scale, W / scale).
    """
    rows, columns = image.shape[-2:]
    if rows % scale or columns % scale:
        raise ValueError(f"image of {rows} x {columns} pixels: expected multiples of {scale}")
    sigma = psf_sigma(mtf, scale)
    down = gaussian_matrix(rows, scale, sigma, shift[0])
    across = gaussian_matrix(columns, scale, sigma, shift[1])
    result: Image = down @ image.astype(np.float32, copy=False) @ across.T
    return result


def bicubic_upsample(image: Image, scale: int = SCALE) -> Image:
    """Upsample (..., h, w) to (..., h * scale, w * scale) by cubic convolution, edges replicated.

    Equal to torch's `interpolate(mode="bicubic", align_corners=False)`.
    Source: Keys, Cubic convolution interpolation for digital image processing, 1981.
    """
    rows, columns = image.shape[-2:]
    result: Image = _cubic_matrix(rows, scale) @ image.astype(np.float32, copy=False) @ _cubic_matrix(columns, scale).T
    return result


def gaussian_matrix(size: int, scale: int, sigma: float, shift: float = 0.0) -> Image:
    """(size / scale, size): each row samples a line of `size` pixels through a Gaussian of `sigma` pixels.

    `shift` moves the sampling points, in low-resolution pixels. Edges are replicated.
    """
    centres = (np.arange(size // scale) + 0.5 + shift) * scale - 0.5
    radius = math.ceil(4.0 * sigma)
    taps = np.arange(-radius, radius + 2)
    positions = np.floor(centres)[:, None] + taps
    weights = np.exp(-0.5 * ((positions - centres[:, None]) / sigma) ** 2)
    weights /= weights.sum(axis=1, keepdims=True)
    return _scatter(positions, weights, size)


@cache
def _cubic_matrix(size: int, scale: int) -> Image:
    centres = (np.arange(size * scale) + 0.5) / scale - 0.5
    positions = np.floor(centres)[:, None] + np.arange(-1, 3)
    distance = np.abs(positions - centres[:, None])
    near = ((CUBIC_A + 2) * distance - (CUBIC_A + 3)) * distance**2 + 1
    far = ((CUBIC_A * distance - 5 * CUBIC_A) * distance + 8 * CUBIC_A) * distance - 4 * CUBIC_A
    weights = np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
    matrix = _scatter(positions, weights, size)
    matrix.setflags(write=False)
    return matrix


def _scatter(positions: NDArray[Any], weights: NDArray[np.float64], size: int) -> Image:
    matrix = np.zeros((len(positions), size), np.float64)
    rows = np.broadcast_to(np.arange(len(positions))[:, None], positions.shape)
    np.add.at(matrix, (rows, np.clip(positions, 0, size - 1).astype(int)), weights)
    return matrix.astype(np.float32)
