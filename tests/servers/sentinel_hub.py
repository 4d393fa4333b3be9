"""A server that speaks Sentinel Hub's protocol: OAuth2 tokens, the Catalog, and the Process API.

Evalscripts are run, pixel by pixel, by a JavaScript engine (QuickJS; the service uses V8), so that a wrong script gives
wrong pixels. Pixels come from rasters in memory: crops of real products (`okavango`) or arrays that a test gives.
Faults are injected a request at a time (`SentinelHubServer.faults`).

What it leaves out: mosaicking other than SIMPLE by most recent, rasters of another CRS than the request's, evalscripts
of versions 1 and 2.
"""

from __future__ import annotations

import datetime as dt
import io
import json
import re
import secrets
import tarfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import numpy as np
import pyproj
import quickjs
import rasterio
from numpy.typing import NDArray
from rasterio.io import MemoryFile
from rasterio.transform import Affine
from shapely.geometry import box, mapping
from shapely.geometry.base import BaseGeometry
from shapely.ops import transform as reproject

CLIENT_ID = "0f3c1a52-client"
CLIENT_SECRET = "s3cr3t/with+signs=%&"
TYPES = {"UINT8": np.uint8, "UINT16": np.uint16, "FLOAT32": np.float32}


@dataclass(frozen=True)
class Raster:
    """A band (H, W): pixels of `gsd` metres from the north-west corner `origin`."""

    values: NDArray[Any]
    gsd: float
    origin: tuple[float, float]

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        (west, north), (rows, columns) = self.origin, self.values.shape
        return west, north - rows * self.gsd, west + columns * self.gsd, north

    def sample(self, x: NDArray[Any], y: NDArray[Any], how: str) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Values at x (W) and y (H), and which of those places lie in the raster."""
        column, row = (x - self.origin[0]) / self.gsd, (self.origin[1] - y) / self.gsd
        rows, columns = self.values.shape
        inside = np.logical_and.outer((row >= 0) & (row < rows), (column >= 0) & (column < columns))
        if how == "NEAREST":
            at = np.clip(row.astype(int), 0, rows - 1), np.clip(column.astype(int), 0, columns - 1)
            return self.values[np.ix_(*at)], inside
        assert how == "BILINEAR", how
        values = self.values.astype(float)
        for axis, place in ((0, row - 0.5), (1, column - 0.5)):
            low = np.floor(place).astype(int)
            weight = (place - low)[:, None] if axis == 0 else (place - low)[None]
            last = values.shape[axis] - 1
            first = np.take(values, np.clip(low, 0, last), axis)
            values = first * (1 - weight) + np.take(values, np.clip(low + 1, 0, last), axis) * weight
        return values, inside


@dataclass(frozen=True)
class Item:
    """A product: its bands, in one UTM zone."""

    id: str
    time: dt.datetime
    epsg: int
    bands: Mapping[str, Raster]
    cloud_cover: float | None = None
    units: str = "DN"

    @property
    def footprint(self) -> BaseGeometry:
        outline = box(*next(iter(self.bands.values())).bounds).segmentize(500.0)
        return reproject(pyproj.Transformer.from_crs(self.epsg, 4326, always_xy=True).transform, outline)

    def feature(self, collection: str) -> dict[str, Any]:
        properties = {"datetime": self.time.isoformat() + "Z", "proj:epsg": self.epsg}
        if self.cloud_cover is not None:
            properties["eo:cloud_cover"] = self.cloud_cover
        return {
            "type": "Feature",
            "stac_version": "1.0.0",
            "id": self.id,
            "collection": collection,
            "bbox": list(self.footprint.bounds),
            "geometry": mapping(self.footprint),
            "properties": properties,
            "assets": {},
            "links": [],
        }


@dataclass
class Fault:
    """What happens instead of an answer, to the next `times` requests whose path contains `path`."""

    kind: str
    """ "429", "500", "502", "503", "quota", "expired", "echo", "broken", "slow", or "changed" by `change`."""
    path: str = "/process"
    times: int = 1
    retry_after: str | None = None
    change: Callable[[bytes], bytes] | None = None


@dataclass
class SentinelHubServer:
    """Serves `collections` (id: items) on a free port of this machine from `start` to `stop`."""

    collections: dict[str, list[Item]]
    page: int = 100
    """Products a page of the Catalog, at most."""
    token_life: float = 3600.0
    harmonizes: bool = True
    """Whether `harmonizeValues` is heeded."""
    per_second: float | None = None
    """Process requests above this rate are answered with 429 and, in milliseconds, when the next may come."""
    faults: list[Fault] = field(default_factory=list)
    log: deque[tuple[float, str, int]] = field(default_factory=deque)
    """When a request came (monotonic), its path, and the status of its answer."""
    processing_units: float = 0.0
    """Charged by answers with status 200, by the documented formula."""

    def __post_init__(self) -> None:
        self.tokens: dict[str, float] = {}
        self.requests: list[dict[str, Any]] = []
        self.lock = threading.Lock()
        self.next_process = 0.0

    def __enter__(self) -> SentinelHubServer:
        handler = type("Handler", (_Handler,), {"hub": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.http.shutdown()
        self.http.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}"

    @property
    def token_url(self) -> str:
        return f"{self.url}/auth/token"

    def count(self, path: str) -> int:
        """Answers of any status from paths that contain `path`."""
        return sum(path in found for _, found, _ in self.log)

    def next_fault(self, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.path in path and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None

    def too_early_s(self) -> float:
        """How long before a request to the Process API is allowed; 0 where it is, and then counts."""
        with self.lock:
            now = time.monotonic()
            if self.per_second is None or now >= self.next_process:
                self.next_process = now + (1 / self.per_second if self.per_second else 0.0)
                return 0.0
            return self.next_process - now

    def search(self, body: Mapping[str, Any]) -> dict[str, Any]:
        (collection,) = body["collections"]
        start, end = (dt.datetime.fromisoformat(text).replace(tzinfo=None) for text in body["datetime"].split("/"))
        clouds = None
        if body.get("filter"):
            assert body["filter-lang"] == "cql2-text", body
            found = re.fullmatch(r"eo:cloud_cover (<=|<) ([\d.]+)", body["filter"])
            if found is None:
                raise BadRequestError(f"filter {body['filter']!r}")
            clouds = float(found[2])
            strict = found[1] == "<"
        area = box(*body["bbox"])
        items = [
            item
            for item in sorted(self.collections[collection], key=lambda item: item.time, reverse=True)
            if start <= item.time <= end
            and item.footprint.intersects(area)
            and (
                clouds is None
                or item.cloud_cover is None
                or (item.cloud_cover < clouds if strict else item.cloud_cover <= clouds)
            )
        ]
        first = int(body.get("next", 0))
        last = first + min(self.page, int(body["limit"]))
        context: dict[str, Any] = {"limit": self.page, "returned": len(items[first:last])}
        if last < len(items):
            context["next"] = last
        return {
            "type": "FeatureCollection",
            "features": [item.feature(collection) for item in items[first:last]],
            "links": [],
            "context": context,
        }

    def process(self, body: Mapping[str, Any]) -> bytes:
        """The tar of GeoTIFFs that the evalscript makes of the most recent products."""
        (data,) = body["input"]["data"]
        bounds, output = body["input"]["bounds"], body["output"]
        epsg = int(re.fullmatch(r"http://www.opengis.net/def/crs/EPSG/0/(\d+)", bounds["properties"]["crs"])[1])
        west, south, east, north = bounds["bbox"]
        width, height = output["width"], output["height"]
        if not (1 <= width <= 2500 and 1 <= height <= 2500):
            raise BadRequestError(f"width {width} and height {height}: expected 1 to 2500")
        x = west + (np.arange(width) + 0.5) * (east - west) / width
        y = north - (np.arange(height) + 0.5) * (north - south) / height
        span = data["dataFilter"]["timeRange"]
        start, end = (dt.datetime.fromisoformat(span[key]).replace(tzinfo=None) for key in ("from", "to"))
        processing = data.get("processing", {})
        assert processing.get("downsampling", "NEAREST") == processing.get("upsampling", "NEAREST")
        how = processing.get("upsampling", "NEAREST")
        script = Script(body["evalscript"])
        items = [
            item
            for item in sorted(self.collections[data["type"]], key=lambda item: item.time)
            if start <= item.time <= end and item.epsg == epsg
        ]
        layers = {name: np.zeros((height, width)) for name in script.bands}
        for item in items:  # the most recent last, so that it lies on top
            unknown = set(script.bands) - set(item.bands) - {"dataMask"}
            if unknown or script.units not in (None, item.units):
                raise BadRequestError(f"{sorted(unknown)} or units {script.units}: not in collection {data['type']}")
            seen = {name: item.bands[name].sample(x, y, how) for name in script.bands if name != "dataMask"}
            mask = item.bands["dataMask"].sample(x, y, "NEAREST") if "dataMask" in item.bands else None
            inside = np.logical_and.reduce([there for _, there in seen.values()])
            if mask is not None:
                inside &= mask[1] & (mask[0] == 1)
            offset = re.search(r"_N0[4-9]\d\d_", item.id) is not None
            if offset and self.harmonizes and processing.get("harmonizeValues", True):
                # DN as before baseline 04.00, negative ones clamped
                seen = {
                    name: (np.maximum(values - 1000.0, 0) if name.startswith("B") else values, there)
                    for name, (values, there) in seen.items()
                }
            for name, (values, _) in seen.items():
                layers[name] = np.where(inside, values, layers[name])
            if "dataMask" in layers:
                layers["dataMask"] = np.where(inside, 1, layers["dataMask"])
        made = script.run(layers)
        asked = [response["identifier"] for response in output["responses"]]
        files = {}
        for name in asked:
            sample_type, count = script.outputs[name]
            pixels = np.floor(made[name] + 0.5)
            limits = np.iinfo(TYPES[sample_type])
            pixels = np.clip(np.nan_to_num(pixels), limits.min, limits.max).astype(TYPES[sample_type])
            assert pixels.shape == (height, width, count), (name, pixels.shape)
            transform = Affine((east - west) / width, 0, west, 0, -(north - south) / height, north)
            files[f"{name}.tif"] = geotiff(pixels, epsg, transform)
        charged = len(set(script.bands) - {"dataMask"})
        units = max(0.005, max(0.01, width * height / (512 * 512)) * charged / 3)
        with self.lock:
            self.processing_units += units
        return tar_of(files)


class BadRequestError(Exception):
    """Answered with status 400."""


class Script:
    """An evalscript of version 3."""

    def __init__(self, text: str) -> None:
        if not text.startswith("//VERSION=3"):
            raise BadRequestError("evalscript: expected //VERSION=3 first")
        self.engine = quickjs.Context()
        try:
            self.engine.eval(text)
            setup = json.loads(self.engine.eval("JSON.stringify(setup())"))
        except quickjs.JSException as error:
            raise BadRequestError(f"evalscript: {error}") from error
        (given,) = setup["input"]
        self.bands: list[str] = given["bands"]
        self.units: str | None = given.get("units")
        assert setup.get("mosaicking", "SIMPLE") == "SIMPLE"
        self.outputs = {output["id"]: (output["sampleType"], output["bands"]) for output in setup["output"]}

    def run(self, layers: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """`evaluatePixel` of every distinct pixel."""
        stacked = np.stack([layers[name] for name in self.bands], axis=-1)
        distinct, where = np.unique(stacked.reshape(-1, len(self.bands)), axis=0, return_inverse=True)
        samples = [dict(zip(self.bands, values, strict=True)) for values in distinct.tolist()]
        try:
            self.engine.eval(f"const samples = {json.dumps(samples)};")
            made = json.loads(self.engine.eval("JSON.stringify(samples.map((sample) => evaluatePixel(sample)))"))
        except quickjs.JSException as error:
            raise BadRequestError(f"evalscript: {error}") from error
        return {
            name: np.array([pixel[name] for pixel in made], float)[where.ravel()].reshape(*stacked.shape[:2], -1)
            for name in self.outputs
        }


class _Handler(BaseHTTPRequestHandler):
    hub: SentinelHubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Tests read `SentinelHubServer.log`."""

    def do_POST(self) -> None:
        self.came = time.monotonic()
        body = self.rfile.read(int(self.headers["Content-Length"]))
        fault = self.hub.next_fault(self.path)
        if fault is not None and fault.change is None:
            self.fail(fault, body)
            return
        try:
            if self.path == "/auth/token":
                self.token(body)
                return
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            if self.hub.tokens.get(token, 0.0) < time.monotonic():
                self.error(401, "Unauthorized", "The token is expired or unknown.", "COMMON_UNAUTHORIZED")
                return
            request = json.loads(body)
            self.hub.requests.append(request)
            if self.path == "/api/v1/catalog/1.0.0/search":
                content, kind = json.dumps(self.hub.search(request)).encode(), "application/geo+json"
            elif self.path == "/api/v1/process":
                assert self.headers["Accept"] == "application/x-tar", self.headers["Accept"]
                if wait := self.hub.too_early_s():
                    self.fail(Fault("429", retry_after=str(round(1000 * wait))), body)
                    return
                content, kind = self.hub.process(request), "application/x-tar"
            else:
                self.error(404, "Not Found", self.path, "COMMON_NOT_FOUND")
                return
        except BadRequestError as error:
            self.error(400, "Bad Request", str(error), "COMMON_BAD_PAYLOAD")
            return
        if fault is not None and fault.change is not None:
            content = fault.change(content)
        self.answer(200, content, kind)

    def token(self, body: bytes) -> None:
        form = {key: values[0] for key, values in parse_qs(body.decode()).items()}
        if (form.get("client_id"), form.get("client_secret")) != (CLIENT_ID, CLIENT_SECRET):
            self.answer(401, b'{"error":"invalid_client","error_description":"Invalid client credentials"}')
            return
        assert form["grant_type"] == "client_credentials", form
        token = f"token-{secrets.token_hex(16)}"
        self.hub.tokens[token] = time.monotonic() + self.hub.token_life
        content = {"access_token": token, "expires_in": self.hub.token_life, "token_type": "Bearer"}
        self.answer(200, json.dumps(content).encode())

    def fail(self, fault: Fault, body: bytes) -> None:
        retry = {} if fault.retry_after is None else {"Retry-After": fault.retry_after}
        match fault.kind:
            case "429":
                self.error(429, "Too Many Requests", "You have exceeded your rate limit", "RATE_LIMIT_EXCEEDED", retry)
            case "500" | "502" | "503":
                self.error(int(fault.kind), "Server Error", "Something went wrong", "RENDERER_EXCEPTION", retry)
            case "quota":
                said = "Insufficient processing units or requests available in your account."
                self.error(403, "Forbidden", said, "ACCESS_INSUFFICIENT_PROCESSING_UNITS")
            case "expired":  # the service forgets all tokens before their time
                self.hub.tokens.clear()
                self.error(401, "Unauthorized", "The token is expired.", "COMMON_UNAUTHORIZED")
            case "echo":  # an answer that repeats what it was sent
                said = f"refused {self.headers.get('Authorization')} {parse_qs(body.decode(errors='replace'))}"
                self.error(400, "Bad Request", said, "COMMON_BAD_PAYLOAD")
            case "broken":  # fewer bytes than announced
                self.send_response(200)
                self.send_header("Content-Length", "100000")
                self.end_headers()
                self.wfile.write(b"II*\0" * 64)
                self.close_connection = True
                self.hub.log.append((self.came, self.path, 200))
            case "slow":  # a byte now and then, for ever
                self.send_response(200)
                self.send_header("Content-Length", "100000")
                self.end_headers()
                self.hub.log.append((self.came, self.path, 200))
                try:
                    for _ in range(100):
                        self.wfile.write(b"I" * 1000)
                        self.wfile.flush()
                        time.sleep(0.1)
                except OSError:
                    self.close_connection = True
            case _:
                raise AssertionError(fault.kind)

    def error(
        self, status: int, reason: str, message: str, code: str, headers: Mapping[str, str] | None = None
    ) -> None:
        content = {"error": {"status": status, "reason": reason, "message": message, "code": code}}
        self.answer(status, json.dumps(content).encode(), headers=headers)

    def answer(
        self,
        status: int,
        content: bytes,
        kind: str = "application/json",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.hub.log.append((self.came, self.path, status))
        try:
            self.send_response(status)
            for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)
        except OSError:
            self.close_connection = True  # the client has given up


