"""A server on this machine for the page: it looks into a folder or an S3 prefix, which may be private.

`catalog.json` is made from what lies there. GeoTIFFs in S3 are answered by a redirect to a presigned link, so that
pixels go from the bucket to the browser; where the bucket does not let a page read it (no CORS rule), and for
everything else, the server passes the bytes on. It binds 127.0.0.1, answers only below a path that nobody can guess
and to requests that name this host: neither other users of the machine nor other pages in the browser can read a
private bucket through it.
"""

from __future__ import annotations

import json
import re
import secrets
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO

from sr_core.errors import SubpixelError
from sr_core.storage import Storage

STATIC = Path(__file__).parent / "static"
LINK_S = 3600
"""How long a presigned link is valid, seconds. A browser keeps one for half of it."""
TIMEOUT_S = 30.0
CATALOG = "catalog.json"
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".geojson": "application/geo+json",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".jsonl": "text/plain; charset=utf-8",
    ".md": "text/plain; charset=utf-8",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".svg": "image/svg+xml",
    ".tif": "image/tiff",
    ".txt": "text/plain; charset=utf-8",
}
RANGE = re.compile(r"bytes=(\d*)-(\d*)")
POLICY = re.compile(r'<meta\s+http-equiv="Content-Security-Policy"\s+content="([^"]*)"\s*/>')


class Browser(ThreadingHTTPServer):
    """The server; `url` opens the page, `serve_forever` answers."""

    daemon_threads = True

    def __init__(self, storage: Storage, port: int = 0, link_s: int = LINK_S) -> None:
        """Bind a port of 127.0.0.1, any free one for 0. Raises `SubpixelError` where it is taken."""
        try:
            super().__init__(("127.0.0.1", port), Answer)
        except OSError as error:
            raise SubpixelError(f"port {port} of 127.0.0.1: {error.strerror}; choose another by --port") from error
        self.storage = storage
        self.link_s = link_s
        self.path = f"/{secrets.token_urlsafe(12)}/"
        self.origins = {f"http://{name}:{self.server_port}" for name in ("127.0.0.1", "localhost")}
        self._links: dict[str, tuple[float, str]] = {}
        self._open_to_pages: bool | None = None
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}{self.path}"

    def catalog(self) -> dict[str, Any]:
        """What lies in the storage, as the page wants it. Raises `SubpixelError` where that cannot be read."""
        from subpixel.site import build_catalog

        return build_catalog(self.storage)

    def link(self, name: str) -> str:
        """A presigned link to an object, used again while it is valid for half its time or longer."""
        with self._lock:
            made, link = self._links.get(name, (0.0, ""))
            if time.monotonic() - made > self.link_s / 2 or not link:
                link = self.storage.link(name, self.link_s)
                self._links[name] = (time.monotonic(), link)
            return link

    def forget(self, name: str) -> None:
        with self._lock:
            self._links.pop(name, None)

    def open_to_pages(self, link: str) -> bool:
        """Whether the bucket lets this page read it (CORS): asked once, with a byte of the first file."""
        if self._open_to_pages is None:
            asked = {"Range": "bytes=0-0", "Origin": f"http://127.0.0.1:{self.server_port}"}
            try:
                with fetch(link, asked) as response:
                    allowed = response.headers.get("Access-Control-Allow-Origin", "")
            except (urllib.error.URLError, OSError):
                return False
            self._open_to_pages = allowed in ("*", asked["Origin"])
        return self._open_to_pages

    def bucket_origin(self) -> str | None:
        """Scheme and host that links lead to; None for a folder."""
        if self.storage.local is not None:
            return None
        parts = urllib.parse.urlsplit(self.link(CATALOG))
        return f"{parts.scheme}://{parts.netloc}"


def fetch(url: str, headers: Mapping[str, str]) -> Any:
    """Open a presigned link. Raises `urllib.error.HTTPError` for an answer of 400 or more."""
    return urllib.request.urlopen(urllib.request.Request(url, headers=dict(headers)), timeout=TIMEOUT_S)


