"""A region's patches as one image a pass: what windows are read from, so that no edge of a patch is an edge.

A patch reaches beyond its cell by the grid's buffer only, which may be less than the network looks at. So the frames
that a region's products need are laid side by side on disk once, and a window reads its halo from whichever patches
it lies on.
"""

from __future__ import annotations

import datetime as dt
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.transform import Affine
from rasterio.windows import Window as RasterWindow

from sr_core import BANDS
from sr_core.errors import ArtifactError
from sr_core.files import write_json
from sr_core.inference.dates import Pass
from sr_core.inference.windows import Window
from sr_core.patches import S2_GSD, Patch
from sr_core.progress import track
from sr_core.series import S2Series

INDEX = "frames.json"
TILE = 256
CACHE_BYTES = 32 << 20
"""Of GDAL, for all rasters together; its own choice is a share of the machine's memory."""

Bounds = tuple[float, float, float, float]


@dataclass(frozen=True)
class Mosaic:
    """A 10 m grid of whole pixels in one UTM zone."""

    epsg: int
    west: float
    north: float
    rows: int
    columns: int

    @classmethod
    def of(cls, patches: Sequence[Patch]) -> Mosaic:
        """The smallest grid that holds all cells. Raises `ArtifactError` where they do not share one."""
        return cls._holding(patches, [patch.cell for patch in patches])

    @classmethod
    def with_buffers(cls, patches: Sequence[Patch]) -> Mosaic:
        """The smallest grid that holds all patches, cells and buffers. Raises `ArtifactError` like `of`."""
        return cls._holding(patches, [patch.bounds for patch in patches])

    @classmethod
    def _holding(cls, patches: Sequence[Patch], rectangles: Sequence[Bounds]) -> Mosaic:
        west, south = (min(each[side] for each in rectangles) for side in (0, 1))
        east, north = (max(each[side] for each in rectangles) for side in (2, 3))
        for patch, bounds in zip(patches, rectangles, strict=True):
            offset = ((bounds[0] - west) / S2_GSD, (north - bounds[3]) / S2_GSD)
            if patch.epsg != patches[0].epsg or not np.allclose(offset, np.round(offset), atol=1e-6):
                raise ArtifactError(
                    f"patch {patch.id}: EPSG:{patch.epsg}, cell {patch.cell} does not lie on the {S2_GSD:g} m grid of"
                    f" EPSG:{patches[0].epsg} that begins at {west}, {north}; run download again"
                )
        return cls(patches[0].epsg, west, north, round((north - south) / S2_GSD), round((east - west) / S2_GSD))

    def transform(self, gsd: float = S2_GSD, row: int = 0, column: int = 0) -> Affine:
        """Affine transform of pixels of `gsd` metres whose origin is the corner of the 10 m pixel (row, column)."""
        return Affine(gsd, 0.0, self.west + column * S2_GSD, 0.0, -gsd, self.north - row * S2_GSD)

    def shape(self, gsd: float = S2_GSD) -> tuple[int, int]:
        return round(self.rows * S2_GSD / gsd), round(self.columns * S2_GSD / gsd)

    def window(self, bounds: Bounds) -> Window:
        """The 10 m pixels of (west, south, east, north)."""
        return Window(
            round((self.north - bounds[3]) / S2_GSD),
            round((bounds[0] - self.west) / S2_GSD),
            round((self.north - bounds[1]) / S2_GSD),
            round((bounds[2] - self.west) / S2_GSD),
        )

    @property
    def bounds(self) -> Bounds:
        return self.west, self.north - self.rows * S2_GSD, self.west + self.columns * S2_GSD, self.north


@dataclass(frozen=True)
class Frame:
    """A pass over a region, as one image on disk: bands blue, green, red, nir as they were, and the mask CLEAR."""

    path: Path
    shift: tuple[float, float]
    """Rows and columns by which it is displaced, in 10 m pixels."""
    products: dict[str, dict[str, dt.datetime]]
    """Patch id to the Sentinel-2 products of the pass there, and when they were taken."""


