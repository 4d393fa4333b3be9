"""The 2.5 m reflectance of a date: static layers rasterised once, then evaluated for a day and a sun.

A pixel is a mixture of the faces that cover it (sixteen samples a pixel), so edges lie where the polygons have them and
not on the grid. Crowns and houses carry heights, from which shadows and the light on crowns follow.
"""

from __future__ import annotations

import datetime as dt
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rasterio.features import rasterize
from rasterio.transform import Affine
from scipy.ndimage import maximum_filter
from scipy.sparse import csr_array

from sr_core.radiometry.resample import Image
from sr_core.sources.simulated.crops import ROOFS, Surfaces, tree_spectra
from sr_core.sources.simulated.landscape import Bounds, Landscape
from sr_core.sources.simulated.noise import Numbers, fractal_noise, normal, smooth_noise

LATITUDE = math.radians(48.0)
"""Of the simulated farmland, whatever UTM zone it lies in: a patch's own would differ between neighbours."""
SAMPLES = 4
"""Of coverage, along each side of a pixel."""
LIGHT_LOST = np.array([0.52, 0.58, 0.62, 0.66], np.float32)
"""Share of the light that a cast shadow takes, by band: what remains is skylight, which is blue."""
PENUMBRA_M = 1.2
SHADOW_REACH_M = 70.0
"""Longest shadow that matters: that of the highest tree (19 m) on the shortest day."""


@dataclass(frozen=True)
class Sun:
    """Azimuth (from north, clockwise) and elevation, radians."""

    azimuth: float
    elevation: float

    @classmethod
    def at(cls, day: dt.date, hour: float) -> Sun:
        """Position at `hour` of local solar time."""
        declination = math.radians(23.44) * math.sin(2 * math.pi * (day.timetuple().tm_yday - 81) / 365.25)
        angle = math.radians(15.0) * (hour - 12.0)
        level = math.cos(declination) * math.cos(angle)
        up = math.sin(LATITUDE) * math.sin(declination) + math.cos(LATITUDE) * level
        east = -math.cos(declination) * math.sin(angle)
        north = math.cos(LATITUDE) * math.sin(declination) - math.sin(LATITUDE) * math.cos(declination) * math.cos(
            angle
        )
        return cls(math.atan2(east, north) % (2 * math.pi), math.asin(up))

    @property
    def toward(self) -> tuple[float, float]:
        """Horizontal unit vector to the sun: (rows southward, columns eastward)."""
        return -math.cos(self.azimuth), math.sin(self.azimuth)


