"""Samples in memory, and the batches that training draws from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sr_core import BANDS, REFLECTANCE_SCALE, SCALE
from sr_core.config import TrainHRN
from sr_core.errors import ArtifactError, DataError
from sr_core.models.normalization import Normalization, region_statistics
from sr_core.samples.store import SampleStore

CLEARANCE_PREFERENCE = 50.0
"""Of the random choice of frames: a frame is e times as likely as one that is a 50th less clear (Deudon et al. 2020,
HighRes-net, where it did better than taking always the clearest, and than not looking)."""
SHARE_OF_DEVICE = 0.6
"""Of an accelerator's free memory that samples may take; the rest is for the network."""
CPU = torch.device("cpu")
ORIENTATIONS = tuple((turns, flip) for flip in (False, True) for turns in range(4))
"""Quarter turns, then a flip: the eight orientations of a square."""


@dataclass(frozen=True)
class SampleSet:
    """The kept samples of one split, as integer tensors: a quarter of the memory of floats."""

    lr: Tensor
    """(N,T,4,h,w) uint16 reflectance × 10000, latest first."""
    clear: Tensor
    """(N,T,h,w) bool; padded frames are nowhere clear."""
    valid: Tensor
    """(N,T) bool, False for a padded frame."""
    age: Tensor
    """(N,T) int16, days before the target; -1 for a padded frame."""
    shift: Tensor
    """(N,T,2) displacement of each frame on the truth's grid, low-resolution pixels."""
    hr: Tensor
    """(N,4,4h,4w) uint16 reflectance × 10000."""
    hr_clear: Tensor
    """(N,4h,4w) bool."""
    region: Sequence[str]
    ids: Sequence[str]
    target_date: Sequence[str]
    """ISO dates."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def frames(self) -> int:
        """Frames of a sample, padded ones included."""
        return self.lr.shape[1]

    def subset(self, rows: Sequence[int]) -> SampleSet:
        """The samples at `rows`, in that order."""
        index = torch.as_tensor(rows, dtype=torch.long)
        changes: dict[str, Any] = {name: values[index] for name, values in self._tensors().items()}
        for name in ("region", "ids", "target_date"):
            changes[name] = [getattr(self, name)[row] for row in rows]
        return replace(self, **changes)

    def to(self, device: torch.device) -> SampleSet:
        """The same samples with their tensors on `device`."""
        moved: dict[str, Any] = {name: _move(values, device) for name, values in self._tensors().items()}
        return replace(self, **moved)

    def near(self, device: torch.device) -> SampleSet:
        """On `device`, unless they would take more than 60 % of an accelerator's free memory: then as they are."""
        if device.type == "cuda":
            size = sum(values.nbytes for values in self._tensors().values())
            free, _ = torch.cuda.mem_get_info(device)
            if size > SHARE_OF_DEVICE * free:
                return self
        return self.to(device)

    def _tensors(self) -> dict[str, Tensor]:
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: values for name, values in found.items() if isinstance(values, Tensor)}

    @classmethod
    def load(cls, folder: Path, split: str) -> SampleSet:
        """Read a split (`train`, `val`, `test`) of the sample store in `folder`; it may be empty.

        Raises `ArtifactError` when the store is missing, damaged, or at odds with its table.
        """
        store = SampleStore(folder)
        if store.scale != SCALE or store.bands != BANDS:
            raise ArtifactError(
                f"{folder}: found scale {store.scale} and bands {list(store.bands)}, expected {SCALE} and {list(BANDS)}"
            )
        rows = store.rows(split)
        table = store.table.set_index("row").loc[rows]
        arrays = store.read(rows)
        valid = torch.from_numpy(arrays.lr_valid)
        return cls(
            lr=torch.from_numpy(arrays.lr),
            clear=torch.from_numpy(arrays.lr_clear) & valid[:, :, None, None],
            valid=valid,
            age=torch.from_numpy(arrays.lr_age),
            shift=torch.from_numpy(arrays.lr_shift),
            hr=torch.from_numpy(arrays.hr),
            hr_clear=torch.from_numpy(arrays.hr_clear),
            region=table["region"].astype(str).tolist(),
            ids=table["sample_id"].astype(str).tolist(),
            target_date=table["target_date"].dt.strftime("%Y-%m-%d").tolist(),
        )


