"""VHR GeoTIFFs of any vendor, as radiance on the 2.5 m grid of a patch.

Counts become radiance by DIMAP metadata (`sr_core.sources.dimap`) or by the factors of the configuration; pixels of
another size, grid or reference system are resampled: finer ones by the mean over each 2.5 m pixel's area, others by
bicubic convolution. Where a pixel of the result would see ground without data it has none.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.transform import Affine
from rasterio.warp import reproject, transform
from rasterio.windows import Window
from scipy.ndimage import binary_erosion

from sr_core import BANDS
from sr_core.config import FilesSource
from sr_core.errors import SourceError
from sr_core.patches import VHR_GSD, Patch
from sr_core.sources.dimap import Dimap, check_plausible, find_dimap
from sr_core.sources.geotiff import band_numbers, open_raster, read_band
from sr_core.sources.products import sensing_time

COARSEST_M = 4.0
"""Pixels larger than this hold too little of what 2.5 m would show: they are refused."""
RADIANCE_SCALE = 100.0
"""Radiance is kept to a hundredth, which reaches up to 655 W m-2 sr-1 um-1: a white surface under the highest sun."""
KERNEL_REACH = 2
"""Pixels on each side that bicubic convolution sees."""
MARGIN = 4
MEDIAN_OF = 10_000
"""Pixels that say whether radiance is plausible."""


T = TypeVar("T")
P = TypeVar("P", bound=np.generic)


@dataclass(frozen=True)
class VHRFile:
    """One acquisition."""

    path: Path
    tile: str
    """Its name, alike for no other: that of the file, with its folders where another file has the same."""
    timestamp: dt.datetime
    """Naive UTC; midnight where only a day is known."""
    numbers: tuple[int, ...]
    """Bands of the file that are blue, green, red, near infrared."""
    dimap: Dimap | None
    transform: Affine
    shape: tuple[int, int]
    crs: str
    """As WKT."""

    @property
    def irradiance(self) -> list[float | None]:
        """ESUN of `BANDS`, W m-2 um-1, as far as it is known."""
        if self.dimap is None:
            return [None] * len(BANDS)
        return [self.dimap.calibrations[number].irradiance for number in self.numbers]

    def window(self, patch: Patch) -> Window | None:
        """The file's pixels around a patch, with a margin; None where they do not meet."""
        west, south, east, north = patch.bounds
        # the edges as well: a straight edge of the patch may bend in another reference system
        steps = np.linspace(0.0, 1.0, 9)
        xs = np.concatenate([west + steps * (east - west)] * 2 + [np.full(9, west), np.full(9, east)])
        ys = np.concatenate([np.full(9, south), np.full(9, north)] + [south + steps * (north - south)] * 2)
        xs, ys = transform(f"EPSG:{patch.epsg}", self.crs, xs.tolist(), ys.tolist())
        columns, rows = ~self.transform @ (np.asarray(xs), np.asarray(ys))
        if not (np.isfinite(columns).all() and np.isfinite(rows).all()):
            return None
        top, bottom = int(np.floor(rows.min())), int(np.ceil(rows.max()))
        left, right = int(np.floor(columns.min())), int(np.ceil(columns.max()))
        if bottom <= 0 or right <= 0 or top >= self.shape[0] or left >= self.shape[1]:
            return None
        top, left = max(0, top - MARGIN), max(0, left - MARGIN)
        bottom, right = min(self.shape[0], bottom + MARGIN), min(self.shape[1], right + MARGIN)
        return Window(left, top, right - left, bottom - top)

    def pixel_m(self, patch: Patch) -> float:
        """Side of a pixel on the ground, metres, at the middle of a patch."""
        middle = (patch.bounds[0] + patch.bounds[2]) / 2, (patch.bounds[1] + patch.bounds[3]) / 2
        (x,), (y,) = transform(f"EPSG:{patch.epsg}", self.crs, [middle[0]], [middle[1]])
        column, row = ~self.transform @ (x, y)
        corners = [self.transform @ place for place in ((column, row), (column + 1, row), (column, row + 1))]
        xs, ys = transform(self.crs, f"EPSG:{patch.epsg}", [c[0] for c in corners], [c[1] for c in corners])
        across, down = np.hypot(xs[1] - xs[0], ys[1] - ys[0]), np.hypot(xs[2] - xs[0], ys[2] - ys[0])
        return float(np.sqrt(across * down))


