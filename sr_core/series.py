"""A patch's time series with its masks, as the stages after the masks read them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import geopandas as gpd
import numpy as np
from numpy.typing import NDArray

from sr_core.coregistration import Registration, read_shifts
from sr_core.errors import ArtifactError
from sr_core.patches import EOPatch, Patch, load_part, part_path


@dataclass(frozen=True)
class S2Series:
    """Sentinel-2 over one patch, time ascending."""

    patch: Patch
    bands: NDArray[np.uint16]
    """(T, H, W, 4) reflectance x 10000 at 10 m; 0 where there is no data."""
    clear: NDArray[np.bool_]
    """(T, H, W): valid and not cloud."""
    timestamps: list[dt.datetime]
    """Naive UTC."""
    product_ids: list[str]
    shifts: NDArray[np.float32]
    """(T, 2) rows and columns by which each date is displaced, in 10 m pixels: a pixel at p shows the ground at
    p + shift. Zero where it is not known."""


@dataclass(frozen=True)
class VHRSeries:
    """VHR over one patch, time ascending."""

    patch: Patch
    bands: NDArray[np.uint16]
    """(T, 4H, 4W, 4) at 2.5 m: radiance (W m-2 sr-1 um-1) times `radiance_scale`; 0 where there is no data."""
    clear: NDArray[np.bool_]
    """(T, 4H, 4W): valid and not cloud."""
    shadow: NDArray[np.bool_]
    """(T, 4H, 4W): may lie in the shadow of a neighbouring patch's clouds."""
    timestamps: list[dt.datetime]
    tile_ids: list[str]
    radiance_scale: float
    shifts_m: NDArray[np.float32]
    """(T, 2) metres south and east: a pixel at p shows the ground that the co-registered Sentinel-2 frames have at
    p + shift. NaN where it is not known."""


def load_s2(patches: Path, masks: Path, patch: Patch) -> S2Series:
    """The Sentinel-2 series of a patch from the artifacts `patches/` and `masks/`.

    Raises `ArtifactError` when either part is missing, damaged, or of other dates than the other.
    """
    images = load_part(part_path(patches, patch, "s2"))
    timestamps = list(images.get_timestamps())
    mask_part = _masks_for(part_path(masks, patch, "s2"), timestamps)
    return S2Series(
        patch,
        images.data["BANDS"],
        mask_part.mask["CLEAR"][..., 0].astype(bool),
        timestamps,
        list(images.meta_info["product_ids"]),
        _shifts(masks, patch, timestamps),
    )


def load_vhr(patches: Path, masks: Path, patch: Patch) -> VHRSeries | None:
    """The VHR series of a patch, or None where there is none. Raises `ArtifactError` like `load_s2`."""
    path = part_path(patches, patch, "vhr")
    if not path.is_dir():
        return None
    images = load_part(path)
    timestamps = list(images.get_timestamps())
    mask_part = _masks_for(part_path(masks, patch, "vhr"), timestamps)
    return VHRSeries(
        patch,
        images.data["BANDS"],
        mask_part.mask["CLEAR"][..., 0].astype(bool),
        mask_part.mask["SHADOW"][..., 0].astype(bool),
        timestamps,
        list(images.meta_info["tile_ids"]),
        float(images.meta_info["radiance_scale"]),
        np.array(
            [
                (found.rows_m, found.columns_m) if found.known else (np.nan, np.nan)
                for found in map(Registration.from_json, mask_part.meta_info["registration"])
            ],
            np.float32,
        ).reshape(-1, 2),
    )


def load_parcels(patches: Path, patch: Patch) -> gpd.GeoDataFrame | None:
    """Reference parcels of a patch (columns `parcel_id`, `geometry`, in the patch's CRS), or None."""
    path = part_path(patches, patch, "reference")
    if not path.is_dir():
        return None
    return load_part(path).vector_timeless["PARCELS"]


def _shifts(masks: Path, patch: Patch, timestamps: Sequence[dt.datetime]) -> NDArray[np.float32]:
    known = read_shifts(masks).get(patch.region, {})
    return np.array([known.get(timestamp, (0.0, 0.0)) for timestamp in timestamps], np.float32).reshape(-1, 2)


def _masks_for(path: Path, timestamps: Sequence[dt.datetime]) -> EOPatch:
    found = load_part(path)
    if list(found.get_timestamps()) != list(timestamps):
        raise ArtifactError(
            f"EOPatch {path}: masks of {len(found.get_timestamps())} dates, expected those of the images'"
            f" {len(timestamps)} dates; run cloud_shadow_filter again"
        )
    return found
