"""A folder of GeoTIFFs as a Sentinel-2 series: one file a band, or one file of several bands a date."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import RasterioError
from rasterio.windows import Window

from sr_core import BANDS
from sr_core.errors import DataError, SourceError
from sr_core.patches import S2_GSD
from sr_core.sources.products import baseline_of, level_of, offset_of, sensing_time
from sr_core.sources.rasters import BAND_GSD, S2_BANDS, Frame, Pixels, RasterGrid, Series, repeated, utm_epsg

_BAND_SUFFIX = re.compile(r"(?:^|[_.\-])(B\d{1,2}A?|SCL)(?:_(?:10|20|60)m)?$", re.IGNORECASE)
_BAND_WORD = re.compile(r"B0*(\d{1,2}A?)", re.IGNORECASE)
_NEAR_INFRARED = ("nir", "nir1", "nearinfrared")
_UNIT_REFLECTANCE_BELOW = 10.0
"""Floating-point values all below this are reflectance itself, not times 10000: no ground reflects 10."""


@dataclass(frozen=True)
class BandFile:
    """Where a band lies: a file, its band number there, and the size of its pixels in metres."""

    path: Path
    number: int
    gsd: float


@dataclass(frozen=True)
class TiffFrame(Frame):
    """One date: where each of its bands lies; the four of `S2_BANDS` at least."""

    files: Mapping[str, BandFile]


@dataclass(frozen=True)
class TiffSeries(Series):
    """All dates of a folder, on one grid."""

    frames: Sequence[TiffFrame]
    nodata: int
    named: Mapping[str, str]
    """What the files call a band, where it is not its own name."""

    @cached_property
    def bands(self) -> frozenset[str]:
        return frozenset.intersection(*(frozenset(frame.files) for frame in self.frames))

    def read(self, frame: Frame, window: Window, bands: Sequence[str] = S2_BANDS) -> Pixels:
        assert isinstance(frame, TiffFrame)
        layers, valid = [], np.ones((window.height, window.width), bool)
        for band in bands:
            values, good = _read_fine(frame.files[self.named.get(band, band)], window, self.nodata)
            layers.append(values)
            valid &= good
        stacked = np.stack(layers, axis=-1)
        if stacked.dtype.kind == "f":
            largest = float(np.max(stacked[valid], initial=0.0))
            stacked = np.rint(stacked * (10_000.0 if largest < _UNIT_REFLECTANCE_BELOW else 1.0))
        offset = np.where(valid, offset_of(frame.baseline), 0)
        scl = _read_fine(frame.files["SCL"], window, 0)[0] if "SCL" in frame.files else None
        return Pixels(stacked.astype(np.int32) - offset[..., None], valid, scl)


def _read_fine(file: BandFile, window: Window, nodata: int) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
    """A window of 10 m pixels, whatever the band's own."""
    factor = round(file.gsd / S2_GSD)
    if factor == 1:
        return read_band(file.path, file.number, window, nodata)
    parts: list[NDArray[np.bool_]] = []

    def read(block: Window) -> NDArray[np.generic]:
        values, valid = read_band(file.path, file.number, block, nodata)
        parts.append(valid)
        return values

    values = repeated(read, window, factor)
    return values, np.asarray(repeated(lambda _: parts[0], window, factor), bool)


def open_tiffs(
    folder: Path, files: Sequence[Path], region: str, nodata: int, named: Mapping[str, str] | None = None
) -> TiffSeries:
    """The series of all GeoTIFFs of a folder. Reads headers only.

    `named` says by which name the files call a band ("B02": "B04"), where it is not its own. Raises `SourceError` for
    a file that cannot be read, is off the common grid, has no date, or lacks bands.
    """
    by_band: dict[tuple[Path, str], dict[str, Path]] = {}
    others: list[Path] = []
    for path in files:
        suffix = _BAND_SUFFIX.search(path.stem)
        if suffix is None:
            others.append(path)
            continue
        band = _band_name(suffix[1])
        product = path.stem[: suffix.start()] or path.parent.name
        by_band.setdefault((path.parent, product), {})[band] = path
    # a folder of band files may hold others beside them (quicklooks, classes); a folder without is one file a date
    frames = [_frame_of_bands(*key, found) for key, found in by_band.items()] or [_frame_of_file(p) for p in others]
    frames.sort(key=lambda frame: (frame.timestamp, frame.product_id))
    levels = sorted({frame.level for frame in frames})
    if len(levels) > 1:
        raise SourceError(f"{folder}: found products of levels {' and '.join(levels)}; expected one level in a series")
    with_scl = [frame for frame in frames if "SCL" in frame.files]
    if with_scl and len(with_scl) < len(frames):
        without = next(frame for frame in frames if "SCL" not in frame.files)
        raise SourceError(
            f"{folder}, product {without.product_id}: SCL is missing; found it for {len(with_scl)} of {len(frames)}"
            " dates, expected it for all or for none"
        )
    return TiffSeries(region, _common_grid(frames), frames, nodata, named or {})


