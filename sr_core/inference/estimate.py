"""What making products will take, before it begins: windows, pixels, time and disk."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sr_core import BANDS, SCALE
from sr_core.errors import StorageError
from sr_core.inference.mosaic import Mosaic
from sr_core.inference.products import halo
from sr_core.inference.windows import windows
from sr_core.models.bundle import Precision, SuperResolver
from sr_core.models.normalization import Normalization
from sr_core.patches import Patch

BYTES = 2 * len(BANDS)
"""Of a pixel of a layer."""
FRAME_BYTES = BYTES + 2
"""Of a pixel of a frame, with its mask."""
OVERVIEWS = 4 / 3
COMPRESSED = 0.75
"""Of a product's size that DEFLATE leaves, on the safe side: 0.42 over the Okavango delta, 0.40 on the simulation."""
PROBE_PX = 96


@dataclass(frozen=True)
class Estimate:
    """The work of some dates."""

    dates: int = 0
    windows: int = 0
    network_px: int = 0
    """10 m pixels that the network takes in, halos included."""
    megapixels: float = 0.0
    """At 2.5 m."""
    product_bytes: int = 0
    """Of all dates, compressed and with overviews."""
    working_bytes: int = 0
    """Of frames and of the windows of one date, gone at the end."""
    seconds: float | None = None

    @property
    def disk_bytes(self) -> int:
        """What the disk must have room for."""
        return self.product_bytes + self.working_bytes

    def __add__(self, other: Estimate) -> Estimate:
        # regions are made one after the other
        return Estimate(
            self.dates + other.dates,
            self.windows + other.windows,
            self.network_px + other.network_px,
            self.megapixels + other.megapixels,
            self.product_bytes + other.product_bytes,
            max(self.working_bytes, other.working_bytes),
        )

    def timed(self, seconds_a_pixel: float) -> Estimate:
        """With the time that the network will take, by what `probe` measured."""
        return replace(self, seconds=self.network_px * seconds_a_pixel)

    def check(self, folder: Path) -> None:
        """Raises `StorageError` where the disk that `folder` lies on cannot hold the products."""
        free = shutil.disk_usage(folder).free
        if free < self.disk_bytes:
            raise StorageError(
                f"{folder}: found {_size(free)} free, expected {_size(self.disk_bytes)} for {self.dates} dates of"
                f" {self.megapixels / max(self.dates, 1):.0f} megapixels: ask for fewer dates or less ground, or choose"
                " another place"
            )

    def __str__(self) -> str:
        lasts = "" if self.seconds is None else f", about {_duration(self.seconds)}"
        return (
            f"{self.dates} dates, {self.megapixels:.1f} megapixels at 2.5 m in {self.windows} windows{lasts};"
            f" at most {_size(self.product_bytes)}, and {_size(self.working_bytes)} on the way"
        )


def estimate(patches: Sequence[Patch], dates: int, frames: int, resolver: SuperResolver, window_px: int) -> Estimate:
    """The work of `dates` of a region of these patches, for which `frames` passes are laid side by side.

    Counted as if every date saw all of the region.
    """
    if not dates:
        return Estimate()
    mosaic, buffered = Mosaic.of(patches), Mosaic.with_buffers(patches)
    cut = list(windows((slice(0, mosaic.rows), slice(0, mosaic.columns)), window_px))
    reach = 2 * halo(resolver)
    taken = sum((window.shape[0] + reach) * (window.shape[1] + reach) for window in cut)
    pixels = mosaic.rows * mosaic.columns
    fine = 2 if resolver.description.get("architecture", {}).get("uncertainty") else 1
    pieces = pixels * BYTES * (fine * SCALE**2 + 1)
    return Estimate(
        dates=dates,
        windows=dates * len(cut),
        network_px=dates * taken,
        megapixels=dates * pixels * SCALE**2 / 1e6,
        product_bytes=round(dates * (pieces + pixels * BYTES) * OVERVIEWS * COMPRESSED),
        working_bytes=pieces + frames * buffered.rows * buffered.columns * FRAME_BYTES,
    )


def probe(resolver: SuperResolver, window_px: int, precision: Precision) -> float:
    """Seconds that the network takes for a 10 m pixel on this machine, measured on a small window of noise."""
    side = min(window_px, PROBE_PX)
    frames = np.random.default_rng(0).integers(500, 2500, (resolver.frames, len(BANDS), side, side), dtype=np.uint16)
    clear = np.ones((resolver.frames, side, side), bool)
    shifts = np.full((resolver.frames, 2), 0.25, np.float32)
    place = Normalization((0.15,) * len(BANDS), (0.05,) * len(BANDS))
    taken = []
    for _ in range(2):  # the first also loads what the second finds
        started = time.perf_counter()
        resolver.predict(frames, clear, place, precision, shifts)
        taken.append(time.perf_counter() - started)
    return min(taken) / side**2


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{max(count / 1e6, 0.1):.1f} MB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
