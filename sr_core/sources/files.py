"""Real Sentinel-2 from files: SAFE products, GeoTIFFs or NetCDF series, with VHR GeoTIFFs where there are any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sr_core import BANDS
from sr_core.config import FilesSource
from sr_core.errors import DataError, SourceError
from sr_core.masks.s2cloudless import S2CLOUDLESS_BANDS
from sr_core.patches import S2_GSD, EOPatch, Patch
from sr_core.progress import say
from sr_core.sources import Dates, Region
from sr_core.sources.geotiff import TiffSeries, open_tiffs
from sr_core.sources.netcdf import PATTERN, open_netcdf
from sr_core.sources.products import AIR_ALONE, check_offsets, darkest
from sr_core.sources.rasters import S2_BANDS, Frame, Overlap, Series, area_mean, best_of_passes
from sr_core.sources.safe import find_products, open_safe
from sr_core.sources.scl import SCL_CLOUD, SCL_NODATA
from sr_core.sources.vhr import RADIANCE_SCALE, VHRFile, read_vhr, vhr_files

TIFF = (".tif", ".tiff")
CLOUD_GSD = 60.0
CLOUD_BAND_PX = round(CLOUD_GSD / S2_GSD)
"""Bands of s2cloudless are means over 6 x 6 pixels of 10 m."""


class FileSeries:
    """The source `files`. Opening it reads headers only; all errors name the file."""

    def __init__(self, config: FilesSource) -> None:
        self.config = config
        self._doubted = False
        files = _files(config.path, "source.path")
        sites = sorted(path for path in files if path.match(PATTERN))
        tiffs = [path for path in files if path.suffix.lower() in TIFF]
        # beside images of another kind a zip may be anything
        products = find_products(files, zips=not (sites or tiffs))
        if not products and not sites and not tiffs:
            raise SourceError(
                f"source.path {config.path}: found no GeoTIFF, no SAFE product and no {PATTERN} among its"
                f" {len(files)} file(s); expected one GeoTIFF a band, one of four bands a date, SAFE folders or zips,"
                " or NetCDF series"
            )
        if products and (sites or tiffs):
            raise SourceError(
                f"source.path {config.path}: found SAFE products and {len(tiffs)} GeoTIFF(s) and {len(sites)} NetCDF"
                " series; expected one kind in a folder"
            )
        self.series: list[Series]
        if products:
            self.series = [*open_safe(config.path, products, config.region)]
        elif sites:
            self.series = [
                open_netcdf(path, f"{config.region}-{number}", config.nodata)
                for number, path in enumerate(sites, start=1)
            ]
        else:
            own = dict(zip(BANDS, S2_BANDS, strict=True))
            named = {own[colour]: band for colour, band in (config.s2_bands or {}).items()}
            self.series = [open_tiffs(config.path, tiffs, config.region, config.nodata, named)]
        if config.s2_bands and not isinstance(self.series[0], TiffSeries):
            raise SourceError(
                f"source.s2_bands is set, but {config.path} holds {'SAFE products' if products else 'NetCDF series'},"
                " whose bands are named; it is for GeoTIFFs: remove the key"
            )

    def regions(self) -> list[Region]:
        """One region of a folder; of several UTM zones or NetCDF sites each one, `<region>-1`, `<region>-2`, ..."""
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
            values[inside] = pixels.values
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
        if isinstance(series, TiffSeries) and frames[0].level == "L1C" and self.config.s2_bands is None:
            self._doubt_names(values, valid)
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
        if set(S2CLOUDLESS_BANDS) <= series.bands and frames[0].level == "L1C":
            eopatch.data["CLOUD_BANDS"] = self._cloud_bands(series, [frames[index] for index in keep], patch)
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
        """VHR radiance at 2.5 m, a GeoTIFF an acquisition; None where no file shows the patch in the period.

        `META_INFO` holds, where the metadata of all dates say it, `sun` ([azimuth, elevation] a date, degrees),
        `incidence_deg`, and `solar_irradiance` (ESUN of the four bands a date, W m-2 um-1).
        """
        read = [
            (file, pixels)
            for file in self._vhr_files
            if period is None or period[0] <= file.timestamp.date() <= period[1]
            if (pixels := read_vhr(file, patch, self.config)) is not None
        ]
        if not read:
            return None
        files = [file for file, _ in read]
        eopatch = EOPatch(bbox=patch.bbox, timestamps=[file.timestamp for file in files])
        eopatch.data["BANDS"] = np.stack([values for _, (values, _) in read])
        eopatch.mask["VALID"] = np.stack([valid for _, (_, valid) in read])[..., None]
        tile_ids = [file.tile for file in files]
        eopatch.meta_info.update({"source": "files", "tile_ids": tile_ids, "radiance_scale": RADIANCE_SCALE})
        told: dict[str, list[Any]] = {
            "sun": [file.dimap and file.dimap.sun for file in files],
            "incidence_deg": [file.dimap and file.dimap.incidence_deg for file in files],
            "solar_irradiance": [None if None in file.irradiance else file.irradiance for file in files],
        }
        for name, values in told.items():
            # of all dates or not at all, so that each list is as long as the others
            if None not in values:
                eopatch.meta_info[name] = [list(value) if isinstance(value, tuple) else value for value in values]
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

    def _doubt_names(self, values: np.ndarray[Any, Any], valid: np.ndarray[Any, Any]) -> None:
        """Say so, once, where blue and red seem to be exchanged."""
        if self._doubted:
            return
        dark = darkest(values, valid)
        if dark is not None and dark[0] < min(AIR_ALONE, dark[2]):
            self._doubted = True
            say(
                f"{self.config.path}: the darkest ground is {dark[0] / 1e4:.3f} in B02 and {dark[2] / 1e4:.3f} in B04;"
                f" at the top of the atmosphere the air alone reflects more than {AIR_ALONE / 1e4:g} of blue and less"
                " of red, so that the two seem to be exchanged. If they are: source.s2_bands: {blue: B04, red: B02}; if"
                " not, {blue: B02, red: B04} ends this message"
            )

    def _dates_to_keep(
        self,
        frames: Sequence[Any],
        valid: np.ndarray[Any, Any],
        scl: np.ndarray[Any, Any] | None,
        overlap: Overlap,
    ) -> list[int]:
        """Not those of too bad SCL; of each pass the acquisition with most valid pixels."""
        good = [
            index
            for index in range(len(frames))
            if scl is None or _bad_share(scl[index, overlap.rows, overlap.columns]) <= self.config.max_bad_scl
        ]
        best = best_of_passes([frames[index].timestamp for index in good], [int(valid[index].sum()) for index in good])
        return [good[index] for index in best]

    def _cloud_bands(self, series: Series, frames: Sequence[Frame], patch: Patch) -> np.ndarray[Any, Any]:
        """(T, ceil(H / 6), ceil(W / 6), 10): means over 60 m from the patch's north-west corner."""
        rows, columns = (-(-side // CLOUD_BAND_PX) for side in patch.shape)
        west, _, _, north = patch.bounds
        # whole pixels of 60 m, also where the patch ends within one
        grown = replace(patch, bounds=(west, north - rows * CLOUD_GSD, west + columns * CLOUD_GSD, north))
        overlap = series.grid.overlap(grown, self.config.path)
        assert overlap is not None
        found = np.zeros((len(frames), rows, columns, len(S2CLOUDLESS_BANDS)), np.uint16)
        for index, frame in enumerate(frames):
            pixels = series.read(frame, overlap.window, S2CLOUDLESS_BANDS)
            values, valid = np.zeros((*grown.shape, len(S2CLOUDLESS_BANDS)), np.int32), np.zeros(grown.shape, bool)
            values[overlap.rows, overlap.columns] = pixels.values
            valid[overlap.rows, overlap.columns] = pixels.valid
            found[index] = area_mean(values, valid, CLOUD_BAND_PX)
        return found

    @cached_property
    def _vhr_files(self) -> list[VHRFile]:
        if self.config.vhr_path is None:
            return []
        paths = [path for path in _files(self.config.vhr_path, "source.vhr_path") if path.suffix.lower() in TIFF]
        if not paths:
            raise SourceError(f"source.vhr_path {self.config.vhr_path}: found no GeoTIFF; expected one an acquisition")
        return vhr_files(self.config.vhr_path, paths, self.config)


def _bad_share(classes: np.ndarray[Any, Any]) -> float:
    return float(np.isin(classes, (*SCL_NODATA, *SCL_CLOUD)).mean())


def _files(folder: Path, key: str) -> list[Path]:
    """All files below a folder, in order. Raises `SourceError` where it is missing or empty."""
    if not folder.is_dir():
        raise SourceError(f"{key} {folder}: no such folder; expected the folder of the series")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        raise SourceError(f"{key} {folder}: the folder is empty; expected GeoTIFFs or NetCDF series")
    return files
