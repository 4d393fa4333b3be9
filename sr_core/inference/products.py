"""Products: one cloud-optimised GeoTIFF of super-resolved reflectance a region and date, and what speaks for it.

`<region>/<date>/sr.tif` holds reflectance x 10000 at 2.5 m, bands blue, green, red, nir. Beside it lie
`consistency.tif` (how far the product, seen through Sentinel-2's point-spread function, is from the latest image),
`quicklook.png` and `item.json` (STAC). A date's folder is written aside and renamed: it is there whole or not at all.

Nothing is invented: a pixel is nodata where the latest image has no data, or where no frame saw the ground clearly.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import ColorInterp
from rasterio.transform import Affine
from rasterio.windows import Window as RasterWindow
from rio_cogeo.cogeo import cog_translate, cog_validate
from rio_cogeo.profiles import cog_profiles

from sr_core import BANDS, REFLECTANCE_SCALE, SCALE
from sr_core.errors import ArtifactError
from sr_core.inference.dates import Target
from sr_core.inference.quicklook import write_quicklook
from sr_core.inference.stac import ITEM_FILE, describe_date, write_json
from sr_core.inference.windows import Window, super_resolve_window, windows
from sr_core.models.bundle import Precision, SuperResolver
from sr_core.models.normalization import Normalization
from sr_core.patches import S2_GSD, VHR_GSD, Patch
from sr_core.progress import track
from sr_core.radiometry.resample import degrade
from sr_core.series import S2Series

SR_NODATA, CONSISTENCY_NODATA = 0, 65535
CONSISTENCY_MTF = 0.3
"""MTF at the 10 m Nyquist frequency of the point-spread function that the product is compared through: the upper end of
what is specified for Sentinel-2's 10 m bands."""
BLUR_PX = 5
"""That function's reach, in 10 m pixels."""
TILE = 512


@dataclass(frozen=True)
class Provenance:
    """Where products come from, written into every file."""

    bundle_key: str
    """Key of the training run, or the digest of the bundle's weights."""
    trained_gsd_m: float | None
    """Ground sampling distance of the frames that the network learned from, metres; None where that is not known."""
    simulated: bool

    def attribution(self, years: Sequence[int]) -> str:
        """The line that has to be shown with a picture of these years."""
        if self.simulated:
            return "Simulated data: a computed landscape, not observed by any satellite"
        span = f"{min(years)}" if min(years) == max(years) else f"{min(years)}-{max(years)}"
        return f"Contains modified Copernicus Sentinel data {span}"

    def tags(self) -> dict[str, Any]:
        """What a user must know of the model."""
        if self.trained_gsd_m is None:
            transfer = "the bundle does not say at which ground sampling distance it was trained"
        elif self.trained_gsd_m == S2_GSD:
            transfer = f"trained and applied from {S2_GSD:g} m to {VHR_GSD:g} m"
        else:
            trained = self.trained_gsd_m
            transfer = (
                f"trained from {trained:g} m to {trained / SCALE:g} m (Wald's protocol) and applied from {S2_GSD:g} m"
                f" to {VHR_GSD:g} m: that what it learned holds at the finer scale is an assumption"
            )
        return {"bundle_key": self.bundle_key, "trained_gsd_m": self.trained_gsd_m, "transfer": transfer}


@dataclass(frozen=True)
class Mosaic:
    """The common 10 m grid of a region's cells, all in one UTM zone."""

    epsg: int
    west: float
    north: float
    rows: int
    columns: int

    @classmethod
    def of(cls, patches: Sequence[Patch]) -> Mosaic:
        """The smallest grid that holds all cells. Raises `ArtifactError` where they do not share one."""
        west, north = min(patch.cell[0] for patch in patches), max(patch.cell[3] for patch in patches)
        east, south = max(patch.cell[2] for patch in patches), min(patch.cell[1] for patch in patches)
        for patch in patches:
            offset = ((patch.cell[0] - west) / S2_GSD, (north - patch.cell[3]) / S2_GSD)
            if patch.epsg != patches[0].epsg or not np.allclose(offset, np.round(offset), atol=1e-6):
                raise ArtifactError(
                    f"patch {patch.id}: EPSG:{patch.epsg}, cell {patch.cell} does not lie on the {S2_GSD:g} m grid of"
                    f" EPSG:{patches[0].epsg} that begins at {west}, {north}; run download again"
                )
        return cls(patches[0].epsg, west, north, round((north - south) / S2_GSD), round((east - west) / S2_GSD))

    def transform(self, gsd: float) -> Affine:
        return Affine(gsd, 0.0, self.west, 0.0, -gsd, self.north)

    def shape(self, gsd: float) -> tuple[int, int]:
        return round(self.rows * S2_GSD / gsd), round(self.columns * S2_GSD / gsd)

    def offset(self, patch: Patch) -> tuple[int, int]:
        """Row and column, at 10 m, of the north-west corner of the patch's cell."""
        return round((self.north - patch.cell[3]) / S2_GSD), round((patch.cell[0] - self.west) / S2_GSD)