class Answer(BaseHTTPRequestHandler):
    """One connection of the page."""

    protocol_version = "HTTP/1.1"
    server_version = "subpixel"
    sys_version = ""
    timeout = 60
    server: Browser

    def do_GET(self) -> None:
        try:
            self._answer()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the page has moved on
        except SubpixelError as error:
            self._refuse(HTTPStatus.BAD_GATEWAY, str(error))

    do_HEAD = do_GET  # noqa: N815  (named by http.server)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: the path is a secret."""

    def _answer(self) -> None:
        if f"http://{self.headers.get('Host', '')}" not in self.server.origins:
            self._refuse(HTTPStatus.MISDIRECTED_REQUEST, "this server answers to 127.0.0.1 only")
            return
        address = urllib.parse.urlsplit(self.path)
        if not address.path.startswith(self.server.path):
            self._refuse(HTTPStatus.NOT_FOUND, "open the address that `subpixel browse` printed")
            return
        name = urllib.parse.unquote(address.path.removeprefix(self.server.path))
        if any(part.startswith(".") for part in name.split("/")) or "\\" in name or "\0" in name:
            self._refuse(HTTPStatus.NOT_FOUND, "not served: hidden files, and names that lead out of the folder")
        elif name in ("", "index.html"):
            self._page()
        elif name == CATALOG:
            self._send(json.dumps(self.server.catalog()).encode(), "application/json")
        elif name.startswith("assets/"):
            self._file(STATIC / name, {"Cache-Control": "max-age=31536000, immutable"})
        elif self.server.storage.local is not None:
            self._local(self.server.storage.local, name)
        else:
            self._remote(name)

    def _page(self) -> None:
        """The page, whose policy also allows the bucket that links lead to."""
        page = (STATIC / "index.html").read_text(encoding="utf-8")
        found = POLICY.search(page)
        if found is None:
            raise SubpixelError(f"{STATIC / 'index.html'}: found no content security policy; build the page again")
        policy = found.group(1)
        origin = self.server.bucket_origin()
        if origin is not None:
            policy = policy.replace("connect-src 'self'", f"connect-src 'self' {origin}")
        headers = {"Content-Security-Policy": policy, "Cache-Control": "no-store"}
        self._send(page.replace(found.group(0), "").encode(), TYPES[".html"], headers)

    def _local(self, root: Path, name: str) -> None:
        path = (root / name).resolve()
        if not path.is_relative_to(root.resolve()) or not path.is_file():
            self._refuse(HTTPStatus.NOT_FOUND, f"{name}: missing")
            return
        self._file(path, FOREIGN)

    def _file(self, path: Path, headers: Mapping[str, str]) -> None:
        try:
            file: BinaryIO = path.open("rb")
        except OSError as error:
            self._refuse(HTTPStatus.NOT_FOUND, f"{path.name}: {error.strerror}")
            return
        with file:
            size = path.stat().st_size
            kind = TYPES.get(path.suffix, "application/octet-stream")
            asked = self.headers.get("Range")
            span = None if asked is None else byte_range(asked, size)
            if asked is not None and span is None:
                self._refuse(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, f"{asked}: expected bytes of {size}")
                return
            first, last = span or (0, size - 1)
            self.send_response(HTTPStatus.OK if span is None else HTTPStatus.PARTIAL_CONTENT)
            if span is not None:
                self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            self._headers(kind, last - first + 1, {"Accept-Ranges": "bytes", **headers})
            if self.command == "GET":
                file.seek(first)
                self._copy(file, last - first + 1)

    def _remote(self, name: str) -> None:
        # a browser that asks again past its cache was refused by the link it had
        if "no-cache" in self.headers.get("Cache-Control", "") and name.endswith(".tif"):
            self.server.forget(name)
        link = self.server.link(name)
        if name.endswith(".tif") and self.server.open_to_pages(link):
            self.send_response(HTTPStatus.TEMPORARY_REDIRECT)
            self.send_header("Location", link)
            self._headers("text/plain", 0, {"Cache-Control": f"private, max-age={self.server.link_s // 2}"})
            return
        asked = {"Range": self.headers["Range"]} if "Range" in self.headers else {}
        if self.command == "HEAD":
            asked = {"Range": "bytes=0-0"}  # a link is signed for GET
        try:
            response = fetch(link, asked)
        except urllib.error.HTTPError as error:
            with error:
                self._refuse(HTTPStatus(error.code), f"{self.server.storage.uri}/{name}: S3 answered {error.code}")
            return
        except (urllib.error.URLError, OSError) as error:
            reason = getattr(error, "reason", error)
            self._refuse(HTTPStatus.BAD_GATEWAY, f"{self.server.storage.uri}: not reachable: {reason}")
            return
        with response:
            length = int(response.headers["Content-Length"])
            kind = TYPES.get(Path(name).suffix, "application/octet-stream")
            if self.command == "HEAD":
                total = response.headers.get("Content-Range", f"/{length}").rpartition("/")[2]
                self.send_response(HTTPStatus.OK)
                self._headers(kind, int(total), FOREIGN)
                return
            self.send_response(response.status)
            if "Content-Range" in response.headers:
                self.send_header("Content-Range", response.headers["Content-Range"])
            self._headers(kind, length, {"Accept-Ranges": "bytes", **FOREIGN})
            self._copy(response, length)

    def _copy(self, source: BinaryIO, length: int) -> None:
        left = length
        while left > 0:
            piece = source.read(min(left, 1 << 16))
            if not piece:
                self.close_connection = True  # shorter than announced: the page must notice
                return
            self.wfile.write(piece)
            left -= len(piece)

    def _send(self, content: bytes, kind: str, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(HTTPStatus.OK)
        self._headers(kind, len(content), headers or {"Cache-Control": "no-store"})
        if self.command == "GET":
            self.wfile.write(content)

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        content = json.dumps({"message": message}).encode()
        self.send_response(status)
        self._headers("application/json", len(content), {"Cache-Control": "no-store"})
        if self.command == "GET":
            self.wfile.write(content)

    def _headers(self, kind: str, length: int, headers: Mapping[str, str]) -> None:
        common = {
            "Content-Type": kind,
            "Content-Length": str(length),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        }
        for name, value in {**common, **headers}.items():
            self.send_header(name, value)
        self.end_headers()


FOREIGN = {"Cache-Control": "no-cache", "Content-Security-Policy": "sandbox allow-scripts"}
"""For what lies in the storage: a report may run its own scripts, but not read the rest through this server."""


def byte_range(header: str, size: int) -> tuple[int, int] | None:
    """First and last byte that `bytes=a-b`, `bytes=a-` or `bytes=-n` asks of `size` bytes; None where there is none."""
    found = RANGE.fullmatch(header.strip())
    if found is None or found.group(1) == found.group(2) == "":
        return None
    if found.group(1) == "":
        first, last = max(0, size - int(found.group(2))), size - 1
    else:
        first, last = int(found.group(1)), min(int(found.group(2) or size - 1), size - 1)
    return (first, last) if first <= last else None
