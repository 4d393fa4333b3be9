"""Histogram matching of one image to another, over the pixels that are clear in both.

Method: histogram specification, Gonzalez and Woods, Digital Image Processing, section 3.3. Bright objects that only one
image shows (a roof in the sun, a bit of cloud that no mask caught) are kept from bending it in three ways: pixels that
disagree where the two images lie on each other (`agreeing`), values far outside the rest (`FENCE`), and the ends of the
distribution (`TAIL`) do not count.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

TAIL = 1.0
"""Percent at each end where quantiles are too few to trust: beyond them the mapping goes on with a slope of the
ratio of spreads."""
KNOTS = 256
FENCE = 1.5
"""Values farther outside the 5th to 95th percentiles than this many times the distance between these do not count."""
DISAGREE = 4.0
"""Pixels whose difference is this many robust standard deviations off disagree."""
NOISE = 0.005
"""Reflectance that pixels may always differ by."""
BINS = 32
"""Of pixels, ordered by value, through whose medians the curve of agreement runs."""
ENOUGH = 8192
"""Pixels from which that curve is found; all are then held against it."""


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
        taken = _inside_fence(source[source_mask, band])
        wanted = _inside_fence(reference[reference_mask, band])
        result[..., band] = _map(source[..., band], np.percentile(taken, shares), np.percentile(wanted, shares))
    return result


def agreeing(source: NDArray[np.float32], reference: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which of the pixels (N, C), each seen by both images, show the same in all bands but for a curve a band: not land
    that changed in between, nor what only one of the two saw. All of them where none do.

    The curve runs through medians of `BINS` equal shares of the pixels, so that outliers do not bend it, once from each
    image to the other, since what only one has seen fills shares of that one; the robust
    standard deviation about it is 1.4826 times the median absolute deviation (Rousseeuw and Croux, Alternatives to the
    median absolute deviation, Journal of the American Statistical Association 88, 1993).
    """
    same = np.ones(len(source), bool)
    some = slice(None, None, max(1, len(source) // ENOUGH))
    for one, other in zip([*source.T, *reference.T], [*reference.T, *source.T], strict=True):
        few, of_these = one[some], other[some]
        shares = np.array_split(np.argsort(few, kind="stable"), min(BINS, len(few)))
        knots, targets = (np.array([np.median(values[share]) for share in shares]) for values in (few, of_these))
        difference = np.abs(other - _curve(one, knots, targets))
        same &= difference <= DISAGREE * 1.4826 * np.median(difference[some]) + NOISE
    return np.asarray(same if same.any() else ~same, bool)


def _inside_fence(values: NDArray[np.float32]) -> NDArray[np.float64]:
    low, high = np.percentile(values, [5, 95])
    reach = FENCE * (high - low)
    # of a flat image everything but its one value lies outside
    inside = (values >= low - reach) & (values <= high + reach)
    kept: NDArray[np.float64] = values[inside].astype(np.float64)
    return kept


def _map(image: NDArray[np.float32], taken: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.float64]:
    knots, targets = _distinct(taken, wanted)
    spread = knots[-1] - knots[0]
    slope = (targets[-1] - targets[0]) / spread if spread > 0 else 1.0
    return _interpolate(image, knots, targets, slope, slope)


def _curve(
    values: NDArray[np.float32], knots: NDArray[np.float64], targets: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Straight lines between the knots, the first and the last of them going on."""
    knots, targets = _distinct(knots, targets)
    slopes = np.diff(targets) / np.diff(knots) if len(knots) > 1 else np.zeros(1)
    return _interpolate(values, knots, targets, slopes[0], slopes[-1])


def _distinct(knots: NDArray[np.float64], targets: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    # one value may hold many quantiles (a flat image): it maps to the mean of theirs
    distinct, group = np.unique(knots, return_inverse=True)
    return distinct, np.bincount(group, weights=targets) / np.bincount(group)


def _interpolate(
    values: NDArray[np.float32], knots: NDArray[np.float64], targets: NDArray[np.float64], below: float, above: float
) -> NDArray[np.float64]:
    """Through the knots, and on with the slopes `below` and `above`."""
    inside = np.interp(values, knots, targets)
    mapped: NDArray[np.float64] = inside + below * np.minimum(values - knots[0], 0)
    mapped += above * np.maximum(values - knots[-1], 0)
    return mapped
