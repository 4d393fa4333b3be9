"""What requests and answers look like as bytes: npz, GeoTIFF in multipart, JSON that names objects in S3.

Known to no model server: a request is its headers and its fields, a field being a body or a part of one.
"""

from __future__ import annotations

import datetime as dt
import io
import itertools
import json
import posixpath
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.errors import CRSError, RasterioError
from rasterio.io import MemoryFile
from rasterio.transform import Affine
from rasterio.windows import Window as RasterWindow

from serving import core
from serving.core import RequestError
from serving.objects import Objects

NPZ, TIFF, JSON, MULTIPART = "application/x-npz", "image/tiff", "application/json", "multipart/form-data"
BINARY = (NPZ, "application/octet-stream", "application/npz", "application/zip")
BANDS = ("blue", "green", "red", "nir")
ARRAYS = {"frames", "clear", "mean", "std", "shifts", "dates", "transform", "epsg", "uncertainty", "consistency"}
OPTIONS = {"mean", "std", "shifts", "dates", "uncertainty", "consistency", "output"}
STORED = (OPTIONS - {"dates"}) | {"frames", "window"}
FRAME = {"image", "item", "clear", "date"}
ITEM_ASSETS = ("s2", "image", "data")
"""Keys of a STAC Item's asset that holds all four bands; else the assets blue, green, red and nir hold one each."""
MAX_ITEM_BYTES = 1 << 20
TILE = 512
# an image may not lead to other files, be they beside it or at the other end of the network
CLOSED = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_GEOREF_SOURCES": "INTERNAL", "GDAL_PAM_ENABLED": "NO"}


@dataclass(frozen=True)
class Grid:
    """Where pixels lie on the ground."""

    crs: CRS
    transform: Affine

    def window(self, row: int, column: int) -> Grid:
        """The grid whose first pixel is that at (row, column)."""
        return replace(self, transform=self.transform * Affine.translation(column, row))

    def finer(self) -> Grid:
        return replace(self, transform=self.transform * Affine.scale(1 / core.SCALE))


@dataclass(frozen=True)
class Order:
    """A request as it was understood."""

    request: core.Request
    answer: str
    """Media type of the answer."""
    grid: Grid | None = None
    """Of what is asked for, at the frames' resolution."""
    dates: tuple[dt.datetime, ...] = ()
    consistency: bool = False
    output: str | None = None
    """s3://... below which the answer is written."""


def read_order(headers: Mapping[str, str], fields: Mapping[str, Any], objects: Objects, margin: int) -> Order:
    """Understand a request. Raises `RequestError`.

    `headers` with lower-case names; `fields` either {"body": bytes} or the parts of a form; a JSON body may be parsed.
    Of images in S3 `margin` pixels around the window are read with it, so that windows fit to a mosaic without seams.
    """
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in BINARY:
        order = read_npz(_bytes(fields))
    elif kind == MULTIPART:
        order = read_form(fields)
    elif kind == JSON:
        body = fields.get("body", b"")
        order = read_stored(body if not isinstance(body, bytes | bytearray) else _parse(body, "body"), objects, margin)
    else:
        known = ", ".join((NPZ, "application/octet-stream", MULTIPART, JSON))
        raise RequestError(f"Content-Type {kind or '(none)'!r} is not known; send one of {known}.", 415)
    if order.output is not None:
        objects.check(order.output)
    order = replace(order, answer=accepted(headers.get("accept", ""), order.output is not None))
    if order.answer == TIFF and (order.request.uncertainty or order.consistency):
        raise RequestError(f"{TIFF} holds the image alone: ask for {NPZ}, or give `output`.")
    if order.answer == TIFF and order.grid is None:
        raise RequestError(f"{TIFF} needs a georeference: send `transform` and `epsg`, or GeoTIFFs that have them.")
    if order.answer == JSON and order.grid is None:
        raise RequestError("`output` is written as GeoTIFF, which needs a georeference: send `transform` and `epsg`.")
    if order.answer != JSON:
        core.check_size(core.area_of(order.request).shape)
    return order


