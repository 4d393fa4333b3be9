"""Training, validation and test ground: a split of the land, not of the samples.

Neighbouring samples look alike, so a split of samples flatters every score; here a piece of ground, with
all its dates, belongs to one split. The ground is divided into square blocks that a seeded draw assigns, or
by explicit boxes. Super-resolution and delineation use the same `GroundSplit`.

Source of the argument: Roberts et al., Cross-validation strategies for data with temporal, spatial,
hierarchical, or phylogenetic structure, Ecography 40, 2017.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray
from pyproj import Transformer
from shapely import STRtree
from shapely.geometry import Polygon, box
from shapely.ops import transform as reproject

from sr_core.config import Box, Split
from sr_core.errors import DataError
from sr_core.patches import Patch

SPLITS = ("train", "val", "test")
"""Names of the splits; a split's code in a mask is its index."""
TRAIN, VAL, TEST = range(3)

Coordinates = NDArray[np.floating]
Place = tuple[str, int]
"""Region and EPSG code: what shares one grid of blocks."""

_TOUCHING = 1e-6
"""Share of a chip's area below which an overlap is rounding."""
_MM = 1e-3
"""Tolerance, metres, of comparisons between edges that should coincide."""


@dataclass(frozen=True)
class Ground:
    """Validation and test ground of one place as boxes (xmin, ymin, xmax, ymax) in UTM metres.

    Test goes before validation where boxes overlap; all other ground is training.
    """

    val: tuple[Box, ...] = ()
    test: tuple[Box, ...] = ()

    def split_of(self, x: Coordinates, y: Coordinates) -> NDArray[np.uint8]:
        """Codes (index into `SPLITS`) of points in UTM metres; shapes of `x` and `y` broadcast."""
        x, y = np.broadcast_arrays(np.asarray(x, np.float64), np.asarray(y, np.float64))
        codes = np.full(x.shape, TRAIN, np.uint8)
        for code, boxes in ((VAL, self.val), (TEST, self.test)):
            for west, south, east, north in boxes:
                codes[(x >= west) & (x < east) & (y >= south) & (y < north)] = code
        return codes


@dataclass(frozen=True)
class GroundSplit:
    """The split of all ground of a run."""

    grounds: Mapping[Place, Ground]

    def ground(self, patch: Patch) -> Ground:
        return self.grounds[patch.region, patch.epsg]

    def split_of(self, patch: Patch, x: Coordinates, y: Coordinates) -> NDArray[np.uint8]:
        """Codes (index into `SPLITS`) of points in metres of the patch's UTM zone."""
        return self.ground(patch).split_of(x, y)

    def split_mask(self, patch: Patch, gsd: float) -> NDArray[np.uint8]:
        """Codes (index into `SPLITS`), (H, W), of the patch's pixels of `gsd` metres, by their centres."""
        west, south, east, north = patch.bounds
        rows, columns = round((north - south) / gsd), round((east - west) / gsd)
        x = west + (np.arange(columns) + 0.5) * gsd
        y = north - (np.arange(rows) + 0.5) * gsd
        return self.split_of(patch, x[None, :], y[:, None])


@dataclass(frozen=True, order=True)
class ChipWindow:
    """A square of a patch's low-resolution raster, by its north-west pixel, and the split of its ground."""

    row: int
    column: int
    split: str


def split_ground(patches: Sequence[Patch], config: Split, seed: int) -> GroundSplit:
    """Divide the ground of the patches' cells.

    With boxes in the configuration these are validation and test ground. Otherwise blocks of `config.block_m`
    metres, on a grid that starts at the south-west corner of a place's cells, are drawn: of n blocks,
    `round(config.test * n)` are test and `round(config.val * n)` validation; each at least one where its
    share is not zero and there are three blocks or more. The draw depends on `seed` and on the set of
    blocks alone.
    """
    cells: dict[Place, list[Box]] = {}
    for patch in patches:
        cells.setdefault((patch.region, patch.epsg), []).append(patch.cell)
    if config.val_boxes or config.test_boxes:
        ground = Ground(config.val_boxes, config.test_boxes)
        return GroundSplit(dict.fromkeys(cells, ground))
    blocks = sorted((place, block) for place, boxes in cells.items() for block in _blocks(boxes, config.block_m))
    n_test, n_val = _share(config.test, len(blocks)), _share(config.val, len(blocks))
    order = np.random.default_rng(seed).permutation(len(blocks))
    drawn = {
        "test": {blocks[i] for i in order[:n_test]},
        "val": {blocks[i] for i in order[n_test : n_test + n_val]},
    }
    return GroundSplit(
        {
            place: Ground(
                *(tuple(sorted(block for at, block in drawn[name] if at == place)) for name in ("val", "test"))
            )
            for place in cells
        }
    )


