"""What a patch is: a square of ground in UTM, and the EOPatches that hold its pixels.

A region is covered by square *cells* of `cell_m` metres that do not overlap; a *patch* is a cell grown by
`buffer_m` on each side, so that neighbouring patches overlap (2 km cells with 200 m make the 2.4 km patches
of the design). Artifact layout: `<root>/patches/<region>/<patch id>/{s2,vhr,reference,truth}/`, one EOPatch each.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
from eolearn.core import EOPatch as EOPatch
from eolearn.core import OverwritePermission
from pyproj.exceptions import ProjError
from rasterio.transform import Affine
from sentinelhub import CRS, BBox, UtmZoneSplitter
from shapely.errors import GEOSException
from shapely.geometry import box, shape
from shapely.geometry.base import BaseGeometry
from shapely.ops import transform as reproject
from shapely.ops import unary_union

from sr_core import SCALE
from sr_core.config import Area, Grid
from sr_core.errors import AreaError, ArtifactError

S2_GSD = 10.0
VHR_GSD = S2_GSD / SCALE
PARTS = ("s2", "vhr", "reference", "truth", "truth_vhr")


@dataclass(frozen=True)
class Patch:
    """A square of ground. `bounds` and `cell` are (xmin, ymin, xmax, ymax) in metres of UTM zone `epsg`."""

    id: str
    region: str
    epsg: int
    bounds: tuple[float, float, float, float]
    cell: tuple[float, float, float, float]

    @property
    def bbox(self) -> BBox:
        return BBox(self.bounds, CRS(self.epsg))

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns at 10 m."""
        west, south, east, north = self.bounds
        return round((north - south) / S2_GSD), round((east - west) / S2_GSD)

    @property
    def hr_shape(self) -> tuple[int, int]:
        """Rows and columns at 2.5 m."""
        rows, columns = self.shape
        return rows * SCALE, columns * SCALE

    def transform(self, gsd: float = S2_GSD) -> Affine:
        """Affine transform of the patch's raster of pixels of `gsd` metres, origin at its north-west corner."""
        return Affine(gsd, 0.0, self.bounds[0], 0.0, -gsd, self.bounds[3])

    def cell_window(self, gsd: float = S2_GSD) -> tuple[slice, slice]:
        """Rows and columns of the cell inside the patch's raster of pixels of `gsd` metres."""
        west, south, east, north = self.cell
        top, left = round((self.bounds[3] - north) / gsd), round((west - self.bounds[0]) / gsd)
        return (
            slice(top, top + round((north - south) / gsd)),
            slice(left, left + round((east - west) / gsd)),
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "region": self.region,
            "epsg": self.epsg,
            "bounds": list(self.bounds),
            "cell": list(self.cell),
        }

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Patch:
        return cls(raw["id"], raw["region"], raw["epsg"], tuple(raw["bounds"]), tuple(raw["cell"]))


def area_outline(area: Area) -> BaseGeometry:
    """The area's outline in EPSG:4326. Raises `AreaError` outside UTM's validity (84 N to 80 S)."""
    if area.geojson is not None:
        outline = _read_outline(area.geojson)
    else:
        assert area.bbox is not None
        try:
            to_wgs84 = pyproj.Transformer.from_crs(area.crs, "EPSG:4326", always_xy=True)
            outline = box(*area.bbox)
            if pyproj.CRS.from_user_input(area.crs).is_projected:
                # an edge is straight in metres, not in degrees; a metre less keeps the next cell out
                outline = outline.buffer(-1.0).segmentize(100.0)
            outline = reproject(to_wgs84.transform, outline)
        except ProjError as error:
            raise AreaError(
                f"area.crs: found {area.crs!r}, expected a known system such as EPSG:32634: {error}"
            ) from error
    west, south, east, north = outline.bounds
    inside = west >= -180 and east <= 180 and south >= -80 and north <= 84
    if outline.is_empty or not np.isfinite(outline.bounds).all() or not inside:
        raise AreaError(
            f"area: found west {west:g}, south {south:g}, east {east:g}, north {north:g} degrees;"
            " UTM, and so Sentinel-2's grid, reaches from 80 S to 84 N"
        )
    return outline


