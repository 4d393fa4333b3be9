"""Super-resolution of requests, on plain arrays: no model server, no training code.

This package travels inside the model archive beside `program.pt2`; what it needs there is torch and numpy, and
rasterio and boto3 for GeoTIFFs and S3. Moving to another model server means calling `formats.read_order`,
`super_resolve` and `formats.write_answer` from that server's handler.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from sr_core.radiometry.resample import degrade

REFLECTANCE_SCALE = 10_000
BANDS, SCALE = 4, 4
MAX_FRAMES = 16
MIN_SIDE, MAX_SIDE = 8, 512
"""Low-resolution pixels of a request whose frames come with it, and of an answer that goes back with it."""
MAX_STORED_SIDE = 1024
"""Low-resolution pixels of a request whose frames and answers lie in S3."""
NETWORK_SIDE = 320
"""Low-resolution pixels that the network sees at once, halo included: what a request costs in memory."""
MIN_STD = 1e-3
"""Reflectance; flatter ground would be stretched into noise (as in training)."""
MAX_SHIFT = 2.0
"""Low-resolution pixels: no pass is displaced by more."""
MAX_MEDIAN = 20_000
"""Counts; half of a scene above reflectance 2 is not reflectance x 10000."""
MOST_BESIDE = 4
"""Windows in work at the same time on a CPU: each takes memory of its own, and a pod's limit knows nothing of cores."""
MEDIAN_OF = 40_000
"""Values are enough to tell that."""

SR_NODATA, COMPANION_NODATA = 0, 65535
CONSISTENCY_MTF, BLUR_PX = 0.3, 5
"""Through which the answer is compared with the latest frame, and its reach in low-resolution pixels: as in the
products (`sr_core.inference.products`)."""

# From these the sizes in config.properties are derived; tests/unit/test_serving_core.py holds them together.
ENVELOPE_BYTES = 1 << 16
"""For the headers of arrays, parts and files."""
MAX_FRAMES_BYTES = MAX_FRAMES * MAX_SIDE**2 * (2 * BANDS + 1)
"""Unpacked frames and masks."""
MAX_REQUEST_BYTES = MAX_FRAMES_BYTES + ENVELOPE_BYTES
MAX_ANSWER_BYTES = 2 * BANDS * MAX_SIDE**2 * (2 * SCALE**2 + 1) + ENVELOPE_BYTES
"""Image and uncertainty, and the consistency."""

Precision = Literal["float32", "bfloat16"]


class RequestError(ValueError):
    """A request that cannot be served: a sentence for its sender, and the HTTP status that says whose fault it is."""

    def __init__(self, message: str, status: int = 422) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Program:
    """An exported network: normalised frames (B,T,4,H,W), mask (B,T,H,W), displacements (B,T,2) to a tuple of the
    image (B,4,4H,4W) and, where `uncertain`, the logarithm of its Laplace scale."""

    module: Any
    frames: int
    bands: tuple[str, ...]
    halo: int
    """Low-resolution pixels around a window that its output depends on."""
    uncertain: bool
    device: torch.device
    precision: Precision = "float32"

    @property
    def together(self) -> int:
        """Windows of one shape that are computed at once: a CPU is busy with one."""
        return 1 if self.device.type == "cpu" else 8


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
    window: tuple[int, int, int, int] | None = None
    """Row, column, height and width of what is asked for; around it the frames are its surroundings. None: all."""
    uncertainty: bool = False
    """Whether the answer holds its uncertainty."""


@dataclass(frozen=True)
class Result:
    """What was asked for, h x w low-resolution pixels of it."""

    sr: NDArray[np.uint16]
    """(4,4h,4w) reflectance x 10000 of the latest frame; 0 where no frame is clear or the latest has no data."""
    uncertainty: NDArray[np.uint16] | None
    """(4,4h,4w) Laplace scale x 10000: half of all errors are below 0.69 of it; 65535 where `sr` is 0."""
    consistency: NDArray[np.uint16]
    """(4,h,w) |degrade(sr) - latest frame| x 10000; 65535 where the latest frame is not clear."""
    windows: int

    @property
    def valid_share(self) -> float:
        return float((self.sr[0] != SR_NODATA).mean())

    @property
    def consistency_mae(self) -> float | None:
        """Mean difference from the latest frame, in reflectance; None where no pixel can be compared."""
        compared = self.consistency[self.consistency != COMPANION_NODATA]
        return float(compared.mean()) / REFLECTANCE_SCALE if compared.size else None


