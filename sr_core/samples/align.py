"""VHR moved onto the grid of the Sentinel-2 frames that it is to be compared with."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, binary_erosion, distance_transform_edt, shift

from sr_core.patches import VHR_GSD
from sr_core.series import VHRSeries

SUPPORT = np.ones((5, 5), bool)
"""Pixels that the spline of a moved pixel leans on, around the whole pixel nearest to where it comes from."""


def align_vhr(vhr: VHRSeries) -> VHRSeries:
    """The series with each acquisition moved by its displacement; as it is where that is not known.

    Images are moved by cubic splines. Masks are moved by whole pixels and give way to what is uncertain: a pixel is
    clear where all that its spline leans on is, and shadow where any of that is. What comes from outside the patch is
    0 and not clear.
    """
    bands, clear, shadow = vhr.bands.copy(), vhr.clear.copy(), vhr.shadow.copy()
    for index, displacement in enumerate(vhr.shifts_m):
        if not np.isfinite(displacement).all():
            continue
        pixels = displacement.astype(float) / VHR_GSD
        whole = np.rint(pixels).astype(int)
        data = vhr.bands[index].any(axis=-1)
        bands[index] = _move_image(vhr.bands[index], data, pixels)
        bands[index][~_move_mask(binary_erosion(data, SUPPORT, border_value=1), whole)] = 0
        clear[index] = _move_mask(binary_erosion(vhr.clear[index], SUPPORT, border_value=1), whole)
        shadow[index] = _move_mask(binary_dilation(vhr.shadow[index], SUPPORT), whole)
    remaining = (vhr.shifts_m * np.float32(0)).astype(np.float32)  # NaN stays
    return replace(vhr, bands=bands, clear=clear, shadow=shadow, shifts_m=remaining)


def _move_image(image: NDArray[np.uint16], data: NDArray[np.bool_], pixels: NDArray[np.float64]) -> NDArray[np.uint16]:
    """(H, W, C) so that what it shows at p comes to lie at p + pixels; pixels without data take their nearest's."""
    if not data.any():
        return image
    if not data.all():
        image = image[tuple(distance_transform_edt(~data, return_distances=False, return_indices=True))]
    moved = np.stack(
        [shift(band.astype(np.float32), pixels, order=3, mode="nearest") for band in np.moveaxis(image, -1, 0)], axis=-1
    )
    counts: NDArray[np.uint16] = np.clip(np.rint(moved), 1, np.iinfo(np.uint16).max).astype(np.uint16)
    return counts


def _move_mask(mask: NDArray[np.bool_], pixels: NDArray[np.int_]) -> NDArray[np.bool_]:
    """(H, W) moved by whole pixels, False where that is from outside."""
    rows, columns = mask.shape
    down, right = (int(np.clip(step, -size, size)) for step, size in zip(pixels, mask.shape, strict=True))
    moved = np.zeros_like(mask)
    moved[max(0, down) : rows + min(0, down), max(0, right) : columns + min(0, right)] = mask[
        max(0, -down) : rows + min(0, -down), max(0, -right) : columns + min(0, -right)
    ]
    return moved
