"""Super-resolution of one request, on plain arrays: no TorchServe, no training code.

This file travels inside the model archive beside `program.pt2`, and needs only torch and numpy there. Moving to
another model server means calling `read_request`, `super_resolve` and `write_answer` from that server's handler.
"""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

REFLECTANCE_SCALE = 10_000
MAX_FRAMES = 16
MIN_SIDE, MAX_SIDE = 8, 256
"""Low-resolution pixels: config.properties sizes requests and answers for the largest."""
MIN_STD = 1e-3
"""Reflectance; flatter ground would be stretched into noise (as in training)."""
MAX_SHIFT = 2.0
"""Low-resolution pixels: no pass is displaced by more."""
ARRAYS = ("frames", "clear", "mean", "std", "shifts")


@dataclass(frozen=True)
class Program:
    """An exported network: normalised frames (1,T,4,H,W), mask (1,T,H,W), displacements (1,T,2) to a tuple, first
    of which is the image (1,4,4H,4W)."""

    module: Any
    frames: int
    bands: tuple[str, ...]
    device: torch.device


@dataclass(frozen=True)
class Request:
    """What to super-resolve."""

    frames: NDArray[np.uint16]
    """(T,4,H,W) reflectance x 10000, latest first; 0 is nodata."""
    clear: NDArray[np.bool_] | None = None
    """(T,H,W), True where usable; none: wherever there is data."""
    mean: NDArray[np.float64] | None = None
    """(4,) reflectance, of the place over time; none: of the request's clear pixels."""
    std: NDArray[np.float64] | None = None
    shifts: NDArray[np.float64] | None = None
    """(T,2) rows and columns by which each frame is displaced, in its pixels: a pixel at p shows the ground at
    p + shift; none: the frames lie on one grid."""


def load_program(folder: Path, device: str = "cpu") -> Program:
    """Read `program.pt2` and `model.json` of an unpacked archive."""
    description = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    program = torch.export.load(folder / "program.pt2")
    if device != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
        torch.backends.cudnn.allow_tf32 = False  # ten bits of mantissa would show in the product's last digits
    return Program(program.module(), int(description["frames"]), tuple(description["bands"]), torch.device(device))


