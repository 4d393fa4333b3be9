"""Sentinel-2 products as ESA delivers them: SAFE folders, or zips of them, of L1C and L2A.

The metadata say everything: time, level, processing baseline, the value of reflectance 1, and the offset of each band.
The name is held against them. Whole files are checked against the manifest's checksums or the zip's before their first
pixel is used, because a damaged JPEG 2000 file may decode without a complaint.

Source: Sentinel-2 Products Specification Document, issue 15.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, TypeVar
from xml.etree import ElementTree

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.windows import Window

from sr_core.errors import DataError, SourceError
from sr_core.patches import S2_GSD
from sr_core.sources.geotiff import open_raster
from sr_core.sources.products import OFFSET, OFFSET_SINCE, UNKNOWN, baseline_of, level_of, offset_of
from sr_core.sources.rasters import BAND_GSD, S2_BANDS, Frame, Pixels, RasterGrid, Series, repeated, utm_epsg

METADATA = re.compile(r"MTD_MSI(L1C|L2A)\.xml")
_BAND_FILE = re.compile(r"_(B\d{2}|B8A|SCL)(?:_(\d{2})m)?\.jp2$")
_BAND_ORDER = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
"""`band_id` of the metadata counts these from 0."""
_REFLECTANCE = 10_000.0
_SCL_NODATA = 0
OPEN_FILES = 256

T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """What a manifest says of a file."""

    size: int
    """Bytes."""
    algorithm: str
    checksum: str


@dataclass(frozen=True)
class Container:
    """A SAFE folder, or the same inside a zip."""

    path: Path
    """The folder, or the zip."""
    inside: str | None
    """Name of the SAFE folder in the zip."""

    @property
    def name(self) -> str:
        """Name of the product."""
        return (PurePosixPath(self.inside).name if self.inside else self.path.stem).removesuffix(".SAFE")

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Files, by their names relative to the SAFE folder, and their sizes in bytes."""
        if self.inside is None:
            files = sorted(path for path in self.path.rglob("*") if path.is_file())
            return {path.relative_to(self.path).as_posix(): path.stat().st_size for path in files}
        prefix = f"{self.inside}/" if self.inside else ""
        with _zip(self.path) as archive:
            found = [(info.filename, info.file_size) for info in archive.infolist() if not info.is_dir()]
        return {name.removeprefix(prefix): size for name, size in sorted(found) if name.startswith(prefix)}

    @cached_property
    def manifest(self) -> dict[str, Entry]:
        """What `manifest.safe` says of files; empty where there is none."""
        if "manifest.safe" not in self.sizes:
            return {}
        entries = {}
        for stream in self.xml("manifest.safe").iter("byteStream"):
            location, checksum = stream.find("fileLocation"), stream.find("checksum")
            if location is None or checksum is None:
                continue
            member = PurePosixPath(location.get("href", "").replace("\\", "/")).as_posix()
            entries[member] = Entry(
                int(stream.get("size", "-1")), checksum.get("checksumName", ""), (checksum.text or "").strip()
            )
        return entries

    def place(self, member: str) -> str:
        """What messages call a member."""
        return str(self.path / (self.inside or "") / member)

    def raster(self, member: str) -> str:
        """What GDAL calls a member."""
        return self.place(member) if self.inside is None else f"/vsizip/{self.place(member)}"

    @contextmanager
    def open(self, member: str) -> Iterator[IO[bytes]]:
        if self.inside is None:
            with (self.path / member).open("rb") as file:
                yield file
        else:
            with _zip(self.path) as archive, archive.open(str(PurePosixPath(self.inside) / member)) as file:
                yield file

    def xml(self, member: str) -> ElementTree.Element:
        """A member as XML without namespaces. Raises `SourceError` naming it."""
        try:
            with self.open(member) as file:
                root = ElementTree.parse(file).getroot()
        except (ElementTree.ParseError, OSError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise SourceError(f"{self.place(member)}: not readable as XML, it may be truncated ({error})") from error
        for element in root.iter():
            element.tag = element.tag.rpartition("}")[2]
        return root


@dataclass(frozen=True)
class Granule:
    """One tile of one product: where its bands lie and how they become reflectance."""

    container: Container
    tile: str
    grid: RasterGrid
    """At 10 m."""
    files: Mapping[str, str]
    """Member of each band."""
    offsets: Mapping[str, float]
    """What the product adds to the stored value of each band; subtracted here."""
    quantification: float
    """Stored value of reflectance 1, without the offset."""
    nodata: int

    def read(self, band: str, window: Window) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Reflectance x 10000 of a window of 10 m pixels, offset removed, and where it is data."""
        stored = self._stored(band, window)
        scaled = (stored.astype(np.float64) - self.offsets[band]) * (_REFLECTANCE / self.quantification)
        return np.rint(scaled).astype(np.int32), stored != self.nodata

    def read_scl(self, window: Window) -> NDArray[np.uint8]:
        return self._stored("SCL", window).astype(np.uint8)

    def _stored(self, band: str, window: Window) -> NDArray[np.generic]:
        member = self.files[band]
        check_content(self.container, member)
        gsd = BAND_GSD[band]
        grid = self.grid.coarser(gsd)
        place = self.container.place(member)
        dataset = _dataset(self.container.raster(member), os.getpid())
        if dataset.shape != grid.shape or not dataset.transform.almost_equals(grid.transform, precision=1e-3):
            raise SourceError(
                f"{place}: found {dataset.shape} pixels from {dataset.transform.c:g}, {dataset.transform.f:g};"
                f" expected {grid.shape} of {gsd} m from {grid.origin[0]:g}, {grid.origin[1]:g} as in MTD_TL.xml"
            )

        def read(block: Window) -> NDArray[np.generic]:
            return np.asarray(dataset.read(1, window=block))

        try:
            return repeated(read, window, round(gsd / S2_GSD))
        except RasterioError as error:
            reason = error.__cause__ or error
            raise SourceError(f"{place}: cannot be read, the file may be truncated ({reason})") from error


@lru_cache(maxsize=OPEN_FILES)
def _dataset(place: str, process: int) -> rasterio.DatasetReader:
    """A JP2 that stays open, so that the next patch finds its neighbour's blocks decoded.

    Not across a fork: `process` is the caller's.
    """
    return open_raster(place)


@dataclass(frozen=True)
class SafeFrame(Frame):
    """One datatake: its tiles side by side."""

    granules: Sequence[Granule]


@dataclass(frozen=True)
class SafeSeries(Series):
    """All datatakes over one UTM zone, on the grid that holds all their tiles."""

    frames: Sequence[SafeFrame]

    @cached_property
    def bands(self) -> frozenset[str]:
        return frozenset.intersection(*(frozenset(g.files) for frame in self.frames for g in frame.granules))

    def read(self, frame: Frame, window: Window, bands: Sequence[str] = S2_BANDS) -> Pixels:
        """Pixels of the tile that has most of the window; what it lacks comes from the datatake's others."""
        assert isinstance(frame, SafeFrame)
        parts = [
            (self._read_granule(granule, here, bands), there)
            for granule in frame.granules
            for here, there in self._meet(granule, window)
        ]
        shape = (window.height, window.width)
        values, valid = np.zeros((*shape, len(bands)), np.int32), np.zeros(shape, bool)
        scl = np.full(shape, _SCL_NODATA, np.uint8) if "SCL" in self.bands else None
        for pixels, (rows, columns) in sorted(parts, key=lambda part: -int(part[0].valid.sum())):
            new = pixels.valid & ~valid[rows, columns]
            values[rows, columns][new] = pixels.values[new]
            valid[rows, columns] |= new
            if scl is not None and pixels.scl is not None:
                scl[rows, columns][new] = pixels.scl[new]
        return Pixels(values, valid, scl)

    def _meet(self, granule: Granule, window: Window) -> Iterator[tuple[Window, tuple[slice, slice]]]:
        """A tile's part of a window, in the tile's pixels and in the window's; none where they do not meet."""
        top = round((self.grid.origin[1] - granule.grid.origin[1]) / S2_GSD)
        left = round((granule.grid.origin[0] - self.grid.origin[0]) / S2_GSD)
        rows, columns = window.toslices()
        first_row, last_row = max(rows.start, top), min(rows.stop, top + granule.grid.shape[0])
        first_column, last_column = max(columns.start, left), min(columns.stop, left + granule.grid.shape[1])
        if first_row < last_row and first_column < last_column:
            here = Window(first_column - left, first_row - top, last_column - first_column, last_row - first_row)
            yield (
                here,
                (
                    slice(first_row - rows.start, last_row - rows.start),
                    slice(first_column - columns.start, last_column - columns.start),
                ),
            )

    def _read_granule(self, granule: Granule, window: Window, bands: Sequence[str]) -> Pixels:
        layers, valid = zip(*(granule.read(band, window) for band in bands), strict=True)
        scl = granule.read_scl(window) if "SCL" in self.bands else None
        return Pixels(np.stack(layers, axis=-1), np.logical_and.reduce(valid), scl)


def find_products(files: Sequence[Path], zips: bool = True) -> list[Container]:
    """SAFE folders, and with `zips` zips, among files. Reads the zips' directories only.

    Raises `SourceError` for a folder `*.SAFE` without metadata, and for a zip that cannot be read or holds none.
    """
    found = {path.parent for path in files if METADATA.fullmatch(path.name)}
    bare = {parent for path in files for parent in path.parents if parent.suffix == ".SAFE"} - found
    if bare:
        raise SourceError(f"{min(bare)}: MTD_MSIL1C.xml or MTD_MSIL2A.xml is missing; expected a whole SAFE product")
    products = [Container(path, None) for path in sorted(found)]
    for path in files:
        if not zips or path.suffix.lower() != ".zip":
            continue
        with _zip(path) as archive:
            names = [PurePosixPath(name) for name in archive.namelist()]
        inside = sorted({str(name.parent) for name in names if METADATA.fullmatch(name.name)})
        if not inside:
            raise SourceError(
                f"{path}: found {len(names)} file(s) but no MTD_MSIL1C.xml or MTD_MSIL2A.xml;"
                " expected zips of SAFE products"
            )
        products += [Container(path, "" if folder == "." else folder) for folder in inside]
    return products


def open_safe(folder: Path, products: Sequence[Container], region: str) -> list[SafeSeries]:
    """The series of SAFE products, one a UTM zone: `region`, or `region-1`, `region-2`, ... Reads metadata only.

    A tile that was processed several times is read from the latest processing. Raises `SourceError` for metadata
    that are missing or cut short, `DataError` where they contradict each other or the product's name.
    """
    found = [(product, granule) for product in map(_open_product, products) for granule in product.granules]
    levels = sorted({product.level for product, _ in found})
    if len(levels) > 1:
        raise SourceError(f"{folder}: found products of levels {' and '.join(levels)}; expected one level in a series")
    zones = sorted({granule.grid.epsg for _, granule in found})
    names = [region] if len(zones) == 1 else [f"{region}-{number}" for number in range(1, len(zones) + 1)]
    return [
        _series(folder, name, [pair for pair in found if pair[1].grid.epsg == zone])
        for name, zone in zip(names, zones, strict=True)
    ]


@dataclass(frozen=True)
class _Product:
    timestamp: dt.datetime
    generated: dt.datetime
    level: str
    baseline: str
    name: str
    granules: Sequence[Granule]


def _series(folder: Path, region: str, found: Sequence[tuple[_Product, Granule]]) -> SafeSeries:
    latest: dict[tuple[dt.datetime, str], tuple[_Product, Granule]] = {}
    for product, granule in sorted(found, key=lambda pair: (pair[0].baseline, pair[0].generated)):
        latest[product.timestamp, granule.tile] = product, granule
    datatakes: dict[dt.datetime, list[tuple[_Product, Granule]]] = {}
    for product, granule in sorted(latest.values(), key=lambda pair: (pair[0].timestamp, pair[1].tile)):
        datatakes.setdefault(product.timestamp, []).append((product, granule))
    frames = [_frame(parts) for parts in datatakes.values()]
    grids = [granule.grid for _, granule in found]
    west, north = min(grid.bounds[0] for grid in grids), max(grid.bounds[3] for grid in grids)
    east, south = max(grid.bounds[2] for grid in grids), min(grid.bounds[1] for grid in grids)
    for _, granule in found:
        if (granule.grid.origin[0] - west) % S2_GSD or (north - granule.grid.origin[1]) % S2_GSD:
            raise SourceError(
                f"{folder}: tile {granule.tile} begins at {granule.grid.origin}, off the grid of {S2_GSD:g} m from"
                f" {west:g}, {north:g} of the other tiles"
            )
    grid = RasterGrid(grids[0].epsg, (west, north), (round((north - south) / 10), round((east - west) / 10)), S2_GSD)
    with_scl = sum("SCL" in granule.files for _, granule in latest.values())
    if 0 < with_scl < len(latest):
        lacking = next(granule for _, granule in latest.values() if "SCL" not in granule.files)
        raise SourceError(
            f"{lacking.container.path}, tile {lacking.tile}: SCL is missing; found it in {with_scl} of {len(latest)}"
            " products, expected it in all or in none"
        )
    return SafeSeries(region, grid, frames)


def _frame(parts: Sequence[tuple[_Product, Granule]]) -> SafeFrame:
    products = [product for product, _ in parts]
    baselines = sorted({product.baseline for product in products})
    return SafeFrame(
        products[0].timestamp,
        "+".join(dict.fromkeys(product.name for product in products)),
        products[0].level,
        "+".join(baselines),
        [granule for _, granule in parts],
    )


def _open_product(container: Container) -> _Product:
    member = next(name for name in container.sizes if METADATA.fullmatch(name))
    root, place = container.xml(member), container.place(member)
    _check_sizes(container)
    name = _text(root, "PRODUCT_URI", place, str, container.name).removesuffix(".SAFE")
    level = member[7:10]
    baseline = _text(root, "PROCESSING_BASELINE", place, _baseline)
    for what, found, named in (
        ("level", level, level_of(container.name)),
        ("processing baseline", baseline, baseline_of(container.name)),
    ):
        if named not in (UNKNOWN, found):
            raise DataError(f"{place}: {what} is {found}, but the product is named {container.name} ({named})")
    image = {"L1C": ("QUANTIFICATION_VALUE", "RADIO_ADD_OFFSET"), "L2A": ("BOA_QUANTIFICATION_VALUE", "BOA_ADD_OFFSET")}
    quantification = _text(root, image[level][0], place, float)
    if not quantification > 0:
        raise DataError(f"{place}: {image[level][0]} is {quantification:g}; expected a positive number")
    special = {item.findtext("SPECIAL_VALUE_TEXT"): item.findtext("SPECIAL_VALUE_INDEX") for item in root.iter()}
    folders = sorted({str(PurePosixPath(*PurePosixPath(m).parts[:2])) for m in container.sizes if _in_granule(m)})
    if not folders:
        raise SourceError(f"{container.path}: no GRANULE folder; expected a whole SAFE product")
    offsets = _offsets(root, image[level][1], baseline, place)
    granules = [
        _open_granule(container, granule, level, offsets, quantification, int(special.get("NODATA") or 0))
        for granule in folders
    ]
    start = "DATATAKE_SENSING_START" if root.find(".//DATATAKE_SENSING_START") is not None else "PRODUCT_START_TIME"
    return _Product(
        # all tiles of a datatake have its time, so that they are one pass, and one date in all patches
        _text(root, start, place, _time).replace(microsecond=0),
        _text(root, "GENERATION_TIME", place, _time, dt.datetime.min),
        level,
        baseline,
        name,
        granules,
    )


def _in_granule(member: str) -> bool:
    parts = PurePosixPath(member).parts
    return len(parts) > 2 and parts[0] == "GRANULE"


def _open_granule(
    container: Container,
    folder: str,
    level: str,
    offsets: Mapping[str, float],
    quantification: float,
    nodata: int,
) -> Granule:
    member = f"{folder}/MTD_TL.xml"
    if member not in container.sizes:
        raise SourceError(f"{container.place(member)}: missing; expected the tile's metadata")
    root, place = container.xml(member), container.place(member)
    epsg = _text(root, "HORIZONTAL_CS_CODE", place, _epsg)
    size = root.find(".//Size[@resolution='10']")
    corner = root.find(".//Geoposition[@resolution='10']")
    if size is None or corner is None:
        raise SourceError(f"{place}: no Size and Geoposition of resolution 10; expected the tile's grid")
    shape = (_text(size, "NROWS", place, int), _text(size, "NCOLS", place, int))
    origin = (_text(corner, "ULX", place, float), _text(corner, "ULY", place, float))
    grid = RasterGrid(utm_epsg(epsg, f"EPSG:{epsg}", place), origin, shape, S2_GSD)
    files: dict[str, str] = {}
    for name in container.sizes:
        found = _BAND_FILE.search(name)
        if found is None or not name.startswith(f"{folder}/IMG_DATA/"):
            continue
        band, gsd = found.groups()
        # L2A holds bands at several resolutions: the instrument's own is taken
        if gsd is None or int(gsd) == BAND_GSD[band]:
            files[band] = name
    missing = [band for band in S2_BANDS if band not in files]
    if missing:
        raise SourceError(
            f"{container.place(folder)}/IMG_DATA: band {', '.join(missing)} is missing; expected a JP2 file for each of"
            f" {', '.join(S2_BANDS)}, found {', '.join(sorted(files)) or 'none'}"
        )
    tile = re.search(r"_T(\d{2}[A-Z]{3})_", PurePosixPath(files["B02"]).name)
    return Granule(
        container, tile[1] if tile else PurePosixPath(folder).name, grid, files, offsets, quantification, nodata
    )


def _offsets(root: ElementTree.Element, tag: str, baseline: str, place: str) -> dict[str, float]:
    """What the metadata say was added to each band; by the processing baseline where they say nothing.

    Raises `DataError` where both are known and only one of them has an offset.
    """
    expected = offset_of(baseline)
    stated: dict[str, float] = {}
    for item in root.iter(tag):
        try:
            # the metadata give what is to be added to the stored value
            stated[_BAND_ORDER[int(item.get("band_id", ""))]] = -float(item.text or "")
        except (ValueError, IndexError) as error:
            raise SourceError(
                f"{place}: {tag} band_id={item.get('band_id')!r} is {item.text!r}; expected a band from 0 to"
                f" {len(_BAND_ORDER) - 1} and a number"
            ) from error
    if not stated:
        return dict.fromkeys(_BAND_ORDER, float(expected)) | {"SCL": 0.0}
    missing = [band for band in S2_BANDS if band not in stated]
    if missing:
        raise SourceError(f"{place}: {tag} of {', '.join(missing)} is missing; expected one for each band")
    against = [band for band, offset in stated.items() if bool(offset) != bool(expected)]
    if against:
        found = ", ".join(f"{band} {-stated[band]:g}" for band in against)
        raise DataError(
            f"{place}: {tag} is {found}, which contradicts processing baseline {baseline}: products carry an offset of"
            f" {-OFFSET} from {OFFSET_SINCE} on and none before"
        )
    return stated


_HASHES = {"MD5": "md5", "SHA-256": "sha256", "SHA3-256": "sha3_256"}


@lru_cache(maxsize=65536)
def check_content(container: Container, member: str) -> None:
    """Read a member once, whole, and hold it against the manifest's checksum, and in a zip against the zip's own.

    Raises `SourceError` where they differ. In a folder without manifest there is nothing to hold it against.
    """
    entry = container.manifest.get(member)
    algorithm = _HASHES.get(entry.algorithm.upper()) if entry else None
    if algorithm is None and container.inside is None:
        return
    digest = hashlib.new(algorithm or "md5", usedforsecurity=False)
    try:
        with container.open(member) as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except (OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise SourceError(f"{container.place(member)}: damaged: {error}") from error
    if entry and algorithm and digest.hexdigest().lower() != entry.checksum.lower():
        raise SourceError(
            f"{container.place(member)}: damaged: its {entry.algorithm} is {digest.hexdigest()}, expected"
            f" {entry.checksum} by manifest.safe"
        )


def _check_sizes(container: Container) -> None:
    """Raise `SourceError` for a file that is not as long as the manifest says."""
    for member, size in container.sizes.items():
        entry = container.manifest.get(member)
        if entry and entry.size != size:
            raise SourceError(
                f"{container.place(member)}: found {size} bytes, expected {entry.size} by manifest.safe;"
                " it may be truncated"
            )


@contextmanager
def _zip(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise SourceError(f"{path}: not a readable zip, it may be truncated ({error})") from error
    with archive:
        yield archive


def _text(root: ElementTree.Element, tag: str, place: str, convert: Callable[[str], T], default: T | None = None) -> T:
    """An element's text, converted. Raises `SourceError` where it is missing or something else."""
    text = (root.findtext(f".//{tag}") or "").strip()
    if not text and default is not None:
        return default
    try:
        return convert(text)
    except ValueError as error:
        raise SourceError(f"{place}: {tag} is {text!r}; expected it as in Sentinel-2 metadata ({error})") from error


def _time(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text).replace(tzinfo=None)


def _baseline(text: str) -> str:
    if not re.fullmatch(r"\d{2}\.\d{2}", text):
        raise ValueError("two digits, a point, two digits")
    return text


def _epsg(text: str) -> int:
    return int(text.upper().removeprefix("EPSG:"))