def _band_name(text: str) -> str:
    """`b2`, `B02` to `B02`; `B08A` to `B8A`."""
    digits = text.upper().removeprefix("B").lstrip("0")
    return text.upper() if digits == "SCL" else f"B{digits if digits.endswith('A') else digits.zfill(2)}"


def _frame_of_bands(parent: Path, product: str, found: dict[str, Path]) -> TiffFrame:
    missing = [band for band in S2_BANDS if band not in found]
    if missing:
        raise SourceError(
            f"{parent}, product {product}: band {', '.join(missing)} is missing; expected a file for each of"
            f" {', '.join(S2_BANDS)}, found {', '.join(path.name for path in sorted(found.values()))}"
        )
    name = product if re.search(r"\d{4}-?\d{2}-?\d{2}", product) else parent.name
    files = {band: BandFile(path, 1, _gsd(path, band)) for band, path in found.items() if band in BAND_GSD}
    return TiffFrame(sensing_time(name, found["B02"]), name, level_of(name), baseline_of(name), files)


def _gsd(path: Path, band: str) -> float:
    """Pixels of a band's file: 10 m, or as the instrument's where it was not resampled."""
    if band in S2_BANDS:
        return S2_GSD
    with open_raster(path) as dataset:
        return S2_GSD if dataset.transform.a == S2_GSD else float(BAND_GSD[band])


def _frame_of_file(path: Path) -> TiffFrame:
    files = {band: BandFile(path, number, S2_GSD) for band, number in zip(S2_BANDS, band_numbers(path), strict=True)}
    with open_raster(path) as dataset:
        for number in dataset.indexes:
            for band in _description(dataset, number) & set(BAND_GSD):
                files.setdefault(band, BandFile(path, number, S2_GSD))
    return TiffFrame(sensing_time(path.stem, path), path.stem, level_of(path.stem), baseline_of(path.stem), files)


def band_numbers(path: Path, key: str = "") -> tuple[int, ...]:
    """Which bands of a file are blue, green, red and near infrared: by its descriptions, else 1 to 4.

    Descriptions are those of the bands, or their tags NAME, BAND, BAND_NAME, DESCRIPTION or COMMON_NAME; a colour
    (`blue`) or a band of Sentinel-2 (`B02`, `B2 - blue`). `key` names the setting that would say it instead.
    Raises `SourceError` where they do not tell: another number of bands, or colours in another order than 1 to 4.
    """
    with open_raster(path) as dataset:
        described = [_description(dataset, number) for number in dataset.indexes]
        colours = dataset.colorinterp
    instead = f", or {key}" if key else ""
    numbers = []
    for band, colour in zip(S2_BANDS, BANDS, strict=True):
        names = {band, *(_NEAR_INFRARED if colour == "nir" else (colour,))}
        numbers += [index for index, words in enumerate(described, start=1) if words & names][:1]
    if len(numbers) == len(BANDS):
        return tuple(numbers)
    count = len(described) - (len(described) > len(BANDS) and colours[-1] == ColorInterp.alpha)
    if count != len(BANDS):
        found = [", ".join(sorted(words)) for words in described]
        raise SourceError(
            f"{path}: found {count} band(s) described as {found}; expected 4 bands in the order"
            f" {', '.join(BANDS)}, or descriptions {', '.join(S2_BANDS)}{instead}"
        )
    if colours[:3] == (ColorInterp.red, ColorInterp.green, ColorInterp.blue):
        raise SourceError(
            f"{path}: its colours are red, green, blue, and no band is described; expected the order"
            f" {', '.join(BANDS)}, or descriptions{instead}"
        )
    return 1, 2, 3, 4


