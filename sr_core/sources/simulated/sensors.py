"""The two instruments: Sentinel-2 at 10 m, and a VHR satellite at 2.5 m that flies two hours later.

Both look at the same land through their own point-spread function, geometry, sun, clouds and radiometry.
"""

from __future__ import annotations

import datetime as dt
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate1d, map_coordinates, spline_filter
from scipy.special import ive

from sr_core import SCALE
from sr_core.config import SimulatedSource
from sr_core.patches import S2_GSD, VHR_GSD, Patch
from sr_core.radiometry.resample import Image, degrade
from sr_core.sources.simulated.atmosphere import Clouds, with_haze
from sr_core.sources.simulated.noise import draws, normal, smooth_noise
from sr_core.sources.simulated.render import Raster, Scene, Sun

S2_MTF = (0.32, 0.31, 0.29, 0.26)
"""Of blue, green, red and near infrared at the Nyquist frequency of 10 m pixels."""
S2_HOUR, VHR_HOUR = 10.5, 12.5
"""Local solar time of the passes."""
S2_TIME, VHR_TIME = dt.time(10, 30, 31), dt.time(12, 30, 7)
"""UTC in the timestamps."""
BLOCK_M = 80.0
"""Sentinel-2 pixels are made in blocks of the world: matrix products round differently in differently cut images."""
SKIES = 12
"""Passes among which the share of cloudy ones is kept."""

VHR_MTF = 0.25
"""At the Nyquist frequency of 2.5 m pixels, the detector's own footprint included."""
DETECTOR_MTF = 2 / math.pi
"""Of a square pixel at its Nyquist frequency: the rendered coverage has it already."""
VHR_TILE_M = 10_000.0
RADIANCE_SCALE = 100.0
SOLAR_IRRADIANCE = np.array([1950.0, 1840.0, 1550.0, 1050.0])
"""At the top of the atmosphere, W m-2 um-1 (rounded from Thuillier et al., Solar Physics 214, 2003)."""
TRANSMISSION = np.array([0.80, 0.84, 0.88, 0.92])
PATH_RADIANCE = np.array([25.0, 14.0, 6.5, 2.5])
WARP_SHARE = 0.45
"""Of the orthorectification error's rms that varies inside a tile; the rest is one shift."""
SPLINE_REACH_PX = 16
"""Beyond this distance an edge no longer shows through a cubic spline's prefilter."""
LIMIT = 3.0
"""Normal misregistrations are cut at this many times their rms."""


@dataclass(frozen=True)
class S2Frame:
    """One pass over a patch: `bands` uint16 (H, W, 4), truth at 2.5 m uint16 (4H, 4W, 4), masks bool (H, W). The truth
    is empty where the configuration wants none.

    A pixel at p shows the ground at p + `shift` (rows, columns; 10 m pixels).
    """

    timestamp: dt.datetime
    bands: NDArray[np.uint16]
    truth: NDArray[np.uint16]
    cloud: NDArray[np.bool_]
    shadow: NDArray[np.bool_]
    shift: tuple[float, float]


@dataclass(frozen=True)
class VhrFrame:
    """One acquisition of a tile over a patch: `bands` uint16 (4H, 4W, 4), masks bool (4H, 4W).

    A pixel at p shows the ground at p + `shift` (rows, columns; metres, mean over the patch).
    """

    timestamp: dt.datetime
    tile: str
    bands: NDArray[np.uint16]
    cloud: NDArray[np.bool_]
    shadow: NDArray[np.bool_]
    shift: tuple[float, float]


def s2_days(source: SimulatedSource, start: dt.date, end: dt.date) -> list[dt.date]:
    """Days with a pass, both ends included."""
    phase = draws(source.seed, "orbit").randrange(source.revisit_days)
    first = start.toordinal() + (phase - start.toordinal()) % source.revisit_days
    return [dt.date.fromordinal(day) for day in range(first, end.toordinal() + 1, source.revisit_days)]


def s2_shift(source: SimulatedSource, day: dt.date) -> tuple[float, float]:
    """Misregistration of a pass (rows, columns), 10 m pixels."""
    rng = draws(source.seed, "jitter", day.toordinal())
    return _limited(rng.gauss(0, 1)) * source.jitter_px, _limited(rng.gauss(0, 1)) * source.jitter_px


