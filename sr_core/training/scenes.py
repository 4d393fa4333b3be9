"""Training batches from whole series of fine images, each sample through an instrument of its own.

Fine images are what a Sentinel-2 frame is to be made into: the simulation's 2.5 m truth, whose frames have 10 m, or
real 10 m frames, whose frames have 40 m (Wald's protocol). A sample is a place, a target date and earlier dates; the
frames are made of it anew each time it is drawn (`sr_core.training.instrument`).

The geometry: the truth is the target date's fine image as it lies. Real dates are displaced by themselves; a frame's
displacement is what the instrument adds plus that of its fine image against the truth's, and the network is told it as
co-registration would know it, with an error.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import correlate1d, distance_transform_edt
from torch import Tensor

from sr_core import BANDS, REFLECTANCE_SCALE, SCALE
from sr_core.config import Box
from sr_core.errors import ArtifactError, DataError
from sr_core.models.normalization import MIN_STD, Normalization, read_places
from sr_core.patches import S2_GSD, Patch, load_part, part_path, read_index
from sr_core.samples.dataset import Batch, SampleSet, orient_shift
from sr_core.series import S2Series, load_s2
from sr_core.training.instrument import MARGIN_PX, Instrument, InstrumentRanges

MAX_AGE_DAYS = (60, 100)
"""Frames are at most so old, drawn for each sample: a pass every five days, or every ten with clouds."""
MIN_CLEAR = 0.5
"""Earlier frames show at least this share of a sample's ground; the rest is masked."""
MIN_KNOWN = 0.9
"""The truth, and the latest frame, at least this."""
TRIES = 100
FINE_PSF = (0.175, 0.65, 0.175)
"""Of the simulated truth, fine pixels in both directions: MTF 0.3 at their Nyquist, like a 2.5 m instrument's."""
TENSORS = ("lr", "clear", "valid", "age", "shift", "hr", "hr_clear")
STATISTICS_STEP = 3
"""Every third pixel in both directions is enough for a sample's own mean and standard deviation."""
LOCAL_STATISTICS = 0.5
"""Share of samples normalised by a window around them, as a small request is, instead of by the whole place."""


@dataclass(frozen=True)
class FineSeries:
    """The fine images of one place, time ascending."""

    name: str
    region: str
    bands: NDArray[np.uint16]
    """(T,4,H,W) reflectance x 10000; what is not known has the value of the nearest pixel that is."""
    clear: NDArray[np.bool_]
    """(T,H,W): what a frame may show."""
    known: NDArray[np.bool_]
    """(T,H,W): what the truth says. More than `clear` in the simulation, whose truth has no clouds."""
    dates: Sequence[dt.datetime]
    shifts: NDArray[np.float32]
    """(T,2) rows and columns in fine pixels: a pixel at p shows the ground at p + shift."""
    place: Normalization
    gsd_m: float

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.clear.shape[1], self.clear.shape[2]

    @cached_property
    def targets(self) -> NDArray[np.intp]:
        """Dates that a truth can be cut from: some of it known, some of it clear."""
        seen = (self.known & self.clear)[:, ::SCALE, ::SCALE].mean(axis=(1, 2))
        return np.flatnonzero(seen > 0.05)


def load_series(root: Path, box: Box | None = None) -> list[FineSeries]:
    """The fine series of a prepared run below `root` (folders patches, masks, normalization), one a patch.

    With the simulation's truth it is that truth, at 2.5 m, and clouds are where the run's masks have them; otherwise
    the real frames at 10 m. `box` (xmin, ymin, xmax, ymax in UTM metres) leaves only the ground inside; patches that
    it does not touch are left out. Raises `ArtifactError` when nothing is left or a part is missing.
    """
    places = read_places(root / "normalization")
    found = []
    for patch in read_index(root / "patches"):
        window = window_of(patch, box)
        if window is not None:
            series = load_s2(root / "patches", root / "masks", patch)
            truth = part_path(root / "patches", patch, "truth")
            place = places[patch.region]
            found.append(
                _simulated(series, truth, window, place) if truth.is_dir() else real_series(series, place, window)
            )
    if not found:
        raise ArtifactError(f"{root}: no patch touches the box {box}; expected xmin, ymin, xmax, ymax in UTM metres")
    return found


def real_series(
    series: S2Series, place: Normalization, window: tuple[slice, slice] = (slice(None), slice(None))
) -> FineSeries:
    """A real series as fine images of 10 m: rows and columns of `window`."""
    clear = series.clear[:, *window]
    bands = np.moveaxis(series.bands[:, *window], -1, 1).copy()
    for image, seen in zip(bands, clear, strict=True):
        if seen.any() and not seen.all():
            nearest = distance_transform_edt(~seen, return_distances=False, return_indices=True)
            image[:] = image[:, nearest[0], nearest[1]]
    name = f"{series.patch.region}/{series.patch.id}"
    return FineSeries(name, series.patch.region, bands, clear, clear, series.timestamps, series.shifts, place, S2_GSD)


