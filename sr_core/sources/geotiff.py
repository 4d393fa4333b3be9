"""A folder of GeoTIFFs as a Sentinel-2 series: one file a band, or one file of four bands a date."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.windows import Window

from sr_core import BANDS
from sr_core.errors import DataError, SourceError
from sr_core.sources.products import baseline_of, level_of, sensing_time
from sr_core.sources.rasters import Frame, Pixels, RasterGrid, Series, utm_epsg

S2_BANDS = ("B02", "B03", "B04", "B08")
_BAND_SUFFIX = re.compile(r"(?:^|[_.\-])(B\d{1,2}A?)(?:_10m)?$", re.IGNORECASE)
_UNIT_REFLECTANCE_BELOW = 10.0
"""Floating-point values all below this are reflectance itself, not times 10000: no ground reflects 10."""


@dataclass(frozen=True)
class TiffFrame(Frame):
    """One date: a file for each of the four bands, or one file and its four band numbers."""

    files: tuple[tuple[Path, int], ...]


@dataclass(frozen=True)
class TiffSeries(Series):
    """All dates of a folder, on one grid."""

    frames: Sequence[TiffFrame]
    nodata: int

    def read(self, frame: Frame, window: Window) -> Pixels:
        assert isinstance(frame, TiffFrame)
        bands, valid = [], np.ones((window.height, window.width), bool)
        for path, number in frame.files:
            values, good = read_band(path, number, window, self.nodata)
            bands.append(values)
            valid &= good
        stacked = np.stack(bands, axis=-1)
        if stacked.dtype.kind == "f":
            largest = float(np.max(stacked[valid], initial=0.0))
            stacked = np.rint(stacked * (10_000.0 if largest < _UNIT_REFLECTANCE_BELOW else 1.0))
        return Pixels(stacked.astype(np.int32), valid)


def open_tiffs(folder: Path, files: Sequence[Path], region: str, nodata: int) -> TiffSeries:
    """The series of all GeoTIFFs of a folder. Reads headers only.

    Raises `SourceError` for a file that cannot be read, is off the common grid, has no date, or lacks bands.
    """
    by_band: dict[tuple[Path, str], dict[str, Path]] = {}
    others: list[Path] = []
    for path in files:
        suffix = _BAND_SUFFIX.search(path.stem)
        if suffix is None:
            others.append(path)
            continue
        band = "B" + suffix[1][1:].upper().zfill(2)
        product = path.stem[: suffix.start()] or path.parent.name
        by_band.setdefault((path.parent, product), {})[band] = path
    # a folder of band files may hold others beside them (quicklooks, classes); a folder without is one file a date
    frames = [_frame_of_bands(*key, found) for key, found in by_band.items()] or [_frame_of_file(p) for p in others]
    frames.sort(key=lambda frame: (frame.timestamp, frame.product_id))
    levels = sorted({frame.level for frame in frames})
    if len(levels) > 1:
        raise SourceError(f"{folder}: found products of levels {' and '.join(levels)}; expected one level in a series")
    grid = _common_grid([path for frame in frames for path, _ in frame.files])
    return TiffSeries(region, grid, frames, nodata)


def _frame_of_bands(parent: Path, product: str, found: dict[str, Path]) -> TiffFrame:
    missing = [band for band in S2_BANDS if band not in found]
    if missing:
        raise SourceError(
            f"{parent}, product {product}: band {', '.join(missing)} is missing; expected a file for each of"
            f" {', '.join(S2_BANDS)}, found {', '.join(path.name for path in sorted(found.values()))}"
        )
    name = product if re.search(r"\d{4}-?\d{2}-?\d{2}", product) else parent.name
    files = tuple((found[band], 1) for band in S2_BANDS)
    return TiffFrame(sensing_time(name, found["B02"]), name, level_of(name), baseline_of(name), files)


def _frame_of_file(path: Path) -> TiffFrame:
    files = tuple((path, number) for number in band_numbers(path))
    return TiffFrame(sensing_time(path.stem, path), path.stem, level_of(path.stem), baseline_of(path.stem), files)


def band_numbers(path: Path) -> tuple[int, ...]:
    """Which bands of a file are blue, green, red and near infrared: by its band descriptions, else 1 to 4."""
    with open_raster(path) as dataset:
        described = [(text or "").strip().lower() for text in dataset.descriptions]
        count = dataset.count
    numbers = []
    for short, colour in zip(S2_BANDS, BANDS, strict=True):
        names = {short.lower(), short.replace("0", "").lower(), colour}
        numbers += [index for index, text in enumerate(described, start=1) if text in names][:1]
    if len(numbers) == len(BANDS):
        return tuple(numbers)
    if count != len(BANDS):
        raise SourceError(
            f"{path}: found {count} band(s) described as {described}; expected 4 bands in the order"
            f" {', '.join(BANDS)}, or descriptions {', '.join(S2_BANDS)}"
        )
    return 1, 2, 3, 4


def open_raster(path: Path) -> rasterio.DatasetReader:
    """Open a raster. Raises `SourceError` naming it."""
    try:
        return rasterio.open(path)
    except RasterioError as error:
        raise SourceError(f"{path}: not a readable GeoTIFF, it may be truncated ({error})") from error


def grid_of(path: Path, gsd: float) -> RasterGrid:
    """A raster's grid. Raises `SourceError` unless it is north-up in a UTM zone with pixels of `gsd` metres."""
    with open_raster(path) as dataset:
        transform, shape, crs = dataset.transform, dataset.shape, dataset.crs
    epsg = utm_epsg(crs.to_epsg() if crs else None, crs, path)
    if (transform.a, transform.b, transform.d, transform.e) != (gsd, 0.0, 0.0, -gsd):
        raise SourceError(
            f"{path}: found pixels of {transform.a:g} x {-transform.e:g} m (rotation {transform.b:g}, {transform.d:g});"
            f" expected {gsd:g} m, north up"
        )
    return RasterGrid(epsg, (transform.c, transform.f), shape, gsd)