def open_vhr(path: Path, config: FilesSource) -> VHRFile:
    """Headers and metadata of one acquisition.

    Raises `SourceError` for a file without georeference or date, whose bands cannot be told apart, or for which
    nothing says what its counts are in radiance.
    """
    dimap = None if config.vhr_radiance_per_dn is not None else find_dimap(path)
    if dimap is None and config.vhr_radiance_per_dn is None:
        raise SourceError(
            f"{path}: nothing says what its values are: found no DIMAP metadata ({path.stem}.dim, DIM_{path.stem}.XML"
            " or one that names the file) and no source.vhr_radiance_per_dn; expected one. Give 1 where values are"
            " radiance in W m-2 sr-1 um-1, else the vendor's factor of each band"
        )
    with open_raster(path) as dataset:
        crs, geotransform, shape, count = dataset.crs, dataset.transform, dataset.shape, dataset.count
    if crs is None or geotransform.is_identity:
        raise SourceError(
            f"{path}: has no georeference (CRS {crs}); expected an orthorectified GeoTIFF. A level with RPC or ground"
            " control points only must be orthorectified first"
        )
    numbers = _numbers(path, config, dimap)
    if max(numbers) > count:
        raise SourceError(f"{path}: has {count} band(s), but its bands are {dict(zip(BANDS, numbers, strict=True))}")
    timestamp = dimap.timestamp if dimap and dimap.timestamp else sensing_time(f"{path.stem} {path.parent.name}", path)
    return VHRFile(path, path.stem, timestamp, numbers, dimap, geotransform, shape, crs.to_wkt())


def _in_order(of_colours: Mapping[Any, T]) -> tuple[T, ...]:
    return tuple(of_colours[colour] for colour in BANDS)


def _numbers(path: Path, config: FilesSource, dimap: Dimap | None) -> tuple[int, ...]:
    if config.vhr_bands is not None:
        numbers = _in_order(config.vhr_bands)
    elif dimap is not None and set(BANDS) <= set(dimap.band_numbers()):
        numbers = _in_order(dimap.band_numbers())
    else:
        numbers = band_numbers(path, "source.vhr_bands")
    lacking = [number for number in numbers if dimap and number not in dimap.calibrations]
    if dimap and lacking:
        raise SourceError(
            f"{dimap.path}: found gain and bias of bands {sorted(dimap.calibrations)}; expected them of band"
            f" {', '.join(map(str, lacking))} of {path.name} as well"
        )
    return numbers


def read_vhr(file: VHRFile, patch: Patch, config: FilesSource) -> tuple[NDArray[np.uint16], NDArray[np.bool_]] | None:
    """Radiance x `RADIANCE_SCALE` (4H, 4W, 4) at 2.5 m, and where it is known (4H, 4W); None where nothing is.

    Raises `SourceError` for pixels larger than `COARSEST_M` and files damaged in their data, `DataError` for values
    that are no radiance.
    """
    window = file.window(patch)
    if window is None:
        return None
    pixel_m = file.pixel_m(patch)
    if pixel_m > COARSEST_M:
        raise SourceError(
            f"{file.path}: found pixels of {pixel_m:.3g} m; expected at most {COARSEST_M:g} m, which {VHR_GSD:g} m can"
            " be made of"
        )
    own = file.transform @ Affine.translation(window.col_off, window.row_off)
    to_grid = _ToGrid(own, file.crs, pixel_m, patch)
    nodata = config.nodata if file.dimap is None or file.dimap.nodata is None else file.dimap.nodata
    valid = np.ones((window.height, window.width), bool)
    layers = []
    # a band at a time: at half a metre a patch is 90 MB a band
    for index, number in enumerate(file.numbers):
        counts, good = read_band(file.path, number, window, nodata)
        valid &= good
        if not valid.any():
            return None
        layers.append(to_grid.values(_radiance(file, index, counts, good, config)))
    known = to_grid.coverage(valid)
    if not known.any():
        return None
    # valid ground is at least 1: 0 means nodata; what is brighter than white is glare
    stored = np.clip(np.rint(np.stack(layers, axis=-1) * RADIANCE_SCALE), 1, 65535)
    return np.where(known[..., None], stored, 0).astype(np.uint16), known


