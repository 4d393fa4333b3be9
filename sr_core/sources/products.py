"""What the name of a product tells: sensing time, level, processing baseline; and what the baseline changes.

Naming: Sentinel-2 Products Specification Document, `S2A_MSIL1C_20170401T082001_N0204_R121_T34KGD_...`.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sr_core.errors import DataError, SourceError

OFFSET = 1000
"""Added to all bands of L1C and L2A from processing baseline 04.00 on (25 January 2022), so that dark pixels
keep their noise below zero reflectance. Source: Copernicus, Sentinel-2 processing baseline 04.00."""
OFFSET_SINCE = "04.00"
UNKNOWN = "unknown"

_TIME = re.compile(r"(?<!\d)(\d{4})(-?)(\d{2})\2(\d{2})(?:T(\d{2}):?(\d{2}):?(\d{2}))?(?!\d)")
_LEVEL = re.compile(r"(?<![A-Z0-9])(?:MSI)?(L1C|L2A)(?![A-Z0-9])", re.IGNORECASE)
_BASELINE = re.compile(r"(?<![A-Z0-9])N(\d{2})(\d{2})(?![A-Z0-9])")


def sensing_time(name: str, path: object) -> dt.datetime:
    """The first date in `name`: YYYYMMDD, YYYY-MM-DD, or either with THHMMSS. Naive UTC.

    Raises `SourceError` naming `path` where there is none.
    """
    for year, _, month, day, hour, minute, second in _TIME.findall(name):
        try:
            return dt.datetime(int(year), int(month), int(day), int(hour or 0), int(minute or 0), int(second or 0))
        except ValueError:
            continue
    raise SourceError(f"{path}: no date found in the name {name!r}; expected YYYYMMDD, YYYYMMDDTHHMMSS or YYYY-MM-DD")


def level_of(name: str) -> str:
    """ "L1C" or "L2A", or "unknown"."""
    found = _LEVEL.search(name.replace("_", " "))
    return found[1].upper() if found else UNKNOWN


def baseline_of(name: str) -> str:
    """Processing baseline, such as "02.04", or "unknown"."""
    found = _BASELINE.search(name.replace("_", " "))
    return f"{found[1]}.{found[2]}" if found else UNKNOWN


def offset_of(baseline: str) -> int:
    """What products of this baseline add to reflectance x 10000; 0 where the baseline is unknown."""
    return OFFSET if baseline != UNKNOWN and baseline >= OFFSET_SINCE else 0


NEIGHBOURS = 5
"""A date is compared with this many before it: the ground changes little meanwhile, and one is likely clear."""
PAIR_TOLERANCE = 150.0
"""A pair of dates shows the offset if all four bands moved by it to within this, and no band's differences
between pixels spread (interquartile) by more. Uniform cirrus comes near it in the visible bands only: the
closest of some 20 000 real pairs had a spread of 84, 115 and 133 there, and of 309 in the near infrared."""
SIDE_TOLERANCE = 350.0
SIDE_DATES = 6
"""Two sides of a series show the offset if the darkest ends of all visible bands differ by it to within
`SIDE_TOLERANCE`, given this many dates on each: fewer may all be cloudy (up to 5 in a row were, in real series)."""
DARK_END = 5.0
"""Percentile of a date's pixels that stands for its dark end: bright clouds do not move it."""
AIR_ALONE = 600
"""Blue reflectance x 10000 at the top of the atmosphere over ground that reflects nothing, at the least: under the suns
and views of Sentinel-2 molecules alone scatter 0.07 to 0.09 of it at sea level, and a third of that in red."""
SAMPLE = 2000
NAMED_DATES = 8


def darkest(values: NDArray[np.int32], valid: NDArray[np.bool_]) -> NDArray[np.float64] | None:
    """Of each band, the lowest 1st percentile of a date; None without a date that is mostly valid.

    `values` (T, H, W, 4) are reflectance x 10000, `valid` (T, H, W). Clouds and haze only raise a date's.
    """
    dates = [frame[seen] for frame, seen in zip(values, valid, strict=True) if seen.mean() > 0.5]
    if not dates:
        return None
    low: NDArray[np.float64] = np.min([np.percentile(date, 1, axis=0) for date in dates], axis=0)
    return low


CURE = "Keep the official product names, or remove the offset from the files"


