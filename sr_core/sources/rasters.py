"""What series of rasters have in common, whatever the files: a grid, dates, and windows of pixels."""

from __future__ import annotations

import datetime as dt
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from rasterio.transform import Affine
from rasterio.windows import Window

from sr_core.errors import SourceError
from sr_core.patches import Patch

S2_BANDS = ("B02", "B03", "B04", "B08")
"""Blue, green, red and near infrared of Sentinel-2."""
BAND_GSD = {
    **dict.fromkeys(S2_BANDS, 10),
    **dict.fromkeys(("B05", "B06", "B07", "B8A", "B11", "B12", "SCL"), 20),
    **dict.fromkeys(("B01", "B09", "B10"), 60),
}
"""Pixels of each band, metres. Source: Sentinel-2 Products Specification Document."""
PASS = dt.timedelta(minutes=30)
"""Acquisitions of a place that are closer in time belong to one pass; the next one comes 50 minutes later or more."""


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
    """A window of one date: reflectance x 10000 (h, w, bands) without offset, and where all bands are data (h, w)."""

    values: NDArray[np.int32]
    valid: NDArray[np.bool_]
    scl: NDArray[np.generic] | None = None
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

    def coarser(self, gsd: float) -> RasterGrid:
        """Pixels of `gsd` metres over the same ground, from the same corner."""
        factor = round(gsd / self.gsd)
        shape = (-(-self.shape[0] // factor), -(-self.shape[1] // factor))
        return replace(self, shape=shape, gsd=gsd)

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

    @property
    def bands(self) -> frozenset[str]:
        """Bands that every date has."""
        return frozenset(S2_BANDS)

    @abstractmethod
    def read(self, frame: Frame, window: Window, bands: Sequence[str] = S2_BANDS) -> Pixels:
        """A window of one date at 10 m; pixels of coarser bands are repeated.

        Raises `SourceError` or `DataError` naming the file.
        """


def repeated(read: Callable[[Window], NDArray[np.generic]], window: Window, factor: int) -> NDArray[np.generic]:
    """A window of 10 m pixels of a band whose pixels are `factor` times as large: each repeated, none interpolated.

    `read` gives a window of the band's own pixels, counted from the same corner.
    """
    rows, columns = window.toslices()
    first_row, first_column = rows.start // factor, columns.start // factor
    last_row, last_column = -(-rows.stop // factor), -(-columns.stop // factor)
    block = read(Window(first_column, first_row, last_column - first_column, last_row - first_row))
    fine = block.repeat(factor, axis=0).repeat(factor, axis=1)
    top, left = rows.start - first_row * factor, columns.start - first_column * factor
    return fine[top : top + window.height, left : left + window.width]


def area_mean(values: NDArray[np.int32], valid: NDArray[np.bool_], factor: int) -> NDArray[np.uint16]:
    """Means (H / factor, W / factor, bands) over blocks of (H, W, bands), over valid pixels only; 0 where none is.

    What is valid is at least 1.
    """
    rows, columns = values.shape[0] // factor, values.shape[1] // factor
    blocks = np.where(valid[..., None], values, 0).reshape(rows, factor, columns, factor, -1)
    count = valid.reshape(rows, factor, columns, factor).sum(axis=(1, 3))[..., None]
    means = blocks.sum(axis=(1, 3)) / np.maximum(count, 1)
    return np.where(count > 0, np.clip(np.rint(means), 1, 65535), 0).astype(np.uint16)


def best_of_passes(timestamps: Sequence[dt.datetime], valid_pixels: Sequence[int]) -> list[int]:
    """Which acquisitions to keep, time ascending: of each pass the one with most valid pixels."""
    order = sorted(range(len(timestamps)), key=lambda index: timestamps[index])
    passes: list[list[int]] = []
    for index in order:
        if passes and timestamps[index] - timestamps[passes[-1][0]] <= PASS:
            passes[-1].append(index)
        else:
            passes.append([index])
    return [max(indices, key=lambda index: valid_pixels[index]) for indices in passes]


def utm_epsg(epsg: int | None, found: object, path: object) -> int:
    """`epsg` if it is a UTM zone on WGS 84; otherwise raises `SourceError`."""
    if epsg is None or not (32601 <= epsg <= 32660 or 32701 <= epsg <= 32760):
        raise SourceError(f"{path}: found CRS {found}; expected a UTM zone, EPSG:32601-32660 or EPSG:32701-32760")
    return epsg
