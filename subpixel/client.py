"""Client of the model server: arrays, GeoTIFFs or objects in S3 in, super-resolved images out.

    client = Client("http://127.0.0.1:8080")
    answer = client.predict(frames, clear)          # arrays, to the array answer.sr
    client.predict_files(paths, Path("sr.tif"))     # GeoTIFFs, to a cloud-optimised GeoTIFF

What goes over the wire is in `serving/openapi.yaml`. A request changes nothing on the server, so it is sent again where
the server is busy (503), a proxy in front has lost it (502, 504), the connection breaks, or the answer is cut short.
"""

from __future__ import annotations

import io
import json
import urllib.request
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
import urllib3
from numpy.typing import NDArray

from sr_core.errors import ServiceError

AGAIN = (429, 502, 503, 504)
"""HTTP states of a server that will answer later."""
NPZ, TIFF, JSON = "application/x-npz", "image/tiff", "application/json"
SHOWN_CHARACTERS = 500
"""Of an answer that is not what was expected, in the error."""


@dataclass(frozen=True)
class Answer:
    """A super-resolved image; 0 is nodata where not said otherwise."""

    sr: NDArray[np.uint16]
    """(4,4H,4W) reflectance x 10000."""
    uncertainty: NDArray[np.uint16] | None
    """(4,4H,4W) scale of a Laplace distribution, reflectance x 10000; 65535 is nodata. None: not asked for."""
    consistency: NDArray[np.uint16] | None
    """(4,H,W) difference between the latest frame and the image brought back to 10 m, reflectance x 10000; 65535 is
    nodata. None: not asked for."""