def _description(dataset: rasterio.DatasetReader, number: int) -> set[str]:
    """What a band calls itself: its whole name in lower case, and bands of Sentinel-2 as `B02`."""
    tags = {key.upper(): text for key, text in dataset.tags(number).items()}
    texts = [dataset.descriptions[number - 1] or ""]
    texts += [tags.get(key, "") for key in ("NAME", "BAND", "BAND_NAME", "DESCRIPTION", "COMMON_NAME")]
    words = {re.sub(r"\(.*?\)|[^a-z0-9]", "", text.lower()) for text in texts if text}
    for text in texts:
        words |= {_band_name(f"B{word[1]}") for word in map(_BAND_WORD.fullmatch, re.split(r"\W|_", text)) if word}
    return words


def open_raster(path: Path | str) -> rasterio.DatasetReader:
    """Open a raster. Raises `SourceError` naming it."""
    try:
        return rasterio.open(path)
    except RasterioError as error:
        raise SourceError(f"{path}: not a readable GeoTIFF or JP2, it may be truncated ({error})") from error


def grid_of(path: Path | str, gsd: float) -> RasterGrid:
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


def _common_grid(frames: Sequence[TiffFrame]) -> RasterGrid:
    """The 10 m grid of all files; bands of 20 and 60 m cover the same ground from the same corner."""
    first_path = frames[0].files[S2_BANDS[0]].path
    first = grid_of(first_path, S2_GSD)
    seen = {first_path}
    for file in (file for frame in frames for file in frame.files.values()):
        if file.path in seen:
            continue
        seen.add(file.path)
        expected = first.coarser(file.gsd)
        with open_raster(file.path) as dataset:
            shape, transform, crs = dataset.shape, dataset.transform, dataset.crs
        if crs is None or crs.to_epsg() != first.epsg:
            raise SourceError(f"{file.path}: found CRS {crs}; expected EPSG:{first.epsg} like {first_path.name}")
        if shape != expected.shape:
            raise SourceError(
                f"{file.path}: found {shape[0]} x {shape[1]} pixels; expected {expected.shape[0]} x"
                f" {expected.shape[1]} of {file.gsd:g} m like {first_path.name}"
            )
        if not transform.almost_equals(expected.transform, precision=1e-3):
            raise SourceError(
                f"{file.path}: found the transform {tuple(transform)[:6]}; expected {tuple(expected.transform)[:6]}"
                f" like {first_path.name}"
            )
    return first


def read_band(
    path: Path | str, number: int, window: Window, nodata: int
) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
    """Values of a band in a window, and which of them are data: neither `nodata` nor the file's own nodata value,
    nor hidden by the file's mask or alpha band.

    Raises `SourceError` for a file damaged in its data, `DataError` for NaN (where it is not the file's nodata) or
    infinite values.
    """
    with open_raster(path) as dataset:
        try:
            values: NDArray[np.generic] = dataset.read(number, window=window)
            shown = _shown(dataset, number, window)
        except RasterioError as error:
            reason = error.__cause__ or error
            raise SourceError(f"{path}: band {number} cannot be read, the file may be truncated ({reason})") from error
        own = dataset.nodata
    valid = (values != nodata) & shown
    if own is not None:
        valid &= ~np.isnan(values) if np.isnan(own) else values != own
    broken = int((~np.isfinite(values) & valid).sum())
    if broken:
        raise DataError(
            f"{path}: found {broken} NaN or infinite pixels; expected numbers, with pixels without data marked as"
            f" {nodata} (source.nodata) or by the file's own nodata value"
        )
    return np.where(valid, values, 0), valid


def _shown(dataset: rasterio.DatasetReader, number: int, window: Window) -> NDArray[np.bool_] | np.bool_:
    """What the file's mask, or an alpha band after the fourth, lets through."""
    # four bands of bytes are called red, green, blue and alpha by default, also where the fourth is infrared
    for index, colour in enumerate(dataset.colorinterp[len(BANDS) :], start=len(BANDS) + 1):
        if colour == ColorInterp.alpha:
            return np.asarray(dataset.read(index, window=window) > 0)
    flags = dataset.mask_flag_enums[number - 1]
    if MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags:
        return np.asarray(dataset.read_masks(number, window=window) > 0)
    return np.True_
