"""Render the sample requests of this folder: `python examples/requests/render.py [FOLDER]`.

Eight clear passes over 480 m of simulated farmland, a GeoTIFF of 4 bands each, as Sentinel-2 would deliver them.
"""

import datetime as dt
import sys
from pathlib import Path

import numpy as np
import rasterio

from sr_core import BANDS
from sr_core.config import SimulatedSource
from sr_core.patches import Patch
from sr_core.sources.simulated import SimulatedFarmland

BOUNDS = (500_000.0, 5_400_000.0, 500_480.0, 5_400_480.0)
PATCH = Patch("sample", "sample", 32633, BOUNDS, BOUNDS)
PERIOD = (dt.date(2024, 5, 1), dt.date(2024, 7, 15))
ATTRIBUTION = "Simulated data: a computed landscape, not observed by any satellite"

if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    source = SimulatedFarmland(SimulatedSource(kind="simulated", revisit_days=10, cloudy_share=0.0, jitter_px=0.0))
    passes = source.s2(PATCH, PERIOD)
    profile = {"width": 48, "height": 48, "count": len(BANDS), "dtype": "uint16", "nodata": 0, "crs": PATCH.epsg}
    packed = {"compress": "deflate", "predictor": 2, "zlevel": 9, "interleave": "band"}
    for image, timestamp in list(zip(passes.data["BANDS"], passes.get_timestamps(), strict=True))[-8:]:
        path = folder / f"{timestamp:%Y%m%d}.tif"
        with rasterio.open(path, "w", driver="GTiff", transform=PATCH.transform(), **profile, **packed) as dataset:
            dataset.write(np.moveaxis(image, -1, 0))
            dataset.descriptions = BANDS
            dataset.update_tags(ATTRIBUTION=ATTRIBUTION, TIFFTAG_DATETIME=f"{timestamp:%Y:%m:%d %H:%M:%S}")
