"""Normalisation of a place: reflectance minus the mean, over the standard deviation, of each band.

The statistics are the place's own (all its clear pixels, all its dates). A network that only ever sees
normalised input works at a new place without being trained again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sr_core import BANDS, REFLECTANCE_SCALE
from sr_core.errors import DataError
from sr_core.radiometry.normalize import read_normalization

MIN_STD = 1e-3
"""Reflectance; flatter ground would be stretched into noise."""


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation of each band, in reflectance."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not np.isfinite([*self.mean, *self.std]).all() or min(self.std) <= 0:
            raise DataError(
                f"normalisation: found mean {self.mean}, std {self.std};"
                " expected a finite mean and a positive standard deviation for each band"
            )

    def apply(self, reflectance: NDArray[Any]) -> NDArray[np.float32]:
        """(..., C, H, W) in reflectance to normalised units."""
        mean, std = self._columns()
        result: NDArray[np.float32] = (reflectance.astype(np.float32, copy=False) - mean) / std
        return result

    def invert(self, normalized: NDArray[Any]) -> NDArray[np.float32]:
        """(..., C, H, W) in normalised units to reflectance."""
        mean, std = self._columns()
        result: NDArray[np.float32] = normalized.astype(np.float32, copy=False) * std + mean
        return result

    def _columns(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        return mean[:, None, None], std[:, None, None]

    @classmethod
    def from_series(cls, bands: NDArray[np.uint16], clear: NDArray[np.bool_]) -> Normalization:
        """Statistics of a new place: bands (T,C,H,W) reflectance × 10000, clear (T,H,W).

        Raises `DataError` where no pixel is clear.
        """
        if not clear.any():
            raise DataError(
                f"normalisation: no clear pixel in {clear.shape[0]} frames; expected at least one clear frame"
            )
        values = np.moveaxis(bands, 1, -1)[clear].astype(np.float64) / REFLECTANCE_SCALE
        return cls(tuple(values.mean(axis=0).tolist()), tuple(np.maximum(values.std(axis=0), MIN_STD).tolist()))

    @classmethod
    def from_json(cls, stats: Mapping[str, Mapping[str, float]]) -> Normalization:
        """From `{band: {"mean": ..., "std": ...}}`, as in normalization.json and model.json."""
        missing = [band for band in BANDS if not {"mean", "std"} <= set(stats.get(band, ()))]
        if missing:
            raise DataError(
                f"normalisation: no mean and std of {', '.join(missing)}; expected all of {', '.join(BANDS)}"
            )
        mean = tuple(float(stats[band]["mean"]) for band in BANDS)
        return cls(mean, tuple(max(float(stats[band]["std"]), MIN_STD) for band in BANDS))

    def to_json(self) -> dict[str, dict[str, float]]:
        return {band: {"mean": mean, "std": std} for band, mean, std in zip(BANDS, self.mean, self.std, strict=True)}


def read_places(folder: Path) -> dict[str, Normalization]:
    """The normalisation of each region, from the `normalization.json` in `folder`. Raises `ArtifactError`."""
    regions = read_normalization(folder).s2
    return {
        region: Normalization.from_json({name: asdict(band) for name, band in bands.items()})
        for region, bands in regions.items()
    }


def region_statistics(
    statistics: Mapping[str, Normalization], regions: Sequence[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the region of each sample of a batch, both (B,C,1,1), in reflectance.

    Raises `DataError` for a region without statistics.
    """
    unknown = sorted(set(regions) - statistics.keys())
    if unknown:
        raise DataError(f"normalisation: no statistics of region {unknown[0]!r}, only of {sorted(statistics)}")
    mean = torch.tensor([statistics[region].mean for region in regions])
    std = torch.tensor([statistics[region].std for region in regions])
    return mean[:, :, None, None], std[:, :, None, None]