def s2_clouds(source: SimulatedSource, day: dt.date) -> Clouds | None:
    """The clouds of a pass, or None on a clear day.

    The skies of each run of passes are dealt out like cards, so that a season has about its share of clouds.
    """
    run, place = divmod(day.toordinal() // source.revisit_days, SKIES)
    rng = draws(source.seed, "s2 sky", run)
    cards = [(card + rng.random()) / SKIES for card in range(SKIES)]
    rng.shuffle(cards)
    return Clouds.of(source.seed, "s2", day.toordinal()) if cards[place] < source.cloudy_share else None


def vhr_tile(patch: Patch) -> tuple[int, int]:
    """Square of the world that holds the centre of the patch's cell; all of the patch is taken from that tile."""
    west, south, east, north = patch.cell
    return math.floor((west + east) / 2 / VHR_TILE_M), math.floor((south + north) / 2 / VHR_TILE_M)


def margin_m(source: SimulatedSource) -> float:
    """How far outside a patch the land must be rendered for both instruments, metres."""
    return max(
        S2_GSD * _s2_reach_px(source),
        VHR_GSD * SPLINE_REACH_PX + 1.5 * LIMIT * source.vhr_ortho_error_m,
    )


def acquire_s2(source: SimulatedSource, scene: Scene, patch: Patch, day: dt.date) -> S2Frame:
    """A pass over a patch whose surroundings (`margin_m`) the scene covers."""
    seed, ordinal = source.seed, day.toordinal()
    sun, shift = Sun.at(day, S2_HOUR), s2_shift(source, day)
    land = with_haze(scene.reflectance(day, sun), scene.raster.y, scene.raster.x, seed, "s2", ordinal)
    grid = Raster.of(patch.bounds, S2_GSD)
    seen = np.stack(
        [
            _sample_blocks(image, scene.raster, grid, mtf, shift, _s2_reach_px(source))
            for image, mtf in zip(land, S2_MTF, strict=True)
        ]
    )
    cloud = shadow = np.zeros(grid.shape, bool)
    clouds = s2_clouds(source, day)
    if clouds is not None:
        seen, cloud, shadow = clouds.over(seen, grid.y, grid.x, sun)
    rows, columns = grid.lattice
    noise = normal(seed, "s2 noise", ordinal, np.arange(4)[:, None, None], rows[None], columns[None])
    truth = np.empty((0, 0, 4), np.uint16)
    if source.truth:
        truth = _digital(land[(slice(None), *_window(scene.raster, Raster.of(patch.bounds, VHR_GSD)))], 10_000.0)
    return S2Frame(
        dt.datetime.combine(day, S2_TIME),
        _digital(seen + np.float32(source.noise) * noise, 10_000.0),
        truth,
        cloud,
        shadow,
        shift,
    )


def acquire_vhr(source: SimulatedSource, scene: Scene, patch: Patch, day: dt.date) -> VhrFrame:
    """An acquisition of the patch's tile; radiance × RADIANCE_SCALE, W m-2 sr-1 um-1."""
    seed, ordinal, tile = source.seed, day.toordinal(), vhr_tile(patch)
    sun = Sun.at(day, VHR_HOUR)
    rng = draws(seed, "vhr", ordinal, *tile)
    grid = Raster.of(patch.bounds, VHR_GSD)
    land = scene.reflectance(day, sun)
    top, left = (part.start for part in _window(scene.raster, grid))
    error = source.vhr_ortho_error_m
    shift_m = [_limited(rng.gauss(0, 1)) * error * math.sqrt(1 - WARP_SHARE**2) for _ in range(2)]
    warps = [smooth_noise(grid.y, grid.x, 6_000.0, seed, "ortho", ordinal, *tile, axis) for axis in (0, 1)]
    moved = [at + error * WARP_SHARE * np.clip(warp, -LIMIT, LIMIT) for at, warp in zip(shift_m, warps, strict=True)]
    where = np.stack(
        [
            moved[0] / VHR_GSD + top + np.arange(grid.shape[0])[:, None],
            moved[1] / VHR_GSD + left + np.arange(grid.shape[1])[None, :],
        ]
    )
    optics = _discrete_gaussian(VHR_MTF / DETECTOR_MTF)
    seen = np.empty((4, *grid.shape), np.float32)
    for band, image in enumerate(land):
        blurred = correlate1d(correlate1d(image.astype(np.float64), optics, axis=0), optics, axis=1)
        map_coordinates(spline_filter(blurred, order=3), where, output=seen[band], order=3, prefilter=False)
    cloud = shadow = np.zeros(grid.shape, bool)
    if rng.random() < source.vhr_cloudy_share:
        clouds = Clouds.of(seed, "vhr", ordinal)
        seen, cloud, shadow = clouds.over(seen, grid.y, grid.x, sun)
    rows, columns = grid.lattice
    radiance = np.empty_like(seen)
    common = math.exp(rng.gauss(0, 0.05))
    for band in range(4):
        gain = SOLAR_IRRADIANCE[band] * TRANSMISSION[band] * math.sin(sun.elevation) / math.pi
        gain *= common * math.exp(rng.gauss(0, 0.03))
        offset = PATH_RADIANCE[band] * math.exp(rng.gauss(0, 0.12))
        noise = np.float32(source.noise) * normal(seed, "vhr noise", ordinal, band, rows, columns)
        radiance[band] = np.float32(gain) * (seen[band] + noise) + np.float32(offset)
    return VhrFrame(
        dt.datetime.combine(day, VHR_TIME),
        f"T{tile[0]}_{tile[1]}",
        _digital(radiance, RADIANCE_SCALE),
        cloud,
        shadow,
        (float(moved[0].mean()), float(moved[1].mean())),
    )


def _s2_reach_px(source: SimulatedSource) -> int:
    return 3 + math.ceil(LIMIT * source.jitter_px)


def _sample_blocks(
    image: Image, raster: Raster, grid: Raster, mtf: float, shift: tuple[float, float], reach: int
) -> Image:
    """Degrade `image`, which lies on `raster`, onto the 10 m pixels of `grid`, one block of the world at a time."""
    size = round(BLOCK_M / S2_GSD)
    lead = math.ceil(reach / size) * size - reach
    side = (size + 2 * reach) * SCALE
    start = lead * SCALE
    windows = np.lib.stride_tricks.sliding_window_view(image, (side, side))
    windows = windows[start :: size * SCALE, start :: size * SCALE]
    blocks = degrade(windows, SCALE, mtf, shift)[..., reach : reach + size, reach : reach + size]
    down, across = blocks.shape[:2]
    whole = blocks.swapaxes(1, 2).reshape(down * size, across * size)
    top = round((raster.north - grid.north) / S2_GSD) - lead - reach
    left = round((grid.west - raster.west) / S2_GSD) - lead - reach
    return whole[top : top + grid.shape[0], left : left + grid.shape[1]]


def _discrete_gaussian(mtf: float) -> NDArray[np.float64]:
    """Kernel whose transfer function falls to `mtf` at the Nyquist frequency of its own grid.

    A sampled Gaussian this narrow would not. Source: Lindeberg, Scale-space for discrete signals, 1990.
    """
    kernel = ive(np.arange(-6, 7), -math.log(mtf) / 2)
    return np.asarray(kernel / kernel.sum(), np.float64)


def _window(raster: Raster, grid: Raster) -> tuple[slice, slice]:
    """Rows and columns of `grid` in `raster`, which has the same pixels."""
    top, left = round((raster.north - grid.north) / grid.gsd), round((grid.west - raster.west) / grid.gsd)
    return slice(top, top + grid.shape[0]), slice(left, left + grid.shape[1])


def _digital(image: Image, scale: float) -> NDArray[np.uint16]:
    """(4, H, W) to whole numbers (H, W, 4); 0 is left for nodata."""
    numbers = np.clip(np.rint(image * np.float32(scale)), 1, 65_535).astype(np.uint16)
    return np.ascontiguousarray(np.moveaxis(numbers, 0, -1))


def _limited(value: float) -> float:
    return min(LIMIT, max(-LIMIT, value))