@dataclass(frozen=True)
class Batch:
    """Samples ready for the network, but for normalisation: float32 reflectance and float32 masks (0 or 1)."""

    lr: Tensor
    """(B,T,4,h,w)"""
    clear: Tensor
    """(B,T,h,w)"""
    shift: Tensor
    """(B,T,2) rows and columns, low-resolution pixels."""
    hr: Tensor
    """(B,4,4h,4w)"""
    hr_clear: Tensor
    """(B,4h,4w)"""
    rows: Tensor
    """(B) positions in what the batch was drawn from, always on the CPU."""
    mean: Tensor
    """(B,4,1,1) of each sample's place, reflectance."""
    std: Tensor
    """(B,4,1,1) of each sample's place, reflectance."""

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device) -> Batch:
        """On `device`; copies from pinned memory go on while the program does."""
        moved = {name: values.to(device, non_blocking=True) for name, values in vars(self).items() if name != "rows"}
        return replace(self, **moved)

    def part(self, index: int, parts: int) -> Batch:
        """The part `index` of `parts` equal ones."""
        size = len(self) // parts
        return Batch(*(values[index * size : (index + 1) * size] for values in vars(self).values()))


class Batches(Protocol):
    """Where training gets its batches from. That of a step is the same whenever and wherever it is asked for."""

    def batch(self, step: int) -> Batch:
        """The batch of step `step` (0, 1, ...); its tensors may lie on the accelerator already."""

    def names(self, batch: Batch) -> list[str]:
        """What a person finds the batch's samples by."""


def whole_batch(
    samples: SampleSet, rows: Sequence[int], statistics: Mapping[str, Normalization], frames: int | None = None
) -> Batch:
    """The samples at `rows` as they are, for validation and evaluation; of their frames the latest `frames`, or all.

    Raises `DataError` for a sample of a region without statistics.
    """
    index = torch.as_tensor(rows, dtype=torch.long)
    mean, std = region_statistics(statistics, [samples.region[row] for row in rows])
    return Batch(
        lr=to_reflectance(samples.lr[index, :frames]),
        clear=samples.clear[index, :frames].float(),
        shift=samples.shift[index, :frames],
        hr=to_reflectance(samples.hr[index]),
        hr_clear=samples.hr_clear[index].float(),
        rows=index,
        mean=mean,
        std=std,
    )


def to_reflectance(integers: Tensor) -> Tensor:
    """uint16 reflectance × 10000, or its bits as int16, to float32 reflectance."""
    return (_bits(integers).int() & 0xFFFF).float() / REFLECTANCE_SCALE


