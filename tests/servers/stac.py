"""A STAC catalogue on this machine: static JSON and COGs over HTTP with ranges, and an API with item search.

`write_item` makes a product of arrays, `write_catalogue` the static catalogue of a folder of them, `serve` serves both
and misbehaves on demand. Items look like those of Earth Search.
"""

import datetime as dt
import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode

import numpy as np
import pyproj
import pystac
from numpy.typing import NDArray
from rasterio.io import MemoryFile
from rasterio.transform import Affine
from rio_cogeo.cogeo import cog_translate
from rio_cogeo.profiles import cog_profiles
from shapely.geometry import box, mapping, shape
from shapely.ops import transform as reproject

COLLECTION = "sentinel-2-c1-l2a"
BANDS = ("blue", "green", "red", "nir")
PAGE = 3
"""Items a page: small, so that every search is paged."""


def write_cog(path: Path, layer: NDArray, gsd: float, epsg: int, north_west: tuple[float, float]) -> None:
    """Write (H, W) as a cloud-optimised GeoTIFF with overviews, nodata 0."""
    profile = {"driver": "GTiff", "count": 1, "height": layer.shape[0], "width": layer.shape[1], "dtype": layer.dtype}
    place = {"crs": f"EPSG:{epsg}", "transform": Affine(gsd, 0, north_west[0], 0, -gsd, north_west[1]), "nodata": 0}
    with MemoryFile() as memory, memory.open(**profile, **place) as dataset:
        dataset.write(layer, 1)
        options = {**cog_profiles.get("deflate"), "blockxsize": 64, "blockysize": 64}
        cog_translate(dataset, path, options, overview_level=1, in_memory=True, quiet=True)


def write_item(
    folder: Path,
    name: str,
    image: NDArray[np.uint16],
    scl: NDArray[np.uint8] | None,
    epsg: int,
    north_west: tuple[float, float],
    *,
    when: dt.datetime,
    cloud_cover: float = 10.0,
    properties: dict[str, Any] | None = None,
    raster: dict[str, Any] | None = None,
    asset_names: dict[str, str] | None = None,
) -> pystac.Item:
    """A product: bands (4, H, W) at 10 m, SCL (H/2, W/2) at 20 m, as COGs below `folder/name`, and its item.

    `raster` goes into each band's `raster:bands`, such as {"offset": -0.1}.
    """
    rows, columns = image.shape[1:]
    bounds = (north_west[0], north_west[1] - 10 * rows, north_west[0] + 10 * columns, north_west[1])
    to_wgs84 = pyproj.Transformer.from_crs(epsg, 4326, always_xy=True).transform
    footprint = reproject(to_wgs84, box(*bounds).segmentize(1000))
    said = {"eo:cloud_cover": cloud_cover, "proj:epsg": epsg, "created": "2024-01-01T00:00:00Z", **(properties or {})}
    item = pystac.Item(name, mapping(footprint), list(footprint.bounds), when, said, collection=COLLECTION)
    layers = {band: (layer, 10.0) for band, layer in zip(BANDS, image, strict=True)}
    if scl is not None:
        layers["scl"] = (scl, 20.0)
    (folder / name).mkdir(parents=True, exist_ok=True)
    for band, (layer, gsd) in layers.items():
        write_cog(folder / name / f"{band}.tif", layer, gsd, epsg, north_west)
        extra = {"raster:bands": [{"nodata": 0, "data_type": str(layer.dtype), "spatial_resolution": gsd}]}
        if raster and band != "scl":
            extra["raster:bands"][0] |= {"scale": 0.0001, **raster}
        asset = pystac.Asset(f"./{band}.tif", media_type=pystac.MediaType.COG, roles=["data"], extra_fields=extra)
        item.add_asset((asset_names or {}).get(band, band), asset)
    return item


def write_catalogue(folder: Path, items: Sequence[pystac.Item]) -> Path:
    """The static catalogue of a folder whose products `write_item` made. Returns its root, `catalog.json`."""
    catalogue = pystac.Catalog("local", "Sentinel-2 on this machine")
    times = [item.datetime for item in items]
    extent = pystac.Extent(
        pystac.SpatialExtent([[-180, -90, 180, 90]]), pystac.TemporalExtent([[min(times), max(times)]])
    )
    collection = pystac.Collection(COLLECTION, "Sentinel-2 L2A", extent)
    catalogue.add_child(collection)
    for item in items:
        collection.add_item(item)
        item.set_self_href(str(folder / item.id / f"{item.id}.json"))
    catalogue.normalize_hrefs(str(folder), skip_unresolved=True)
    for item in items:  # beside its COGs
        item.set_self_href(str(folder / item.id / f"{item.id}.json"))
    catalogue.save(catalog_type=pystac.CatalogType.SELF_CONTAINED)
    return folder / "catalog.json"


@dataclass
class Fault:
    """What goes wrong with the next `times` requests whose path ends with `path`, after `skip` of them."""

    kind: str
    """ "429", "500", "403", "404" (statuses), "drop" (no answer), "truncate" (half of the promised body), "short" (half
    of the range, well formed), "slow" (a pause before the answer), "no-range" (the whole file for a range)."""
    path: str
    times: int = 1
    skip: int = 0
    seconds: float = 1.0
    """Retry-After of 429, pause of "slow"."""


