"""A deterministic farmland, seen by Sentinel-2 and by a VHR satellite, with known truth.

All of it is a function of the seed, the UTM coordinates and the date: where patches overlap they are equal. The land is
that of central Europe at 48 degrees north whatever UTM zone it is put into.

`landscape` draws parcels, roads, woods and villages; `crops` colours them by the day of the year; `render` makes the
2.5 m reflectance of a date; `atmosphere` and `sensors` make of it what the instruments deliver.
"""

from __future__ import annotations

import datetime as dt
import math
from functools import lru_cache
from typing import Any

import geopandas as gpd
import numpy as np
from eolearn.core import EOPatch, FeatureType
from shapely.geometry import Polygon, box

from sr_core.config import SimulatedSource
from sr_core.errors import DataError, SourceError
from sr_core.patches import S2_GSD, VHR_GSD, Patch
from sr_core.sources import Dates, Region
from sr_core.sources.simulated.landscape import Bounds, landscape
from sr_core.sources.simulated.render import SHADOW_REACH_M, Raster, Scene, Sun
from sr_core.sources.simulated.sensors import (
    BLOCK_M,
    RADIANCE_SCALE,
    VHR_HOUR,
    S2Frame,
    VhrFrame,
    acquire_s2,
    acquire_vhr,
    margin_m,
    s2_days,
)

__all__ = ["SimulatedFarmland"]

Days = tuple[dt.date, ...]


