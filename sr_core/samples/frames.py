"""Which dates a super-resolved date is made from: one rule for training samples and for inference."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_ROUNDING = 1e-6


def choose_frames(
    timestamps: Sequence[dt.datetime],
    clear_fraction: NDArray[np.floating],
    target: dt.datetime,
    *,
    frames: int,
    max_age_days: int,
    max_cloud: float,
) -> list[int]:
    """Indices into `timestamps` of the frames that show the ground as it was at `target`, latest first.

    A frame qualifies when it was taken at `target` or before, at most `max_age_days` calendar days
    earlier, and at most the share `max_cloud` of its ground is not clear (`clear_fraction`, shape (T,), in
    [0, 1], counts cloud and nodata alike). Of those the latest `frames` are taken. `timestamps` (naive UTC)
    may come in any order; of two frames with one timestamp the later index counts as later. Returns an
    empty list when none qualifies; fewer than `frames` are for the caller to pad and flag.
    """
    clear = np.asarray(clear_fraction, np.float64)
    if clear.shape != (len(timestamps),):
        raise ValueError(f"clear_fraction: found shape {clear.shape}, expected ({len(timestamps)},), one a timestamp")
    usable = [
        index
        for index, timestamp in enumerate(timestamps)
        if timestamp <= target
        and age_days(timestamp, target) <= max_age_days
        and clear[index] >= 1.0 - max_cloud - _ROUNDING
    ]
    usable.sort(key=lambda index: (timestamps[index], index), reverse=True)
    return usable[:frames]


def age_days(timestamp: dt.datetime, target: dt.datetime) -> int:
    """Calendar days (UTC) from a frame to the target: overpasses a few minutes apart do not change it."""
    return (target.date() - timestamp.date()).days