@dataclass
class StacServer:
    """A running server: its address, what is to go wrong, and what was asked."""

    url: str
    folder: Path
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Method and path, in order."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def api(self) -> str:
        """Landing page of the API."""
        return f"{self.url}/api"

    @property
    def static(self) -> str:
        """Root of the static catalogue."""
        return f"{self.url}/catalog.json"

    def fault_of(self, method: str, path: str) -> Fault | None:
        with self.lock:
            self.requests.append((method, path))
            for fault in self.faults:
                if method != "HEAD" and path.endswith(fault.path) and fault.times > 0:
                    if fault.skip > 0:
                        fault.skip -= 1
                        continue
                    fault.times -= 1
                    return fault
        return None

    def items(self) -> list[dict[str, Any]]:
        """All items, asset addresses absolute, newest first."""
        found = []
        for path in self.folder.glob("*/*.json"):
            item = json.loads(path.read_text())
            if item["type"] != "Feature":
                continue
            for asset in item["assets"].values():
                asset["href"] = f"{self.url}/{path.parent.name}/{Path(asset['href']).name}"
            item["links"] = []
            found.append(item)
        return sorted(found, key=lambda item: (item["properties"]["datetime"], item["id"]), reverse=True)

    def landing(self) -> dict[str, Any]:
        core = "https://api.stacspec.org/v1.0.0"
        links = [
            {"rel": "self", "href": self.api, "type": "application/json"},
            {"rel": "root", "href": self.api, "type": "application/json"},
            {"rel": "search", "href": f"{self.api}/search", "type": "application/geo+json", "method": "GET"},
            {"rel": "search", "href": f"{self.api}/search", "type": "application/geo+json", "method": "POST"},
        ]
        conforms = [f"{core}/core", f"{core}/item-search", f"{core}/item-search#query", f"{core}/ogcapi-features"]
        return {
            "type": "Catalog",
            "id": "local-api",
            "stac_version": "1.0.0",
            "description": "item search on this machine",
            "conformsTo": conforms,
            "links": links,
        }

    def search(self, asked: dict[str, Any], method: str) -> dict[str, Any]:
        """One page of the items asked for, with a link to the next."""
        window = box(*asked["bbox"])
        start, end = (dt.datetime.fromisoformat(part) for part in asked["datetime"].split("/"))
        cloud = asked.get("query", {}).get("eo:cloud_cover", {}).get("lte", 100)
        found = [
            item
            for item in self.items()
            if item["collection"] in asked["collections"]
            and shape(item["geometry"]).intersects(window)
            and start <= dt.datetime.fromisoformat(item["properties"]["datetime"]) <= end
            and item["properties"]["eo:cloud_cover"] <= cloud
        ]
        first = int(asked.get("token") or 0)
        page: dict[str, Any] = {"type": "FeatureCollection", "features": found[first : first + PAGE], "links": []}
        if first + PAGE < len(found):
            link: dict[str, Any] = {"rel": "next", "href": f"{self.api}/search", "method": method}
            if method == "POST":
                link |= {"merge": False, "body": {**asked, "token": str(first + PAGE)}}
            else:
                flat = {
                    key: ",".join(map(str, value)) if isinstance(value, list) else value for key, value in asked.items()
                }
                link["href"] += "?" + urlencode({**flat, "token": first + PAGE})
            page["links"].append(link)
        return page


@contextmanager
def serve(folder: Path) -> Iterator[StacServer]:
    """Serve a folder's static catalogue at `/catalog.json`, its COGs, and an API at `/api`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=b"")

        def do_GET(self) -> None:
            self.answer(body=b"")

        def do_POST(self) -> None:
            self.answer(body=self.rfile.read(int(self.headers["Content-Length"])))

        def answer(self, body: bytes) -> None:
            path, _, query = self.path.partition("?")
            fault = server.fault_of(self.command, path)
            kind = fault.kind if fault else ""
            if kind.isdigit():
                after = {"Retry-After": f"{fault.seconds:.0f}"} if kind == "429" and fault else {}
                return self.send(int(kind), b"", after)
            if kind == "drop":
                self.close_connection = True
                return self.connection.shutdown(socket.SHUT_RDWR)
            if kind == "slow" and fault:
                time.sleep(fault.seconds)
            content = self.content(path, query, body)
            if content is None:
                return self.send(404, b"no such file", {})
            asked = self.headers.get("Range")
            if not asked or kind == "no-range":
                return self.send(200, content, {}, cut=kind == "truncate")
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last or len(content)) + 1, len(content))
            if start >= stop:
                return self.send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            if kind == "short":
                stop = start + (stop - start + 1) // 2
            span = {"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"}
            self.send(206, content[start:stop], span, cut=kind == "truncate")

        def content(self, path: str, query: str, body: bytes) -> bytes | None:
            if path == "/api":
                return json.dumps(server.landing()).encode()
            if path == "/api/search":
                asked = json.loads(body) if body else from_query(query)
                return json.dumps(server.search(asked, self.command)).encode()
            file = folder / path.lstrip("/")
            return file.read_bytes() if file.is_file() else None

        def send(self, status: int, content: bytes, headers: dict[str, str], cut: bool = False) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Accept-Ranges", "bytes")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content[: len(content) // 2] if cut else content)
            if cut:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            """A client that has gone is no news."""

    http = Server(("127.0.0.1", 0), Handler)
    server = StacServer(f"http://127.0.0.1:{http.server_port}", folder)
    thread = threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def from_query(query: str) -> dict[str, Any]:
    """A search asked by GET, as one asked by POST."""
    asked: dict[str, Any] = {key: values[0] for key, values in parse_qs(query).items()}
    asked["bbox"] = [float(value) for value in asked["bbox"].split(",")]
    asked["collections"] = asked["collections"].split(",")
    if "query" in asked:
        asked["query"] = json.loads(asked["query"])
    return asked