class SimulatedFarmland:
    """Source that makes its pixels up; see the package for what they are and `Source` for the methods' contract."""

    def __init__(self, config: SimulatedSource) -> None:
        self.config = config

    def regions(self) -> list[Region]:
        return []

    def fingerprint(self) -> Any:
        return None

    def s2(self, patch: Patch, period: Dates | None) -> EOPatch:
        """Every pass of the period, clear or cloudy. Raises `DataError` when the period has none."""
        frames = self._s2_frames(patch, period)
        eopatch = EOPatch(bbox=patch.bbox, timestamps=[frame.timestamp for frame in frames])
        eopatch[FeatureType.DATA, "BANDS"] = np.stack([frame.bands for frame in frames])
        eopatch[FeatureType.MASK, "VALID"] = np.ones((len(frames), *patch.shape, 1), bool)
        self._describe(
            eopatch,
            patch,
            product_ids=[f"SIM_S2_{frame.timestamp:%Y%m%d}" for frame in frames],
            processing_baselines=["05.09"] * len(frames),
            level="L2A",
            gsd_m=S2_GSD,
        )
        return eopatch

    def vhr(self, patch: Patch, period: Dates | None) -> EOPatch | None:
        """Acquisitions on those of `vhr_dates` that lie in the period; None where there are none.

        A whole patch comes from the tile (10 km square) of its cell's centre, so two overlapping patches are equal
        only within one tile.
        """
        frames = self._vhr_frames(patch, period)
        if not frames:
            return None
        eopatch = EOPatch(bbox=patch.bbox, timestamps=[frame.timestamp for frame in frames])
        eopatch[FeatureType.DATA, "BANDS"] = np.stack([frame.bands for frame in frames])
        eopatch[FeatureType.MASK, "VALID"] = np.ones((len(frames), *patch.hr_shape, 1), bool)
        self._describe(
            eopatch,
            patch,
            tile_ids=[frame.tile for frame in frames],
            radiance_scale=RADIANCE_SCALE,
            gsd_m=VHR_GSD,
            sun=[_sun(frame.timestamp) for frame in frames],
        )
        return eopatch

    def reference(self, patch: Patch) -> EOPatch:
        """The agricultural parcels that touch the patch, whole: `crop`, and `parcel_id`, the same in every patch."""
        west, south, east, north = patch.bounds
        ground = box(west, south, east, north)
        parcels = landscape(self.config.seed, patch.epsg, self._frame(patch)).parcels
        found = [(face, polygon) for face in parcels if (polygon := Polygon(face.ring)).intersects(ground)]
        frame = gpd.GeoDataFrame(
            {"parcel_id": [face.id for face, _ in found], "crop": [face.surface for face, _ in found]},
            geometry=[polygon for _, polygon in found],
            crs=patch.epsg,
        )
        eopatch = EOPatch(bbox=patch.bbox)
        eopatch[FeatureType.VECTOR_TIMELESS, "PARCELS"] = frame
        self._describe(eopatch, patch)
        return eopatch

    def truth(self, patch: Patch, period: Dates | None) -> dict[str, EOPatch]:
        """What the sensors hide: `truth` at Sentinel-2's dates, and `truth_vhr` where there is VHR; nothing where the
        configuration wants none.

        Clouds and shadows are masked from the optical depths in `atmosphere` on.
        """
        if not self.config.truth:
            return {}
        frames = self._s2_frames(patch, period)
        truth = EOPatch(bbox=patch.bbox, timestamps=[frame.timestamp for frame in frames])
        truth[FeatureType.DATA, "S2_HR"] = np.stack([frame.truth for frame in frames])
        truth[FeatureType.MASK, "CLOUD"] = np.stack([frame.cloud for frame in frames])[..., None]
        truth[FeatureType.MASK, "SHADOW"] = np.stack([frame.shadow for frame in frames])[..., None]
        self._describe(truth, patch, shifts_px=[list(frame.shift) for frame in frames])
        parts = {"truth": truth}
        acquisitions = self._vhr_frames(patch, period)
        if acquisitions:
            truth_vhr = EOPatch(bbox=patch.bbox, timestamps=[frame.timestamp for frame in acquisitions])
            truth_vhr[FeatureType.MASK, "CLOUD"] = np.stack([frame.cloud for frame in acquisitions])[..., None]
            truth_vhr[FeatureType.MASK, "SHADOW"] = np.stack([frame.shadow for frame in acquisitions])[..., None]
            self._describe(truth_vhr, patch, shifts_m=[list(frame.shift) for frame in acquisitions])
            parts["truth_vhr"] = truth_vhr
        return parts

    def _s2_frames(self, patch: Patch, period: Dates | None) -> tuple[S2Frame, ...]:
        start, end = self._dates(patch, period)
        days = tuple(s2_days(self.config, start, end))
        if not days:
            raise DataError(
                f"patch {patch.id}: no Sentinel-2 pass between {start} and {end}; source.revisit_days is"
                f" {self.config.revisit_days}, expected a period that is at least as long"
            )
        return _s2_series(self.config, patch, self._frame(patch), days)

    def _vhr_frames(self, patch: Patch, period: Dates | None) -> tuple[VhrFrame, ...]:
        start, end = self._dates(patch, period)
        days = tuple(sorted({day for day in self.config.vhr_dates if start <= day <= end}))
        return _vhr_series(self.config, patch, self._frame(patch), days) if days else ()

    def _dates(self, patch: Patch, period: Dates | None) -> Dates:
        if period is None:
            raise SourceError(f"patch {patch.id}: found no period; a simulation needs the first and the last day")
        return period

    def _frame(self, patch: Patch) -> Bounds:
        """The patch and what must be rendered around it, on the lattice of blocks."""
        if any(edge % S2_GSD for edge in patch.bounds):
            raise SourceError(f"patch {patch.id}: found bounds {patch.bounds}, expected multiples of {S2_GSD:.0f} m")
        margin = margin_m(self.config) + SHADOW_REACH_M
        west, south, east, north = patch.bounds
        return (
            BLOCK_M * math.floor((west - margin) / BLOCK_M),
            BLOCK_M * math.floor((south - margin) / BLOCK_M),
            BLOCK_M * math.ceil((east + margin) / BLOCK_M),
            BLOCK_M * math.ceil((north + margin) / BLOCK_M),
        )

    def _describe(self, eopatch: EOPatch, patch: Patch, **info: Any) -> None:
        info |= {"source": "simulated", "region": patch.region, "patch_id": patch.id}
        for name, value in info.items():
            eopatch[FeatureType.META_INFO, name] = value


def _sun(timestamp: dt.datetime) -> list[float]:
    """Azimuth and elevation, degrees, of the sun that VHR is rendered with: that of the land's latitude at the hour of
    the pass, not that of the UTM zone's longitude at the timestamp."""
    sun = Sun.at(timestamp.date(), VHR_HOUR)
    return [math.degrees(sun.azimuth), math.degrees(sun.elevation)]


# A stage asks for the parts of one patch one after another.


@lru_cache(maxsize=1)
def _scene(seed: int, epsg: int, frame: Bounds) -> Scene:
    return Scene(seed, landscape(seed, epsg, frame), Raster.of(frame, VHR_GSD))


@lru_cache(maxsize=1)
def _s2_series(config: SimulatedSource, patch: Patch, frame: Bounds, days: Days) -> tuple[S2Frame, ...]:
    scene = _scene(config.seed, patch.epsg, frame)
    return tuple(acquire_s2(config, scene, patch, day) for day in days)


@lru_cache(maxsize=1)
def _vhr_series(config: SimulatedSource, patch: Patch, frame: Bounds, days: Days) -> tuple[VhrFrame, ...]:
    scene = _scene(config.seed, patch.epsg, frame)
    return tuple(acquire_vhr(config, scene, patch, day) for day in days)