def check_offsets(
    values: NDArray[np.int32],
    valid: NDArray[np.bool_],
    timestamps: list[dt.datetime],
    baselines: list[str],
    name: str,
    *,
    certain: Sequence[bool] | None = None,
    cure: str = CURE,
) -> None:
    """Raise `DataError` where a series keeps, or has lost twice, the offset of baseline 04.00 on some of its dates.

    `values` (T, H, W, 4) are reflectance x 10000 after removal of the offset and before clipping. Dates whose offset is
    `certain` are not compared with each other; by default those of one known baseline are not. Clouds and haze raise
    single dates too, so a jump counts only where the ground keeps its structure, or where whole stretches of the series
    are raised. The error names the dates on both sides of the jump and ends with the `cure`.
    """
    kinds = baselines if certain is None else ["certain" if sure else UNKNOWN for sure in certain]
    if len(set(kinds)) == 1 and kinds[0] != UNKNOWN:
        return
    flat, seen = values.reshape(len(values), -1, 4), valid.reshape(len(values), -1)
    step = max(1, flat.shape[1] // SAMPLE)
    pixels = np.where(seen[:, ::step, None], flat[:, ::step], np.nan).astype(np.float32)
    enough = np.isfinite(pixels[..., 0]).mean(axis=1) > 0.1
    dates = [index for index in range(len(pixels)) if enough[index]]

    def jump(first: Sequence[int], second: Sequence[int], found: float) -> DataError:
        return DataError(
            f"{name}: reflectance x 10000 jumps by {found:+.0f} from {_told(first, timestamps, baselines)} to"
            f" {_told(second, timestamps, baselines)}; expected one radiometry: some dates seem to keep the offset of"
            f" {OFFSET} of processing baseline {OFFSET_SINCE} and later (or to have lost it twice). {cure}"
        )

    raised: set[tuple[int, int]] = set()  # pairs of dates, the lower first
    for place, late in enumerate(dates):
        for early in dates[max(0, place - NEIGHBOURS) : place]:
            difference = pixels[late] - pixels[early]
            difference = difference[np.isfinite(difference[:, 0])]
            if (kinds[early] == kinds[late] != UNKNOWN) or len(difference) < SAMPLE // 100:
                continue
            low, middle, high = np.percentile(difference, [25, 50, 75], axis=0)
            if (np.abs(np.abs(middle) - OFFSET) < PAIR_TOLERANCE).all() and (high - low < PAIR_TOLERANCE).all():
                raised.add((early, late) if middle.mean() > 0 else (late, early))
    if raised:
        lower, upper = (sorted(set(side)) for side in zip(*raised, strict=True))
        raise jump(lower, upper, OFFSET) if lower[0] < upper[0] else jump(upper, lower, -OFFSET)
    if not dates:
        return
    dark = np.nanpercentile(pixels[dates, :, :3], DARK_END, axis=1)
    for first, second in _sides([kinds[index] for index in dates]):
        if min(len(first), len(second)) < SIDE_DATES:
            continue
        step_up = dark[second].min(axis=0) - dark[first].min(axis=0)
        if (np.abs(np.abs(step_up) - OFFSET) < SIDE_TOLERANCE).all():
            raise jump([dates[i] for i in first], [dates[i] for i in second], float(step_up.mean()))


def _sides(kinds: list[str]) -> list[tuple[list[int], list[int]]]:
    """Ways to part a series in two where the offset may differ: by time, and by kind."""
    every = range(len(kinds))
    parts = [
        (list(every[:cut]), list(every[cut:]))
        for cut in every[1:]
        if kinds[cut - 1] != kinds[cut] or kinds[cut] == UNKNOWN
    ]
    for kind in sorted(set(kinds)):
        inside = [index for index in every if kinds[index] == kind]
        parts.append(([index for index in every if kinds[index] != kind], inside))
    return parts


def _told(indices: Sequence[int], timestamps: list[dt.datetime], baselines: list[str]) -> str:
    """Dates for a message: each of a few, the first and the last of many."""
    days = [str(timestamps[index].date()) for index in sorted(indices)]
    named = ", ".join(sorted({baselines[index] for index in indices}))
    listed = ", ".join(days) if len(days) <= NAMED_DATES else f"{days[0]} to {days[-1]} ({len(days)} dates)"
    return f"{listed} (baseline {named})"
