"""Exact statistics of integer pixels, one histogram bin a value, so that parts can be counted apart and merged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

BINS = 65536


class PixelStatistics:
    """Histogram of uint16 pixels, a row a band. Its memory does not grow with the number of pixels."""

    def __init__(self, bands: int) -> None:
        self.counts: NDArray[np.int64] = np.zeros((bands, BINS), np.int64)

    def add(self, pixels: NDArray[np.uint16]) -> Self:
        """Count `pixels` (N, bands). Returns itself."""
        if pixels.dtype != np.uint16 or pixels.ndim != 2 or pixels.shape[1] != len(self.counts):
            raise ValueError(f"expected uint16 pixels (N, {len(self.counts)}), found {pixels.dtype} {pixels.shape}")
        for band, row in enumerate(self.counts):
            row += np.bincount(pixels[:, band], minlength=BINS)
        return self

    def merge(self, other: PixelStatistics) -> Self:
        """Add another's counts, as if its pixels had been added here. Returns itself."""
        self.counts += other.counts
        return self

    def to_arrays(self) -> dict[str, NDArray[np.int64]]:
        """What a part on disk holds: the occupied bins only. `shape` is (bands, BINS), `bins` are flat indices into
        it, `counts` their pixels."""
        bins = np.flatnonzero(self.counts)
        return {"shape": np.array(self.counts.shape), "bins": bins, "counts": self.counts.ravel()[bins]}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.int64]]) -> Self:
        """The inverse of `to_arrays`, also of what `numpy.load` reads. Raises `ValueError` where the arrays cannot
        be such a part."""
        bins, counts = arrays["bins"], arrays["counts"]
        bands, width = arrays["shape"].tolist()
        sound = bins.shape == counts.shape and (counts > 0).all() and (np.diff(bins) > 0).all()
        if width != BINS or not sound or (len(bins) and not 0 <= bins[0] <= bins[-1] < bands * BINS):
            raise ValueError(f"not the occupied bins of a histogram of {bands} bands of {BINS} values")
        found = cls(bands)
        found.counts.ravel()[bins] = counts
        return found

    @property
    def n_pixels(self) -> int:
        return int(self.counts[0].sum())

    def mean(self) -> NDArray[np.float64]:
        """Of each band; exact, since sums of integers are."""
        values = np.arange(BINS, dtype=np.int64)
        sums: NDArray[np.float64] = (self.counts @ values) / self.n_pixels
        return sums

    def std(self) -> NDArray[np.float64]:
        """Standard deviation of each band (of the population)."""
        values = np.arange(BINS, dtype=np.float64)
        squares = [row @ (values - mean) ** 2 for row, mean in zip(self.counts, self.mean(), strict=True)]
        deviation: NDArray[np.float64] = np.sqrt(np.array(squares) / self.n_pixels)
        return deviation

    def percentile(self, percent: ArrayLike) -> NDArray[np.float64]:
        """Percentiles (bands, ...) with linear interpolation between ranks, equal to numpy's."""
        rank = np.asarray(percent, np.float64) / 100 * (self.n_pixels - 1)
        below = np.floor(rank)
        found = []
        for row in self.counts:
            up_to = np.cumsum(row)
            low = np.searchsorted(up_to, below, side="right")
            high = np.searchsorted(up_to, np.ceil(rank), side="right")
            found.append(low + (high - low) * (rank - below))
        return np.stack(found)

    def median(self) -> NDArray[np.float64]:
        """Of each band."""
        return self.percentile(50)