def chip_windows(
    split: GroundSplit, patch: Patch, *, gsd: float, chip_px: int, stride_px: int, guard_m: float
) -> list[ChipWindow]:
    """Chips of one patch on its raster of pixels of `gsd` metres, in row-major order.

    Every chip lies inside the patch's cell (cells do not overlap, patches do) and wholly on ground of one
    split. Test chips tile each test box side by side; a last row and column, aligned to the box's end,
    overlap their neighbours so that no pixel is left out. Validation chips do the same at least `guard_m`
    away from test ground, and training chips, `stride_px` apart, at least `guard_m` away from test and
    validation ground: no chip comes nearer than that to one of another split.

    Raises `DataError` when the raster does not divide into whole pixels.
    """
    west, south, east, north = patch.bounds
    rows, columns = (north - south) / gsd, (east - west) / gsd
    if not (rows.is_integer() and columns.is_integer()):
        raise DataError(
            f"patch {patch.id}: found {north - south:g} x {east - west:g} m, expected a multiple of"
            f" {gsd:g} m: choose grid.cell_m and grid.buffer_m accordingly"
        )
    ground = split.ground(patch)
    raster = _Raster(west, north, gsd, int(rows), int(columns))
    cell = raster.inside(patch.cell)
    test_near, val_near = raster.any_touched(ground.test, guard_m), raster.any_touched(ground.val, guard_m)
    free = {
        TEST: cell & raster.any_inside(ground.test),
        VAL: cell & raster.any_inside(ground.val) & ~test_near,
        TRAIN: cell & ~test_near & ~val_near,
    }
    found: set[ChipWindow] = set()
    for code, boxes, stride in (
        (TEST, ground.test, chip_px),
        (VAL, ground.val, chip_px),
        (TRAIN, (patch.cell,), stride_px),
    ):
        for bounds in boxes:
            here = free[code] & raster.inside(bounds)
            found.update(ChipWindow(row, column, SPLITS[code]) for row, column in _tile(here, chip_px, stride))
    return sorted(found)


def footprint(patch: Patch, window: ChipWindow, gsd: float, chip_px: int) -> Polygon:
    """A chip's ground as a polygon in EPSG:4326."""
    west, north = patch.bounds[0] + window.column * gsd, patch.bounds[3] - window.row * gsd
    ground = box(west, north - chip_px * gsd, west + chip_px * gsd, north)
    to_wgs84 = Transformer.from_crs(patch.epsg, "EPSG:4326", always_xy=True)
    return reproject(to_wgs84.transform, ground)


def shared_ground(footprints: Sequence[Polygon], splits: Sequence[str]) -> NDArray[np.int64]:
    """Pairs (P, 2) of indices, the smaller first, of footprints of different splits that overlap.

    Footprints that touch along an edge do not overlap.
    """
    areas = np.asarray(footprints, object)
    names = np.asarray(splits, object)
    left, right = STRtree(areas).query(areas, predicate="intersects")
    candidate = (left < right) & (names[left] != names[right])
    left, right = left[candidate], right[candidate]
    common = shapely.area(shapely.intersection(areas[left], areas[right]))
    overlap = common > _TOUCHING * np.minimum(shapely.area(areas[left]), shapely.area(areas[right]))
    return np.stack([left[overlap], right[overlap]], axis=1).astype(np.int64)