def read_request(body: bytes) -> Request:
    """A request from the bytes of an `.npz`. Raises `ValueError` with a sentence for the sender."""
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except zipfile.BadZipFile:
        raise ValueError("The request is not an .npz file: send the bytes that numpy.savez writes.") from None
    # a small file can unpack into a large one: refuse it before reading it
    limit = 2 * MAX_FRAMES * MAX_SIDE * MAX_SIDE * (2 * 4 + 1)
    if unpacked > limit:
        raise ValueError(f"The request unpacks to {unpacked} bytes; at most {limit} are accepted.")
    try:
        with np.load(io.BytesIO(body), allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except Exception as error:  # whatever a hostile file does to its readers, it is the sender's mistake
        raise ValueError(f"The request's arrays cannot be read: {error}.") from None
    if "frames" not in found:
        raise ValueError(f"The request has no array `frames`; found {', '.join(sorted(found)) or 'nothing'}.")
    unknown = sorted(set(found) - set(ARRAYS))
    if unknown:
        raise ValueError(f"The request has unknown arrays {', '.join(unknown)}; known are {', '.join(ARRAYS)}.")
    return Request(**found)


def super_resolve(program: Program, request: Request) -> NDArray[np.uint16]:
    """Reflectance x 10000 (4,4H,4W) of the latest frame.

    0 where no frame is clear or the latest has no data. Fewer frames than the network's are padded, of more the
    latest are used. Raises `ValueError` with a sentence where the request is not as `Request` says.
    """
    frames, clear = check(request, len(program.bands))
    mean, std = statistics(request, frames, clear)
    frames, clear = frames[: program.frames], clear[: program.frames]
    normalized = (frames.astype(np.float32) / REFLECTANCE_SCALE - mean[:, None, None]) / std[:, None, None]
    padding = ((0, program.frames - len(frames)), (0, 0), (0, 0))
    inputs = torch.from_numpy(np.pad(normalized, (*padding, (0, 0))))[None].to(program.device)
    mask = torch.from_numpy(np.pad(clear, padding).astype(np.float32))[None].to(program.device)
    moved = np.zeros((1, program.frames, 2), np.float32)
    moved[0, : len(frames)] = displacements(request)[: program.frames]
    shifts = torch.from_numpy(moved).to(program.device)
    with torch.inference_mode():
        output = program.module(inputs, mask, shifts)[0][0].cpu().numpy()
    reflectance = output * std[:, None, None] + mean[:, None, None]
    counts = np.clip(np.rint(reflectance * REFLECTANCE_SCALE), 1, 65535).astype(np.uint16)
    known = clear.any(axis=0) & frames[0].any(axis=0)
    scale = counts.shape[-1] // known.shape[-1]
    return np.where(known.repeat(scale, axis=0).repeat(scale, axis=1), counts, np.uint16(0))


def check(request: Request, bands: int) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
    """Frames and their mask, nodata excluded. Raises `ValueError`."""
    frames, clear = request.frames, request.clear
    if frames.dtype != np.uint16:
        raise ValueError(f"`frames` is {frames.dtype}; expected uint16, reflectance x 10000.")
    if frames.ndim != 4 or frames.shape[1] != bands:
        raise ValueError(f"`frames` has shape {frames.shape}; expected (T, {bands}, H, W), latest first.")
    if not 1 <= len(frames) <= MAX_FRAMES:
        raise ValueError(f"`frames` holds {len(frames)} frames; expected 1 to {MAX_FRAMES}.")
    if not all(MIN_SIDE <= side <= MAX_SIDE for side in frames.shape[2:]):
        rows, columns = frames.shape[2:]
        raise ValueError(f"`frames` is {rows} x {columns} pixels; each side must be {MIN_SIDE} to {MAX_SIDE}.")
    known: NDArray[np.bool_] = np.asarray(frames.any(axis=1))
    if clear is None:
        return frames, known
    if clear.dtype != np.bool_ or clear.shape != known.shape:
        raise ValueError(f"`clear` is {clear.dtype} of shape {clear.shape}; expected bool of shape {known.shape}.")
    return frames, clear & known


def displacements(request: Request) -> NDArray[np.float32]:
    """(T,2) of the request's frames, zero where none are given. Raises `ValueError`."""
    shifts, expected = request.shifts, (len(request.frames), 2)
    if shifts is None:
        return np.zeros(expected, np.float32)
    if shifts.shape != expected or shifts.dtype.kind != "f":
        raise ValueError(f"`shifts` is {shifts.dtype} of shape {shifts.shape}; expected floats of shape {expected}.")
    if not (np.abs(shifts) <= MAX_SHIFT).all():
        raise ValueError(f"`shifts` must be finite and at most {MAX_SHIFT:g} pixels; found others.")
    return shifts.astype(np.float32)


def statistics(
    request: Request, frames: NDArray[np.uint16], clear: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and standard deviation per band, in reflectance: those given, or those of the clear pixels."""
    mean, std = request.mean, request.std
    if (mean is None) != (std is None):
        raise ValueError("`mean` and `std` belong together: give both, or neither.")
    if mean is None or std is None:
        if not clear.any():
            raise ValueError("No pixel is clear: there is nothing to super-resolve.")
        values = np.moveaxis(frames, 1, -1)[clear].astype(np.float64) / REFLECTANCE_SCALE
        mean, std = values.mean(axis=0), np.maximum(values.std(axis=0), MIN_STD)
    bands = frames.shape[1]
    for name, given in (("mean", mean), ("std", std)):
        if given.shape != (bands,) or given.dtype.kind != "f" or not np.isfinite(given).all():
            raise ValueError(f"`{name}` must be {bands} finite numbers in reflectance, one a band.")
    if not (std > 0).all():
        raise ValueError("`std` must be above 0 in each band.")
    return mean.astype(np.float32), std.astype(np.float32)


def write_answer(sr: NDArray[np.uint16]) -> bytes:
    """The bytes of an `.npz` with the array `sr`."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, sr=sr)
    return buffer.getvalue()
