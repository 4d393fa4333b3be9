"""Randomness as a pure function of keys and world coordinates.

Nothing here has a state: the same key at the same place gives the same number in whatever patch it is asked for, which
is what makes overlapping patches equal.
"""

from __future__ import annotations

import math
import random
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

Key = int | str
Numbers = NDArray[np.float64]
BSPLINE_STD = 0.479
"""Standard deviation that cubic B-spline interpolation in two dimensions leaves of unit white noise."""


def draws(*key: Key) -> random.Random:
    """A generator of the numbers that belong to `key`, the same on every platform."""
    return random.Random("/".join(map(str, key)))


def hashed(*words: Key | NDArray[Any]) -> NDArray[np.uint64]:
    """64 well mixed bits of each combination of words, which broadcast like arrays.

    Source of the mixing: Steele, Lea and Flood, Fast splittable pseudorandom number generators, 2014 (SplitMix64).
    """
    state: NDArray[np.uint64] = np.zeros(1, np.uint64)
    for word in words:
        number = zlib.crc32(word.encode()) if isinstance(word, str) else word
        bits = np.asarray(number).astype(np.int64).view(np.uint64)
        state = (state ^ bits) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return state


def uniform(*words: Key | NDArray[Any]) -> Numbers:
    """Numbers in [0, 1)."""
    return (hashed(*words) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normal(*words: Key | NDArray[Any]) -> NDArray[np.float32]:
    """Numbers of mean 0 and variance 1, near normal (the sum of eight bytes), within +-4.9."""
    bits = np.ascontiguousarray(hashed(*words))
    total = bits.view(np.uint8).reshape(*bits.shape, 8).sum(axis=-1, dtype=np.float32)
    return np.asarray((total - 8 * 127.5) / np.sqrt(8 * (256.0**2 - 1) / 12), np.float32)


def smooth_noise(y: Numbers, x: Numbers, wavelength: float, *key: Key) -> Numbers:
    """Smooth noise of mean 0 and variance about 1 at world coordinates y (rows) and x (columns), metres.

    Normal numbers on a lattice of half the wavelength, joined by cubic B-splines. Shape (len(y), len(x)).
    """
    rows, down = _spline_matrix(y, wavelength / 2)
    columns, across = _spline_matrix(x, wavelength / 2)
    lattice = normal(*key, rows[:, None], columns[None, :]).astype(np.float64)
    result: Numbers = down @ lattice @ across.T
    return result / BSPLINE_STD


def fractal_noise(
    y: Numbers, x: Numbers, wavelength: float, octaves: int, *key: Key, persistence: float = 0.5
) -> Numbers:
    """Sum of octaves of smooth noise: each has half the wavelength, `persistence` times the amplitude, of the last."""
    total = np.zeros((len(y), len(x)))
    for octave in range(octaves):
        total += persistence**octave * smooth_noise(y, x, wavelength / 2**octave, *key, octave)
    return total / math.sqrt(sum(persistence ** (2 * octave) for octave in range(octaves)))


def _spline_matrix(position: Numbers, step: float) -> tuple[NDArray[np.int64], Numbers]:
    cell = np.floor(position / step).astype(np.int64)
    t = position / step - cell
    first = int(cell.min()) - 1
    knots = np.arange(first, int(cell.max()) + 3)
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=1) / 6
    matrix = np.zeros((len(position), len(knots)))
    np.put_along_axis(matrix, (cell - 1 - first)[:, None] + np.arange(4), weights, axis=1)
    return knots, matrix