@dataclass(frozen=True)
class Window:
    """A rectangle of low-resolution pixels: first row and column, and one past the last."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.bottom - self.top, self.right - self.left

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def grow(self, pixels: int, shape: tuple[int, int]) -> Window:
        """With a border of `pixels`, cut where an image of `shape` ends."""
        return Window(
            max(0, self.top - pixels),
            max(0, self.left - pixels),
            min(shape[0], self.bottom + pixels),
            min(shape[1], self.right + pixels),
        )

    def within(self, outer: Window, scale: int = 1) -> tuple[slice, slice]:
        """Where it lies in an array that covers `outer` with `scale` pixels a low-resolution pixel."""
        top, left = (self.top - outer.top) * scale, (self.left - outer.left) * scale
        rows, columns = self.shape
        return slice(top, top + rows * scale), slice(left, left + columns * scale)


def load_program(folder: Path, device: str = "cpu") -> Program:
    """Read `program.pt2` and `program.json` of an unpacked archive. bfloat16 on GPUs, float32 on CPUs."""
    description = json.loads((folder / "program.json").read_text(encoding="utf-8"))
    program = torch.export.load(folder / "program.pt2")
    if device != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    return Program(
        _any_precision(program.module()),
        int(description["frames"]),
        tuple(description["bands"]),
        int(description["halo"]),
        bool(description["uncertainty"]),
        torch.device(device),
        "bfloat16" if device.startswith("cuda") else "float32",
    )


def super_resolve(program: Program, request: Request) -> Result:
    """Super-resolve one request. Raises `RequestError` where it is not as `Request` says."""
    (result,) = super_resolve_all(program, [request])
    if isinstance(result, RequestError):
        raise result
    return result


def super_resolve_all(program: Program, requests: Sequence[Request]) -> list[Result | RequestError]:
    """A result or an error for each request, whatever the numbers of frames and sizes.

    Fewer frames than the network's are padded, of more the latest are used. A request that the network cannot see at
    once is cut into windows that are read with their surroundings, so that the result is the same to rounding. Windows
    of one shape are computed together, of whichever requests they are.
    """
    answers: list[Result | RequestError | _Work] = []
    for request in requests:
        try:
            answers.append(_Work(program, request))
        except RequestError as error:
            answers.append(error)
    alike: dict[tuple[int, int], list[tuple[_Work, Window, Window]]] = {}
    for work in answers:
        if isinstance(work, _Work):
            for window, outer in work.windows:
                alike.setdefault(outer.shape, []).append((work, window, outer))
    _compute_side_by_side(
        program,
        [
            parts[first : first + program.together]
            for parts in alike.values()
            for first in range(0, len(parts), program.together)
        ],
    )
    return [answer.result() if isinstance(answer, _Work) else answer for answer in answers]


class _Work:
    """A checked request with its answer as far as it is computed."""

    def __init__(self, program: Program, request: Request) -> None:
        frames, self.clear = check(request, len(program.bands))
        if request.uncertainty and not program.uncertain:
            raise RequestError("This model does not say how certain it is: ask without `uncertainty`.")
        self.shifts = displacements(request)
        self.mean, self.std = statistics(request, frames, self.clear)
        self.frames, self.clear = frames[: program.frames], self.clear[: program.frames]
        self.known = self.clear.any(axis=0) & frames[0].any(axis=0)
        self.area = area_of(request)
        check_size(self.area.shape, MAX_STORED_SIDE)
        self.windows = list(windows(self.area, self.known.shape, program.halo + BLUR_PX))
        rows, columns = self.area.shape
        fine = (len(program.bands), rows * SCALE, columns * SCALE)
        self.sr = np.full(fine, SR_NODATA, np.uint16)
        self.uncertainty = np.full(fine, COMPANION_NODATA, np.uint16) if request.uncertainty else None
        self.consistency = np.full((len(program.bands), rows, columns), COMPANION_NODATA, np.uint16)

    def inputs(self, program: Program, outer: Window) -> tuple[NDArray[np.float32], ...]:
        """Normalised frames, mask and displacements of a window, padded to the network's number of frames."""
        rows, columns = outer.slices
        padding = ((0, program.frames - len(self.frames)), (0, 0), (0, 0))
        reflectance = self.frames[..., rows, columns].astype(np.float32) / REFLECTANCE_SCALE
        normalized = (reflectance - self.mean[:, None, None]) / self.std[:, None, None]
        moved = np.zeros((program.frames, 2), np.float32)
        moved[: len(self.frames)] = self.shifts[: program.frames]
        mask = np.pad(self.clear[..., rows, columns], padding).astype(np.float32)
        return np.pad(normalized, (*padding, (0, 0))), mask, moved

    def accept(self, window: Window, outer: Window, image: NDArray[np.float32], log_scale: Any) -> None:
        """Lay what the network made of `outer` into the answer, as far as it belongs to `window`."""
        image = image * self.std[:, None, None] + self.mean[:, None, None]
        coarse, fine = window.within(self.area), window.within(self.area, SCALE)
        cut = (slice(None), *window.within(outer, SCALE))
        rows, columns = window.slices
        valid = self.known[rows, columns]
        large = valid.repeat(SCALE, axis=0).repeat(SCALE, axis=1)
        self.sr[(slice(None), *fine)] = np.where(large, _counts(image[cut], 1, 65535), np.uint16(SR_NODATA))
        if self.uncertainty is not None:
            scale = _counts(np.exp(log_scale[cut]) * self.std[:, None, None], 0, COMPANION_NODATA - 1)
            self.uncertainty[(slice(None), *fine)] = np.where(large, scale, np.uint16(COMPANION_NODATA))
        # the answer lies on the frames' common grid, the latest of them a little beside it
        shift = (float(self.shifts[0, 0]), float(self.shifts[0, 1]))
        seen = degrade(image, mtf=CONSISTENCY_MTF, shift=shift)[(slice(None), *window.within(outer))]
        latest = self.frames[0][:, rows, columns].astype(np.float32) / REFLECTANCE_SCALE
        difference = _counts(np.abs(seen - latest), 0, COMPANION_NODATA - 1)
        comparable = self.clear[0, rows, columns]
        self.consistency[(slice(None), *coarse)] = np.where(comparable, difference, np.uint16(COMPANION_NODATA))

    def result(self) -> Result:
        return Result(self.sr, self.uncertainty, self.consistency, len(self.windows))