class BatchSampler:
    """Random batches; that of step k is a function of the seed and k alone, so that training can resume anywhere.

    Every sample is drawn once before any is drawn again. Each is cropped to `crop_px` low-resolution pixels,
    turned and flipped into one of the eight orientations of the square, brightened or darkened by at most
    `gain_augmentation`, shown with `frames` of its frames (`choose_frames`), and loses each earlier one of them with
    probability `frame_dropout`. Chance is drawn on the CPU and the rest is done for the whole batch at once where the
    samples lie, so that all devices see the same batches.

    Raises `DataError` when there is nothing to draw, when a crop or frames are asked for that the samples do not have,
    or when a region has no statistics.
    """

    def __init__(
        self,
        samples: SampleSet,
        statistics: Mapping[str, Normalization],
        settings: TrainHRN,
        device: torch.device = CPU,
    ) -> None:
        if not len(samples):
            raise DataError("samples: found none of split train; loosen the gate or download more ground or dates")
        height, width = samples.lr.shape[-2:]
        if settings.crop_px is not None and settings.crop_px > min(height, width):
            raise DataError(
                f"train_hrn.crop_px: found {settings.crop_px}, expected at most the samples' {min(height, width)}"
                " pixels"
            )
        if height != width and settings.crop_px is None:
            raise DataError(f"samples of {height} x {width} pixels cannot be turned; set train_hrn.crop_px")
        self.samples = samples.near(device)
        self.settings = settings
        self.frames = frames_seen(settings, samples)
        self.side = settings.crop_px or height
        self._device = self.samples.lr.device
        self._room = (height - self.side, width - self.side)
        self._width = width
        self._grids = [_oriented(self.side * scale, width * scale).to(self._device) for scale in (1, SCALE)]
        self._turns = torch.stack([orient_shift(torch.eye(2), *code) for code in ORIENTATIONS]).to(self._device)
        self._mean, self._std = (part.to(self._device) for part in region_statistics(statistics, samples.region))

    def batch(self, step: int) -> Batch:
        """The batch of step `step` (0, 1, ...)."""
        samples, settings, count = self.samples, self.settings, self.settings.batch_size
        random = np.random.default_rng([settings.seed, step])
        drawn = self._rows(step)
        corner = random.integers(0, np.array(self._room) + 1, size=(count, 2))
        orientation = random.integers(len(ORIENTATIONS), size=count)
        gain = 1.0 + random.uniform(-settings.gain_augmentation, settings.gain_augmentation, size=(count, 1))
        shown = random.random((count, self.frames)) >= settings.frame_dropout
        shown[:, 0] = True
        luck = [random.random((count, samples.frames)), random.gumbel(size=(count, samples.frames))]
        rows, top, left, code = self._send(np.stack([drawn, *corner.T, orientation])).unbind()
        chance = self._send(np.concatenate([gain, shown, *luck], axis=1, dtype=np.float32))
        gains, shows, lucks = chance[:, :1], chance[:, 1 : 1 + self.frames], chance[:, 1 + self.frames :].chunk(2, 1)

        low = self._grids[0][code] + (top * self._width + left).unsqueeze(1)
        high = self._grids[1][code] + SCALE * (top * self._width * SCALE + left).unsqueeze(1)
        clear = _pick(samples.clear[rows], low).float()
        frames, usable = choose_frames(
            clear.mean(dim=2), samples.valid[rows], samples.age[rows], self.frames, settings, *lucks
        )
        pair, side, fine = rows.unsqueeze(1), self.side, self.side * SCALE
        clear = clear.gather(1, frames.unsqueeze(2).expand(-1, -1, side**2)) * (usable * shows).unsqueeze(2)
        lr = to_reflectance(_pick(_bits(samples.lr)[pair, frames], low)) * (gains * usable).view(count, -1, 1, 1)
        hr = to_reflectance(_pick(_bits(samples.hr)[rows], high)) * gains.unsqueeze(2)
        return Batch(
            lr=lr.view(*lr.shape[:3], side, side),
            clear=clear.view(*clear.shape[:2], side, side),
            shift=samples.shift[pair, frames] @ self._turns[code] * usable.unsqueeze(2),
            hr=hr.view(*hr.shape[:2], fine, fine),
            hr_clear=_pick(samples.hr_clear[rows], high).float().view(count, fine, fine),
            rows=torch.from_numpy(drawn),
            mean=self._mean[rows],
            std=self._std[rows],
        )

    def names(self, batch: Batch) -> list[str]:
        """Ids of the batch's samples."""
        return [self.samples.ids[row] for row in batch.rows.tolist()]

    def _rows(self, step: int) -> NDArray[np.int64]:
        """Each epoch is a permutation of its own; a batch may reach over the end of one."""
        draws = step * self.settings.batch_size + np.arange(self.settings.batch_size)
        epochs, places = np.divmod(draws, len(self.samples))
        order = {epoch: _permutation(self.settings.seed, epoch, len(self.samples)) for epoch in set(epochs.tolist())}
        return np.array([order[epoch][place] for epoch, place in zip(epochs.tolist(), places, strict=True)])

    def _send(self, values: NDArray[np.generic]) -> Tensor:
        tensor = torch.from_numpy(values)
        if self._device.type == "cuda":
            tensor = tensor.pin_memory()  # copied without waiting for what the device is doing
        return tensor.to(self._device, non_blocking=True)


class Ahead:
    """Batches that are made on the CPU, each while the step before it still runs on an accelerator."""

    def __init__(self, batches: Batches, device: torch.device) -> None:
        self._batches = batches
        self._device = device
        self._worker = ThreadPoolExecutor(1, "batches")
        self._made: dict[int, Future[Batch]] = {}

    def batch(self, step: int) -> Batch:
        """The batch of `step`, on the device."""
        made = self._made.pop(step, None) or self._worker.submit(self._make, step)
        self._made = {step + 1: self._worker.submit(self._make, step + 1)}
        return made.result().to(self._device)

    def names(self, batch: Batch) -> list[str]:
        return self._batches.names(batch)

    def _make(self, step: int) -> Batch:
        batch = self._batches.batch(step)
        if self._device.type != "cuda" or batch.lr.is_cuda:
            return batch
        return Batch(**{name: values.pin_memory() for name, values in vars(batch).items()})