class FrameStore:
    """The frames of a region, each a GeoTIFF on the grid of all its patches with their buffers."""

    def __init__(self, folder: Path, grid: Mosaic, frames: dict[str, Frame]) -> None:
        self.folder, self.grid, self.frames = folder, grid, frames

    @classmethod
    def write(
        cls, folder: Path, patches: Sequence[Patch], passes: Sequence[Pass], load: Callable[[Patch], S2Series]
    ) -> FrameStore:
        """Lay the `passes` of all `patches` side by side, or use what is there from an interrupted run.

        A pixel of a cell is that of the cell's own patch; ground outside all cells comes from the first patch whose
        buffer covers it. Of several acquisitions of a pass the clearest comes first; where it is not clear, the
        others fill in. Its displacement is the mean of theirs, by clear ground. Each series is loaded once.
        """
        grid = Mosaic.with_buffers(patches)
        kept = cls._read(folder, grid)
        if kept is not None and {each.name for each in passes} <= kept.frames.keys():
            return kept
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        products: dict[str, dict[str, dict[str, dt.datetime]]] = {each.name: {} for each in passes}
        moved = {each.name: np.zeros(3) for each in passes}
        with bounded_cache(), ExitStack() as opened:
            rasters = {
                each.name: opened.enter_context(rasterio.open(folder / f"{each.name}.tif", "w+", **_profile(grid)))
                for each in passes
            }
            for number, patch in enumerate(track(patches, "frames")):
                own = _own_ground(grid, patches, number)
                series = load(patch)
                place = raster_window(grid.window(patch.bounds))
                for each in passes:
                    indices = each.acquisitions.get(patch.id, ())
                    if not indices:
                        continue
                    image = _merged(series, indices)
                    raster = rasters[each.name]
                    before = raster.read(window=place)
                    raster.write(np.where(own, image, before), window=place)
                    products[each.name][patch.id] = {series.product_ids[i]: series.timestamps[i] for i in indices}
                    for index in indices:
                        weight = float(np.count_nonzero(series.clear[index])) or 1e-9
                        moved[each.name] += weight * np.array([1.0, *series.shifts[index]])
        described = {
            name: {
                "shift": (total[1:] / max(total[0], 1e-9)).tolist(),
                "products": {
                    patch: {product: taken.isoformat() for product, taken in those.items()}
                    for patch, those in products[name].items()
                },
            }
            for name, total in moved.items()
        }
        write_json(folder / INDEX, described)
        written = cls._read(folder, grid)
        assert written is not None
        return written

    @classmethod
    def _read(cls, folder: Path, grid: Mosaic) -> FrameStore | None:
        if not (folder / INDEX).is_file():
            return None
        frames = {
            name: Frame(
                folder / f"{name}.tif",
                (each["shift"][0], each["shift"][1]),
                {
                    patch: {product: dt.datetime.fromisoformat(taken) for product, taken in those.items()}
                    for patch, those in each["products"].items()
                },
            )
            for name, each in json.loads((folder / INDEX).read_text(encoding="utf-8")).items()
        }
        return cls(folder, grid, frames)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


class FrameReader:
    """Windows of some frames of a region. To be used by one thread at a time."""

    def __init__(self, rasters: Sequence[Any]) -> None:
        self._rasters = rasters

    @classmethod
    @contextmanager
    def open(cls, frames: Sequence[Frame]) -> Iterator[FrameReader]:
        with ExitStack() as opened:
            yield cls([opened.enter_context(rasterio.open(frame.path)) for frame in frames])

    def read(self, window: Window) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
        """Images (T,C,h,w) reflectance x 10000 and masks (T,h,w) of the frames, in their order."""
        stack = np.stack([raster.read(window=raster_window(window)) for raster in self._rasters])
        return stack[:, :-1], stack[:, -1] > 0


@contextmanager
def bounded_cache() -> Iterator[None]:
    """GDAL's cache of blocks held to `CACHE_BYTES`, so that memory does not depend on the machine or the area."""
    with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES):
        yield


def raster_window(window: Window) -> RasterWindow:
    rows, columns = window.shape
    return RasterWindow(window.left, window.top, columns, rows)


def _profile(grid: Mosaic) -> dict[str, Any]:
    return {
        "driver": "GTiff",
        "height": grid.rows,
        "width": grid.columns,
        "count": len(BANDS) + 1,
        "dtype": "uint16",
        "nodata": 0,
        "crs": f"EPSG:{grid.epsg}",
        "transform": grid.transform(),
        "tiled": True,
        "blockxsize": TILE,
        "blockysize": TILE,
        "interleave": "pixel",
        "sparse_ok": True,
        "bigtiff": "IF_SAFER",
    }


def _own_ground(grid: Mosaic, patches: Sequence[Patch], number: int) -> NDArray[np.bool_]:
    """(H,W) of a patch's pixels: those that no other patch writes."""
    patch = patches[number]
    outer, cell = grid.window(patch.bounds), grid.window(patch.cell)
    own = np.ones(outer.shape, bool)
    for index, other in enumerate(patches):
        if index == number or not _overlap(patch.bounds, other.bounds):
            continue
        # an earlier patch keeps its buffer, a later one only its cell
        taken = grid.window(other.bounds if index < number else other.cell)
        own[_clipped(taken, outer)] = False
    own[cell.inside(outer)] = True
    return own


def _overlap(first: Bounds, second: Bounds) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]


def _clipped(window: Window, outer: Window) -> tuple[slice, slice]:
    clipped = Window(
        max(window.top, outer.top),
        max(window.left, outer.left),
        max(min(window.bottom, outer.bottom), outer.top),
        max(min(window.right, outer.right), outer.left),
    )
    return clipped.inside(outer)


def _merged(series: S2Series, indices: Sequence[int]) -> NDArray[np.uint16]:
    """(5,H,W): the bands of a pass over a patch, and 1 where it is clear."""
    bands, clear = series.bands[indices[0]], series.clear[indices[0]]
    for index in indices[1:]:
        other = series.bands[index]
        better = (series.clear[index] & ~clear) | (other.any(axis=-1) & ~bands.any(axis=-1))
        bands = np.where(better[..., None], other, bands)
        clear = clear | series.clear[index]
    return np.concatenate([np.moveaxis(bands, -1, 0), clear[None].astype(np.uint16)])