def geotiff(pixels: NDArray[Any], epsg: int, transform: Affine) -> bytes:
    """(H, W, C) as a deflated GeoTIFF."""
    height, width, count = pixels.shape
    profile = {"driver": "GTiff", "height": height, "width": width, "count": count, "dtype": pixels.dtype}
    with MemoryFile() as memory:
        with memory.open(**profile, crs=f"EPSG:{epsg}", transform=transform, compress="deflate") as dataset:
            dataset.write(np.moveaxis(pixels, -1, 0))
        return bytes(memory.read())


def tar_of(files: Mapping[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


@cache
def okavango(folder: Path) -> list[Item]:
    """The products of a folder `okavango` as L1C items. Its files have six bands; the others of s2cloudless, CLM and
    CLP are made of them, of the size and kind that the service has: they stand for data, and mean nothing.
    """
    items = []
    for product in sorted(path for path in folder.iterdir() if path.is_dir()):
        bands = {}
        for path in sorted(product.glob("*.tif")):
            with rasterio.open(path) as dataset:
                name = path.stem.rsplit("_", 1)[1].upper()
                bands[name] = Raster(dataset.read(1), dataset.transform.a, (dataset.transform.c, dataset.transform.f))
                epsg = dataset.crs.to_epsg()
        for made, source, step in (("B01", "B02", 6), ("B05", "B04", 2), ("B8A", "B08", 2), ("B09", "B08", 6)):
            known = bands[source]
            bands[made] = Raster(known.values[::step, ::step], 10.0 * step, known.origin)
        bands["B12"] = bands["B11"]
        blue = bands["B02"]
        coarse = blue.values[::16, ::16]
        bands["CLM"] = Raster((coarse > 1800).astype(np.uint8), 160.0, blue.origin)
        bands["CLP"] = Raster(np.clip(coarse // 16, 0, 255).astype(np.uint8), 160.0, blue.origin)
        sensed = dt.datetime.strptime(product.name.split("_")[2], "%Y%m%dT%H%M%S") + dt.timedelta(seconds=312)
        clouds = round(100 * float((blue.values > 1800).mean()), 2)
        items.append(Item(product.name, sensed, epsg, bands, clouds))
    return items


def serve(collections: dict[str, Sequence[Item]], **options: Any) -> SentinelHubServer:
    """A server for a `with` block."""
    return SentinelHubServer({name: list(items) for name, items in collections.items()}, **options)