def _simulated(series: S2Series, truth: Path, window: tuple[slice, slice], place: Normalization) -> FineSeries:
    part = load_part(truth)
    if list(part.get_timestamps()) != series.timestamps:
        raise ArtifactError(f"EOPatch {truth}: dates differ from those of the images; run download again")
    fine = tuple(slice(axis.start * SCALE, axis.stop * SCALE) for axis in window)
    bands = np.ascontiguousarray(np.moveaxis(part.data["S2_HR"][:, *fine], -1, 1))
    for image in bands:
        # only the truth's own sampling is this sharp; a satellite of 2.5 m would not see it so
        seen = correlate1d(correlate1d(image.astype(np.float32), FINE_PSF, axis=-1), FINE_PSF, axis=-2)
        image[:] = np.rint(seen)
    clear = series.clear[:, *window].repeat(SCALE, axis=1).repeat(SCALE, axis=2)
    known = np.broadcast_to(np.True_, clear.shape)
    name = f"{series.patch.region}/{series.patch.id}"
    still = np.zeros_like(series.shifts)
    return FineSeries(name, series.patch.region, bands, clear, known, series.timestamps, still, place, S2_GSD / SCALE)


def window_of(patch: Patch, box: Box | None) -> tuple[slice, slice] | None:
    """Rows and columns of the box in the patch's 10 m raster, whole coarse pixels; None where they do not meet."""
    rows, columns = patch.shape
    if box is None:
        return slice(0, rows), slice(0, columns)
    west, _, _, north = patch.bounds
    top, bottom = (int(np.clip(round((north - y) / S2_GSD), 0, rows)) for y in (box[3], box[1]))
    left, right = (int(np.clip(round((x - west) / S2_GSD), 0, columns)) for x in (box[0], box[2]))
    bottom, right = bottom - (bottom - top) % SCALE, right - (right - left) % SCALE
    return (slice(top, bottom), slice(left, right)) if bottom > top and right > left else None


@dataclass(frozen=True)
class Draw:
    """What a sample is made of."""

    series: int
    frames: NDArray[np.intp]
    """Dates, latest first."""
    row: int
    column: int
    """Its upper left corner, fine pixels."""
    turns: int
    flip: bool


