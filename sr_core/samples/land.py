"""What kind of land a chip shows, from the four bands alone: enough that monotonous land does not fill a set."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sr_core import BANDS, REFLECTANCE_SCALE

KINDS = ("water", "bare", "sparse", "dense", "varied")
"""Monotonous land: open water, or vegetation by its greenness; and land on which there is something to see."""

BARE, DENSE = 0.3, 0.6
"""NDVI below which ground counts as bare, and from which on its vegetation counts as dense."""
UNIFORM = 0.8
"""Share of a chip's clear pixels of one kind from which on the chip is of that kind, otherwise it is varied."""
PLAIN = 0.015
"""Standard deviation of the near infrared, reflectance, above which a chip is varied: 99 of 100 chips of real savanna
(Okavango, at 40 m) have more."""

_GREEN, _RED, _NIR = (BANDS.index(name) for name in ("green", "red", "nir"))


def kind_of_land(frame: NDArray[np.uint16], clear: NDArray[np.bool_]) -> str:
    """One of `KINDS` for a frame (4, h, w) of reflectance x 10000 over the pixels that are `clear` (h, w).

    Source of the indices: NDVI, Rouse et al., Monitoring vegetation systems in the Great Plains with ERTS, 1974; NDWI,
    McFeeters, The use of the normalized difference water index, 1996.
    """
    green, red, nir = (frame[band][clear].astype(np.float32) for band in (_GREEN, _RED, _NIR))
    greenness = (nir - red) / np.maximum(nir + red, 1)
    kinds = np.where(green > nir, 0, 1 + np.digitize(greenness, (BARE, DENSE)))
    counts = np.bincount(kinds, minlength=len(KINDS) - 1)
    commonest = int(counts.argmax())
    uniform = len(kinds) and counts[commonest] >= UNIFORM * len(kinds) and nir.std() <= PLAIN * REFLECTANCE_SCALE
    return KINDS[commonest] if uniform else "varied"
