"""Small Sentinel-2 folders for tests."""

from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.transform import Affine

NORTH_WEST = (600_000.0, 5_600_640.0)
BANDS = ("B02", "B03", "B04", "B08")


def write_tiff(path: Path, image: NDArray, gsd: float = 10.0, epsg: int = 32631, origin=NORTH_WEST, **profile) -> Path:
    """Write (H, W) or (C, H, W)."""
    image = image if image.ndim == 3 else image[None]
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {
        "driver": "GTiff",
        "crs": f"EPSG:{epsg}",
        "transform": Affine(gsd, 0, origin[0], 0, -gsd, origin[1]),
    } | profile
    count, height, width = image.shape
    with rasterio.open(path, "w", count=count, height=height, width=width, dtype=image.dtype, **profile) as dataset:
        dataset.write(image)
    return path


def field(side: int = 64, seed: int = 0, cloudy: bool = False) -> NDArray[np.uint16]:
    """Farmland (4, side, side), reflectance x 10000: the same fields for a seed, all white where cloudy."""
    rng = np.random.default_rng(seed)
    plots = rng.integers(0, 2, (side // 8, side // 8)).repeat(8, 0).repeat(8, 1)
    green, soil = np.array([300, 600, 400, 3500]), np.array([700, 900, 1200, 2200])
    image = np.where(plots[None], green[:, None, None], soil[:, None, None]) + rng.integers(0, 40, (4, side, side))
    return (image + 5000 * cloudy).astype(np.uint16)


def write_product(folder: Path, name: str, image: NDArray, **options) -> Path:
    """A folder of a product, one GeoTIFF a band."""
    for band, layer in zip(BANDS, image, strict=True):
        write_tiff(folder / name / f"{name}_{band.lower()}.tif", layer, **options)
    return folder / name


def product(day: str, baseline: str = "0204") -> str:
    return f"S2A_MSIL1C_{day}T082001_N{baseline}_R121_T31UFS_{day}T090000"