@dataclass(frozen=True)
class SceneSampler:
    """Implements `sr_core.samples.dataset.Batches` over fine series; a batch is a function of `seed` and step alone.

    A sample: a series by its weight; a target date at a place where it is clear; 1 to `frames` frames of it, half of
    the time the latest ones, else random ones, clouds as they come and masked; one of the eight orientations of the
    square; brightened or darkened by at most `gain`; through an instrument drawn from `ranges`. Frames are made, and
    all comes, on `device`.
    """

    series: Sequence[FineSeries]
    weights: Sequence[float]
    """One a series, any sum."""
    ranges: InstrumentRanges
    batch_size: int
    crop_px: int
    """Side of a sample in coarse pixels."""
    frames: int = 8
    seed: int = 0
    gain: float = 0.05
    augment: bool = True
    """False for samples to be judged on: as many frames as there are, the latest ones, upright, and the place's own
    statistics."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __post_init__(self) -> None:
        if not self.series or len(self.weights) != len(self.series) or not sum(self.weights) > 0:
            raise DataError(
                f"training ground: found {len(self.series)} series and {len(self.weights)} weights;"
                " expected at least one series, and a weight for each that is not always 0"
            )
        for series in self.series:
            if min(series.shape) < self.crop_px * SCALE:
                raise DataError(
                    f"train_hrn.crop_px: found {self.crop_px}, expected at most {min(series.shape) // SCALE} for"
                    f" {series.name} of {series.shape[0]} x {series.shape[1]} fine pixels"
                )
            if not len(series.targets):
                raise DataError(f"{series.name}: no date shows any of the ground clearly; leave it out")

    def batch(self, step: int) -> Batch:
        """The batch of step `step` (0, 1, ...)."""
        random = np.random.default_rng([self.seed, step])
        draws = [self._draw(random) for _ in range(self.batch_size)]
        side, margin = self.crop_px * SCALE, MARGIN_PX * SCALE
        count, outer = self.batch_size, side + 2 * margin
        fine = np.zeros((count, self.frames, len(BANDS), outer, outer), np.uint16)
        clear = np.zeros((count, self.frames, outer, outer), bool)
        known = np.zeros((count, side, side), bool)
        between = np.zeros((count, self.frames, 2), np.float32)
        mean, std, place_std = (np.zeros((count, len(BANDS)), np.float32) for _ in range(3))
        for place, draw in enumerate(draws):
            series = self.series[draw.series]
            _cut(series.bands, draw.frames, (draw.row - margin, draw.column - margin), fine[place])
            _cut(series.clear, draw.frames, (draw.row - margin, draw.column - margin), clear[place])
            _cut(series.known, draw.frames[:1], (draw.row, draw.column), known[place, None])
            between[place, : len(draw.frames)] = (series.shifts[draw.frames] - series.shifts[draw.frames[0]]) / SCALE
            mean[place], std[place] = self._statistics(series, draw, random)
            place_std[place] = series.place.std
        gain = 1.0 + random.uniform(-self.gain, self.gain, count).astype(np.float32)

        def placed(array: NDArray[Any]) -> Tensor:
            return torch.from_numpy(array).to(self.device)

        instrument = Instrument.draw(self.ranges, self.frames, placed(place_std), random)
        noise = torch.Generator(self.device).manual_seed(int(random.integers(2**62)))
        image = placed(fine).float()
        frames = instrument.observe(image, MARGIN_PX, noise)
        truth = image[:, 0, :, margin:-margin, margin:-margin] / REFLECTANCE_SCALE
        mask = instrument.observe_mask(placed(clear).float(), MARGIN_PX)
        shown = placed(np.array([[at < len(draw.frames) for at in range(self.frames)] for draw in draws]))
        told = (placed(between) + instrument.displacement + instrument.registration_error) * shown[..., None]
        told = told * instrument.registered[:, None, None]
        gains = placed(gain)[:, None, None, None]

        def oriented(images: Tensor) -> Tensor:
            return torch.stack([orient(part, draw) for part, draw in zip(images, draws, strict=True)])

        return Batch(
            lr=oriented(frames * gains[:, None] * shown[:, :, None, None, None]),
            clear=oriented(mask),
            shift=torch.stack(
                [
                    orient_shift(part, draw.turns, draw.flip)
                    for part, draw in zip(told * shown[..., None], draws, strict=True)
                ]
            ),
            hr=oriented(truth * gains),
            hr_clear=oriented(placed(known).float()),
            rows=torch.tensor([self._encode(draw) for draw in draws]),
            mean=placed(mean)[..., None, None],
            std=placed(std)[..., None, None],
        )

    def names(self, batch: Batch) -> list[str]:
        """Place, target date, row and column in fine pixels of each sample."""
        return [self._name(code) for code in batch.rows.tolist()]

    def sample_set(self, count: int, region: str | None = None) -> SampleSet:
        """The first `count` samples as a set to be judged on; `region` instead of the series' own."""
        batches = [self.batch(step) for step in range(-(-count // self.batch_size))]
        codes = torch.cat([batch.rows for batch in batches])[:count].tolist()
        lr, clear, shift, hr, hr_clear = (
            torch.cat([getattr(batch, part) for batch in batches])[:count].cpu()
            for part in ("lr", "clear", "shift", "hr", "hr_clear")
        )
        valid = lr.flatten(2).any(dim=-1)
        series = [self.series[self._decode(code)[0]] for code in codes]
        dates = [self.series[self._decode(code)[0]].dates[self._decode(code)[1]] for code in codes]
        return SampleSet(
            lr=_integers(lr),
            clear=clear.bool(),
            valid=valid,
            age=torch.where(valid, 0, -1).short(),
            shift=shift,
            hr=_integers(hr),
            hr_clear=hr_clear.bool(),
            region=[region or one.region for one in series],
            ids=[self._name(code) for code in codes],
            target_date=[date.date().isoformat() for date in dates],
        )

    @cached_property
    def _chances(self) -> NDArray[np.float64]:
        weights = np.asarray(self.weights, np.float64)
        chances: NDArray[np.float64] = weights / weights.sum()
        return chances

    @cached_property
    def _days(self) -> list[NDArray[np.int64]]:
        return [np.array([date.toordinal() for date in series.dates]) for series in self.series]

    def _draw(self, random: np.random.Generator) -> Draw:
        number = int(random.choice(len(self.series), p=self._chances))
        series, side = self.series[number], self.crop_px * SCALE
        for _ in range(TRIES):
            target = int(random.choice(series.targets))
            row, column = (int(random.integers(size - side + 1)) for size in series.shape)
            window = (slice(row, row + side, SCALE), slice(column, column + side, SCALE))
            if min(part[target, *window].mean() for part in (series.known, series.clear)) < MIN_KNOWN:
                continue
            frames = self._frames(number, target, window, random)
            turns, flip = (int(random.integers(4)), bool(random.integers(2))) if self.augment else (0, False)
            return Draw(number, frames, row, column, turns, flip)
        raise DataError(
            f"{series.name}: in {TRIES} tries no place of {side} x {side} pixels was clear by {MIN_KNOWN:.0%};"
            " leave it out, or lower train_hrn.crop_px"
        )

    def _frames(
        self, number: int, target: int, window: tuple[slice, slice], random: np.random.Generator
    ) -> NDArray[np.intp]:
        """The target date and earlier ones, latest first."""
        days = self._days[number]
        oldest = int(random.integers(MAX_AGE_DAYS[0], MAX_AGE_DAYS[1] + 1)) if self.augment else MAX_AGE_DAYS[1]
        earlier = np.arange(int(np.searchsorted(days, days[target] - oldest)), target)[::-1]
        clearance = self.series[number].clear[earlier, *window].mean(axis=(1, 2))
        earlier, clearance = earlier[clearance >= MIN_CLEAR], clearance[clearance >= MIN_CLEAR]
        wanted = self.frames - 1
        if self.augment and random.random() < 0.5:
            wanted = int(random.integers(self.frames))
        if self.augment and random.random() < 0.5 and len(earlier) > wanted > 0:
            chosen = random.choice(len(earlier), wanted, replace=False, p=clearance / clearance.sum())
            earlier = earlier[np.sort(chosen)]
        return np.concatenate([[target], earlier[:wanted]])

    def _statistics(
        self, series: FineSeries, draw: Draw, random: np.random.Generator
    ) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """Mean and standard deviation (4) that the sample is normalised by: the place's, or those of a window around
        the sample in its own frames, of any size up to the whole place."""
        if not self.augment or random.random() >= LOCAL_STATISTICS:
            return np.asarray(series.place.mean), np.asarray(series.place.std)
        side = self.crop_px * SCALE
        window = []
        for start, size in zip((draw.row, draw.column), series.shape, strict=True):
            length = round(side * (size / side) ** random.random())
            first = int(random.integers(max(0, start + side - length), min(start, size - length) + 1))
            window.append(slice(first, first + length, STATISTICS_STEP))
        pixels = series.bands[draw.frames, :, window[0], window[1]].astype(np.float32) / REFLECTANCE_SCALE
        return pixels.mean(axis=(0, 2, 3)), np.maximum(pixels.std(axis=(0, 2, 3)), MIN_STD)

    def _encode(self, draw: Draw) -> int:
        return ((draw.series * 2**14 + int(draw.frames[0])) * 2**16 + draw.row) * 2**16 + draw.column

    def _decode(self, code: int) -> tuple[int, int, int, int]:
        rest, column = divmod(code, 2**16)
        rest, row = divmod(rest, 2**16)
        series, date = divmod(rest, 2**14)
        return series, date, row, column

    def _name(self, code: int) -> str:
        number, date, row, column = self._decode(code)
        series = self.series[number]
        return f"{series.name} {series.dates[date]:%Y-%m-%d} row {row} column {column}"


def weigh(groups: Sequence[tuple[Sequence[FineSeries], float]]) -> tuple[list[FineSeries], list[float]]:
    """Series and their weights, where each group has a weight that its series share by their area."""
    series, weights = [], []
    for group, weight in groups:
        areas = [one.shape[0] * one.shape[1] for one in group]
        series += list(group)
        weights += [weight * area / sum(areas) for area in areas]
    return series, weights


def join_samples(sets: Sequence[SampleSet]) -> SampleSet:
    """One set after the other; samples of all have one size."""
    joined: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in sets]) for name in TENSORS}
    for name in ("region", "ids", "target_date"):
        joined[name] = [item for part in sets for item in getattr(part, name)]
    return SampleSet(**joined)