class Client:
    """One model of one server. May be shared by threads; a connection is kept for each."""

    def __init__(
        self,
        server: str,
        model: str = "subpixel",
        version: str | None = None,
        token: str | None = None,
        timeout_s: float = 180.0,
        retries: int = 6,
        connections: int = 32,
    ) -> None:
        """`server` is an http(s) address; `token` is sent as a bearer token, for a gateway in front of the server.

        `timeout_s` is how long an answer may take; `retries` bounds how often a request is sent again, after 0.4 s
        and twice that each time, or when the server says. Raises `ServiceError` where the address is none.
        """
        address = urlsplit(server)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ServiceError(f"{server}: expected an address such as https://sr.example.org")
        if token and address.scheme == "http" and not _on_this_machine(address.hostname):
            raise ServiceError(f"{server}: a token is sent over https only")
        path = "/".join(quote(part, safe="") for part in ("predictions", model, *([version] if version else ())))
        self.server = server.rstrip("/")
        self.url = f"{self.server}/{path}"
        policy = urllib3.Retry(
            retries,
            allowed_methods=None,  # POST too
            status_forcelist=AGAIN,
            backoff_factor=0.2,
            backoff_jitter=0.2,
            redirect=0,
            raise_on_status=False,
            raise_on_redirect=False,
        )
        settings: dict[str, Any] = {
            "headers": {"Authorization": f"Bearer {token}"} if token else {},
            "timeout": urllib3.Timeout(connect=10.0, read=timeout_s),
            "retries": policy,
            "maxsize": connections,
        }
        proxy = urllib.request.getproxies().get(address.scheme)
        beside = _on_this_machine(address.hostname) or urllib.request.proxy_bypass(address.hostname)
        self._pool = urllib3.PoolManager(**settings) if not proxy or beside else urllib3.ProxyManager(proxy, **settings)

    def healthy(self) -> bool:
        """Whether the server answers its health probe; TorchServe does so a little before its model is loaded."""
        try:
            return bool(self._pool.request("GET", f"{self.server}/ping", retries=False).status == 200)
        except urllib3.exceptions.HTTPError:
            return False

    def predict(
        self,
        frames: NDArray[np.uint16],
        clear: NDArray[np.bool_] | None = None,
        *,
        mean: NDArray[np.float64] | None = None,
        std: NDArray[np.float64] | None = None,
        shifts: NDArray[np.float32] | None = None,
        uncertainty: bool = False,
        consistency: bool = False,
    ) -> Answer:
        """Super-resolve arrays.

        frames (T,4,H,W) reflectance x 10000, latest first, 0 is nodata; clear (T,H,W) is True where usable. `mean` and
        `std` (4,) in reflectance are those of the place over time (none: of the request); shifts (T,2) are the frames'
        displacements in their pixels. Raises `ServiceError` with the server's sentence where it refuses.
        """
        wanted = {"uncertainty": uncertainty or None, "consistency": consistency or None}
        body = pack(frames=frames, clear=clear, mean=mean, std=std, shifts=shifts, **wanted)
        return read_answer(self.ask(body, NPZ, NPZ), self.url)

    def predict_files(
        self,
        frames: Sequence[Path],
        output: Path,
        clear: Sequence[Path] = (),
        *,
        dates: Sequence[str] = (),
        uncertainty: bool = False,
        consistency: bool = False,
    ) -> Path:
        """Super-resolve GeoTIFFs into a cloud-optimised GeoTIFF, or the arrays of an `.npz`, by the suffix of `output`.

        frames are one file of 4 bands a date, latest first, on one grid; clear one file a date, 0 where unusable; dates
        in ISO 8601, for the attribution. Uncertainty and consistency need an `.npz`. Returns `output`. Raises
        `ServiceError` where a file is missing, the server refuses or cannot be reached.
        """
        if clear and len(clear) != len(frames):
            raise ServiceError(f"clear: found {len(clear)} files for {len(frames)} frames, expected one a frame")
        fields: dict[str, Any] = {
            f"{kind}_{number}": (path.name, content_of(path), TIFF)
            for kind, paths in (("frame", frames), ("clear", clear))
            for number, path in enumerate(paths)
        }
        options = {"dates": list(dates), "uncertainty": uncertainty, "consistency": consistency}
        if chosen := {name: value for name, value in options.items() if value}:
            fields["options"] = json.dumps(chosen)
        body, content_type = urllib3.encode_multipart_formdata(fields)
        write_whole(output, self.ask(body, content_type, NPZ if output.suffix == ".npz" else TIFF))
        return output

    def predict_stored(
        self,
        frames: Sequence[Mapping[str, str]],
        output: str,
        window: tuple[int, int, int, int] | None = None,
        *,
        uncertainty: bool = False,
        consistency: bool = False,
    ) -> dict[str, Any]:
        """Super-resolve objects in S3 that the server may read, into objects that it may write.

        frames, latest first, are `{"image": "s3://….tif"}` or `{"item": "s3://….json"}` (a STAC Item), each optionally
        with `clear` and `date`; `output` is the s3:// prefix of what is written; window is the first row and column,
        height and width in 10 m pixels (none: all). Returns the server's answer, which names the keys written. Raises
        `ServiceError`.
        """
        request: dict[str, Any] = {"frames": [dict(frame) for frame in frames], "output": output}
        if window is not None:
            request["window"] = list(window)
        if uncertainty:
            request["uncertainty"] = True
        if consistency:
            request["consistency"] = True
        content = self.ask(json.dumps(request).encode(), JSON, JSON)
        try:
            answer: dict[str, Any] = json.loads(content)
        except ValueError as error:
            raise ServiceError(f"{self.url}: the answer is not JSON ({error})") from None
        return answer

    def ask(self, body: bytes, content_type: str, accept: str) -> bytes:
        """Send one body as it is; returns the answer's. Raises `ServiceError` unless the answer is of type `accept`."""
        headers = {**self._pool.headers, "Content-Type": content_type, "Accept": accept}
        try:
            answer = self._pool.request("POST", self.url, body=body, headers=headers)
        except urllib3.exceptions.MaxRetryError as error:
            raise ServiceError(f"{self.url}: no answer: {error.reason}; does the server run?") from error
        except urllib3.exceptions.HTTPError as error:
            raise ServiceError(f"{self.url}: no answer: {error}") from error
        if answer.status != 200:
            request = answer.headers.get("x-request-id")
            named = f" (request {request})" if request else ""
            raise ServiceError(f"{self.url}: {answer.status}: {_sentence(answer.data, answer.status)}{named}")
        found = answer.headers.get("content-type", "no media type")
        if found.partition(";")[0] != accept:
            raise ServiceError(f"{self.url}: found an answer of {found}, expected {accept}; is it a model server?")
        return answer.data


def pack(**arrays: Any) -> bytes:
    """A request's body: an `.npz` of the arrays that are not None."""
    buffer = io.BytesIO()
    np.savez(buffer, **{name: array for name, array in arrays.items() if array is not None})
    return buffer.getvalue()


def read_answer(content: bytes, source: str) -> Answer:
    """An answer from the bytes of an `.npz`. Raises `ServiceError` naming `source` where it is not one."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return Answer(arrays["sr"], arrays.get("uncertainty"), arrays.get("consistency"))
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ServiceError(f"{source}: the answer is not an .npz with the array `sr` ({error})") from error


def write_whole(path: Path, content: bytes) -> None:
    """Write a file aside and rename it, so that nobody finds half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.part")
    aside.write_bytes(content)
    aside.replace(path)


def _sentence(content: bytes, status: int) -> str:
    """What an answer that is an error says."""
    try:
        return str(json.loads(content)["message"])
    except (ValueError, KeyError, TypeError):
        text = content[:SHOWN_CHARACTERS].decode(errors="replace").strip()
        return text or {401: "a token is asked for", 403: "not allowed"}.get(status, "no reason given")


def content_of(path: Path) -> bytes:
    """All bytes of a file. Raises `ServiceError` where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ServiceError(f"{path}: cannot be read: {error.strerror}") from error


def _on_this_machine(host: str) -> bool:
    return host == "localhost" or host.startswith("127.") or host == "::1"