def _common_grid(paths: Sequence[Path]) -> RasterGrid:
    first = grid_of(paths[0], 10.0)
    for path in paths[1:]:
        with open_raster(path) as dataset:
            shape, transform, crs = dataset.shape, dataset.transform, dataset.crs
        if crs is None or crs.to_epsg() != first.epsg:
            raise SourceError(f"{path}: found CRS {crs}; expected EPSG:{first.epsg} like {paths[0].name}")
        if shape != first.shape:
            raise SourceError(
                f"{path}: found {shape[0]} x {shape[1]} pixels; expected {first.shape[0]} x {first.shape[1]}"
                f" like {paths[0].name}"
            )
        if not transform.almost_equals(first.transform, precision=1e-3):
            raise SourceError(
                f"{path}: found the transform {tuple(transform)[:6]}; expected {tuple(first.transform)[:6]}"
                f" like {paths[0].name}"
            )
    return first


def read_band(path: Path, number: int, window: Window, nodata: int) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
    """Values of a band in a window, and which of them are data: neither `nodata` nor the file's own nodata value.

    Raises `SourceError` for a file damaged in its data, `DataError` for NaN (where it is not the file's nodata) or
    infinite values.
    """
    with open_raster(path) as dataset:
        try:
            values: NDArray[np.generic] = dataset.read(number, window=window)
        except RasterioError as error:
            reason = error.__cause__ or error
            raise SourceError(f"{path}: band {number} cannot be read, the file may be truncated ({reason})") from error
        own = dataset.nodata
    valid = values != nodata
    if own is not None:
        valid &= ~np.isnan(values) if np.isnan(own) else values != own
    broken = int((~np.isfinite(values) & valid).sum())
    if broken:
        raise DataError(
            f"{path}: found {broken} NaN or infinite pixels; expected numbers, with pixels without data marked as"
            f" {nodata} (source.nodata) or by the file's own nodata value"
        )
    return np.where(valid, values, 0), valid