def orient(image: Tensor, draw: Draw) -> Tensor:
    """(...,H,W) in the orientation of a draw."""
    turned = torch.rot90(image, draw.turns, (-2, -1)) if draw.turns else image
    return turned.flip(-1) if draw.flip else turned


def _cut(images: NDArray[Any], frames: NDArray[np.intp], corner: tuple[int, int], into: NDArray[Any]) -> None:
    """Copy the `frames` of (T, ..., H, W) from `corner` on; the outermost pixels repeat beyond the images' edges."""
    (top, bottom), (left, right) = (
        (max(0, -first), min(length, size - first))
        for first, length, size in zip(corner, into.shape[-2:], images.shape[-2:], strict=True)
    )
    rows, columns = slice(corner[0] + top, corner[0] + bottom), slice(corner[1] + left, corner[1] + right)
    into = into[: len(frames)]
    for at, frame in enumerate(frames):
        into[at, ..., top:bottom, left:right] = images[frame, ..., rows, columns]
    into[..., :top, :], into[..., bottom:, :] = into[..., top : top + 1, :], into[..., bottom - 1 : bottom, :]
    into[..., :left], into[..., right:] = into[..., left : left + 1], into[..., right - 1 : right]


def _integers(reflectance: Tensor) -> Tensor:
    return torch.from_numpy((reflectance * REFLECTANCE_SCALE).round().numpy().astype(np.uint16))
