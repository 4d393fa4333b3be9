"""Statistics of clear pixels: a region's for Sentinel-2, a tile's for VHR.

Inputs: `patches/`, `masks/`. Output: `normalization/normalization.json`. Kept acquisitions count, each ground once:
a patch counts the pixels of its cell, not those it shares with its neighbours.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from components.stage import STAGES, Context, Result
from sr_core import BANDS
from sr_core.errors import DataError
from sr_core.masks.acquisitions import read_acquisitions
from sr_core.patches import S2_GSD, VHR_GSD, Patch, read_index
from sr_core.progress import track
from sr_core.radiometry.normalize import Normalization, band_statistics, write_normalization
from sr_core.radiometry.statistics import PixelStatistics
from sr_core.series import load_s2, load_vhr

S2_SCALE = 10_000.0


def work(context: Context) -> Result:
    """Compute statistics of clear pixels of each region and each VHR tile."""
    section = context.config.normalize
    images, masks = context.inputs["download"], context.inputs["cloud_shadow_filter"]
    table = read_acquisitions(masks)
    regions: dict[str, PixelStatistics] = {}
    tiles: dict[str, PixelStatistics] = {}
    scales: dict[str, float] = {}
    for patch in track(read_index(images), "statistics"):
        s2, vhr = load_s2(images, masks, patch), load_vhr(images, masks, patch)
        cell = patch.cell_window(S2_GSD)
        region = regions.setdefault(patch.region, PixelStatistics(len(BANDS)))
        for index in kept_dates(table, patch, "s2"):
            region.add(s2.bands[index][cell][s2.clear[index][cell]])
        if vhr is None:
            continue
        cell = patch.cell_window(VHR_GSD)
        for index in kept_dates(table, patch, "vhr"):
            tile = tiles.setdefault(vhr.tile_ids[index], PixelStatistics(len(BANDS)))
            tile.add(vhr.bands[index][cell][vhr.clear[index][cell]])
            scales[vhr.tile_ids[index]] = vhr.radiance_scale
    percentiles = (section.lower_percentile, section.upper_percentile)
    s2_found = {
        name: band_statistics(pixels, S2_SCALE, percentiles)
        for name, pixels in sorted(regions.items())
        if pixels.n_pixels >= section.min_pixels
    }
    vhr_found = {
        name: band_statistics(pixels, scales[name], percentiles)
        for name, pixels in sorted(tiles.items())
        if pixels.n_pixels >= section.min_pixels
    }
    if not s2_found:
        most = max((pixels.n_pixels for pixels in regions.values()), default=0)
        raise DataError(
            f"normalize: found at most {most} clear Sentinel-2 pixels in a region; expected at least"
            f" normalize.min_pixels = {section.min_pixels}"
        )
    write_normalization(context.output, Normalization(s2_found, vhr_found, percentiles))
    return Result(
        {
            "regions": len(s2_found),
            "tiles": len(vhr_found),
            "too_few_pixels": len(regions) + len(tiles) - len(s2_found) - len(vhr_found),
            "clear_pixels": {
                "s2": sum(pixels.n_pixels for pixels in regions.values()),
                "vhr": sum(pixels.n_pixels for pixels in tiles.values()),
            },
        }
    )


def kept_dates(table: pd.DataFrame, patch: Patch, sensor: str) -> NDArray[np.intp]:
    """Indices along time of a patch's kept acquisitions; the table holds them in the order of the series."""
    mine = table[(table.region == patch.region) & (table.patch == patch.id) & (table.sensor == sensor)]
    return np.flatnonzero(mine["kept"].to_numpy())


STAGE = STAGES["normalize"]