@dataclass(frozen=True)
class Raster:
    """A north-up grid: its north-west corner (metres), pixel size and shape."""

    west: float
    north: float
    gsd: float
    shape: tuple[int, int]

    @classmethod
    def of(cls, bounds: Bounds, gsd: float) -> Raster:
        west, south, east, north = bounds
        return cls(west, north, gsd, (round((north - south) / gsd), round((east - west) / gsd)))

    @property
    def y(self) -> Numbers:
        """World coordinates of the pixel centres, rows."""
        return np.asarray(self.north - self.gsd * (np.arange(self.shape[0]) + 0.5), np.float64)

    @property
    def x(self) -> Numbers:
        return np.asarray(self.west + self.gsd * (np.arange(self.shape[1]) + 0.5), np.float64)

    @property
    def lattice(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """World numbers of the pixels, as a column (rows) and a row (columns) that broadcast."""
        return np.floor(self.y / self.gsd).astype(np.int64)[:, None], np.floor(self.x / self.gsd).astype(np.int64)[None]


class Scene:
    """A landscape on a raster of 2.5 m."""

    def __init__(self, seed: int, land: Landscape, raster: Raster) -> None:
        self.seed, self.raster = seed, raster
        self.surfaces = Surfaces(seed, land.faces)
        labels = self._labels(land)
        self.coverage, main = _coverage(labels, len(land.faces) + 1)
        del labels
        self.patches = (0.8 * fractal_noise(raster.y, raster.x, 260.0, 4, seed, "patches")).astype(np.float32)
        self.rows = self._rows(land, main)
        self.grain = normal(seed, "grain", *raster.lattice)
        self.crumbs = smooth_noise(raster.y, raster.x, 16.0, seed, "crumbs").astype(np.float32)
        self._plant(land)

    def _labels(self, land: Landscape) -> NDArray[np.int32]:
        """Number of the face at each sample, 0 for none."""
        rows, columns = (SAMPLES * size for size in self.raster.shape)
        step = self.raster.gsd / SAMPLES
        shapes = [
            ({"type": "Polygon", "coordinates": [np.vstack([face.ring, face.ring[:1]]).tolist()]}, number)
            for number, face in enumerate(land.faces, start=1)
        ]
        transform = Affine(step, 0.0, self.raster.west, 0.0, -step, self.raster.north)
        if not shapes:
            return np.zeros((rows, columns), np.int32)
        labels: NDArray[np.int32] = rasterize(shapes, (rows, columns), transform=transform, dtype="int32")
        return labels

    def _rows(self, land: Landscape, main: NDArray[np.int32]) -> Image:
        """Drill rows and tramlines along each field's axis."""
        faces = land.faces
        origin = np.array([(0.0, 0.0), *(face.ring[0] for face in faces)])
        angle = np.array([0.0, *(face.axis + math.pi / 2 for face in faces)])
        keys = np.array([0, *(face.key for face in faces)], np.int64)
        fields = np.array([False, *(face.is_parcel for face in faces)])
        where = np.flatnonzero(fields[main])
        label = main.ravel()[where]
        row, column = np.divmod(where, self.raster.shape[1])
        across = (self.raster.x[column] - origin[label, 0]) * np.cos(angle)[label]
        across += (self.raster.y[row] - origin[label, 1]) * np.sin(angle)[label]
        pattern = np.zeros(main.size, np.float32)
        width = (4.5 + 4.0 * (keys % 7) / 7)[label]
        at = across / width
        cell = np.floor(at).astype(np.int64)
        t = at - cell
        t = t * t * (3 - 2 * t)
        here, there = (normal(self.seed, "rows", keys[label], cell + step) for step in (0, 1))
        tramline = np.clip(1.6 - np.abs((across + 7.0) % 24.0 - 12.0), 0, 1)
        pattern[where] = here * (1 - t) + there * t - 1.6 * tramline
        return pattern.reshape(main.shape)

    def _plant(self, land: Landscape) -> None:
        """Heights of houses and trees, and where crowns are: `canopy` share, and `wooded` pixels with their light."""
        faces = land.faces
        heights = np.array([0.0, *(face.height for face in faces)])
        built = (self.coverage @ heights.astype(np.float32)).reshape(self.raster.shape)
        treeless = np.array([0.0, *(float(face.surface in (*ROOFS, "yard")) for face in faces)], np.float32)
        canopy, crown, tone, conifer = _crowns(land.trees, self.raster, self.seed)
        canopy *= 1 - (self.coverage @ treeless).reshape(self.raster.shape)
        standing = np.array([0.0, *(float(face.height > 0) for face in faces)], np.float32)
        walls = (self.coverage @ standing).reshape(self.raster.shape)
        roof = built / np.maximum(walls, 1e-6)
        self.solid = np.maximum(walls, canopy)
        top = np.where(walls > 0, roof, crown * (canopy > 0))
        self.height = np.asarray(self.solid * top, np.float32)
        # an edge pixel throws its share of the shadow of the full height
        self.top = maximum_filter(top.astype(np.float32), 3)
        self.wooded = np.flatnonzero(canopy)
        self.canopy = canopy.ravel()[self.wooded]
        self.tone, self.conifer = tone.ravel()[self.wooded], conifer.ravel()[self.wooded]
        down, right = np.gradient(self.height, self.raster.gsd)
        self.slope = np.stack([np.clip(g.ravel()[self.wooded], -1.4, 1.4) for g in (down, right)])
        self.highest = float(self.top.max(initial=0.0))

    def reflectance(self, day: dt.date, sun: Sun) -> Image:
        """Reflectance (4, H, W) of the land in that light, without an atmosphere."""
        shape = self.raster.shape
        mixed = self.coverage @ self.surfaces.state(day, sun.azimuth)
        texture = 1 + mixed[:, 8] * self.rows.ravel()
        texture += mixed[:, 9] * self.grain.ravel() + mixed[:, 10] * self.crumbs.ravel()
        bands = np.empty((4, mixed.shape[0]), np.float32)
        for band in range(4):
            np.multiply(self.patches.ravel(), mixed[:, 4 + band], out=bands[band])
            bands[band] += mixed[:, band]
            bands[band] *= texture
        spectra = tree_spectra(self.seed, day).astype(np.float32)
        light = self._light_on_crowns(sun) * self.tone
        for band in range(4):
            crown = (spectra[0, band] * (1 - self.conifer) + spectra[1, band] * self.conifer) * light
            bands[band, self.wooded] += self.canopy * (crown - bands[band, self.wooded])
        shadow = self.shadow(sun).ravel()
        for band in range(4):
            bands[band] *= 1 - LIGHT_LOST[band] * shadow
        return np.clip(bands, 0.002, 1.2).reshape(4, *shape)

    def _light_on_crowns(self, sun: Sun) -> NDArray[np.float32]:
        toward = sun.toward
        down, right = self.slope
        # cosine of incidence on the crown's surface, relative to level ground
        facing = math.sin(sun.elevation) - math.cos(sun.elevation) * (down * toward[0] + right * toward[1])
        facing = facing / np.sqrt(1 + down**2 + right**2) / math.sin(sun.elevation)
        return np.asarray(0.35 + 0.75 * np.clip(facing, 0.0, 1.5), np.float32)

    def shadow(self, sun: Sun) -> Image:
        """Share of the sun that trees and houses take from each pixel, (H, W) in [0, 1].

        Follows the ray to the sun over the height map, a pixel at a time.
        """
        rise = self.raster.gsd * math.tan(sun.elevation)
        down, right = sun.toward
        major = max(abs(down), abs(right))
        rise, down, right = rise / major, down / major, right / major
        steps = int(self.highest / rise) + 1
        around = steps + 1
        top, solid = np.pad(self.top, around), np.pad(self.solid, around)
        shadow = np.zeros_like(self.height)
        for step in range(1, steps + 1):
            at = around + step * down, around + step * right
            blocked = _looked_up(top, at, shadow.shape)
            blocked -= np.float32(step * rise)
            blocked -= self.height
            blocked *= np.float32(1 / PENUMBRA_M)
            np.clip(blocked, 0.0, 1.0, out=blocked)
            blocked *= _looked_up(solid, at, shadow.shape)
            np.maximum(shadow, blocked, out=shadow)
        return shadow


def _looked_up(image: Image, at: tuple[float, float], shape: tuple[int, int]) -> Image:
    """A window of an image from row and column `at` on; at least one of them is whole, the other is interpolated."""
    y, x = math.floor(at[0] + 1e-6), math.floor(at[1] + 1e-6)
    part = max(at[0] - y, 0.0), max(at[1] - x, 0.0)
    here = image[y : y + shape[0], x : x + shape[1]]
    further = (1, 0) if part[0] > part[1] else (0, 1)
    y, x = y + further[0], x + further[1]
    there = image[y : y + shape[0], x : x + shape[1]]
    weight = np.float32(max(part))
    return (np.float32(1) - weight) * here + weight * there


def _coverage(labels: NDArray[np.int32], faces: int) -> tuple[csr_array, NDArray[np.int32]]:
    """Share of each face in each pixel as a sparse matrix (pixels, faces), and the face that covers most of it."""
    rows, columns = labels.shape[0] // SAMPLES, labels.shape[1] // SAMPLES
    samples = labels.reshape(rows, SAMPLES, columns, SAMPLES).swapaxes(1, 2).reshape(rows * columns, SAMPLES**2)
    main = samples[:, 0].copy()
    mixed = np.flatnonzero((samples != main[:, None]).any(axis=1))
    pairs = mixed[:, None].astype(np.int64) * faces + samples[mixed]
    found, count = np.unique(pairs, return_counts=True)
    pixel, face = np.divmod(found, faces)
    order = np.argsort(count, kind="stable")
    main[pixel[order]] = face[order]
    pure = np.ones(len(main), bool)
    pure[mixed] = False
    pixel = np.concatenate([np.flatnonzero(pure), pixel])
    face = np.concatenate([samples[pure, 0], face])
    share = np.concatenate([np.ones(pure.sum()), count / SAMPLES**2]).astype(np.float32)
    matrix = csr_array((share, (pixel, face)), shape=(len(main), faces))
    return matrix, main.reshape(rows, columns)


def _crowns(trees: NDArray[np.float64], raster: Raster, seed: int) -> tuple[Image, Image, Image, Image]:
    """Crowns as domes: share of the pixel they cover, height, brightness and share of conifers, each (H, W).

    `trees` come with the highest last, so that it is the one seen.
    """
    rows, columns = raster.shape
    cover, height, tone, conifer = (np.zeros(raster.shape, np.float32) for _ in range(4))
    reach = 3
    y = (raster.north - trees[:, 1]) / raster.gsd - 0.5
    x = (trees[:, 0] - raster.west) / raster.gsd - 0.5
    inside = (y > -reach) & (y < rows + reach) & (x > -reach) & (x < columns + reach)
    trees, y, x = trees[inside], y[inside], x[inside]
    offsets = np.arange(-reach, reach + 1)
    row = np.rint(y).astype(np.int64)[:, None, None] + offsets[:, None]
    column = np.rint(x).astype(np.int64)[:, None, None] + offsets[None, :]
    distance = raster.gsd * np.hypot(row - y[:, None, None], column - x[:, None, None])
    radius = trees[:, 2, None, None]
    share = np.clip((radius - distance) / 2.0 + 0.5, 0, 1)
    dome = trees[:, 3, None, None] * (0.4 + 0.6 * np.sqrt(np.clip(1 - (distance / (radius + 1.0)) ** 2, 0, 1)))
    east, north = (np.rint(8 * trees[:, axis]).astype(np.int64) for axis in (0, 1))
    bright = np.exp(0.16 * normal(seed, "tree", east, north))
    row, column = np.broadcast_arrays(row, column)
    seen = (share > 0) & (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    at = row[seen], column[seen]
    np.maximum.at(cover, at, share[seen].astype(np.float32))
    np.maximum.at(height, at, (dome * np.minimum(1, 2 * share))[seen].astype(np.float32))
    tone[at] = np.broadcast_to(bright[:, None, None], share.shape)[seen]
    conifer[at] = np.broadcast_to(trees[:, 4, None, None], share.shape)[seen]
    return cover, height, tone, conifer
