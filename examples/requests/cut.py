"""Cut the sample requests of this folder out of the Okavango series: `python examples/requests/cut.py FOLDER`.

FOLDER has one folder a product, with a GeoTIFF a band; the eight latest clear dates become eight GeoTIFFs of 4 bands.
"""

import sys
from pathlib import Path

import numpy as np
import rasterio
from rasterio.windows import Window

DATES = ("20170829", "20170819", "20170809", "20170720", "20170710", "20170630", "20170620", "20170610")
BANDS = {"blue": "b02", "green": "b03", "red": "b04", "nir": "b08"}
WINDOW = Window(col_off=215, row_off=195, width=48, height=48)
ATTRIBUTION = "Contains modified Copernicus Sentinel data 2017"


def cut(series: Path, date: str, path: Path) -> None:
    """Write one date of the series, reflectance x 10000 of the top of the atmosphere, to `path`."""
    files = [next(series.glob(f"*_{date}T*/*_{band}.tif")) for band in BANDS.values()]
    layers = []
    for file in files:
        with rasterio.open(file) as dataset:
            layers.append(dataset.read(1, window=WINDOW))
            transform, crs = dataset.window_transform(WINDOW), dataset.crs
    profile = {"width": WINDOW.width, "height": WINDOW.height, "count": len(BANDS), "dtype": "uint16", "nodata": 0}
    packed = {"compress": "deflate", "predictor": 2, "zlevel": 9, "interleave": "band"}
    with rasterio.open(path, "w", driver="GTiff", crs=crs, transform=transform, **profile, **packed) as dataset:
        dataset.write(np.stack(layers))
        dataset.descriptions = tuple(BANDS)
        dataset.update_tags(ATTRIBUTION=ATTRIBUTION, TIFFTAG_DATETIME=f"{date[:4]}:{date[4:6]}:{date[6:]} 00:00:00")


if __name__ == "__main__":
    for each in DATES:
        cut(Path(sys.argv[1]), each, Path(__file__).with_name(f"{each}.tif"))
