"""Histogram matching of one image to another, over the pixels that are clear in both.

Method: histogram specification, Gonzalez and Woods, Digital Image Processing, section 3.3.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

TAIL = 0.5
"""Percent at each end where quantiles are too few to trust: beyond them the mapping goes on with a slope of the
ratio of spreads."""
KNOTS = 256


def match(
    source: NDArray[np.float32],
    reference: NDArray[np.float32],
    source_mask: NDArray[np.bool_],
    reference_mask: NDArray[np.bool_],
) -> NDArray[np.float32]:
    """`source` (H, W, C) with each band's distribution over `source_mask` (H, W) brought to that of `reference`
    (h, w, C) over `reference_mask` (h, w); the two need not be of one size. All pixels are mapped.

    The mapping is monotone: quantile to quantile between the `TAIL` percentiles, straight lines beyond.
    Raises `ValueError` where either mask is empty.
    """
    if not source_mask.any() or not reference_mask.any():
        raise ValueError("histogram matching: expected clear pixels in source and reference, found none")
    shares = np.linspace(TAIL, 100 - TAIL, KNOTS)
    result = np.empty_like(source, dtype=np.float32)
    for band in range(source.shape[-1]):
        taken = source[source_mask, band].astype(np.float64)
        wanted = reference[reference_mask, band].astype(np.float64)
        result[..., band] = _map(source[..., band], np.percentile(taken, shares), np.percentile(wanted, shares))
    return result


def _map(image: NDArray[np.float32], taken: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.float64]:
    # one value may hold many quantiles (a flat image): it maps to the mean of theirs
    knots, group = np.unique(taken, return_inverse=True)
    targets = np.bincount(group, weights=wanted) / np.bincount(group)
    spread = knots[-1] - knots[0]
    slope = (targets[-1] - targets[0]) / spread if spread > 0 else 1.0
    inside = np.interp(image, knots, targets)
    mapped: NDArray[np.float64] = inside + slope * (np.minimum(image - knots[0], 0) + np.maximum(image - knots[-1], 0))
    return mapped
