"""Real Sentinel-2 from files: folders of GeoTIFFs, or NetCDF series, with VHR GeoTIFFs where there are any."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sr_core.config import FilesSource
from sr_core.errors import DataError, SourceError
from sr_core.patches import S2_GSD, VHR_GSD, EOPatch, Patch
from sr_core.sources import Dates, Region
from sr_core.sources.geotiff import TiffFrame, band_numbers, grid_of, open_tiffs, read_band
from sr_core.sources.netcdf import PATTERN, open_netcdf
from sr_core.sources.products import UNKNOWN, check_offsets, offset_of, sensing_time
from sr_core.sources.rasters import Overlap, RasterGrid, Series
from sr_core.sources.scl import SCL_CLOUD, SCL_NODATA

TIFF = (".tif", ".tiff")
FLOAT_RADIANCE_SCALE = 100.0
"""Radiance in floating-point files is kept to a hundredth, which reaches up to 655 W m-2 sr-1 um-1 in uint16."""


class FileSeries:
    """The source `files`. Opening it reads headers only; all errors name the file."""

    def __init__(self, config: FilesSource) -> None:
        self.config = config
        files = _files(config.path, "source.path")
        sites = sorted(path for path in files if path.match(PATTERN))
        tiffs = [path for path in files if path.suffix.lower() in TIFF]
        if not sites and not tiffs:
            raise SourceError(
                f"source.path {config.path}: found no GeoTIFF and no {PATTERN} among its {len(files)} file(s);"
                " expected one GeoTIFF a band, one of four bands a date, or NetCDF series"
            )
        self.series: list[Series] = [
            open_netcdf(path, f"{config.region}-{number}", config.nodata) for number, path in enumerate(sites, start=1)
        ] or [open_tiffs(config.path, tiffs, config.region, config.nodata)]

    def regions(self) -> list[Region]:
        """One region of a GeoTIFF folder; one a site of NetCDF series, `<region>-1`, `<region>-2`, ..."""
        return [Region(series.region, series.grid.epsg, series.grid.bounds) for series in self.series]

    def s2(self, patch: Patch, period: Dates | None) -> EOPatch:
        """Sentinel-2 at 10 m cut from its own grid, not resampled; outside the coverage VALID is False."""
        series, overlap = self._series_of(patch)
        frames = [
            frame for frame in series.frames if period is None or period[0] <= frame.timestamp.date() <= period[1]
        ]
        if not frames:
            first, last = series.frames[0].timestamp.date(), series.frames[-1].timestamp.date()
            wanted = f"{period[0]} to {period[1]}" if period else "all"
            raise DataError(
                f"{self.config.path}, patch {patch.id}: no dates in period {wanted}; the source has {first} to {last}"
            )
        shape = (len(frames), *patch.shape)
        values, valid = np.zeros((*shape, 4), np.int32), np.zeros(shape, bool)
        scl: np.ndarray[Any, Any] | None = None
        for index, frame in enumerate(frames):
            pixels = series.read(frame, overlap.window)
            inside = (index, overlap.rows, overlap.columns)
            values[inside] = pixels.values - np.where(pixels.valid, offset_of(frame.baseline), 0)[..., None]
            valid[inside] = pixels.valid
            if pixels.scl is not None:
                scl = np.zeros(shape, np.uint8) if scl is None else scl
                scl[inside] = pixels.scl
        if scl is None and self.config.max_bad_scl < 1:
            raise SourceError(
                f"{self.config.path}: source.max_bad_scl is set, but the series has no SCL; remove the key"
            )
        where = f"{self.config.path}, patch {patch.id}"
        check_offsets(values, valid, [f.timestamp for f in frames], [f.baseline for f in frames], where)
        if scl is not None:
            valid &= ~np.isin(scl, SCL_NODATA)
        keep = self._dates_to_keep(frames, valid, scl, overlap)
        if not keep:
            raise DataError(
                f"{where}: all {len(frames)} dates have more bad SCL classes than source.max_bad_scl ="
                f" {self.config.max_bad_scl:g}; raise it, or take a longer period"
            )
        # valid ground is at least 1: 0 means nodata
        bands = np.where(valid[..., None], np.clip(values, 1, 65535), 0).astype(np.uint16)
        eopatch = EOPatch(bbox=patch.bbox, timestamps=[frames[index].timestamp for index in keep])
        eopatch.data["BANDS"] = bands[keep]
        eopatch.mask["VALID"] = valid[keep, ..., None]
        if scl is not None:
            eopatch.mask["CLM"] = np.isin(scl[keep, ..., None], SCL_CLOUD)
            eopatch.meta_info["mask_kind"] = "scl"
        metadata = {
            "source": "files",
            "product_ids": [frames[index].product_id for index in keep],
            "processing_baselines": [frames[index].baseline for index in keep],
            "level": frames[0].level,
            "region": patch.region,
            "patch_id": patch.id,
            "gsd_m": S2_GSD,
        }
        eopatch.meta_info.update(metadata)
        return eopatch

    def vhr(self, patch: Patch, period: Dates | None) -> EOPatch | None:
        """VHR radiance at 2.5 m, a GeoTIFF an acquisition; None where no file touches the patch in the period."""
        found = []
        for frame, grid in self._vhr_frames:
            overlap = grid.overlap(patch, frame.files[0][0])
            if overlap and (period is None or period[0] <= frame.timestamp.date() <= period[1]):
                found.append((frame, overlap))
        if not found:
            return None
        read = [(_vhr_pixels(frame, overlap, self.config.nodata), overlap) for frame, overlap in found]
        floating = any(values.dtype.kind == "f" for (values, _), _ in read)
        scale = FLOAT_RADIANCE_SCALE if floating else 1.0
        shape = (len(found), *patch.hr_shape)
        bands, valid = np.zeros((*shape, 4), np.uint16), np.zeros((*shape, 1), bool)
        for index, ((values, good), overlap) in enumerate(read):
            stored = np.rint(values * scale)
            if stored.max(initial=0) > 65535 or stored.min(initial=0) < 0:
                raise DataError(
                    f"{found[index][0].files[0][0]}: found radiance from {values.min():g} to {values.max():g};"
                    f" expected 0 to {65535 / scale:g}"
                )
            inside = (index, overlap.rows, overlap.columns)
            bands[inside] = np.where(good[..., None], np.maximum(stored, 1), 0)
            valid[inside] = good[..., None]
        eopatch = EOPatch(bbox=patch.bbox, timestamps=[frame.timestamp for frame, _ in found])
        eopatch.data["BANDS"] = bands
        eopatch.mask["VALID"] = valid
        tile_ids = [frame.product_id for frame, _ in found]
        eopatch.meta_info.update({"source": "files", "tile_ids": tile_ids, "radiance_scale": scale})
        return eopatch

    def reference(self, patch: Patch) -> EOPatch | None:
        """None: files bring no parcels."""
        return None

    def truth(self, patch: Patch, period: Dates | None) -> dict[str, EOPatch]:
        """Empty: nothing is known beyond the pixels."""
        return {}

    def fingerprint(self) -> Any:
        """Name, size and time of change of every file below the source's folders."""
        folders = [folder for folder in (self.config.path, self.config.vhr_path) if folder]
        return [
            (path.relative_to(folder).as_posix(), path.stat().st_size, path.stat().st_mtime_ns)
            for folder in folders
            for path in _files(folder, "source.path")
        ]

    def _series_of(self, patch: Patch) -> tuple[Series, Overlap]:
        found = [(series, series.grid.overlap(patch, self.config.path)) for series in self.series]
        meeting = [(series, overlap) for series, overlap in found if overlap]
        if not meeting:
            covered = "; ".join(f"EPSG:{series.grid.epsg} {series.grid.bounds}" for series in self.series)
            raise DataError(
                f"{self.config.path}: does not cover patch {patch.id} (EPSG:{patch.epsg} {patch.bounds});"
                f" it covers {covered}"
            )
        return max(meeting, key=lambda pair: pair[1].window.width * pair[1].window.height)

    def _dates_to_keep(
        self,
        frames: Sequence[Any],
        valid: np.ndarray[Any, Any],
        scl: np.ndarray[Any, Any] | None,
        overlap: Overlap,
    ) -> list[int]:
        """Not those of too bad SCL; of acquisitions of one time, the one with most valid pixels."""
        best: dict[dt.datetime, int] = {}
        for index, frame in enumerate(frames):
            if scl is not None:
                classes = scl[index, overlap.rows, overlap.columns]
                if np.isin(classes, (*SCL_NODATA, *SCL_CLOUD)).mean() > self.config.max_bad_scl:
                    continue
            rival = best.get(frame.timestamp)
            if rival is None or valid[index].sum() > valid[rival].sum():
                best[frame.timestamp] = index
        return sorted(best.values())

    @cached_property
    def _vhr_frames(self) -> list[tuple[TiffFrame, RasterGrid]]:
        if self.config.vhr_path is None:
            return []
        paths = [path for path in _files(self.config.vhr_path, "source.vhr_path") if path.suffix.lower() in TIFF]
        if not paths:
            raise SourceError(
                f"source.vhr_path {self.config.vhr_path}: found no GeoTIFF; expected one of 4 bands a date"
            )
        frames = []
        for path in paths:
            files = tuple((path, number) for number in band_numbers(path))
            frame = TiffFrame(sensing_time(path.stem, path), path.stem, "VHR", UNKNOWN, files)
            frames.append((frame, grid_of(path, VHR_GSD)))
        return sorted(frames, key=lambda pair: (pair[0].timestamp, pair[0].product_id))


def _vhr_pixels(frame: TiffFrame, overlap: Overlap, nodata: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    bands, good = zip(*(read_band(path, number, overlap.window, nodata) for path, number in frame.files), strict=True)
    return np.stack(bands, axis=-1), np.logical_and.reduce(good)


def _files(folder: Path, key: str) -> list[Path]:
    """All files below a folder, in order. Raises `SourceError` where it is missing or empty."""
    if not folder.is_dir():
        raise SourceError(f"{key} {folder}: no such folder; expected the folder of the series")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        raise SourceError(f"{key} {folder}: the folder is empty; expected GeoTIFFs or NetCDF series")
    return files
