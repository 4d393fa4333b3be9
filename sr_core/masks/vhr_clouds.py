"""Clouds in VHR: bright in blue, and larger than roofs.

Threshold: Sinergise, Multi-temporal Super-Resolution on Sentinel-2 Imagery, 2021 (blue radiance above 100).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sr_core.masks.morphology import Mask, closing, dilate, opening

ROOF_PX = 6
"""Bright things narrower than twice this many pixels of 2.5 m (30 m) are roofs, greenhouses or sand, not clouds."""
GAP_PX = 8
"""Gaps in a cloud narrower than twice this many pixels (40 m) are thin cloud."""


def vhr_cloud_mask(blue: NDArray[np.float32], valid: Mask, threshold: float, dilate_px: int) -> Mask:
    """Clouds (T, H, W) from blue radiance (T, H, W) in W m-2 sr-1 um-1, grown by `dilate_px` pixels of 2.5 m."""
    clouds = np.zeros(blue.shape, bool)
    for index in range(len(blue)):
        bright = (blue[index] > threshold) & valid[index]
        clouds[index] = dilate(closing(opening(bright, ROOF_PX), GAP_PX), dilate_px)
    return clouds & valid
