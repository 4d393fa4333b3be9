"""A rolling window over time: every clear pass over a region becomes a product, from itself and the passes before.

Frames are chosen for a region as a whole: if each patch chose its own, neighbours would show other dates, and their
common edge would be a seam. Which pixels of a frame are used is said by its mask, pixel by pixel.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sr_core.patches import Patch
from sr_core.samples.frames import age_days
from sr_core.series import S2Series

PASS = dt.timedelta(minutes=30)
"""Acquisitions of a region closer than this belong to one pass: tiles of an orbit differ by seconds to minutes,
neighbouring orbits by 100 minutes."""
_ROUNDING = 1e-6


@dataclass(frozen=True)
class PatchDates:
    """What of a patch's series decides on dates."""

    patch: Patch
    timestamps: tuple[dt.datetime, ...]
    clear: NDArray[np.float64]
    """(T,) share of the patch that is clear."""

    @classmethod
    def of(cls, series: S2Series) -> PatchDates:
        clear = series.clear.mean(axis=(1, 2), dtype=np.float64)
        return cls(series.patch, tuple(series.timestamps), clear)


@dataclass(frozen=True)
class Pass:
    """One overflight of a region: the acquisitions that together are one frame."""

    timestamp: dt.datetime
    """Of the first acquisition, naive UTC."""
    acquisitions: Mapping[str, tuple[int, ...]]
    """Patch id to indices into its series, the clearest first."""

    @property
    def name(self) -> str:
        return f"{self.timestamp:%Y%m%dT%H%M%S}"


@dataclass(frozen=True)
class Target:
    """A pass that becomes a product, with the passes that it is made from."""

    frames: tuple[Pass, ...]
    """Latest first; the first is the pass itself."""
    patches: tuple[str, ...]
    """Ids of the patches that it saw clearly: the ground that is made."""

    @property
    def timestamp(self) -> dt.datetime:
        return self.frames[0].timestamp

    @property
    def name(self) -> str:
        return self.frames[0].name


def find_targets(patches: Sequence[PatchDates], *, frames: int, max_age_days: int, max_cloud: float) -> list[Target]:
    """Every pass over a region at which at least one patch is clear, time ascending.

    A patch is clear where at most the share `max_cloud` of it is cloud or nodata; a cloudier one is left out of that
    product. Earlier passes, at most `frames` - 1 and at most `max_age_days` calendar days old, are taken one by one,
    each time the one that is clear over the most patches, a patch counting the less the more frames it has; of
    equals the latest. Over a region that is clear as a whole that is what `choose_frames` gives in training: the
    latest clear passes. Under broken clouds it is a set that leaves no patch without earlier frames while another
    has many.
    """
    passes = _passes(patches)
    shares = np.array(
        [[max(patch.clear[list(each.acquisitions.get(patch.patch.id, ()))], default=0.0) for patch in patches]
         for each in passes]
    ).reshape(len(passes), len(patches))  # fmt: skip
    clear = shares >= 1.0 - max_cloud - _ROUNDING
    found = []
    for number, latest in enumerate(passes):
        seen = clear[number]
        if not seen.any():
            continue
        young = [
            index for index in range(number) if age_days(passes[index].timestamp, latest.timestamp) <= max_age_days
        ]
        earlier = _best_covering(clear[:, seen], young, frames - 1)
        found.append(
            Target(
                (latest, *(passes[index] for index in sorted(earlier, reverse=True))),
                tuple(patch.patch.id for patch, made in zip(patches, seen, strict=True) if made),
            )
        )
    return found


def _best_covering(clear: NDArray[np.bool_], candidates: Sequence[int], count: int) -> list[int]:
    """Rows of `clear` (passes, patches), at most `count` of the `candidates` (time ascending)."""
    chosen: list[int] = []
    frames = np.ones(clear.shape[1])
    while len(chosen) < count:
        gains = {index: float((clear[index] / (1 + frames)).sum()) for index in candidates if index not in chosen}
        best = max(gains, key=lambda index: (gains[index], index), default=None)
        if best is None or not gains[best]:
            break
        chosen.append(best)
        frames += clear[best]
    return chosen


def _passes(patches: Sequence[PatchDates]) -> list[Pass]:
    groups: list[list[dt.datetime]] = []
    for timestamp in sorted({timestamp for patch in patches for timestamp in patch.timestamps}):
        if groups and timestamp - groups[-1][-1] <= PASS:
            groups[-1].append(timestamp)
        else:
            groups.append([timestamp])
    number = {timestamp: index for index, group in enumerate(groups) for timestamp in group}
    acquisitions: list[dict[str, tuple[int, ...]]] = [{} for _ in groups]
    for patch in patches:
        clearest_first = sorted(
            range(len(patch.timestamps)),
            key=lambda index: (patch.clear[index], patch.timestamps[index], index),
            reverse=True,
        )
        for index in clearest_first:
            of_pass = acquisitions[number[patch.timestamps[index]]]
            of_pass[patch.patch.id] = (*of_pass.get(patch.patch.id, ()), index)
    return [Pass(group[0], of_pass) for group, of_pass in zip(groups, acquisitions, strict=True)]
