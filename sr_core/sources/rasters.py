"""What series of rasters have in common, whatever the files: a grid, dates, and windows of pixels."""

from __future__ import annotations

import datetime as dt
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rasterio.transform import Affine
from rasterio.windows import Window

from sr_core.errors import SourceError
from sr_core.patches import Patch


@dataclass(frozen=True)
class Frame:
    """One date of a series."""

    timestamp: dt.datetime
    """Sensing time, naive UTC; midnight where the name has only a day."""
    product_id: str
    level: str
    """ "L1C", "L2A" or "unknown"."""
    baseline: str
    """Processing baseline such as "02.04", or "unknown"."""


@dataclass(frozen=True)
class Pixels:
    """A window of one date: values (h, w, 4) as stored (reflectance x 10000), and which are data (h, w)."""

    values: NDArray[np.int32]
    valid: NDArray[np.bool_]
    scl: NDArray[np.uint8] | None = None
    """Scene classification (h, w) at 10 m, where the source has one."""


@dataclass(frozen=True)
class Overlap:
    """Where a patch and a raster meet: the raster's window, and the same ground in the patch's array."""

    window: Window
    rows: slice
    columns: slice


@dataclass(frozen=True)
class RasterGrid:
    """A north-up grid in UTM zone `epsg`; `origin` is its north-west corner in metres."""

    epsg: int
    origin: tuple[float, float]
    shape: tuple[int, int]
    gsd: float

    @property
    def transform(self) -> Affine:
        return Affine(self.gsd, 0.0, self.origin[0], 0.0, -self.gsd, self.origin[1])

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        west, north = self.origin
        return west, north - self.shape[0] * self.gsd, west + self.shape[1] * self.gsd, north

    def overlap(self, patch: Patch, name: object) -> Overlap | None:
        """Where a patch lies on this grid, or None where they do not meet.

        Raises `SourceError` when they meet but the patch's edges are not edges of pixels: pixels are never resampled.
        """
        if patch.epsg != self.epsg:
            return None
        west, south, east, north = patch.bounds
        left, top = (west - self.origin[0]) / self.gsd, (self.origin[1] - north) / self.gsd
        rows, columns = round((north - south) / self.gsd), round((east - west) / self.gsd)
        first_row, first_column = max(0, round(top)), max(0, round(left))
        last_row, last_column = min(self.shape[0], round(top) + rows), min(self.shape[1], round(left) + columns)
        if first_row >= last_row or first_column >= last_column:
            return None
        if abs(top - round(top)) > 1e-3 or abs(left - round(left)) > 1e-3:
            raise SourceError(
                f"{name}: patch {patch.id} begins at {west:g}, {north:g}, off the grid of {self.gsd:g} m that begins at"
                f" {self.origin[0]:g}, {self.origin[1]:g}; expected whole pixels between them (grid.anchor: source)"
            )
        window = Window(first_column, first_row, last_column - first_column, last_row - first_row)
        row, column = first_row - round(top), first_column - round(left)
        return Overlap(window, slice(row, row + window.height), slice(column, column + window.width))


@dataclass(frozen=True)
class Series(ABC):
    """Dates on one grid: a region."""

    region: str
    grid: RasterGrid
    frames: Sequence[Frame]
    """Time ascending."""

    @abstractmethod
    def read(self, frame: Frame, window: Window) -> Pixels:
        """A window of one date. Raises `SourceError` or `DataError` naming the file."""


def utm_epsg(epsg: int | None, found: object, path: object) -> int:
    """`epsg` if it is a UTM zone on WGS 84; otherwise raises `SourceError`."""
    if epsg is None or not (32601 <= epsg <= 32660 or 32701 <= epsg <= 32760):
        raise SourceError(f"{path}: found CRS {found}; expected a UTM zone, EPSG:32601-32660 or EPSG:32701-32760")
    return epsg