@dataclass
class Tally:
    """Sums over the pixels of a date."""

    pixels: int = 0
    valid: int = 0
    compared: int = 0
    difference: float = 0.0

    def summary(self) -> dict[str, float | None]:
        """Share of the cells that the product covers, and its mean difference from Sentinel-2 in reflectance."""
        return {
            "valid_share": round(self.valid / self.pixels, 4),
            "consistency_mae": round(self.difference / self.compared, 6) if self.compared else None,
        }


def make_date(
    root: Path,
    region: str,
    patches: Sequence[Patch],
    target: Target,
    load: Callable[[Patch], S2Series],
    resolver: SuperResolver,
    normalization: Normalization,
    provenance: Provenance,
    *,
    collection: str,
    window_px: int,
    precision: Precision = "float32",
) -> tuple[dict[str, Any], bool]:
    """Make `<root>/<region>/<date>/`, or keep it if it is there. Returns its STAC Item, and whether it was kept.

    `patches` are all of the region, whose cells make the mosaic; those without frames in `target` are nodata.
    """
    folder = root / region / target.name
    if (folder / ITEM_FILE).is_file():
        kept: dict[str, Any] = json.loads((folder / ITEM_FILE).read_text(encoding="utf-8"))
        return kept, True
    aside = folder.with_name(f".{target.name}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    mosaic = Mosaic.of(patches)
    seen = [patch for patch in patches if patch.id in target.frames]
    sources: dict[str, dt.datetime] = {}
    tally = Tally()
    with (
        _raster(aside / "sr.raw.tif", mosaic, VHR_GSD, SR_NODATA) as sr,
        _raster(aside / "consistency.raw.tif", mosaic, S2_GSD, CONSISTENCY_NODATA) as consistency,
    ):
        for patch in track(seen, f"{region} {target.timestamp:%Y-%m-%d}"):
            series, frames = load(patch), target.frames[patch.id]
            sources |= {series.product_ids[index]: series.timestamps[index] for index in frames}
            parts = _super_resolve_cell(patch, series, frames, resolver, normalization, window_px, precision)
            for window, image, difference in parts:
                top, left = mosaic.offset(patch)
                cell_rows, cell_columns = patch.cell_window()
                row, column = top + window.top - cell_rows.start, left + window.left - cell_columns.start
                _write(sr, image, row * SCALE, column * SCALE)
                _write(consistency, difference, row, column)
                compared = difference[0] != CONSISTENCY_NODATA
                tally.pixels += image[0].size
                tally.valid += int(np.count_nonzero(image[0]))
                tally.compared += difference[:, compared].size
                tally.difference += float(difference[:, compared].sum(dtype=np.float64)) / REFLECTANCE_SCALE
    attribution = provenance.attribution([timestamp.year for timestamp in sources.values()])
    latest_first = sorted(sources, key=lambda name: (sources[name], name), reverse=True)
    tags = {
        "TIFFTAG_DATETIME": f"{target.timestamp:%Y:%m:%d %H:%M:%S}",
        "TIFFTAG_SOFTWARE": "subpixel",
        "TIFFTAG_COPYRIGHT": attribution,
        "attribution": attribution,
        "region": region,
        "acquired": f"{target.timestamp.isoformat()}Z",
        "source_products": json.dumps(latest_first),
        **{name: str(value) for name, value in provenance.tags().items()},
    }
    meaning = {
        "sr": "surface or top-of-atmosphere reflectance as in the source, x 10000; 0: no data",
        "consistency": (
            f"|degrade(sr) - Sentinel-2| in reflectance x 10000, MTF {CONSISTENCY_MTF} at Nyquist; 65535: no data,"
            " or the latest image is cloudy there"
        ),
    }
    for name, nodata in (("sr", SR_NODATA), ("consistency", CONSISTENCY_NODATA)):
        _to_cog(aside / f"{name}.raw.tif", aside / f"{name}.tif", nodata, {**tags, "content": meaning[name]})
    title = f"{region}, {target.timestamp:%Y-%m-%d %H:%M} UTC, {VHR_GSD:g} m"
    write_quicklook(aside / "sr.tif", aside / "quicklook.png", title, attribution)
    item = describe_date(
        identifier=f"{region}-{target.name}",
        collection=collection,
        timestamp=target.timestamp,
        cells=[patch.cell for patch in seen],
        epsg=mosaic.epsg,
        layers={
            name: (mosaic.shape(gsd), tuple(mosaic.transform(gsd))[:6], nodata, gsd)
            for name, gsd, nodata in (("sr", VHR_GSD, SR_NODATA), ("consistency", S2_GSD, CONSISTENCY_NODATA))
        },
        title=title,
        sources=latest_first,
        properties={
            "gsd": VHR_GSD,
            "attribution": attribution,
            **{f"subpixel:{name}": value for name, value in provenance.tags().items()},
            **{f"subpixel:{name}": value for name, value in tally.summary().items()},
            "subpixel:region": region,
            "subpixel:path": f"{region}/{target.name}",
            "subpixel:patches": len(seen),
            "subpixel:frames": max(len(frames) for frames in target.frames.values()),
        },
    )
    write_json(aside / ITEM_FILE, item)
    aside.rename(folder)
    return item, False


def index_entry(item: Mapping[str, Any]) -> dict[str, Any]:
    """A date's line in `products.json`."""
    properties = item["properties"]
    short = {
        name.removeprefix("subpixel:"): value for name, value in properties.items() if name.startswith("subpixel:")
    }
    names = ("region", "path", "patches", "frames", "valid_share", "consistency_mae")
    return {
        "id": item["id"],
        "datetime": properties["datetime"],
        "bbox": item["bbox"],
        "attribution": properties["attribution"],
        **{name: short[name] for name in names},
    }


def _super_resolve_cell(
    patch: Patch,
    series: S2Series,
    frames: Sequence[int],
    resolver: SuperResolver,
    normalization: Normalization,
    window_px: int,
    precision: Precision,
) -> Iterator[tuple[Window, NDArray[np.uint16], NDArray[np.uint16]]]:
    """Windows of the patch's cell, each with its product (4,4h,4w) and its consistency (4,h,w)."""
    order = list(frames)
    stack = np.ascontiguousarray(np.moveaxis(series.bands[order], -1, 1))
    # the product lies on the series' common grid, the latest frame a little beside it
    displaced = (float(series.shifts[order[0], 0]), float(series.shifts[order[0], 1]))
    known = stack[0].any(axis=0)
    clear = series.clear[order]
    seen = clear.any(axis=0) & known
    for window in windows(patch.cell_window(), window_px):
        outer = window.grow(BLUR_PX, known.shape)
        image = super_resolve_window(resolver, stack, clear, normalization, outer, precision, series.shifts[order])
        rows, columns = window.slices
        difference = degrade(image, mtf=CONSISTENCY_MTF, shift=displaced)[(slice(None), *window.inside(outer))]
        difference = np.abs(difference * REFLECTANCE_SCALE - stack[0][:, rows, columns])
        comparable = (clear[0] & seen)[rows, columns]
        valid = seen[rows, columns].repeat(SCALE, axis=0).repeat(SCALE, axis=1)
        counts = _counts(image[(slice(None), *window.inside(outer, SCALE))] * REFLECTANCE_SCALE, 1, 65535)
        yield (
            window,
            np.where(valid, counts, np.uint16(SR_NODATA)),
            np.where(comparable, _counts(difference, 0, CONSISTENCY_NODATA - 1), np.uint16(CONSISTENCY_NODATA)),
        )


def _counts(values: NDArray[np.float32], low: int, high: int) -> NDArray[np.uint16]:
    return np.rint(values).clip(low, high).astype(np.uint16)


@contextmanager
def _raster(path: Path, mosaic: Mosaic, gsd: float, nodata: int) -> Iterator[Any]:
    """A tiled GeoTIFF to write windows into; ground that nothing is written to takes no space and is nodata."""
    rows, columns = mosaic.shape(gsd)
    profile = {
        "driver": "GTiff",
        "height": rows,
        "width": columns,
        "count": len(BANDS),
        "dtype": "uint16",
        "nodata": nodata,
        "crs": f"EPSG:{mosaic.epsg}",
        "transform": mosaic.transform(gsd),
        "tiled": True,
        "blockxsize": TILE,
        "blockysize": TILE,
        "interleave": "pixel",
        "sparse_ok": True,
        "bigtiff": "IF_SAFER",
    }
    with rasterio.open(path, "w", **profile) as raster:
        raster.colorinterp = [ColorInterp.blue, ColorInterp.green, ColorInterp.red, ColorInterp.undefined]
        raster.scales = [1 / REFLECTANCE_SCALE] * len(BANDS)
        for number, band in enumerate(BANDS, start=1):
            raster.set_band_description(number, band)
        yield raster


def _write(raster: Any, image: NDArray[np.uint16], row: int, column: int) -> None:
    raster.write(image, window=RasterWindow(column, row, image.shape[2], image.shape[1]))


def _to_cog(raw: Path, path: Path, nodata: int, tags: Mapping[str, str]) -> None:
    """Rewrite a tiled GeoTIFF as a COG, and delete it. Raises `ArtifactError` where the result is not one."""
    with rasterio.open(raw) as source:
        longer = max(source.shape)
    cog_translate(
        raw,
        path,
        {**cog_profiles.get("deflate"), "predictor": 2, "blockxsize": TILE, "blockysize": TILE, "bigtiff": "IF_SAFER"},
        nodata=nodata,
        # until the longer side fits into a tile; by itself rio-cogeo stops at the shorter one
        overview_level=max(0, math.ceil(math.log2(longer / TILE))),
        overview_resampling="average",
        in_memory=False,
        additional_cog_metadata=dict(tags),
        quiet=True,
    )
    raw.unlink()
    valid, errors, warnings = cog_validate(path, strict=True, quiet=True)
    if not valid:
        raise ArtifactError(f"{path}: not a valid cloud-optimised GeoTIFF: {'; '.join([*errors, *warnings])}")