def keep_apart(chips: Sequence[tuple[Patch, ChipWindow]], gsd: float, chip_px: int) -> list[tuple[Patch, ChipWindow]]:
    """The chips without those that share ground with a chip of another split, in the same order.

    Within a place `chip_windows` already keeps splits apart; regions may overlap, though, and so do cells of
    two UTM zones along their common meridian. Test goes before validation, validation before training.
    """
    if len({(patch.region, patch.epsg) for patch, _ in chips}) < 2:
        return list(chips)
    splits = [window.split for _, window in chips]
    pairs = shared_ground([footprint(patch, window, gsd, chip_px) for patch, window in chips], splits)
    rank = np.array([SPLITS.index(split) for split in splits])
    dropped = set(np.where(rank[pairs[:, 0]] < rank[pairs[:, 1]], pairs[:, 0], pairs[:, 1]).tolist())
    return [chip for index, chip in enumerate(chips) if index not in dropped]


@dataclass(frozen=True)
class _Raster:
    """Pixels of a patch, to be compared with boxes."""

    west: float
    north: float
    gsd: float
    rows: int
    columns: int

    def inside(self, bounds: Box) -> NDArray[np.bool_]:
        """Pixels that lie wholly in a box."""
        west, south, east, north = bounds
        return self._mask(
            math.ceil((self.north - north - _MM) / self.gsd),
            math.floor((self.north - south + _MM) / self.gsd),
            math.ceil((west - self.west - _MM) / self.gsd),
            math.floor((east - self.west + _MM) / self.gsd),
        )

    def touched(self, bounds: Box, margin: float) -> NDArray[np.bool_]:
        """Pixels that a box, grown by `margin` metres, covers wholly or in part."""
        west, south, east, north = bounds
        return self._mask(
            math.floor((self.north - north - margin + _MM) / self.gsd),
            math.ceil((self.north - south + margin - _MM) / self.gsd),
            math.floor((west - margin - self.west + _MM) / self.gsd),
            math.ceil((east + margin - self.west - _MM) / self.gsd),
        )

    def any_inside(self, boxes: Iterable[Box]) -> NDArray[np.bool_]:
        found = np.zeros((self.rows, self.columns), bool)
        for bounds in boxes:
            found |= self.inside(bounds)
        return found

    def any_touched(self, boxes: Iterable[Box], margin: float) -> NDArray[np.bool_]:
        found = np.zeros((self.rows, self.columns), bool)
        for bounds in boxes:
            found |= self.touched(bounds, margin)
        return found

    def _mask(self, top: int, bottom: int, left: int, right: int) -> NDArray[np.bool_]:
        mask = np.zeros((self.rows, self.columns), bool)
        mask[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = True
        return mask


def _blocks(cells: Sequence[Box], side: float) -> set[Box]:
    """Squares that the cells touch, on a grid that starts at the cells' south-west corner."""
    west, south = min(cell[0] for cell in cells), min(cell[1] for cell in cells)
    found = set()
    for cell in cells:
        for i in range(math.floor((cell[0] - west + _MM) / side), math.ceil((cell[2] - west - _MM) / side)):
            for j in range(math.floor((cell[1] - south + _MM) / side), math.ceil((cell[3] - south - _MM) / side)):
                found.add((west + i * side, south + j * side, west + (i + 1) * side, south + (j + 1) * side))
    return found


def _share(share: float, blocks: int) -> int:
    at_least = 1 if share > 0 and blocks >= len(SPLITS) else 0
    return max(round(share * blocks), at_least)


def _tile(free: NDArray[np.bool_], side: int, stride: int) -> list[tuple[int, int]]:
    """North-west pixels of squares that lie wholly in `free`, `stride` apart, the last ones aligned to its end."""
    rows, columns = np.flatnonzero(free.any(axis=1)), np.flatnonzero(free.any(axis=0))
    if not len(rows):
        return []
    return [
        (row, column)
        for row in _starts(int(rows[0]), int(rows[-1]) + 1, side, stride)
        for column in _starts(int(columns[0]), int(columns[-1]) + 1, side, stride)
        if free[row : row + side, column : column + side].all()
    ]


def _starts(begin: int, end: int, side: int, stride: int) -> list[int]:
    starts = list(range(begin, end - side + 1, stride))
    if starts and starts[-1] + side < end:
        starts.append(end - side)
    return starts
