"""Bringing VHR radiance to Sentinel-2 reflectance by statistics of clear pixels, and the file of those statistics.

Method: Sinergise, Multi-temporal Super-Resolution on Sentinel-2 Imagery, 2021: each VHR tile is standardised by its
own cloud-free median and standard deviation, each region of Sentinel-2 by its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sr_core import BANDS
from sr_core.errors import ArtifactError
from sr_core.radiometry.statistics import PixelStatistics

FILE = "normalization.json"


@dataclass(frozen=True)
class BandStatistics:
    """One band over clear pixels: Sentinel-2 in reflectance, VHR in radiance (W m-2 sr-1 um-1)."""

    median: float
    mean: float
    std: float
    p_low: float
    p_high: float
    n_pixels: int


Statistics = Mapping[str, BandStatistics]
"""By band name."""


@dataclass(frozen=True)
class Normalization:
    """Statistics of all regions of Sentinel-2 and of all VHR tiles that had enough clear pixels."""

    s2: Mapping[str, Statistics]
    """By region."""
    vhr: Mapping[str, Statistics]
    """By tile id."""
    percentiles: tuple[float, float]
    """What `p_low` and `p_high` are."""


def band_statistics(
    pixels: PixelStatistics, scale: float, percentiles: tuple[float, float]
) -> dict[str, BandStatistics]:
    """Statistics of the four bands, where the counted integers are `scale` times the quantity."""
    columns = (
        np.stack([pixels.median(), pixels.mean(), pixels.std(), *pixels.percentile(percentiles).T], axis=1) / scale
    )
    return {
        name: BandStatistics(median, mean, std, p_low, p_high, pixels.n_pixels)
        for name, (median, mean, std, p_low, p_high) in zip(BANDS, columns.tolist(), strict=True)
    }


def vhr_to_s2_units(radiance: NDArray[np.float32], tile: Statistics, region: Statistics) -> NDArray[np.float32]:
    """Reflectance (..., 4) in [0, 1] from VHR `radiance` (..., 4): standardised by the tile's median and standard
    deviation, then given those of Sentinel-2 in the region."""

    def row(statistics: Statistics, what: str) -> NDArray[np.float32]:
        return np.array([getattr(statistics[band], what) for band in BANDS], np.float32)

    # a band without any spread carries no contrast to scale
    standardised = (radiance - row(tile, "median")) / np.maximum(row(tile, "std"), 1e-6)
    scaled = standardised * row(region, "std") + row(region, "median")
    return scaled.astype(np.float32, copy=False)


def write_normalization(folder: Path, normalization: Normalization) -> None:
    """Write `normalization.json` aside and rename it."""
    raw = asdict(normalization)
    aside = folder / f".{FILE}"
    aside.write_text(json.dumps(raw, indent=1, sort_keys=True), encoding="utf-8")
    aside.replace(folder / FILE)


def read_normalization(folder: Path) -> Normalization:
    """What the stage normalize wrote into `folder`. Raises `ArtifactError`."""
    path = folder / FILE
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        s2, vhr = ({place: _parse(bands) for place, bands in raw[key].items()} for key in ("s2", "vhr"))
        low, high = raw["percentiles"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error}); run normalize first") from error
    return Normalization(s2, vhr, (low, high))


def _parse(bands: Mapping[str, Mapping[str, Any]]) -> dict[str, BandStatistics]:
    return {band: BandStatistics(**statistics) for band, statistics in bands.items()}
