"""Samples in memory, and the batches that training draws from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sr_core import BANDS, REFLECTANCE_SCALE, SCALE
from sr_core.errors import ArtifactError, DataError
from sr_core.models.normalization import Normalization, region_statistics
from sr_core.samples.store import SampleStore


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

    def subset(self, rows: Sequence[int]) -> SampleSet:
        """The samples at `rows`, in that order."""
        index = torch.as_tensor(rows, dtype=torch.long)
        return SampleSet(
            lr=self.lr[index],
            clear=self.clear[index],
            valid=self.valid[index],
            age=self.age[index],
            shift=self.shift[index],
            hr=self.hr[index],
            hr_clear=self.hr_clear[index],
            region=[self.region[row] for row in rows],
            ids=[self.ids[row] for row in rows],
            target_date=[self.target_date[row] for row in rows],
        )

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
    """(B) positions in what the batch was drawn from."""
    mean: Tensor
    """(B,4,1,1) of each sample's place, reflectance."""
    std: Tensor
    """(B,4,1,1) of each sample's place, reflectance."""


class Batches(Protocol):
    """Where training gets its batches from. That of a step is the same whenever and wherever it is asked for."""

    def batch(self, step: int) -> Batch:
        """The batch of step `step` (0, 1, ...); its tensors may lie on the accelerator already."""

    def names(self, batch: Batch) -> list[str]:
        """What a person finds the batch's samples by."""


def whole_batch(samples: SampleSet, rows: Sequence[int], statistics: Mapping[str, Normalization]) -> Batch:
    """The samples at `rows` as they are, for validation and evaluation.

    Raises `DataError` for a sample of a region without statistics.
    """
    index = torch.as_tensor(rows, dtype=torch.long)
    mean, std = region_statistics(statistics, [samples.region[row] for row in rows])
    return Batch(
        lr=to_reflectance(samples.lr[index]),
        clear=samples.clear[index].float(),
        shift=samples.shift[index],
        hr=to_reflectance(samples.hr[index]),
        hr_clear=samples.hr_clear[index].float(),
        rows=index,
        mean=mean,
        std=std,
    )


def to_reflectance(integers: Tensor) -> Tensor:
    """uint16 reflectance × 10000 to float32 reflectance."""
    return integers.float() / REFLECTANCE_SCALE


@dataclass(frozen=True)
class BatchSampler:
    """Random batches; that of step k is a function of `seed` and k alone, so that training can resume anywhere.

    Every sample is drawn once before any is drawn again. Each is cropped to `crop_px` low-resolution pixels,
    turned and flipped into one of the eight orientations of the square, brightened or darkened by at most `gain`,
    and loses each earlier frame with probability `frame_dropout`; the latest frame always stays.
    """

    samples: SampleSet
    statistics: Mapping[str, Normalization]
    batch_size: int
    seed: int
    crop_px: int | None = None
    gain: float = 0.0
    frame_dropout: float = 0.0

    def __post_init__(self) -> None:
        if not len(self.samples):
            raise DataError("samples: found none of split train; loosen the gate or download more ground or dates")
        rows, columns = self.samples.lr.shape[-2:]
        if self.crop_px is not None and self.crop_px > min(rows, columns):
            raise DataError(
                f"train_hrn.crop_px: found {self.crop_px}, expected at most the samples' {min(rows, columns)} pixels"
            )
        if rows != columns and self.crop_px is None:
            raise DataError(f"samples of {rows} x {columns} pixels cannot be turned; set train_hrn.crop_px")

    def batch(self, step: int) -> Batch:
        """The batch of step `step` (0, 1, ...)."""
        rows = [self._row(step * self.batch_size + place) for place in range(self.batch_size)]
        random = np.random.default_rng([self.seed, step])
        parts = [self._augment(row, random) for row in rows]
        lr, clear, shift, hr, hr_clear = (torch.stack(part) for part in zip(*parts, strict=True))
        mean, std = region_statistics(self.statistics, [self.samples.region[row] for row in rows])
        return Batch(lr, clear, shift, hr, hr_clear, torch.tensor(rows), mean, std)

    def names(self, batch: Batch) -> list[str]:
        """Ids of the batch's samples."""
        return [self.samples.ids[row] for row in batch.rows.tolist()]

    def _row(self, draw: int) -> int:
        epoch, place = divmod(draw, len(self.samples))
        return int(np.random.default_rng([self.seed, epoch, 1]).permutation(len(self.samples))[place])

    def _augment(self, row: int, random: np.random.Generator) -> tuple[Tensor, ...]:
        samples = self.samples
        height, width = samples.lr.shape[-2:]
        side = self.crop_px or height
        top, left = int(random.integers(height - side + 1)), int(random.integers(width - side + 1))
        low = (..., slice(top, top + side), slice(left, left + side))
        high = (
            ...,
            slice(top * SCALE, (top + side) * SCALE),
            slice(left * SCALE, (left + side) * SCALE),
        )
        turns, flip = int(random.integers(4)), bool(random.integers(2))
        gain = 1.0 + float(random.uniform(-self.gain, self.gain))
        kept = torch.from_numpy(random.random(samples.lr.shape[1]) >= self.frame_dropout)
        kept[0] = True

        def orient(image: Tensor) -> Tensor:
            turned = torch.rot90(image, turns, (-2, -1))
            return turned.flip(-1) if flip else turned

        return (
            orient(to_reflectance(samples.lr[row][low])) * gain,
            orient(samples.clear[row][low]).float() * kept[:, None, None],
            orient_shift(samples.shift[row], turns, flip),
            orient(to_reflectance(samples.hr[row][high])) * gain,
            orient(samples.hr_clear[row][high]).float(),
        )


def orient_shift(shift: Tensor, turns: int, flip: bool) -> Tensor:
    """Displacements (T,2) in an image that was turned by quarter turns (as torch.rot90 turns it) and then flipped."""
    down, across = shift.unbind(-1)
    for _ in range(turns):
        down, across = -across, down
    return torch.stack([down, -across if flip else across], dim=-1)