def frames_seen(settings: TrainHRN, samples: SampleSet) -> int:
    """How many frames of each sample the network sees. Raises `DataError` when the samples do not hold so many."""
    frames = samples.frames if settings.frames is None else settings.frames
    if frames > samples.frames:
        raise DataError(
            f"train_hrn.frames: found {frames}, expected at most the samples' {samples.frames};"
            " raise quality_gate.frames and cut them again"
        )
    return frames


def choose_frames(
    clearance: Tensor, valid: Tensor, age: Tensor, count: int, settings: TrainHRN, luck: Tensor, gumbel: Tensor
) -> tuple[Tensor, Tensor]:
    """Positions (B,count) of the frames to show, latest first, and which of them are frames at all.

    The latest is the sample's latest, or a random one of those at most `settings.max_latest_age_days` old. The others
    are earlier than it: those next to it, or with `frame_choice: random` drawn without replacement, with odds that
    rise with their clearance (by the Gumbel top-k trick: Kool et al. 2019, Stochastic beams and where to find them).

    clearance (B,T) clear share of each frame; valid, age (B,T) as in `SampleSet`; luck (B,T) uniform and gumbel (B,T)
    standard Gumbel numbers.
    """
    place = torch.arange(valid.shape[1], device=valid.device)
    eligible = valid & (age <= settings.max_latest_age_days) & (settings.max_latest_age_days > 0)
    latest = luck.masked_fill(~(eligible | (place == 0)), -1.0).argmax(dim=1, keepdim=True)
    if settings.frame_choice == "random":
        clearest = clearance.amax(dim=1, keepdim=True).clamp(min=1e-6)
        rank = CLEARANCE_PREFERENCE * clearance / clearest + gumbel
    else:
        rank = -place.float().expand_as(luck)
    usable = valid & (place > latest)
    rank = torch.where(usable, rank, -1e6 - place).scatter(1, latest, torch.inf)
    usable = usable.scatter(1, latest, True)
    chosen = rank.topk(count, dim=1).indices
    # what is only there to fill the shape goes to the end, as padded frames do
    order = (chosen + valid.shape[1] * ~usable.gather(1, chosen)).argsort(dim=1)
    chosen = chosen.gather(1, order)
    return chosen, usable.gather(1, chosen)


def orient_shift(shift: Tensor, turns: int, flip: bool) -> Tensor:
    """Displacements (..., 2) in an image turned by quarter turns (as torch.rot90 turns it) and then flipped."""
    down, across = shift.unbind(-1)
    for _ in range(turns):
        down, across = -across, down
    return torch.stack([down, -across if flip else across], dim=-1)


def _pick(images: Tensor, places: Tensor) -> Tensor:
    """Pixels `places` (B,P), as flat positions, of images (B,...,H,W): (B,...,P)."""
    flat = images.flatten(-2)
    shape = (len(places), *(1,) * (flat.ndim - 2), -1)
    return flat.gather(-1, places.view(shape).expand(*flat.shape[:-1], -1))


def _oriented(side: int, stride: int) -> Tensor:
    """(8, side * side): the flat positions, in an image of `stride` columns, that make a square turned and flipped."""
    square = torch.arange(side)[:, None] * stride + torch.arange(side)
    turned = (torch.rot90(square, turns) for turns, _ in ORIENTATIONS)
    return torch.stack([(t.flip(-1) if f else t).flatten() for t, (_, f) in zip(turned, ORIENTATIONS, strict=True)])


def _bits(integers: Tensor) -> Tensor:
    """uint16 as int16: for many kernels of torch, most on accelerators, the former does not exist."""
    return integers.view(torch.int16)


def _move(values: Tensor, device: torch.device) -> Tensor:
    if values.dtype == torch.uint16:
        return _bits(values).to(device).view(torch.uint16)
    return values.to(device)


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch, 1]).permutation(count)