def _read_outline(path: Path) -> BaseGeometry:
    """All polygons of a GeoJSON file together. Raises `AreaError` where there is none, or something else."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        parts = [
            shape(feature["geometry"])
            for feature in raw.get("features", [raw if "geometry" in raw else {"geometry": raw}])
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, GEOSException) as error:
        raise AreaError(f"area.geojson {path}: expected a polygon as GeoJSON, found {error}") from error
    others = sorted({part.geom_type for part in parts if part.geom_type not in ("Polygon", "MultiPolygon")})
    outline = unary_union(parts)
    if others or outline.is_empty or not outline.area:
        found = ", ".join(others) or ("an empty polygon" if parts else "no feature")
        raise AreaError(f"area.geojson {path}: found {found}; expected polygons that hold some ground")
    return outline


def plan_patches(area: Area, grid: Grid, offset: tuple[float, float] = (0.0, 0.0)) -> list[Patch]:
    """Cells of the UTM zones that the area touches, as overlapping patches, in a fixed order.

    `offset` moves the grid's origin (metres), so that it can follow a source's own corner.
    Raises `AreaError` when the area lies outside UTM or is larger than `area.max_area_km2`.
    """
    outline = area_outline(area)
    zone_x = (outline.bounds[0] + outline.bounds[2]) / 2
    hemisphere = 32600 if outline.centroid.y >= 0 else 32700
    epsg = hemisphere + int((zone_x + 180) // 6) % 60 + 1
    to_utm = pyproj.Transformer.from_crs("EPSG:4326", epsg, always_xy=True)
    km2 = reproject(to_utm.transform, outline).area / 1e6
    if not km2 <= area.max_area_km2:
        raise AreaError(f"area: found {km2:.0f} km2, expected at most area.max_area_km2 = {area.max_area_km2:.0f} km2")
    splitter = UtmZoneSplitter(
        [outline], CRS.WGS84, bbox_size=grid.cell_m, offset=(offset[0] % grid.cell_m, offset[1] % grid.cell_m)
    )
    patches = []
    for cell in splitter.get_bbox_list():
        bounds = (cell.min_x, cell.min_y, cell.max_x, cell.max_y)
        patches.append(make_patch(area.region, cell.crs.epsg, bounds, grid.buffer_m))
    return sorted(patches, key=lambda patch: (patch.epsg, -patch.cell[1], patch.cell[0]))


def make_patch(region: str, epsg: int, cell: tuple[float, float, float, float], buffer_m: float) -> Patch:
    """The patch of one cell; its id names the UTM zone and the cell's south-west corner in metres."""
    west, south, east, north = (float(value) for value in cell)
    zone = f"{epsg % 100:02d}{'N' if epsg // 100 == 326 else 'S'}"
    bounds = (west - buffer_m, south - buffer_m, east + buffer_m, north + buffer_m)
    return Patch(f"{zone}_{west:.0f}_{south:.0f}", region, epsg, bounds, (west, south, east, north))


def part_path(root: Path, patch: Patch, part: str) -> Path:
    """Folder of one EOPatch (`s2`, `vhr`, `reference`, `truth`) of a patch."""
    return root / patch.region / patch.id / part


def save_part(eopatch: EOPatch, path: Path) -> None:
    """Write an EOPatch aside and rename it, so that a reader sees all of it or nothing."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    for left in path.parent.glob(f".{path.name}.*"):
        shutil.rmtree(left, ignore_errors=True)  # by a process that was killed
    aside.parent.mkdir(parents=True, exist_ok=True)
    for name, frame in eopatch.vector_timeless.items():
        # geopandas 0.14 cannot write pandas 3's string columns
        eopatch.vector_timeless[name] = frame.astype(dict.fromkeys(frame.select_dtypes("string").columns, object))
    eopatch.save(str(aside), overwrite_permission=OverwritePermission.OVERWRITE_FEATURES)
    shutil.rmtree(path, ignore_errors=True)
    aside.rename(path)


def load_part(path: Path) -> EOPatch:
    """Read an EOPatch. Raises `ArtifactError` when it is missing or damaged."""
    if not path.is_dir():
        raise ArtifactError(f"EOPatch {path}: missing; expected the output of an earlier stage")
    try:
        return EOPatch.load(str(path), lazy_loading=False)
    except Exception as error:
        raise ArtifactError(f"EOPatch {path}: cannot be read ({error}); delete it and run its stage again") from error


def write_index(root: Path, patches: list[Patch]) -> None:
    """Write `patches.json`, which names every patch below `root`; the last thing a stage writes."""
    aside = root / ".patches.json"
    aside.write_text(json.dumps([patch.to_json() for patch in patches], indent=1), encoding="utf-8")
    aside.replace(root / "patches.json")


def read_index(root: Path) -> list[Patch]:
    """The patches below `root`, in their fixed order."""
    path = root / "patches.json"
    try:
        return [Patch.from_json(raw) for raw in json.loads(path.read_text(encoding="utf-8"))]
    except OSError as error:
        raise ArtifactError(f"{path}: missing; expected the output of the download stage") from error
