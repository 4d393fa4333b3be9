"""Dates on which a region's clear ground jumps by the offset of processing baseline 04.00, whatever they say they are.

From that baseline on, products hold reflectance x 10000 + 1000; in some archives items have lost the offset, have kept
it, or say the wrong thing of themselves. Sources check what they read, clouds and all; here the masks are known, and
all patches of a region speak for it.
"""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sr_core.errors import DataError
from sr_core.sources.products import OFFSET

BACK = 3
"""A date is compared with this many kept ones before it: of a long gap or a harvest one is likely free."""
TOLERANCE = 300.0
"""A jump: the medians of all four bands move by the offset to within this. On the clear pixels of real series (86 kept
dates of three places, 240 pairs) all bands together never moved by more than 435."""
SAMPLE = 2000
"""Pixels of a patch that are compared, about."""
LEAST = 100
"""Pixels, clear on both dates, below which a pair says nothing."""
TOLD = 5
"""Jumps that an error names."""

Steps = Mapping[str, NDArray[np.int64] | NDArray[np.float64]]
"""Of one patch: `early` and `late` (N,) microseconds since 1970, `change` (N, 4) in reflectance x 10000."""


def steps_between(
    bands: NDArray[np.uint16], clear: NDArray[np.bool_], kept: Sequence[int], timestamps: Sequence[dt.datetime]
) -> Steps:
    """By how much each kept date differs from those before it, over pixels that are clear on both.

    `bands` (T, H, W, 4) and `clear` (T, H, W); `kept` are indices along T in the order of time. The changes are medians
    over at most about `SAMPLE` pixels of a regular grid.
    """
    stride = max(1, int(np.sqrt(clear[0].size / SAMPLE))) if len(clear) else 1
    grid = (slice(stride // 2, None, stride),) * 2
    pixels = {index: bands[index][grid].astype(np.int32) for index in kept}
    rows = []
    for place, late in enumerate(kept):
        for early in kept[max(0, place - BACK) : place]:
            both = clear[early][grid] & clear[late][grid]
            if both.sum() >= LEAST:
                rows.append((early, late, np.median(pixels[late][both] - pixels[early][both], axis=0)))
    moments = np.array(timestamps, "datetime64[us]").astype(np.int64)
    return {
        "early": moments[[early for early, _, _ in rows]] if rows else np.zeros(0, np.int64),
        "late": moments[[late for _, late, _ in rows]] if rows else np.zeros(0, np.int64),
        "change": np.array([change for _, _, change in rows], np.float64).reshape(-1, bands.shape[-1]),
    }


def refuse_jumps(region: str, patches: Sequence[Steps]) -> None:
    """Raise `DataError` naming the dates where the median patch of a region jumps by the offset."""
    changes: dict[tuple[int, int], list[NDArray[np.float64]]] = defaultdict(list)
    for steps in patches:
        for early, late, change in zip(steps["early"].tolist(), steps["late"].tolist(), steps["change"], strict=True):
            changes[early, late].append(np.asarray(change, np.float64))
    jumps = []
    # the closest dates first
    for (early, late), found in sorted(changes.items(), key=lambda pair: (pair[0][1] - pair[0][0], pair[0])):
        median = np.median(found, axis=0)
        # all bands up, or all down
        if (np.abs(median - OFFSET) < TOLERANCE).all() or (np.abs(median + OFFSET) < TOLERANCE).all():
            jumps.append(f"{median.mean():+.0f} from {_day(early)} to {_day(late)}")
    if jumps:
        more = f" (and {len(jumps) - TOLD} more)" if len(jumps) > TOLD else ""
        raise DataError(
            f"region {region}: the median of clear Sentinel-2 pixels, reflectance x 10000, jumps by"
            f" {'; '.join(jumps[:TOLD])}{more}; expected one radiometry: some dates seem to keep the offset of"
            f" {OFFSET} of processing baseline 04.00 and later, or to have lost it twice. Leave out these dates, or"
            " correct what the source says of their offset"
        )


def _day(microseconds: int) -> str:
    return str(np.datetime64(microseconds, "us").astype("datetime64[D]"))
