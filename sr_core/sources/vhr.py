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


T = TypeVar("T")


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
    radiance, valid = _radiance(file, window, config)
    if not valid.any():
        return None
    how = f"{file.path}, by " + (
        f"{file.dimap.path.name} (counts are {_GAINS[_gain(file.dimap, config)]} the gain)"
        if file.dimap
        else f"source.vhr_radiance_per_dn = {config.vhr_radiance_per_dn}"
    )
    sun = file.dimap.sun if file.dimap else None
    check_plausible(radiance[valid], file.irradiance, sun and sun[1], file.timestamp.date(), how)
    own = file.transform @ Affine.translation(window.col_off, window.row_off)
    on_grid, known = _on_grid(radiance, valid, own, file.crs, pixel_m, patch)
    if not known.any():
        return None
    # valid ground is at least 1: 0 means nodata; what is brighter than white is glare
    stored = np.clip(np.rint(on_grid * RADIANCE_SCALE), 1, 65535)
    return np.where(known[..., None], stored, 0).astype(np.uint16), known


_GAINS = {"divide": "divided by", "multiply": "multiplied by"}


def _gain(dimap: Dimap, config: FilesSource) -> str:
    return dimap.gain if config.vhr_gain == "auto" else config.vhr_gain


def _radiance(file: VHRFile, window: Window, config: FilesSource) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """(h, w, 4) in W m-2 sr-1 um-1, and (h, w)."""
    radiance = np.empty((window.height, window.width, len(BANDS)), np.float32)
    valid = np.ones((window.height, window.width), bool)
    nodata = config.nodata if file.dimap is None or file.dimap.nodata is None else file.dimap.nodata
    given = config.vhr_radiance_per_dn
    factors = _in_order(given) if isinstance(given, dict) else (given or 1.0,) * len(BANDS)
    for index, number in enumerate(file.numbers):
        counts, good = read_band(file.path, number, window, nodata)
        valid &= good
        if file.dimap is not None:
            gain = None if config.vhr_gain == "auto" else config.vhr_gain
            radiance[..., index] = file.dimap.radiance(counts.astype(np.float64), number, gain)
        else:
            radiance[..., index] = counts.astype(np.float64) * factors[index]
    return radiance, valid


def _on_grid(
    radiance: NDArray[np.float32],
    valid: NDArray[np.bool_],
    own: Affine,
    crs: str,
    pixel_m: float,
    patch: Patch,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Pixels on the patch's grid of 2.5 m: as they are where they lie on it, else resampled."""
    grid = patch.transform(VHR_GSD)
    rows, columns = patch.hr_shape
    left, top = ~grid @ (own.c, own.f)
    aligned = np.allclose([own.a, own.b, own.d, own.e], [VHR_GSD, 0, 0, -VHR_GSD], atol=1e-6)
    whole = abs(left - round(left)) < 1e-3 and abs(top - round(top)) < 1e-3
    on_grid, known = np.zeros((rows, columns, len(BANDS)), np.float32), np.zeros((rows, columns), bool)
    if aligned and whole and _same_system(crs, patch.epsg):
        first_row, first_column = max(0, round(top)), max(0, round(left))
        last_row, last_column = min(rows, round(top) + valid.shape[0]), min(columns, round(left) + valid.shape[1])
        here = (slice(first_row, last_row), slice(first_column, last_column))
        there = (
            slice(first_row - round(top), last_row - round(top)),
            slice(first_column - round(left), last_column - round(left)),
        )
        on_grid[here], known[here] = radiance[there], valid[there]
        return on_grid, known
    finer = pixel_m < VHR_GSD - 1e-3
    # a frame without data: a pixel that reaches beyond the file has none
    pad = MARGIN
    values = np.pad(np.where(valid[..., None], radiance, 0), ((pad, pad), (pad, pad), (0, 0)))
    seen = np.pad(valid, pad)
    if not finer:
        seen = binary_erosion(seen, np.ones((2 * KERNEL_REACH + 1,) * 2))
    source = own @ Affine.translation(-pad, -pad)
    layers = np.concatenate([np.moveaxis(values, -1, 0), seen[None].astype(np.float32)])
    result = np.zeros((len(BANDS) + 1, rows, columns), np.float32)
    try:
        for methods, part in (
            (Resampling.average if finer else Resampling.cubic, slice(0, len(BANDS))),
            (Resampling.average if finer else Resampling.nearest, slice(len(BANDS), None)),
        ):
            reproject(
                layers[part],
                result[part],
                src_transform=source,
                src_crs=crs,
                dst_transform=grid,
                dst_crs=f"EPSG:{patch.epsg}",
                resampling=methods,
                tolerance=0.01,
            )
    except RasterioError as error:
        raise SourceError(f"patch {patch.id}: VHR cannot be brought from {crs[:60]}: {error}") from error
    known = result[-1] > 1 - 1e-4
    return np.moveaxis(result[:-1], 0, -1), known


def _same_system(crs: str, epsg: int) -> bool:
    return bool(CRS.from_wkt(crs) == CRS.from_epsg(epsg))


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
