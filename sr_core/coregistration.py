"""Co-registration of a Sentinel-2 series: by how much each pass is displaced, from the pictures themselves.

A pass is misregistered by a few metres as a whole (12 m at 95 % until 2021, 5 m since). Pairs of dates of a patch are
compared by phase correlation of their fine detail; from all pairs of all patches of a region follows one displacement a
pass, relative to the mean of the region's passes, which is nearer to the nominal grid than any one of them.

Sources: Kuglin and Hines, The phase correlation image alignment method, 1975; Guizar-Sicairos et al., Efficient
subpixel image registration algorithms, 2008 (evaluating the correlation by a matrix product).
"""

from __future__ import annotations

import datetime as dt
import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

FILE = "coregistration.json"
MAX_SHIFT_PX = 2.0
"""Larger displacements are not searched for: 20 m is more than any pass is specified to be off."""
COARSE_STEP, FINE_STEP = 0.1, 0.01
DETAIL_PX = 3.0
"""Detail finer than this many pixels is compared, each pixel relative to the contrast around it: fields that change
their brightness between dates keep their edges."""
MIN_CONTRAST = 0.002
"""Reflectance: flatter ground has no detail to compare."""
NEIGHBOURS = 3
"""A date is compared with this many clear dates before it: fields change little in that time."""
MIN_COMMON = 0.3
"""Share of a patch that both dates must show clearly."""
LEAST_RESIDUAL_PX = 0.02
ROUNDS = 8
MIN_CONFIDENCE = 0.25
"""Simulated images of different ground reach 0.1, of the same ground 0.6 and more: a displacement found with less is
not used."""
NON_RIGID_M = 2.5
"""Parts that disagree by more than a VHR pixel: no shift of the whole patch makes that good."""

Shift = tuple[float, float]
"""Rows and columns, in pixels: a pixel at p shows the ground at p + shift."""


class PairShift(NamedTuple):
    """Displacement of one date relative to another, as one patch shows it."""

    first: dt.datetime
    second: dt.datetime
    rows: float
    columns: float


@dataclass(frozen=True)
class Registration:
    """Where VHR lies over one patch, relative to the common grid of its Sentinel-2 frames.

    All NaN, and confidence 0, where too little clear ground is common to both.
    """

    rows_m: float
    columns_m: float
    """A VHR pixel at p shows the ground that Sentinel-2 has at p + (rows, columns), metres south and east."""
    confidence: float
    """Height of the correlation's peak, 0 to 1: 1 where all frequencies agree on the displacement."""
    spread_m: float
    """How much parts of the patch disagree: rms of their distances from the whole; NaN where fewer than two show."""

    @property
    def known(self) -> bool:
        return self.confidence >= MIN_CONFIDENCE

    @property
    def distance_m(self) -> float:
        return math.hypot(self.rows_m, self.columns_m)

    @property
    def rigid(self) -> bool:
        """Whether a shift of the whole patch describes it, as far as is known."""
        return not self.spread_m > NON_RIGID_M

    def to_json(self) -> dict[str, float]:
        return {
            "rows_m": self.rows_m,
            "columns_m": self.columns_m,
            "confidence": self.confidence,
            "spread_m": self.spread_m,
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, float]) -> Registration:
        return cls(raw["rows_m"], raw["columns_m"], raw["confidence"], raw["spread_m"])


UNKNOWN = Registration(math.nan, math.nan, 0.0, math.nan)


def pair_shifts(
    bands: NDArray[np.uint16], clear: NDArray[np.bool_], timestamps: Sequence[dt.datetime]
) -> list[PairShift]:
    """Displacements of the dates of a patch relative to the clear dates before them.

    bands (T,H,W,4) reflectance x 10000, clear (T,H,W), time ascending.
    """
    usable = [index for index in range(len(bands)) if clear[index].mean() >= MIN_COMMON]
    spectra = {index: np.fft.fft2(fine_detail(bands[index], clear[index]), axes=(0, 1)) for index in usable}
    found = []
    for place, index in enumerate(usable):
        for other in usable[max(0, place - NEIGHBOURS) : place]:
            if (clear[index] & clear[other]).mean() < MIN_COMMON:
                continue
            shift = _displacement(spectra[index], spectra[other])
            if shift is not None:
                found.append(PairShift(timestamps[index], timestamps[other], *shift))
    return found


