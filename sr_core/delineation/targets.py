"""What the network learns, from reference polygons: extent, boundary and distance on the 2.5 m grid.

All three come from an *instance* raster (one label a parcel), never from a binary one: parcels that touch keep
their shared boundary and each its own distance maximum. Source of the three tasks: Waldner and Diakogiannis,
Deep learning on edge: extracting field boundaries from satellite images with a convolutional neural network, 2020.
"""

from __future__ import annotations

from dataclasses import dataclass

import geopandas as gpd
import numpy as np
from numpy.typing import NDArray
from rasterio.features import rasterize
from rasterio.transform import Affine
from scipy import ndimage
from shapely.geometry import box

from sr_core.errors import DataError

Labels = NDArray[np.int32]
MARGIN_PX = 64


@dataclass(frozen=True)
class Targets:
    """Reference parcels on a grid of (H, W) pixels."""

    labels: Labels
    """0 is no parcel, i is row i - 1 of the table of polygons."""
    maps: NDArray[np.float32]
    """(3, H, W): extent and boundary 0 or 1, distance 0 to 1; in the order of `HEADS`."""
    lost: int
    """Polygons on the grid that own no pixel: too small, or covered by another."""


def make_targets(
    parcels: gpd.GeoDataFrame, transform: Affine, shape: tuple[int, int], margin_px: int = MARGIN_PX
) -> Targets:
    """Targets of `parcels` (polygons in the grid's CRS) on the grid of `transform` and `shape` (rows, columns).

    They are computed on a grid `margin_px` wider on each side and cropped, so that a parcel cut by the edge keeps
    the distances that it has as a whole. Raises `DataError` when a geometry is not a polygon.
    """
    grown = transform @ Affine.translation(-margin_px, -margin_px)
    rows, columns = shape[0] + 2 * margin_px, shape[1] + 2 * margin_px
    labels, lost = rasterize_parcels(parcels, grown, (rows, columns))
    maps = np.stack([labels > 0, boundary_of(labels), distance_of(labels)]).astype(np.float32)
    inner = (slice(margin_px, rows - margin_px), slice(margin_px, columns - margin_px))
    return Targets(labels[inner], maps[:, inner[0], inner[1]], lost)


def rasterize_parcels(parcels: gpd.GeoDataFrame, transform: Affine, shape: tuple[int, int]) -> tuple[Labels, int]:
    """Instance raster of polygons, a pixel belonging to the parcel over its centre (the later row where two
    overlap), and the number of polygons on the grid that own no pixel."""
    kinds = sorted(set(parcels.geom_type.dropna()) - {"Polygon", "MultiPolygon"})
    if kinds:
        raise DataError(f"reference parcels: found {', '.join(kinds)}, expected polygons")
    west, north = transform @ (0, 0)
    east, south = transform @ (shape[1], shape[0])
    grid = box(west, south, east, north)
    shapes = [
        (geometry, number)
        for number, geometry in enumerate(parcels.geometry, start=1)
        if geometry is not None and not geometry.is_empty and geometry.intersects(grid)
    ]
    if not shapes:
        return np.zeros(shape, np.int32), 0
    labels: Labels = rasterize(shapes, out_shape=shape, transform=transform, fill=0, dtype="int32")
    return labels, len(shapes) - int(np.count_nonzero(np.unique(labels)))


def boundary_of(labels: Labels) -> NDArray[np.bool_]:
    """Pixels (H, W) on either side of an edge between two labels, so that a boundary is two pixels wide."""
    edge = np.zeros(labels.shape, bool)
    down = labels[1:] != labels[:-1]
    across = labels[:, 1:] != labels[:, :-1]
    edge[1:] |= down
    edge[:-1] |= down
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    return edge


def distance_of(labels: Labels) -> NDArray[np.float32]:
    """Distance (H, W) to the nearest pixel of another label, divided by its maximum in the parcel: 1 is its middle.

    One transform a parcel, on its bounding box: exact, and as fast as a multi-label transform.
    """
    distance = np.zeros(labels.shape, np.float32)
    for label, found in enumerate(ndimage.find_objects(labels), start=1):
        if found is None:
            continue
        window = tuple(slice(max(side.start - 1, 0), side.stop + 1) for side in found)
        inside = labels[window] == label
        to_other = ndimage.distance_transform_edt(inside)
        distance[window][inside] = (to_other / to_other.max())[inside]
    return distance
