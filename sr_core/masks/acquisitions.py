"""The table of acquisitions: what every date of every patch looks like, and whether it is kept."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import pandas as pd

from sr_core.errors import ArtifactError

TABLE = "acquisitions.parquet"


@dataclass(frozen=True)
class Acquisition:
    """One sensor's image of one patch at one time."""

    region: str
    patch: str
    sensor: str
    """ "s2" or "vhr"."""
    timestamp: datetime
    """Naive UTC."""
    tile: str
    """VHR tile id, or Sentinel-2 product id."""
    cloud_cover: float
    """Share of the valid pixels that is cloud, haze or cloud shadow."""
    valid: float
    """Share of the patch with data."""
    shadowed: bool
    """A touching patch of the same VHR timestamp is cloudy."""
    kept: bool
    reason: str
    """Why it is not kept: "nodata", "cloud" or "shadow"; "" where it is."""


def write_acquisitions(masks_root: Path, rows: Iterable[Acquisition]) -> pd.DataFrame:
    """Write the table aside and rename it. Returns it."""
    table = pd.DataFrame([asdict(row) for row in rows], columns=list(Acquisition.__dataclass_fields__))
    table["timestamp"] = table["timestamp"].astype("datetime64[us]")
    aside = masks_root / f".{TABLE}"
    table.to_parquet(aside, index=False)
    aside.replace(masks_root / TABLE)
    return table


def read_acquisitions(masks_root: Path) -> pd.DataFrame:
    """The table that cloud_shadow_filter wrote, a row an `Acquisition`. Raises `ArtifactError`."""
    path = masks_root / TABLE
    try:
        return pd.read_parquet(path)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error}); run cloud_shadow_filter first") from error