def solve(pairs: Iterable[PairShift]) -> dict[dt.datetime, Shift]:
    """One displacement a date that fits all pairs best (least absolute residuals), their mean zero.

    Dates that no pair connects with others are absent. Source of the weights: iteratively reweighted least squares.
    """
    pairs = list(pairs)
    dates = sorted({date for pair in pairs for date in (pair.first, pair.second)})
    if not dates:
        return {}
    place = {date: index for index, date in enumerate(dates)}
    design = np.zeros((len(pairs), len(dates)))
    rows = np.arange(len(pairs))
    design[rows, [place[pair.first] for pair in pairs]] = 1
    design[rows, [place[pair.second] for pair in pairs]] = -1
    observed = np.array([(pair.rows, pair.columns) for pair in pairs])
    weights = np.ones(len(pairs))
    shifts: NDArray[np.floating] = np.zeros((len(dates), 2))
    for _ in range(ROUNDS):
        # of all solutions lstsq takes the smallest: that with mean zero over dates that are connected
        shifts = np.linalg.lstsq(design * weights[:, None], observed * weights[:, None], rcond=None)[0]
        residual = np.linalg.norm(design @ shifts - observed, axis=1)
        weights = 1 / np.sqrt(np.maximum(residual, LEAST_RESIDUAL_PX))
    return {date: (float(shift[0]), float(shift[1])) for date, shift in zip(dates, shifts, strict=True)}


def write_shifts(folder: Path, shifts: Mapping[str, Mapping[dt.datetime, Shift]]) -> None:
    """Write `coregistration.json`: region to date to displacement in 10 m pixels."""
    text = json.dumps(
        {region: {date.isoformat(): list(shift) for date, shift in dates.items()} for region, dates in shifts.items()},
        indent=1,
    )
    aside = folder / f".{FILE}.{os.getpid()}"
    aside.write_text(text, encoding="utf-8")
    aside.replace(folder / FILE)


def read_shifts(folder: Path) -> dict[str, dict[dt.datetime, Shift]]:
    """What `write_shifts` wrote; nothing where no region could be co-registered."""
    path = folder / FILE
    if not path.is_file():
        return {}
    found: dict[str, dict[dt.datetime, Shift]] = defaultdict(dict)
    for region, dates in json.loads(path.read_text(encoding="utf-8")).items():
        for date, (rows, columns) in dates.items():
            found[region][dt.datetime.fromisoformat(date)] = (rows, columns)
    return dict(found)


def fine_detail(bands: NDArray[np.uint16 | np.floating], clear: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Fine detail (H,W,4) of reflectance x 10000, in units of the contrast around each pixel; 0 where not clear."""
    known = clear[..., None].astype(np.float64)
    sigma = (DETAIL_PX, DETAIL_PX, 0)
    weight = gaussian_filter(known, sigma) + 1e-6
    image = bands / 10_000.0 * known
    detail = (bands / 10_000.0 - gaussian_filter(image, sigma) / weight) * known
    contrast = np.sqrt(gaussian_filter(detail**2, sigma) / weight)
    normal: NDArray[np.float64] = detail / (contrast + MIN_CONTRAST)
    return normal


def _displacement(first: NDArray[np.complex128], second: NDArray[np.complex128]) -> Shift | None:
    """Displacement of `first` relative to `second` (spectra (H,W,4)); None where the search ends at its edge."""
    cross = first * second.conj()
    power = (cross / (np.abs(cross) + 1e-9)).sum(axis=-1)
    count = round(MAX_SHIFT_PX / COARSE_STEP)
    coarse = np.arange(-count, count + 1) * COARSE_STEP
    rows, columns = correlation_peak(power, coarse, coarse)
    if max(abs(rows), abs(columns)) > MAX_SHIFT_PX - COARSE_STEP:
        return None
    fine = np.arange(-10, 11) * FINE_STEP
    rows, columns = correlation_peak(power, rows + fine, columns + fine)
    # the peak is where `second` has to move to lie on `first`; the ground that a pixel shows moves the other way
    return -rows, -columns


def correlation_peak(power: NDArray[np.complex128], rows: NDArray[np.floating], columns: NDArray[np.floating]) -> Shift:
    """Where the inverse Fourier transform of `power` is largest, among the given rows and columns (any fraction)."""
    height, width = power.shape
    down = np.exp(2j * np.pi * rows[:, None] * np.fft.fftfreq(height))
    across = np.exp(2j * np.pi * columns[:, None] * np.fft.fftfreq(width))
    correlation = (down @ power @ across.T).real
    row, column = np.unravel_index(int(correlation.argmax()), correlation.shape)
    return float(rows[row]), float(columns[column])
