"""Requests that a service must refuse: what is sent, the status of the refusal, and what its sentence says."""

import io
import json
import struct
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.transform import Affine

from tests.served import stack

NPZ, FORM, JSON = "application/x-npz", "multipart/form-data", "application/json"
GRID = {"crs": "EPSG:32734", "transform": Affine(10, 0, 700_000, 0, -10, 7_850_000)}


@dataclass(frozen=True)
class Bad:
    body: bytes | dict[str, Any]
    """A body, or the parts of a form."""
    status: int
    sentence: str
    kind: str = NPZ
    accept: str = "*/*"


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def tiff(image: NDArray[Any], **profile: Any) -> bytes:
    """A GeoTIFF of (B,H,W)."""
    settings = {"driver": "GTiff", "count": len(image), "dtype": image.dtype, **GRID, **profile}
    with rasterio.MemoryFile() as memory:
        with memory.open(height=image.shape[1], width=image.shape[2], **settings) as raster:
            raster.write(image)
        return memory.read()


def bomb() -> bytes:
    """A megabyte that unpacks to ninety."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, frames=np.zeros((11, 4, 1024, 1024), np.uint16))
    return buffer.getvalue()


def liar() -> bytes:
    """An array whose header promises a terabyte."""
    header = b"{'descr': '<u2', 'fortran_order': False, 'shape': (16, 4, 100000, 100000), }".ljust(117) + b"\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("frames.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(100))
    return buffer.getvalue()


def vrt() -> bytes:
    """An image that only says where its pixels are: at an address of the sender's choice."""
    source = "<SourceFilename>/vsicurl/http://127.0.0.1:1/secret.tif</SourceFilename><SourceBand>1</SourceBand>"
    band = f'<VRTRasterBand dataType="UInt16" band="1"><SimpleSource>{source}</SimpleSource></VRTRasterBand>'
    return f'<VRTDataset rasterXSize="32" rasterYSize="32">{band}</VRTDataset>'.encode()


FRAMES, CLEAR = stack()
ONE = tiff(FRAMES[0])
NORTHWARD = {**GRID, "transform": GRID["transform"] * Affine.translation(0, 1)}

