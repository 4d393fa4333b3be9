"""A small Voronoi landscape: parcels that touch, with tracks between some, and how Sentinel-2 sees them."""

import geopandas as gpd
import numpy as np
import shapely
from rasterio.transform import from_origin
from scipy import ndimage

from sr_core.delineation.targets import rasterize_parcels
from sr_core.radiometry.resample import degrade

EPSG = 32634
WEST, NORTH = 500_000.0, 6_000_000.0


def parcels(size_m: float, count: int, seed: int, west: float = WEST, north: float = NORTH) -> gpd.GeoDataFrame:
    """`count` Voronoi cells over a square, some shrunk (a track around them), some not farmed at all."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(0, size_m, (count, 2)) + np.array([west, north - size_m])
    square = shapely.box(west, north - size_m, west + size_m, north)
    cells = shapely.voronoi_polygons(shapely.MultiPoint(points), extend_to=square).geoms
    kept = []
    for cell in cells:
        cell = cell.intersection(square).buffer(-rng.choice([0.0, 0.0, 2.5, 5.0]), join_style="mitre")
        if rng.random() > 0.1 and cell.area > 400:
            kept.append(cell)
    return gpd.GeoDataFrame({"parcel_id": range(len(kept))}, geometry=kept, crs=EPSG)


def render(fields: gpd.GeoDataFrame, size_m: float, seed: int, west: float = WEST, north: float = NORTH) -> np.ndarray:
    """(4, H, W) reflectance at 2.5 m: each parcel has its colour, texture and noise."""
    rng = np.random.default_rng(seed)
    side = round(size_m / 2.5)
    labels, _ = rasterize_parcels(fields, from_origin(west, north, 2.5, 2.5), (side, side))
    vigour = rng.uniform(0, 1, len(fields) + 1)
    vigour[0] = 0.5
    texture = ndimage.gaussian_filter(rng.normal(size=(side, side)), 1.5) * 0.15
    green = vigour[labels] + texture
    soil, crop = np.array([0.08, 0.11, 0.14, 0.22]), np.array([0.03, 0.07, 0.04, 0.42])
    image = soil[:, None, None] * (1 - green) + crop[:, None, None] * green
    image[:, labels == 0] *= 0.75  # rough grass and tracks
    image += rng.normal(size=image.shape) * 0.004
    return image.clip(0.001, 1).astype(np.float32)


def sentinel2(image: np.ndarray, seed: int) -> np.ndarray:
    """(4, H / 4, W / 4): the landscape through Sentinel-2's point-spread function, with noise."""
    frame = degrade(image, mtf=0.3)
    return (frame + np.random.default_rng(seed).normal(size=frame.shape) * 0.002).astype(np.float32)