def accepted(accept: str, stored: bool) -> str:
    """The media type of the answer: of those that the sender accepts, the one liked best. Raises `RequestError`."""
    offered = (JSON,) if stored else (NPZ, TIFF)
    ranked = []
    for position, entry in enumerate(accept.split(",") if accept.strip() else ["*/*"]):
        kind, *parameters = (part.strip().lower() for part in entry.split(";"))
        quality = next((value[2:] for value in parameters if value.startswith("q=")), "1")
        if re.fullmatch(r"0(\.\d{0,3})?|1(\.0{0,3})?", quality) and float(quality) > 0:
            ranked.append((-float(quality), position, kind))
    for _, _, kind in sorted(ranked):
        for offer in offered:
            if kind in ("*/*", offer, f"{offer.partition('/')[0]}/*", *(BINARY if offer == NPZ else ())):
                return offer
    if stored:
        raise RequestError(f"Accept {accept!r}: a request with `output` is answered with {JSON}.", 406)
    if JSON in accept:
        raise RequestError(f"Accept {JSON} needs `output`, an s3:// place that the answer is written to.", 406)
    raise RequestError(f"Accept {accept!r}: answers are {NPZ}, {TIFF}, or {JSON} with `output`.", 406)


# ---------------------------------------------------------------------------------------------------------------- npz