def _radiance(
    file: VHRFile, index: int, counts: NDArray[np.generic], good: NDArray[np.bool_], config: FilesSource
) -> NDArray[np.float32]:
    """(h, w) of a band in W m-2 sr-1 um-1; 0 without data. Raises `DataError` where it is none."""
    if file.dimap is not None:
        gain = file.dimap.gain if config.vhr_gain == "auto" else config.vhr_gain
        radiance = file.dimap.radiance(counts.astype(np.float32), file.numbers[index], gain)
        how = f"{file.dimap.path.name} (values {'divided' if gain == 'divide' else 'multiplied'} by the gain)"
        sun = file.dimap.sun
    else:
        given = config.vhr_radiance_per_dn
        factor = _in_order(given)[index] if isinstance(given, dict) else given
        assert factor is not None  # `open_vhr` refuses a file without either
        radiance, how, sun = counts.astype(np.float32) * factor, f"source.vhr_radiance_per_dn = {factor:g}", None
    check_plausible(
        radiance[good][:: max(1, int(good.sum()) // MEDIAN_OF)],
        BANDS[index],
        file.irradiance[index],
        sun[1] if sun else None,
        file.timestamp.date(),
        f"{file.path}, by {how}",
    )
    return np.where(good, radiance, np.float32(0))


@dataclass(frozen=True)
class _ToGrid:
    """From a window of a file to a patch's pixels of 2.5 m."""

    own: Affine
    """Of the window."""
    crs: str
    pixel_m: float
    patch: Patch

    @cached_property
    def same(self) -> tuple[int, int] | None:
        """Row and column of the patch where the window begins, if its pixels are the patch's; None if they are not."""
        step = (self.own.a, self.own.b, self.own.d, self.own.e)
        if CRS.from_wkt(self.crs) != CRS.from_epsg(self.patch.epsg) or not np.allclose(step, (VHR_GSD, 0, 0, -VHR_GSD)):
            return None
        left, top = ~self.patch.transform(VHR_GSD) @ (self.own.c, self.own.f)
        return (round(top), round(left)) if max(abs(top - round(top)), abs(left - round(left))) < 1e-3 else None

    @property
    def finer(self) -> bool:
        return self.pixel_m < VHR_GSD - 1e-3

    def values(self, band: NDArray[np.float32]) -> NDArray[np.float32]:
        """A band on the grid: the mean over each pixel's area where the window's are finer, else bicubic."""
        if self.same is not None:
            return self._placed(band)
        return self._warped(np.pad(band, MARGIN), Resampling.average if self.finer else Resampling.cubic)

    def coverage(self, valid: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Pixels of the grid that are made of valid ones only; beyond the window nothing is valid."""
        if self.same is not None:
            return self._placed(valid)
        seen = np.pad(valid, MARGIN)
        if not self.finer:
            seen = binary_erosion(seen, np.ones((2 * KERNEL_REACH + 1,) * 2))
        share = self._warped(seen.astype(np.float32), Resampling.average if self.finer else Resampling.nearest)
        return share > 1 - 1e-4

    def _placed(self, band: NDArray[P]) -> NDArray[P]:
        assert self.same is not None
        result = np.zeros(self.patch.hr_shape, band.dtype)
        (top, left), (rows, columns) = self.same, self.patch.hr_shape
        here = (
            slice(max(0, top), min(rows, top + band.shape[0])),
            slice(max(0, left), min(columns, left + band.shape[1])),
        )
        there = (slice(here[0].start - top, here[0].stop - top), slice(here[1].start - left, here[1].stop - left))
        result[here] = band[there]
        return result

    def _warped(self, padded: NDArray[np.float32], method: Resampling) -> NDArray[np.float32]:
        result = np.zeros(self.patch.hr_shape, np.float32)
        try:
            reproject(
                padded,
                result,
                src_transform=self.own @ Affine.translation(-MARGIN, -MARGIN),
                src_crs=self.crs,
                dst_transform=self.patch.transform(VHR_GSD),
                dst_crs=f"EPSG:{self.patch.epsg}",
                resampling=method,
                tolerance=0.01,
            )
        except RasterioError as error:
            raise SourceError(
                f"patch {self.patch.id}: VHR in {self.crs[:60]} cannot be reprojected: {error}"
            ) from error
        return result


def vhr_files(folder: Path, paths: Sequence[Path], config: FilesSource) -> list[VHRFile]:
    """All acquisitions below a folder, time ascending."""
    stems = Counter(path.stem for path in paths)
    files = [
        replace(file, tile="_".join(file.path.relative_to(folder).with_suffix("").parts))
        if stems[file.path.stem] > 1
        else file
        for file in (open_vhr(path, config) for path in paths)
    ]
    return sorted(files, key=lambda file: (file.timestamp, file.tile))
