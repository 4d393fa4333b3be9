"""A patch in windows: each is read with as much of its surroundings as the network looks at.

The result is that of the whole patch at once (to rounding), whatever the window's size; only the memory differs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from sr_core.models.bundle import Precision, SuperResolver
from sr_core.models.normalization import Normalization


@dataclass(frozen=True)
class Window:
    """A rectangle of low-resolution pixels: first row and column, and one past the last."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.top, self.bottom), slice(self.left, self.right)

    @property
    def shape(self) -> tuple[int, int]:
        return self.bottom - self.top, self.right - self.left

    def grow(self, pixels: int, shape: tuple[int, int]) -> Window:
        """This window with a border of `pixels`, cut where an image of `shape` ends."""
        return Window(
            max(0, self.top - pixels),
            max(0, self.left - pixels),
            min(shape[0], self.bottom + pixels),
            min(shape[1], self.right + pixels),
        )

    def inside(self, outer: Window, scale: int = 1) -> tuple[slice, slice]:
        """Where this window lies in an array that covers `outer` with `scale` pixels a low-resolution pixel."""
        top, left = (self.top - outer.top) * scale, (self.left - outer.left) * scale
        rows, columns = self.shape
        return slice(top, top + rows * scale), slice(left, left + columns * scale)


def windows(area: tuple[slice, slice], window_px: int) -> Iterator[Window]:
    """Windows of about equal size, at most `window_px` wide and high, that cover `area` once."""
    rows, columns = (_cut(side, window_px) for side in area)
    for top, bottom in rows:
        for left, right in columns:
            yield Window(top, left, bottom, right)


def super_resolve_window(
    resolver: SuperResolver,
    frames: NDArray[np.uint16],
    clear: NDArray[np.bool_],
    normalization: Normalization,
    window: Window,
    precision: Precision = "float32",
    shifts: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Reflectance (C,scale*h,scale*w) of a window of h x w pixels.

    frames (T,C,H,W) reflectance x 10000, latest first, and clear (T,H,W) cover the whole patch; shifts (T,2)
    are the frames' displacements, as `SuperResolver.predict` takes them.
    """
    outer = window.grow(resolver.receptive_field // 2, frames.shape[-2:])
    rows, columns = outer.slices
    image = resolver.predict(frames[..., rows, columns], clear[..., rows, columns], normalization, precision, shifts)
    return image[(slice(None), *window.inside(outer, resolver.scale))]


def _cut(side: slice, window_px: int) -> list[tuple[int, int]]:
    parts = max(1, math.ceil((side.stop - side.start) / window_px))
    edges = np.linspace(side.start, side.stop, parts + 1).round().astype(int).tolist()
    return list(pairwise(edges))
