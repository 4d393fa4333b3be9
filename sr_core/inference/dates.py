"""A rolling window over time: every clear pass over a region becomes a product, from itself and the frames before."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sr_core.patches import Patch
from sr_core.samples.frames import choose_frames
from sr_core.series import S2Series

PASS = dt.timedelta(minutes=30)
"""Acquisitions of a region closer than this belong to one pass: tiles of an orbit differ by seconds to minutes,
neighbouring orbits by 100 minutes."""


@dataclass(frozen=True)
class PatchDates:
    """What of a patch's series decides on dates."""

    patch: Patch
    timestamps: tuple[dt.datetime, ...]
    clear: NDArray[np.float64]
    """(T,) share of the patch that is clear."""
    product_ids: tuple[str, ...]

    @classmethod
    def of(cls, series: S2Series) -> PatchDates:
        clear = series.clear.mean(axis=(1, 2), dtype=np.float64)
        return cls(series.patch, tuple(series.timestamps), clear, tuple(series.product_ids))


@dataclass(frozen=True)
class Target:
    """A pass over a region, and what each patch that it saw clearly is super-resolved from."""

    timestamp: dt.datetime
    """The pass's first acquisition."""
    frames: Mapping[str, tuple[int, ...]]
    """Patch id to indices into its series, latest first."""

    @property
    def name(self) -> str:
        return f"{self.timestamp:%Y%m%dT%H%M%S}"


def find_targets(patches: Sequence[PatchDates], *, frames: int, max_age_days: int, max_cloud: float) -> list[Target]:
    """Every pass over a region at which at least one patch is clear, time ascending.

    A patch is clear where at most the share `max_cloud` of it is cloud or nodata; a cloudier one is left out of that
    pass. `frames`, `max_age_days` and `max_cloud` choose its earlier frames as in training (`choose_frames`).
    """
    found: list[Target] = []
    for timestamps in _passes(sorted({timestamp for patch in patches for timestamp in patch.timestamps})):
        chosen = {}
        for patch in patches:
            mine = [index for index, timestamp in enumerate(patch.timestamps) if timestamp in timestamps]
            if not mine:
                continue
            best = max(mine, key=lambda index: (patch.clear[index], patch.timestamps[index], index))
            stack = choose_frames(
                patch.timestamps,
                patch.clear,
                patch.timestamps[best],
                frames=frames,
                max_age_days=max_age_days,
                max_cloud=max_cloud,
            )
            if stack and patch.timestamps[stack[0]] == patch.timestamps[best]:
                chosen[patch.patch.id] = tuple(stack)
        if chosen:
            found.append(Target(min(timestamps), chosen))
    return found


def _passes(timestamps: Sequence[dt.datetime]) -> list[set[dt.datetime]]:
    passes: list[set[dt.datetime]] = []
    for timestamp in timestamps:
        if passes and timestamp - max(passes[-1]) <= PASS:
            passes[-1].add(timestamp)
        else:
            passes.append({timestamp})
    return passes