def _compute_side_by_side(program: Program, groups: Sequence[Sequence[tuple[_Work, Window, Window]]]) -> None:
    """Run the network on groups of windows: one after the other on a GPU; on a CPU several, with a share of its threads
    each, so that what comes before and after the network occupies all of them as well."""
    threads = torch.get_num_threads()
    beside = min(len(groups), threads, MOST_BESIDE) if program.device.type == "cpu" else 1
    if beside < 2:
        for parts in groups:
            _compute(program, parts)
        return
    try:
        with ThreadPoolExecutor(beside, initializer=torch.set_num_threads, initargs=(threads // beside,)) as pool:
            list(pool.map(partial(_compute, program), groups))
    finally:
        torch.set_num_threads(threads)  # it holds for a thread, and for those that begin later


def _compute(program: Program, parts: Sequence[tuple[_Work, Window, Window]]) -> None:
    """Run the network on windows of one shape."""
    stacked = zip(*(work.inputs(program, outer) for work, _, outer in parts), strict=True)
    tensors = [torch.from_numpy(np.stack(arrays)).to(program.device) for arrays in stacked]
    low = program.precision == "bfloat16"
    with torch.inference_mode(), torch.autocast(program.device.type, torch.bfloat16, enabled=low):
        outputs = [output.float().cpu().numpy() for output in program.module(*tensors)]
    for index, (work, window, outer) in enumerate(parts):
        work.accept(window, outer, outputs[0][index], outputs[1][index] if program.uncertain else None)


def windows(area: Window, shape: tuple[int, int], margin: int) -> Iterator[tuple[Window, Window]]:
    """Windows that cover `area` once, each with its surroundings of `margin` pixels in an image of `shape`.

    As few as the network can see at once, of about equal size.
    """
    cuts = []
    for first, last, side in ((area.top, area.bottom, shape[0]), (area.left, area.right, shape[1])):
        whole = min(side, last + margin) - max(0, first - margin) <= NETWORK_SIDE
        parts = 1 if whole else math.ceil((last - first) / (NETWORK_SIDE - 2 * margin))
        cuts.append(np.linspace(first, last, parts + 1).round().astype(int).tolist())
    for top, bottom in itertools.pairwise(cuts[0]):
        for left, right in itertools.pairwise(cuts[1]):
            window = Window(top, left, bottom, right)
            yield window, window.grow(margin, shape)


def check(request: Request, bands: int) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
    """Frames and their mask, nodata excluded. Raises `RequestError`."""
    frames, clear = request.frames, request.clear
    if frames.dtype != np.uint16:
        raise RequestError(f"`frames` is {frames.dtype}; expected uint16, reflectance x {REFLECTANCE_SCALE}.")
    if frames.ndim != 4 or frames.shape[1] != bands:
        raise RequestError(f"`frames` has shape {frames.shape}; expected (T, {bands}, H, W), latest first.")
    if not 1 <= len(frames) <= MAX_FRAMES:
        raise RequestError(f"`frames` holds {len(frames)} frames; expected 1 to {MAX_FRAMES}.")
    if min(frames.shape[2:]) < MIN_SIDE:
        rows, columns = frames.shape[2:]
        raise RequestError(f"`frames` is {rows} x {columns} pixels; each side must have at least {MIN_SIDE}.")
    known: NDArray[np.bool_] = np.asarray(frames.any(axis=1))
    if clear is not None:
        if clear.dtype != np.bool_ or clear.shape != known.shape:
            raise RequestError(
                f"`clear` is {clear.dtype} of shape {clear.shape}; expected bool of shape {known.shape}."
            )
        known = clear & known
    return frames, known


def check_size(shape: tuple[int, int], most: int = MAX_SIDE) -> None:
    """Raises `RequestError` where (rows, columns) are more than one request may ask for."""
    rows, columns = shape
    if max(shape) > most:
        raise RequestError(f"The request is for {rows} x {columns} pixels; each side may have at most {most}.", 413)


def area_of(request: Request) -> Window:
    """What the request asks for. Raises `RequestError` where that is not in its frames."""
    rows, columns = request.frames.shape[2:]
    if request.window is None:
        return Window(0, 0, rows, columns)
    top, left, height, width = request.window
    if min(top, left) < 0 or min(height, width) < 1 or top + height > rows or left + width > columns:
        raise RequestError(f"`window` {list(request.window)} does not lie in an image of {rows} x {columns} pixels.")
    return Window(top, left, top + height, left + width)


def displacements(request: Request) -> NDArray[np.float32]:
    """(T,2) of the request's frames, zero where none are given. Raises `RequestError`."""
    shifts, expected = request.shifts, (len(request.frames), 2)
    if shifts is None:
        return np.zeros(expected, np.float32)
    if shifts.shape != expected or shifts.dtype.kind != "f":
        raise RequestError(f"`shifts` is {shifts.dtype} of shape {shifts.shape}; expected floats of shape {expected}.")
    if not (np.abs(shifts) <= MAX_SHIFT).all():
        raise RequestError(f"`shifts` must be finite and at most {MAX_SHIFT:g} pixels; found others.")
    return shifts.astype(np.float32)


def statistics(
    request: Request, frames: NDArray[np.uint16], clear: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and standard deviation per band, in reflectance: those given, or those of the clear pixels."""
    mean, std = request.mean, request.std
    if (mean is None) != (std is None):
        raise RequestError("`mean` and `std` belong together: give both, or neither.")
    if not clear.any():
        raise RequestError("No pixel is clear: there is nothing to super-resolve.")
    values = [band[clear] for band in np.moveaxis(frames, 1, 0)]
    step = 1 + clear.sum() * len(values) // MEDIAN_OF
    if (middle := float(np.median(np.concatenate([band[::step] for band in values])))) > MAX_MEDIAN:
        raise RequestError(
            f"Half of the clear pixels are above {middle:g}; expected reflectance x {REFLECTANCE_SCALE},"
            f" of which {MAX_MEDIAN} is more than any ground reflects."
        )
    if mean is None or std is None:
        # whole numbers, whose sums are exact: one pass, and no difference to that of two
        exact = [band.astype(np.float64) for band in values]
        mean = np.array([band.mean() for band in exact]) / REFLECTANCE_SCALE
        square = np.array([np.dot(band, band) for band in exact]) / len(exact[0]) / REFLECTANCE_SCALE**2
        std = np.maximum(np.sqrt(np.maximum(square - mean**2, 0)), MIN_STD)
    bands = frames.shape[1]
    for name, given in (("mean", mean), ("std", std)):
        if given.shape != (bands,) or given.dtype.kind != "f" or not np.isfinite(given).all():
            raise RequestError(f"`{name}` must be {bands} finite numbers in reflectance, one a band.")
        if np.abs(given).max() > MAX_MEDIAN / REFLECTANCE_SCALE:
            raise RequestError(f"`{name}` must be in reflectance, at most 2; found {np.abs(given).max():g}.")
    if not (std > 0).all():
        raise RequestError("`std` must be above 0 in each band.")
    return mean.astype(np.float32), std.astype(np.float32)


def _counts(reflectance: NDArray[np.float32], low: int, high: int) -> NDArray[np.uint16]:
    return np.rint(reflectance * REFLECTANCE_SCALE).clip(low, high).astype(np.uint16)


def _any_precision(module: Any) -> Any:
    """The module without its assertions of data types, which hold it to the precision that it was exported in."""
    for part in module.modules():
        if isinstance(part, torch.fx.GraphModule):
            for node in list(part.graph.nodes):
                if node.target is torch.ops.aten._assert_tensor_metadata.default:
                    part.graph.erase_node(node)
            part.recompile()
    return module