def read_npz(body: bytes) -> Order:
    """A request from the bytes of an `.npz`. Raises `RequestError`."""
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            entries = archive.infolist()
    except Exception:  # zipfile has many ways to say that it was given something else
        raise RequestError("The request is not an .npz file: send the bytes that numpy.savez writes.", 400) from None
    names = [entry.filename.removesuffix(".npy") for entry in entries]
    _known(set(names), ARRAYS, "arrays")
    # a small file can unpack into a large one: refuse it before reading it
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > core.MAX_REQUEST_BYTES:
        raise RequestError(f"The request unpacks to {unpacked} bytes; at most {core.MAX_REQUEST_BYTES} are read.", 413)
    try:
        with np.load(io.BytesIO(body), allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except Exception as error:  # whatever a hostile file does to its readers, it is the sender's mistake
        raise RequestError(f"The request's arrays cannot be read: {error}.", 400) from None
    if "frames" not in found:
        raise RequestError(f"The request has no array `frames`; found {', '.join(sorted(found)) or 'nothing'}.")
    frames = found["frames"]
    request = core.Request(frames, found.get("clear"), found.get("mean"), found.get("std"), found.get("shifts"))
    flags = {name: _flag(found[name].tolist(), name) for name in ("uncertainty", "consistency") if name in found}
    core.check(request, core.BANDS)
    return Order(
        replace(request, uncertainty=flags.get("uncertainty", False)),
        NPZ,
        _grid_of_arrays(found.get("transform"), found.get("epsg")),
        _dates(found["dates"].tolist(), len(frames)) if "dates" in found else (),
        flags.get("consistency", False),
    )


def _grid_of_arrays(transform: Any, epsg: Any) -> Grid | None:
    if transform is None and epsg is None:
        return None
    if transform is None or epsg is None:
        raise RequestError("`transform` and `epsg` belong together: give both, or neither.")
    if transform.shape != (6,) or transform.dtype.kind not in "fiu" or not np.isfinite(transform).all():
        raise RequestError("`transform` must be 6 finite numbers a, b, c, d, e, f: x = a column + b row + c, ...")
    affine = Affine(*(float(number) for number in transform))
    if affine.is_degenerate:
        raise RequestError("`transform` maps all pixels onto one line.")
    if epsg.shape not in ((), (1,)) or epsg.dtype.kind not in "iu":
        raise RequestError("`epsg` must be one whole number.")
    try:
        return Grid(CRS.from_epsg(int(epsg)), affine)
    except CRSError:
        raise RequestError(f"`epsg` {int(epsg)} is not a coordinate reference system.") from None


# ------------------------------------------------------------------------------------------------- GeoTIFF, multipart


def read_form(fields: Mapping[str, Any]) -> Order:
    """A request from GeoTIFFs: `frames` with all dates' bands, or `frame_0`, `frame_1`, ... Raises `RequestError`."""
    numbered = r"(frame|clear)_(\d|1[0-5])"
    unknown = sorted(name for name in fields if not re.fullmatch(numbered + "|frames|clear|options", name))
    if unknown:
        raise RequestError(
            f"The form has unknown parts {_listed(unknown)}; known are frames or frame_0..frame_15,"
            " clear or clear_0..clear_15, and options."
        )
    frames, grid = _parts(fields, "frames", "frame", "uint16", core.BANDS)
    if frames is None:
        raise RequestError("The form has no part `frames` or `frame_0`: send GeoTIFFs, latest first.")
    clear, mask_grid = _parts(fields, "clear", "clear", "uint8", 1)
    if clear is not None and mask_grid is not None and grid is not None:
        _same(grid, mask_grid, "clear")
    bands = frames.reshape(-1, core.BANDS, *frames.shape[1:])
    request = core.Request(bands, None if clear is None else clear > 0)
    core.check(request, core.BANDS)
    options = _parse(fields["options"], "options") if "options" in fields else {}
    if not isinstance(options, dict):
        raise RequestError("`options` is not a JSON object.", 400)
    _known(set(options), OPTIONS, "options")
    return _with_options(Order(request, NPZ, grid), options)


def _parts(
    fields: Mapping[str, Any], single: str, numbered: str, dtype: str, bands: int
) -> tuple[NDArray[Any] | None, Grid | None]:
    """Bands of one GeoTIFF or of several that show the same ground, one after the other."""
    names = [f"{numbered}_{index}" for index in range(core.MAX_FRAMES) if f"{numbered}_{index}" in fields]
    if not names and single not in fields:
        return None, None
    if names and single in fields:
        raise RequestError(f"The form has both `{single}` and `{names[0]}`; expected one GeoTIFF, or one a date.")
    if names and names != [f"{numbered}_{index}" for index in range(len(names))]:
        raise RequestError(f"The form has {_listed(names)}; expected {numbered}_0, {numbered}_1, ... without a gap.")
    images: list[NDArray[Any]] = []
    grids: list[Grid | None] = []
    for name in names or [single]:
        image, grid = read_tiff(fields[name], name, dtype)
        if names and len(image) != bands:
            raise RequestError(f"`{name}` has {len(image)} bands; expected {bands}.")
        if len(image) % bands or len(image) > bands * core.MAX_FRAMES:
            raise RequestError(
                f"`{name}` has {len(image)} bands; expected {bands} a date, of 1 to {core.MAX_FRAMES} dates."
            )
        if images and image.shape[1:] != images[0].shape[1:]:
            raise RequestError(f"`{name}` has {image.shape[1:]} pixels, `{names[0]}` {images[0].shape[1:]}.")
        if grids and (grid is None) != (grids[0] is None):
            raise RequestError(f"`{name}` and `{names[0]}`: one has a georeference, the other has none.")
        if grid is not None and grids and grids[0] is not None:
            _same(grids[0], grid, name)
        images.append(image)
        grids.append(grid)
    return np.concatenate(images), grids[0]


def read_tiff(content: Any, name: str, dtype: str) -> tuple[NDArray[Any], Grid | None]:
    """All bands (B,H,W) of a GeoTIFF's bytes, and its grid where it says one. Raises `RequestError`."""
    if not isinstance(content, bytes | bytearray):
        raise RequestError(f"`{name}` is not a file: send the bytes of a GeoTIFF.", 400)
    with rasterio.Env(**CLOSED), MemoryFile(bytes(content)) as memory, _image(memory.name, name) as raster:
        if raster.dtypes[0] != dtype:
            raise RequestError(f"`{name}` is {raster.dtypes[0]}; expected {dtype}.")
        # before reading: a small file can unpack into a large one
        core.check_size(raster.shape)
        if raster.count > core.BANDS * core.MAX_FRAMES:
            raise RequestError(f"`{name}` has {raster.count} bands; expected at most {core.BANDS * core.MAX_FRAMES}.")
        return raster.read(), _grid_of(raster)


@contextmanager
def _image(path: str, name: str, status: int = 400) -> Iterator[Any]:
    """An open GeoTIFF and no other format: some lead their readers to other files. Raises `RequestError`."""
    try:
        with rasterio.open(path, driver="GTiff") as raster:
            yield raster
    except (RasterioError, OSError):
        # what GDAL says about it names its own paths, and may quote S3's answers
        raise RequestError(f"`{name}` cannot be read as a GeoTIFF.", status) from None


def _grid_of(raster: Any) -> Grid | None:
    return Grid(raster.crs, raster.transform) if raster.crs is not None and not raster.transform.is_identity else None


def _same(expected: Grid, found: Grid, name: str) -> None:
    """Raises `RequestError` where two grids differ by more than a hundredth of a pixel."""
    pixel = abs(expected.transform.determinant) ** 0.5
    if found.crs != expected.crs or not found.transform.almost_equals(expected.transform, precision=pixel / 100):
        raise RequestError(f"`{name}` lies on another grid than the first frame: cut all dates by the same grid.")


# ------------------------------------------------------------------------------------------------------------ JSON, S3


def read_stored(body: Any, objects: Objects, margin: int) -> Order:
    """A request whose frames lie in S3; of them the window and `margin` pixels around it are read.

    Raises `RequestError`.
    """
    if not isinstance(body, dict):
        raise RequestError("The request is not a JSON object.", 400)
    _known(set(body), STORED, "fields")
    listed = body.get("frames")
    if not isinstance(listed, list) or not 1 <= len(listed) <= core.MAX_FRAMES:
        raise RequestError(f"`frames` must be a list of 1 to {core.MAX_FRAMES} dates, latest first.")
    for number, entry in enumerate(listed):
        if not isinstance(entry, dict) or ("image" in entry) == ("item" in entry):
            raise RequestError(f"`frames[{number}]` must be an object with either `image` or `item`.")
        _known(set(entry), FRAME, f"fields in frames[{number}]")
        for key in {"image", "item", "clear"} & set(entry):
            objects.check(entry[key])
    if "output" in body:
        objects.check(body["output"])
    frames, masks, dates, reader = [], [], [], _Reader(objects, body.get("window"), margin)
    for number, entry in enumerate(listed):
        name = f"frames[{number}]"
        images, date = ([entry["image"]], entry.get("date")) if "image" in entry else _item(entry, objects)
        frames.append(reader.bands(images, name))
        masks.append(reader.mask(entry["clear"], f"{name}.clear") if "clear" in entry else frames[-1].any(axis=0))
        dates.append(date)
    assert reader.grid is not None and reader.cut is not None
    cut = reader.cut
    request = core.Request(np.stack(frames), np.stack(masks), window=cut.inner)
    given = {name: value for name, value in body.items() if name in OPTIONS}
    if any(date is not None for date in dates):
        given["dates"] = dates
    inner = reader.grid.window(cut.row + cut.inner[0], cut.column + cut.inner[1])
    return _with_options(Order(request, NPZ, inner), given)


@dataclass(frozen=True)
class _Cut:
    """What is read of an image: a window with surroundings, and where in it the window itself lies."""

    row: int
    column: int
    height: int
    width: int
    inner: tuple[int, int, int, int]


@dataclass
class _Reader:
    """Reads the same window of one image after the other; the first says on which grid it lies."""

    objects: Objects
    asked: Any
    margin: int
    cut: _Cut | None = None
    grid: Grid | None = None

    def bands(self, images: list[str], name: str) -> NDArray[np.uint16]:
        """(4,h,w) of one image with four bands, or of four with one."""
        return np.concatenate([self._read(uri, name, "uint16", core.BANDS // len(images)) for uri in images])

    def mask(self, uri: str, name: str) -> NDArray[np.bool_]:
        return np.asarray(self._read(uri, name, "uint8", 1)[0] > 0)

    def _read(self, uri: str, name: str, dtype: str, bands: int) -> NDArray[Any]:
        name = f"{name} ({uri})"
        with rasterio.Env(**CLOSED, **self.objects.reading()), _image(self.objects.path(uri), name, 422) as raster:
            if raster.count != bands or raster.dtypes[0] != dtype:
                raise RequestError(
                    f"`{name}` has {raster.count} bands of {raster.dtypes[0]}; expected {bands} {dtype}."
                )
            grid = _grid_of(raster)
            if grid is None:
                raise RequestError(f"`{name}` has no georeference.")
            if self.grid is None or self.cut is None:
                self.grid, self.cut = grid, cut_of(self.asked, raster.shape, self.margin)
            _same(self.grid, grid, name)
            if self.cut.row + self.cut.height > raster.height or self.cut.column + self.cut.width > raster.width:
                raise RequestError(f"`{name}` is smaller than the first frame.")
            pixels: NDArray[Any] = raster.read(
                window=RasterWindow(self.cut.column, self.cut.row, self.cut.width, self.cut.height)
            )
            return pixels


def cut_of(asked: Any, shape: tuple[int, int], margin: int) -> _Cut:
    """A window [row, column, height, width] of an image of `shape`, with `margin` pixels around it. None: all."""
    if asked is None:
        asked = [0, 0, *shape]
    if not isinstance(asked, list) or len(asked) != 4 or any(type(number) is not int for number in asked):
        raise RequestError("`window` must be four whole numbers: row, column, height, width.")
    row, column, height, width = asked
    if min(row, column) < 0 or min(height, width) < 1 or row + height > shape[0] or column + width > shape[1]:
        raise RequestError(f"`window` {asked} does not lie in an image of {shape[0]} x {shape[1]} pixels.")
    core.check_size((height, width), core.MAX_STORED_SIDE)
    outer = core.Window(row, column, row + height, column + width).grow(margin, shape)
    inner = (row - outer.top, column - outer.left, height, width)
    return _Cut(outer.top, outer.left, *outer.shape, inner)


def _item(entry: Mapping[str, Any], objects: Objects) -> tuple[list[str], str | None]:
    """The images that a STAC Item names, and its date. Raises `RequestError`."""
    uri = entry["item"]
    item = _parse(objects.read(uri, MAX_ITEM_BYTES), uri)
    assets = item.get("assets") if isinstance(item, dict) else None
    if not isinstance(assets, dict):
        raise RequestError(f"{uri}: not a STAC Item: it has no assets.")
    keys = next(([key] for key in ITEM_ASSETS if key in assets), [band for band in BANDS if band in assets])
    if len(keys) not in (1, len(BANDS)):
        raise RequestError(
            f"{uri}: found assets {_listed(sorted(map(str, assets)))}; expected one of {_listed(ITEM_ASSETS)}, or all"
            f" of {_listed(BANDS)}."
        )
    found = []
    for key in keys:
        href = assets[key].get("href") if isinstance(assets[key], dict) else None
        if not isinstance(href, str):
            raise RequestError(f"{uri}: its asset {key} has no href.")
        scaled = assets[key].get("raster:bands") or [{}]
        offset = scaled[0].get("offset", 0) if isinstance(scaled, list) and isinstance(scaled[0], dict) else None
        if offset != 0:
            raise RequestError(f"{uri}: its asset {key} has an offset, {offset}; expected reflectance x 10000.")
        bucket, _, folder = posixpath.dirname(uri).removeprefix("s3://").partition("/")
        place = href if "://" in href else f"s3://{bucket}/{posixpath.normpath(posixpath.join(folder, href))}"
        objects.check(place)
        found.append(place)
    properties = item.get("properties")
    said = properties.get("datetime") if isinstance(properties, dict) else None
    return found, entry.get("date", said)


# ---------------------------------------------------------------------------------------------------------- answers


def write_answer(order: Order, result: core.Result, objects: Objects) -> bytes:
    """The bytes of the answer, of media type `order.answer`; what belongs into S3 is written there first."""
    if order.answer == TIFF:
        return write_tiff(result.sr, order, "sr")
    if order.answer == JSON:
        assert order.output is not None
        layers = {"uncertainty": result.uncertainty, "consistency": result.consistency if order.consistency else None}
        keys = {name: f"{order.output}/{name}.tif" for name in [*(n for n, a in layers.items() if a is not None), "sr"]}
        for name, place in keys.items():  # the image last: who finds it finds the others
            objects.write(place, write_tiff({**layers, "sr": result.sr}[name], order, name), TIFF)
        said = {"keys": keys, "valid_share": result.valid_share, "consistency_mae": result.consistency_mae}
        return json.dumps(said).encode()
    arrays: dict[str, Any] = {"sr": result.sr}
    if result.uncertainty is not None:
        arrays["uncertainty"] = result.uncertainty
    if order.consistency:
        arrays["consistency"] = result.consistency
    if order.grid is not None:
        arrays["transform"] = np.array(order.grid.finer().transform[:6])
        if (epsg := order.grid.crs.to_epsg()) is not None:
            arrays["epsg"] = np.array(epsg)
    buffer = io.BytesIO()
    # not deflated: it would take longer than the network does
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def write_tiff(image: Any, order: Order, layer: str) -> bytes:
    """A cloud-optimised GeoTIFF of reflectance x 10000 with named bands, scale, nodata and attribution."""
    assert order.grid is not None
    grid = order.grid if layer == "consistency" else order.grid.finer()
    years = sorted({date.year for date in order.dates})
    span = f" {years[0]}" if len(years) == 1 else f" {years[0]}-{years[-1]}" if years else ""
    attribution = f"Contains modified Copernicus Sentinel data{span}"
    profile = {
        "driver": "GTiff",
        "count": len(image),
        "height": image.shape[1],
        "width": image.shape[2],
        "dtype": "uint16",
        "nodata": core.SR_NODATA if layer == "sr" else core.COMPANION_NODATA,
        "crs": grid.crs,
        "transform": grid.transform,
    }
    tags = {"TIFFTAG_SOFTWARE": "subpixel", "TIFFTAG_COPYRIGHT": attribution, "attribution": attribution}
    if order.dates:
        tags["TIFFTAG_DATETIME"] = f"{order.dates[0]:%Y:%m:%d %H:%M:%S}"
    with MemoryFile() as plain, MemoryFile() as cog:
        with plain.open(**profile) as raster:
            raster.write(image)
            raster.colorinterp = [ColorInterp.blue, ColorInterp.green, ColorInterp.red, ColorInterp.undefined]
            raster.scales = [1 / core.REFLECTANCE_SCALE] * len(image)
            raster.update_tags(**tags)
            for number, band in enumerate(BANDS, start=1):
                raster.set_band_description(number, band)
        with plain.open() as raster:
            rasterio.shutil.copy(
                raster,
                cog.name,
                driver="COG",
                COMPRESS="DEFLATE",
                PREDICTOR="STANDARD",
                BLOCKSIZE=TILE,
                OVERVIEW_RESAMPLING="AVERAGE",
                NUM_THREADS="ALL_CPUS",
            )
        return bytes(cog.read())


# ------------------------------------------------------------------------------------------------------------- options


def _with_options(order: Order, options: Mapping[str, Any]) -> Order:
    """The order with what the sender chose. Raises `RequestError`."""
    request = order.request
    numbers: dict[str, Any] = {}
    for name in ("mean", "std", "shifts"):
        if options.get(name) is not None:
            try:
                numbers[name] = np.array(options[name], dtype=np.float64)
            except (TypeError, ValueError, OverflowError):
                raise RequestError(f"`{name}` must be a list of numbers.") from None
    output = options.get("output")
    return replace(
        order,
        request=replace(request, **numbers, uncertainty=_flag(options.get("uncertainty", False), "uncertainty")),
        consistency=_flag(options.get("consistency", False), "consistency"),
        dates=_dates(options["dates"], len(request.frames)) if options.get("dates") is not None else (),
        output=output.rstrip("/") if isinstance(output, str) else output,
    )


def _dates(given: Any, expected: int) -> tuple[dt.datetime, ...]:
    """One of each frame, in UTC, the latest first. Raises `RequestError`."""
    if not isinstance(given, list) or len(given) != expected:
        raise RequestError(f"`dates` must be {expected} ISO 8601 dates, one a frame.")
    dates = []
    for text in given:
        try:
            date = dt.datetime.fromisoformat(text)
        except (TypeError, ValueError):
            raise RequestError(f"`dates`: {text!r} is not an ISO 8601 date.") from None
        dates.append(date if date.tzinfo else date.replace(tzinfo=dt.UTC))
    if any(later < earlier for later, earlier in itertools.pairwise(dates)):
        raise RequestError("`dates` must descend: the latest frame comes first.")
    return tuple(dates)


def _flag(value: Any, name: str) -> bool:
    if value not in (True, False) or isinstance(value, float):
        raise RequestError(f"`{name}` must be true or false; found {value!r}.")
    return bool(value)


def _known(found: set[str], known: set[str], what: str) -> None:
    unknown = sorted(found - known)
    if unknown:
        raise RequestError(f"The request has unknown {what} {_listed(unknown)}; known are {_listed(sorted(known))}.")


def _listed(names: Any) -> str:
    shown = [str(name)[:40] for name in list(names)[:16]]
    return ", ".join(shown) + (", ..." if len(names) > len(shown) else "")


def _bytes(fields: Mapping[str, Any]) -> bytes:
    body = fields.get("body")
    if not isinstance(body, bytes | bytearray):
        raise RequestError("The request has no body of bytes: send an .npz.", 400)
    return bytes(body)


def _parse(content: Any, name: str) -> Any:
    if not isinstance(content, bytes | bytearray | str):
        return content
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise RequestError(f"`{name}` is not JSON.", 400) from None
