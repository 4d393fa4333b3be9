"""From probabilities to parcels: instances by watershed, and polygons in UTM.

The score of a pixel is (1 + extent - boundary) / 2 on a fixed scale; rescaling it by the minimum and maximum of a
patch, as earlier systems did, gives the same ground another outline in another patch.
"""

from __future__ import annotations

import os
from pathlib import Path

import geopandas as gpd
import numpy as np
from numpy.typing import NDArray
from rasterio.features import shapes
from rasterio.transform import Affine
from scipy import ndimage
from shapely.geometry import shape as geometry_of
from skimage.morphology import reconstruction
from skimage.segmentation import watershed

from sr_core.delineation.targets import Labels

EXTENT = 0.5
"""Pixels of a lower probability of extent belong to no parcel."""
PROMINENCE = 0.1
"""A parcel's middle rises this far above every saddle to a higher one."""
SMOOTHING_PX = 2.0


def score_of(probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
    """How much a pixel (H, W) looks like the inside of a parcel, 0 to 1, from (3, H, W) probabilities."""
    score: NDArray[np.float32] = (1.0 + probabilities[0] - probabilities[1]) / 2.0
    return score


def instances_of(probabilities: NDArray[np.float32], min_area_px: float = 0.0) -> Labels:
    """Instance raster (H, W), 0 outside parcels, from (3, H, W) probabilities in the order of `HEADS`.

    The mean of score and distance is a hill on each parcel with valleys along boundaries. Its prominent maxima
    are flooded down to where they meet, within the extent (watershed: Beucher and Lantuejoul, 1979; h-maxima:
    Soille, Morphological Image Analysis, 2003). Parcels of fewer than `min_area_px` pixels are removed; labels
    count from 1 without gaps.
    """
    extent = probabilities[0] > EXTENT
    hill = (score_of(probabilities) + probabilities[2]) / 2.0
    smooth = ndimage.gaussian_filter(hill, SMOOTHING_PX)
    prominent = smooth - reconstruction(smooth - PROMINENCE, smooth) > PROMINENCE * 0.999
    markers, _ = ndimage.label(prominent & extent)
    labels = watershed(-hill, markers, mask=extent)
    sizes = np.bincount(labels.ravel())
    keep = sizes >= min_area_px
    keep[0] = False
    numbers = np.where(keep, np.cumsum(keep), 0).astype(np.int32)
    result: Labels = numbers[labels]
    return result


def polygons_of(labels: Labels, score: NDArray[np.float32], transform: Affine, epsg: int) -> gpd.GeoDataFrame:
    """Polygons of an instance raster (H, W), a row a connected piece, in the UTM zone `epsg`.

    Columns: `label`; `area_m2`; `perimeter_m`, along pixel edges; `confidence`, the mean score inside, 0 to 1.
    """
    pieces = list(shapes(labels, mask=labels > 0, connectivity=4, transform=transform))
    numbers = np.array([int(value) for _, value in pieces], np.int64)
    frame = gpd.GeoDataFrame({"label": numbers}, geometry=[geometry_of(piece) for piece, _ in pieces], crs=epsg)
    frame["area_m2"] = frame.geometry.area.to_numpy(float)
    frame["perimeter_m"] = frame.geometry.length.to_numpy(float)
    means = ndimage.mean(score, labels, np.arange(labels.max() + 1))
    frame["confidence"] = np.asarray(means, float)[numbers]
    return frame


def write_parcels(parcels: gpd.GeoDataFrame, path: Path) -> None:
    """Write polygons as GeoParquet, aside and renamed."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    parcels.to_parquet(aside, index=False)
    aside.replace(path)