BAD = {
    "text": Bad(b"not an npz", 400, "is not an .npz file"),
    "empty": Bad(b"", 400, "no body|not an .npz"),
    "torn": Bad(npz(frames=FRAMES)[:-40], 400, "not an .npz file"),
    "spoiled": Bad(npz(frames=FRAMES).replace(b"descr", b"xescr"), 400, "cannot be read"),
    "pickle": Bad(npz(frames=np.array([{"a": 1}], dtype=object)), 400, "cannot be read"),
    "bomb": Bad(bomb(), 413, "unpacks to [0-9]+ bytes; at most"),
    "liar": Bad(liar(), 400, "cannot be read"),
    "no frames": Bad(npz(clear=CLEAR), 422, "no array `frames`; found clear"),
    "unknown": Bad(npz(frames=FRAMES, mask=CLEAR), 422, "unknown arrays mask"),
    "float": Bad(npz(frames=FRAMES.astype(np.float32)), 422, "`frames` is float32; expected uint16"),
    "bands": Bad(npz(frames=FRAMES[:, :3]), 422, r"shape \(4, 3, 30, 41\); expected \(T, 4, H, W\)"),
    "no T": Bad(npz(frames=FRAMES[0]), 422, r"expected \(T, 4, H, W\)"),
    "no frame": Bad(npz(frames=FRAMES[:0]), 422, "holds 0 frames; expected 1 to 16"),
    "17 frames": Bad(npz(frames=np.ones((17, 4, 8, 8), np.uint16)), 422, "holds 17 frames; expected 1 to 16"),
    "small": Bad(npz(frames=np.ones((1, 4, 7, 8), np.uint16)), 422, "each side must have at least 8"),
    "large": Bad(npz(frames=np.ones((1, 4, 513, 8), np.uint16)), 413, "each side may have at most 512"),
    "range": Bad(npz(frames=FRAMES + np.uint16(30_000)), 422, "Half of the clear pixels are above"),
    "mask": Bad(npz(frames=FRAMES, clear=CLEAR[:2]), 422, r"`clear` is bool of shape \(2, 30, 41\); expected"),
    "cloudy": Bad(npz(frames=FRAMES, clear=np.zeros_like(CLEAR)), 422, "No pixel is clear"),
    "half": Bad(npz(frames=FRAMES, mean=np.ones(4)), 422, "`mean` and `std` belong together"),
    "flat": Bad(npz(frames=FRAMES, mean=np.ones(4), std=np.zeros(4)), 422, "`std` must be above 0"),
    "nan": Bad(npz(frames=FRAMES, mean=np.full(4, np.nan), std=np.ones(4)), 422, "`mean` must be 4 finite numbers"),
    "counts": Bad(npz(frames=FRAMES, mean=np.full(4, 900.0), std=np.ones(4)), 422, "`mean` must be in reflectance"),
    "shifts": Bad(npz(frames=FRAMES, shifts=np.zeros((1, 2))), 422, r"`shifts` is float64 of shape \(1, 2\)"),
    "far": Bad(npz(frames=FRAMES, shifts=np.full((4, 2), 9.0)), 422, "`shifts` must be finite and at most 2"),
    "no grid": Bad(npz(frames=FRAMES), 422, "needs a georeference", accept="image/tiff"),
    "half a grid": Bad(npz(frames=FRAMES, epsg=32734), 422, "`transform` and `epsg` belong together"),
    "no such grid": Bad(npz(frames=FRAMES, epsg=1, transform=np.eye(3).ravel()[:6]), 422, "`epsg` 1 is not"),
    "dates": Bad(npz(frames=FRAMES, dates=["2024-05-01"] * 3), 422, "`dates` must be 4 ISO"),
    "yesterday": Bad(npz(frames=FRAMES, dates=["yesterday"] * 4), 422, "'yesterday' is not an ISO 8601 date"),
    "rising": Bad(npz(frames=FRAMES, dates=[f"2024-05-0{n}" for n in range(1, 5)]), 422, "must descend"),
    "flag": Bad(npz(frames=FRAMES, uncertainty=7), 422, "`uncertainty` must be true or false"),
    "media type": Bad(b"a,b", 415, "Content-Type 'text/csv' is not known", kind="text/csv"),
    "text of bytes": Bad(b"\xff\xfe", 415, "Content-Type 'text/plain' is not known", kind="text/plain"),
    "accept": Bad(npz(frames=FRAMES), 406, "Accept 'text/html': answers are", accept="text/html"),
    "no output": Bad(npz(frames=FRAMES), 406, "needs `output`", accept=JSON),
    "no part": Bad({"options": b"{}"}, 422, "no part `frames` or `frame_0`", FORM),
    "part": Bad({"frame_0": ONE, "frame_99": ONE}, 422, "unknown parts frame_99", FORM),
    "gap": Bad({"frame_0": ONE, "frame_2": ONE}, 422, "without a gap", FORM),
    "both": Bad({"frame_0": ONE, "frames": ONE}, 422, "has both `frames` and `frame_0`", FORM),
    "no image": Bad({"frame_0": b"\x89PNG not"}, 400, "`frame_0` cannot be read as a GeoTIFF", FORM),
    "torn image": Bad({"frame_0": ONE[:600]}, 400, "`frame_0` cannot be read as a GeoTIFF", FORM),
    "vrt": Bad({"frame_0": vrt()}, 400, "`frame_0` cannot be read as a GeoTIFF", FORM),
    "three bands": Bad({"frame_0": tiff(FRAMES[0, :3])}, 422, "`frame_0` has 3 bands; expected 4", FORM),
    "six bands": Bad({"frames": tiff(FRAMES[:2].reshape(8, 30, 41)[:6])}, 422, "has 6 bands; expected 4 a date", FORM),
    "bytes": Bad({"frame_0": tiff((FRAMES[0] // 256).astype(np.uint8))}, 422, "is uint8; expected uint16", FORM),
    "sizes": Bad({"frame_0": ONE, "frame_1": tiff(FRAMES[1, :, :20])}, 422, "`frame_1` has", FORM),
    "grids": Bad(
        {"frame_0": ONE, "frame_1": tiff(FRAMES[1], **NORTHWARD)}, 422, "`frame_1` lies on another grid", FORM
    ),
    "wide": Bad({"frame_0": tiff(np.ones((4, 8, 9000), np.uint16), compress="deflate")}, 413, "at most 512", FORM),
    "options": Bad({"frame_0": ONE, "options": b"{]"}, 400, "`options` is not JSON", FORM),
    "option": Bad({"frame_0": ONE, "options": b'{"gain": 2}'}, 422, "unknown options gain", FORM),
    "numbers": Bad({"frame_0": ONE, "options": b'{"mean": ["a"]}'}, 422, "`mean` must be a list of numbers", FORM),
    "braces": Bad(b"{]", 400, "is not JSON", JSON),
    "list": Bad(b"[1]", 400, "is not a JSON object", JSON),
    "deep": Bad(b"[" * 100_000, 400, "is not JSON", JSON),
    "nothing": Bad(b"{}", 422, "`frames` must be a list of 1 to 16", JSON),
    "field": Bad(b'{"frames": [{}], "model": 1}', 422, "unknown fields model", JSON),
    "no place": Bad(b'{"frames": [{"clear": "s3://a/b"}]}', 422, "either `image` or `item`", JSON),
}

OUTSIDE = [
    "s3://other/allowed/a.tif",
    "s3://bucket/allowed-not/a.tif",
    "s3://bucket/allowed/../secret.tif",
    "s3://bucket/allowed/./a.tif",
    "s3://bucket/allowed//a.tif",
    "s3://bucket/allowed/%2e%2e/secret.tif",
    "s3://bucket/allowed/a.tif?versionId=1",
    "s3://bucket/allowed/a\n.tif",
    "s3://bucket@127.0.0.1/allowed/a.tif",
    "http://169.254.169.254/latest/meta-data",
    "https://bucket.s3.amazonaws.com/allowed/a.tif",
    "file:///etc/passwd",
    "/etc/passwd",
    "/vsicurl/http://127.0.0.1/a.tif",
]
"""Places that a service which may reach s3://bucket/allowed must not go to."""


def stored(image: Any, **fields: Any) -> bytes:
    return json.dumps({"frames": [{"image": image}], **fields}).encode()
