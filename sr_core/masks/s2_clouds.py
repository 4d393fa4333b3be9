"""Clouds, haze and cloud shadows in a Sentinel-2 series of four bands, from how each date departs from clear ground.

There is no thermal, cirrus or short-wave band to go by, so time does the work: bright sand is bright on every date,
a cloud is not. Method, after Zhang et al., An image transform to characterize haze (HOT), 2002, and Hagolle et al.,
A multi-temporal method for cloud detection (MTCD), 2010; the thresholds are our own, in reflectance.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, label

from sr_core.masks.morphology import Mask, dilate, opening

Reflectance = NDArray[np.float32]

CLEAR_QUANTILE = 0.25
"""The clear look of a pixel: clouds brighten it on less than three dates in four, shadows darken it on fewer than one."""
BRIGHTEST_GROUND = 0.20
"""Blue of the brightest clear ground over more than a few pixels (salt, sand): brighter `clear` ground was always cloudy."""
CLOUD_RISE = 0.045
"""A cloud raises blue by this over the clear look."""
HAZE_RISE = 0.03
"""It raises blue - red / 2 (HOT) by this too; bare soil raises red more than blue, which HOT cancels."""
MIN_CLOUD_BLUE = 0.10
"""Nothing darker in blue is cloud, whatever it was before (fresh soil after dark crops)."""
SPECK_PX = 1
"""Clouds are wider than single pixels."""


def cloud_mask(bands: Reflectance, valid: Mask) -> Mask:
    """Clouds, haze that hides the ground, and cloud shadows: (T, H, W), True where the ground is not seen well.

    `bands` (T, H, W, 4) is reflectance (blue, green, red, near infrared), top or bottom of atmosphere; `valid` is
    (T, H, W). Frames are compared with each other, so more dates give better masks; a single date is judged by its
    brightness alone.
    """
    seen = np.where(valid[..., None], bands, np.nan)
    clear = _clear_look(seen, valid)
    mask = np.zeros(valid.shape, bool)
    for index in range(len(bands)):
        blue, red = bands[index, ..., 0], bands[index, ..., 2]
        rise = blue - clear[..., 0]
        haze = rise - 0.5 * (red - clear[..., 2])
        cloud = (rise > CLOUD_RISE) & (haze > HAZE_RISE) & (blue > MIN_CLOUD_BLUE) & valid[index]
        mask[index] = opening(cloud, SPECK_PX)
    return mask & valid


def _clear_look(seen: Reflectance, valid: Mask) -> Reflectance:
    """Each pixel's clear reflectance (H, W, 4)."""
    look = np.full(seen.shape[1:], BRIGHTEST_GROUND, np.float32)
    known = valid.any(axis=0)
    look[known] = np.nanquantile(seen[:, known], CLEAR_QUANTILE, axis=0)
    return np.minimum(look, BRIGHTEST_GROUND)
