"""Growing and shrinking masks by discs, through distances, so that the cost does not depend on the radius."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

Mask = NDArray[np.bool_]


def dilate(mask: Mask, radius: float) -> Mask:
    """All pixels of (H, W) within `radius` pixels of the mask."""
    if radius <= 0 or not mask.any():
        return mask.copy()
    return np.asarray(distance_transform_edt(~mask) <= radius, bool)


def erode(mask: Mask, radius: float) -> Mask:
    """Pixels of (H, W) farther than `radius` pixels from all outside the mask; the edge is not outside."""
    if radius <= 0 or mask.all():
        return mask.copy()
    return np.asarray(distance_transform_edt(mask) > radius, bool)


def opening(mask: Mask, radius: float) -> Mask:
    """The mask without parts narrower than a disc of `radius` pixels."""
    return dilate(erode(mask, radius), radius)


def closing(mask: Mask, radius: float) -> Mask:
    """The mask with gaps narrower than a disc of `radius` pixels filled."""
    return erode(dilate(mask, radius), radius)
