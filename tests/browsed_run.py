"""Products as `super_resolve` lays them out, made in a second: what the browser's tests look at."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import rasterio
import shapely
from numpy.typing import NDArray
from PIL import Image
from pyproj import Transformer
from rasterio.transform import Affine
from rio_cogeo.cogeo import cog_translate
from rio_cogeo.profiles import cog_profiles
from scipy.ndimage import gaussian_filter, zoom

EPSG, WEST, NORTH = 32634, 682240.0, 6135680.0
ROWS, COLUMNS = 250, 300
"""Size at 10 m: neither a multiple of a tile nor of a power of two."""
ATTRIBUTION = "Simulated data: a computed landscape, not observed by any satellite"


def write_run(root: Path, days: Sequence[str], region: str = "farmland", *, companions: bool = True) -> None:
    """A run with a product a day; without `companions` as earlier versions wrote it: no s2.tif, no uncertainty."""
    entries = [_write_product(root / "products", region, day, number, companions) for number, day in enumerate(days)]
    index = {"collection": f"{root.name}-sr", "model": {"bundle_key": "0123abcd"}, "simulated": True}
    (root / "products" / "products.json").write_text(json.dumps({**index, "products": entries}))
    (root / "products" / "collection.json").write_text("{}")
    (root / "products" / "run.json").write_text("{}")


def write_report(root: Path) -> None:
    """The report, the metrics and the polygons of a run that trained a model."""
    (root / "report.html").write_text("<!doctype html><title>report</title><h1>Report of the run</h1>")
    arms = {
        metric: {"bicubic": low, "temporal_mean": low - 1, "sr": low + 2}
        for metric, low in (("psnr", 33.7), ("ssim", 0.9))
    }
    test = {"n_samples": 287, "win_rate_vs_bicubic": 0.99, **arms}
    (root / "metrics.json").write_text(json.dumps({"evaluation": {"test": test}}))
    (root / "delineation").mkdir()
    field = shapely.box(WEST + 1000, NORTH - 1500, WEST + 2000, NORTH - 800)
    parcels = gpd.GeoDataFrame({"label": [1], "confidence": [0.8]}, geometry=[field], crs=EPSG)
    parcels.to_parquet(root / "delineation" / "sr.parquet", index=False)


def _write_product(products: Path, region: str, day: str, number: int, companions: bool) -> dict[str, Any]:
    name = f"{day.replace('-', '')}T100031"
    folder = products / region / name
    folder.mkdir(parents=True)
    rng = np.random.default_rng(number)
    level = np.array([600.0, 800.0, 900.0 - 40 * number, 2200.0 + 150 * number])[:, None, None]
    coarse = rng.normal(size=(4, ROWS, COLUMNS)).astype(np.float32)
    sr = zoom(np.stack([gaussian_filter(band, 2) for band in coarse]), (1, 4, 4), order=1)
    sr = (level * (1 + 1.5 * sr) + rng.normal(scale=15, size=sr.shape)).clip(1, 9000).astype(np.uint16)
    sr[:, :200, :240] = 0  # never seen clearly
    s2 = sr.reshape(4, ROWS, 4, COLUMNS, 4).mean(axis=(2, 4)).round().astype(np.uint16)
    difference = (np.abs(coarse) * 20).astype(np.uint16)
    layers = {"sr": (sr, 2.5, 0), "consistency": (difference, 10.0, 65535)}
    if companions:
        layers["s2"] = (s2, 10.0, 0)
        layers["uncertainty"] = ((sr // 20).astype(np.uint16), 2.5, 65535)
    for layer, (image, gsd, nodata) in layers.items():
        _write_cog(folder / f"{layer}.tif", image, gsd, nodata)
    Image.fromarray((sr[2::-1, ::8, ::8] / 12).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)).save(
        folder / "quicklook.png"
    )
    source = {"rel": "derived_from", "title": f"S2A_MSIL2A_{name}", "href": f"urn:sentinel-2:product:S2A_{name}"}
    (folder / "item.json").write_text(json.dumps({"links": [source]}))
    to_wgs84 = Transformer.from_crs(EPSG, 4326, always_xy=True)
    bounds = to_wgs84.transform_bounds(WEST, NORTH - ROWS * 10, WEST + COLUMNS * 10, NORTH)
    return {
        "id": f"{region}-{name}",
        "datetime": f"{day}T10:00:31Z",
        "bbox": bounds,
        "attribution": ATTRIBUTION,
        "region": region,
        "path": f"{region}/{name}",
        "patches": 4,
        "frames": 8,
        "valid_share": 0.96,
        "consistency_mae": 0.0021,
        **({"layers": ["sr", "s2", "consistency", "uncertainty"]} if companions else {}),
    }


def _write_cog(path: Path, image: NDArray[np.uint16], gsd: float, nodata: int) -> None:
    raw = path.with_suffix(".raw")
    profile = {"driver": "GTiff", "dtype": "uint16", "count": 4, "nodata": nodata, "crs": f"EPSG:{EPSG}"}
    grid = {"height": image.shape[1], "width": image.shape[2], "transform": Affine(gsd, 0, WEST, 0, -gsd, NORTH)}
    with rasterio.open(raw, "w", **profile, **grid) as target:
        target.write(image)
    overviews = max(0, int(np.ceil(np.log2(max(image.shape[1:]) / 512))))
    options = {**cog_profiles.get("deflate"), "predictor": 2, "blockxsize": 512, "blockysize": 512}
    cog_translate(
        raw,
        path,
        options,
        nodata=nodata,
        overview_level=overviews,
        overview_resampling="average",
        in_memory=False,
        quiet=True,
    )
    raw.unlink()
