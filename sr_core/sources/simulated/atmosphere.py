"""Clouds, their shadows and haze, as functions of the day and the world."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from sr_core.radiometry.resample import Image
from sr_core.sources.simulated.noise import Key, Numbers, draws, fractal_noise, smooth_noise
from sr_core.sources.simulated.render import LIGHT_LOST, Sun

CLOUD_DEPTH = 0.25
"""A pixel is cloud from this optical depth on (22 % of the light comes from the cloud)."""
SHADOW_DEPTH = 0.25
"""A pixel is shadow where the cloud between it and the sun has at least this optical depth."""
CLOUD_COLOUR = np.array([0.60, 0.58, 0.58, 0.62], np.float32)
HAZE_COLOUR = np.array([1.0, 0.78, 0.58, 0.32], np.float32)
SMALLEST_M = 60.0
"""Wavelength of the finest octave of clouds."""
KINDS = {
    # share of cloudy days, cover, size in metres, optical depth per unit of noise
    "cumulus": (0.42, (0.04, 0.35), (700.0, 1900.0), (3.5, 6.0)),
    "broken": (0.26, (0.35, 0.80), (2000.0, 5000.0), (2.5, 4.5)),
    "thin": (0.10, (0.40, 0.90), (4000.0, 8000.0), (0.25, 0.6)),
    "overcast": (0.22, (0.93, 0.999), (4000.0, 8000.0), (2.0, 4.0)),
}


@dataclass(frozen=True)
class Clouds:
    """The clouds of one day: how much of the sky they cover, how large, dense and high they are."""

    key: tuple[Key, ...]
    cover: float
    size: float
    density: float
    height: float

    @classmethod
    def of(cls, *key: Key) -> Clouds:
        rng = draws(*key, "clouds")
        shares = [kind[0] for kind in KINDS.values()]
        _, cover, size, density = rng.choices(tuple(KINDS.values()), shares)[0]
        return cls(key, rng.uniform(*cover), rng.uniform(*size), rng.uniform(*density), rng.uniform(700, 2400))

    def depth(self, y: Numbers, x: Numbers) -> Image:
        """Optical depth (len(y), len(x)) above world coordinates, metres."""
        octaves = max(1, round(math.log2(self.size / SMALLEST_M)))
        # large systems thin and thicken, so that the cover differs from place to place
        weather = smooth_noise(y, x, 15_000.0, *self.key, "weather")
        noise = fractal_noise(y, x, self.size, octaves, *self.key, "field", persistence=0.55)
        threshold = NormalDist().inv_cdf(1.0 - self.cover)
        return np.asarray(self.density * np.maximum(noise + 0.35 * weather - threshold, 0.0), np.float32)

    def shadow_depth(self, y: Numbers, x: Numbers, sun: Sun) -> Image:
        """Optical depth between the ground and the sun: the clouds' own, displaced away from the sun."""
        away = self.height / math.tan(sun.elevation)
        down, right = sun.toward
        return self.depth(y - away * down, x + away * right)

    def over(self, land: Image, y: Numbers, x: Numbers, sun: Sun) -> tuple[Image, NDArray[np.bool_], NDArray[np.bool_]]:
        """Land (4, H, W) as seen below the clouds, the cloud mask and the mask of shadow outside it, (H, W)."""
        depth, shade = self.depth(y, x), self.shadow_depth(y, x, sun)
        opacity = 1 - np.exp(-depth)
        lit = land * (1 - LIGHT_LOST[:, None, None] * (1 - np.exp(-shade)))
        # thick clouds are brighter, their billows a little uneven
        bright = 0.80 + 0.35 * (1 - np.exp(-depth / 3.0))
        seen = lit * (1 - opacity) + CLOUD_COLOUR[:, None, None] * bright * opacity
        cloud = depth >= CLOUD_DEPTH
        return seen.astype(np.float32), cloud, (shade >= SHADOW_DEPTH) & ~cloud


def with_haze(land: Image, y: Numbers, x: Numbers, *key: Key) -> Image:
    """Land (4, H, W) behind the haze that atmospheric correction left."""
    level = draws(*key, "haze").uniform(0.001, 0.010)
    haze = np.asarray(level * np.exp(0.5 * smooth_noise(y, x, 9_000.0, *key, "haze")), np.float32)
    path = HAZE_COLOUR[:, None, None] * haze
    hazy: Image = land * (1 - 1.5 * path) + path
    return hazy
