"""The table of acquisitions: what every date of every patch looks like, and whether it is kept."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path

import pandas as pd

from sr_core.coregistration import Registration
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
    """VHR: some of it is taken for shadow, by the rule that was chosen."""
    kept: bool
    reason: str
    """Why it is not kept: "nodata", "cloud", "shadow" or "shift"; "" where it is."""
    shift_rows_m: float = math.nan
    """VHR's displacement from the Sentinel-2 frames, metres south and east; NaN where it is not known."""
    shift_columns_m: float = math.nan
    shift_confidence: float = math.nan
    """0 to 1; see `sr_core.coregistration.Registration`."""
    shift_spread_m: float = math.nan
    """How much parts of the patch disagree about it."""

    @property
    def registration(self) -> Registration:
        confidence = 0.0 if math.isnan(self.shift_confidence) else self.shift_confidence
        return Registration(self.shift_rows_m, self.shift_columns_m, confidence, self.shift_spread_m)

    def registered(self, found: Registration) -> Acquisition:
        """The same with VHR's displacement."""
        return replace(
            self,
            shift_rows_m=found.rows_m,
            shift_columns_m=found.columns_m,
            shift_confidence=found.confidence,
            shift_spread_m=found.spread_m,
        )


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
