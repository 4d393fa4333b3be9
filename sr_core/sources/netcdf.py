"""NetCDF series of Sentinel-2 L2A, a file a site, as OpenEO and ESA WorldCereal write them.

`S2_L2A_10m_<site>_....nc` holds B02, B03, B04, B08 (timestamp, y, x); `S2_L2A_20m_<site>_....nc` beside it holds SCL.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.windows import Window

from sr_core.errors import SourceError
from sr_core.sources.products import UNKNOWN
from sr_core.sources.rasters import S2_BANDS, Frame, Pixels, RasterGrid, Series, repeated, utm_epsg

PATTERN = "S2_L2A_10m_*.nc"


@dataclass(frozen=True)
class NetCDFFrame(Frame):
    index: int
    """Along the file's time axis."""


@dataclass(frozen=True)
class NetCDFSeries(Series):
    """One site."""

    path: Path
    scl_path: Path | None
    nodata: int

    def read(self, frame: Frame, window: Window, bands: Sequence[str] = S2_BANDS) -> Pixels:
        assert isinstance(frame, NetCDFFrame)
        rows, columns = window.toslices()
        try:
            with h5py.File(self.path) as file:
                layers = [file[band][frame.index, rows, columns] for band in bands]
                fills = [_attribute(file[band], "_FillValue") for band in bands]
            scl = self._read_scl(frame.index, window)
        except (OSError, KeyError, ValueError) as error:
            raise SourceError(
                f"{self.path}: {frame.timestamp} cannot be read, the file may be truncated ({error})"
            ) from error
        values = np.stack(layers, axis=-1)
        valid = (values != self.nodata).all(axis=-1)
        valid &= np.all([layer != fill for layer, fill in zip(layers, fills, strict=True) if fill is not None], axis=0)
        return Pixels(np.where(valid[..., None], values, 0).astype(np.int32), valid, scl)

    def _read_scl(self, index: int, window: Window) -> NDArray[np.generic] | None:
        if self.scl_path is None:
            return None
        with h5py.File(self.scl_path) as file:

            def read(block: Window) -> NDArray[np.generic]:
                return np.asarray(file["SCL"][(index, *block.toslices())], np.uint8)

            return repeated(read, window, 2)


def open_netcdf(path: Path, region: str, nodata: int) -> NetCDFSeries:
    """The series of one 10 m file and the 20 m file beside it. Reads headers and axes only.

    Raises `SourceError` for a file that cannot be read, is not in UTM at 10 m, or whose 20 m file does not fit it.
    """
    grid, times = _axes(path, 10.0)
    scl_path: Path | None = path.with_name(path.name.replace("_10m_", "_20m_"))
    assert scl_path is not None
    if scl_path.is_file():
        coarse, coarse_times = _axes(scl_path, 20.0, ("SCL",))
        if coarse.bounds != grid.bounds or coarse.epsg != grid.epsg or coarse_times != times:
            raise SourceError(
                f"{scl_path}: found {len(coarse_times)} dates on {coarse.bounds}; expected the {len(times)} dates"
                f" and the ground {grid.bounds} of {path.name}"
            )
    else:
        scl_path = None
    order = sorted(range(len(times)), key=lambda index: times[index])
    frames = [NetCDFFrame(times[i], f"{path.stem}#{i}", "L2A", UNKNOWN, i) for i in order]
    return NetCDFSeries(region, grid, frames, path, scl_path, nodata)


def _axes(path: Path, gsd: float, needed: tuple[str, ...] = S2_BANDS) -> tuple[RasterGrid, list[dt.datetime]]:
    try:
        with h5py.File(path) as file:
            missing = [name for name in (*needed, "x", "y", "timestamp") if name not in file]
            if missing:
                raise SourceError(f"{path}: {', '.join(missing)} is missing; found {', '.join(sorted(file))}")
            x, y, seconds = file["x"][:], file["y"][:], file["timestamp"][:]
            units = str(_attribute(file["timestamp"], "units"))
            wkt = _attribute(file["spatial_ref"], "crs_wkt") if "spatial_ref" in file else None
            shapes = {name: file[name].shape for name in needed}
            kinds = {name: file[name].dtype for name in needed}
    except OSError as error:
        raise SourceError(f"{path}: not a readable NetCDF file, it may be truncated ({error})") from error
    epsg = utm_epsg(CRS.from_wkt(str(wkt)).to_epsg() if wkt else None, wkt and str(wkt)[:60], path)
    if not (np.allclose(np.diff(x), gsd) and np.allclose(np.diff(y), -gsd)):
        raise SourceError(f"{path}: x and y do not step by {gsd:g} m eastward and southward")
    for name, shape in shapes.items():
        if shape != (len(seconds), len(y), len(x)):
            raise SourceError(f"{path}: {name} is {shape}; expected (time, y, x) = {(len(seconds), len(y), len(x))}")
        if kinds[name].kind not in "ui":
            raise SourceError(f"{path}: {name} is {kinds[name]}; expected integers, reflectance x 10000 or classes")
    origin = (float(x[0]) - gsd / 2, float(y[0]) + gsd / 2)
    since = re.fullmatch(r"(seconds|minutes|hours|days) since (.+)", units)
    if since is None:
        raise SourceError(f"{path}: timestamp is in {units!r}; expected `seconds since <date>`")
    start = dt.datetime.fromisoformat(since[2]).replace(tzinfo=None)
    times = [start + dt.timedelta(**{since[1]: float(value)}) for value in seconds]
    return RasterGrid(epsg, origin, (len(y), len(x)), gsd), times


def _attribute(item: Any, name: str) -> Any:
    value = item.attrs.get(name)
    return value.decode() if isinstance(value, bytes) else value
