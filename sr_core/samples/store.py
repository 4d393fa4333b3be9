"""The sample store: arrays in zarr, one row a kept sample, and a GeoParquet table, one row a candidate.

Both are put together from parts, one a patch, each written as soon as the patch is cut: a run that was
killed goes on with the next patch, and the result does not depend on where it was interrupted.
"""

from __future__ import annotations

import datetime as dt
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import zarr
from numpy.typing import NDArray
from shapely.geometry import Polygon
from zarr.codecs import ZstdCodec

from sr_core import BANDS, SCALE
from sr_core.errors import ArtifactError

ARRAYS = "samples.zarr"
TABLE = "samples.parquet"

ROWS_A_SHARD = 64
"""Samples in one file of the store; each is a chunk of its own and read alone."""

_CRS = "EPSG:4326"
_PART_ARRAYS = "arrays.npz"
_DATES = ("target_date", "latest_date")


@dataclass(frozen=True)
class Candidate:
    """A row of the table: a chip at a target date, kept or not."""

    sample_id: str
    region: str
    patch: str
    tile: str
    """Where the truth is from: VHR tile id, or Sentinel-2 product id."""
    split: str
    target_date: dt.datetime
    latest_date: dt.datetime | None
    """Time (naive UTC) of the latest input frame."""
    n_frames: int
    lr_row: int
    lr_col: int
    """North-west pixel in the patch's raster of low-resolution pixels."""
    ssim: float
    psnr: float
    mse: float
    """Truth against the bicubic latest frame; NaN where no pair could be cut."""
    bias_blue: float
    bias_green: float
    bias_red: float
    bias_nir: float
    """Median of the truth less that of the latest frame, reflectance; NaN where no pair could be cut."""
    land: str
    """What the latest frame shows: one of `sr_core.samples.land.KINDS`; "" where no pair could be cut."""
    kept: bool
    """In a part: it has images."""
    reason: str
    """Why it was dropped: "cloud", "shadow", "nodata", "frames", "latest_age"; on the whole set also "ssim", "psnr",
    "balance"; "" when kept."""
    geometry: Polygon
    """Footprint in EPSG:4326."""


COLUMNS = ("sample_id", "row", "cluster", *(field.name for field in fields(Candidate) if field.name != "sample_id"))
"""Columns of the table; `row` is the sample's row in the arrays, -1 where it was dropped; `cluster` is that of its
scores, 0 the worst, -1 where it has none."""
FLOATS = ("ssim", "psnr", "mse", *(f"bias_{band}" for band in BANDS))


@dataclass(frozen=True)
class Samples:
    """N samples; T frames latest first, h x w low-resolution pixels."""

    lr: NDArray[np.uint16]
    """(N, T, 4, h, w) reflectance x 10000; zeros where a frame is padding."""
    lr_clear: NDArray[np.bool_]
    """(N, T, h, w)."""
    lr_valid: NDArray[np.bool_]
    """(N, T): False where the frame is padding."""
    lr_age: NDArray[np.int16]
    """(N, T) days before the target; -1 where the frame is padding."""
    lr_shift: NDArray[np.float32]
    """(N, T, 2) rows and columns in low-resolution pixels: a frame's pixel at p shows the ground at p + shift, on the
    truth's grid."""
    hr: NDArray[np.uint16]
    """(N, 4, 4h, 4w) reflectance x 10000, 0 where not clear."""
    hr_clear: NDArray[np.bool_]
    """(N, 4h, 4w)."""

    def __len__(self) -> int:
        return len(self.lr)

    @classmethod
    def zeros(cls, count: int, frames: int, chip_px: int) -> Samples:
        """`count` samples of zeros, to be filled; none, to know the shapes."""
        low, high = (chip_px, chip_px), (chip_px * SCALE, chip_px * SCALE)
        return cls(
            np.zeros((count, frames, len(BANDS), *low), np.uint16),
            np.zeros((count, frames, *low), bool),
            np.zeros((count, frames), bool),
            np.zeros((count, frames), np.int16),
            np.zeros((count, frames, 2), np.float32),
            np.zeros((count, len(BANDS), *high), np.uint16),
            np.zeros((count, *high), bool),
        )

    @classmethod
    def stack(cls, parts: Sequence[Samples]) -> Samples:
        """Samples of several parts, one after the other."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in _names()))

    def __getitem__(self, rows: slice | NDArray[np.bool_] | NDArray[np.int64]) -> Samples:
        return Samples(*(getattr(self, name)[rows] for name in _names()))


class SampleStore:
    """Reads a sample store. Raises `ArtifactError` where it is missing, damaged or inconsistent."""

    def __init__(self, folder: Path) -> None:
        try:
            self.table: gpd.GeoDataFrame = gpd.read_parquet(folder / TABLE)
            self._group = zarr.open_group(folder / ARRAYS, mode="r")
            self.gsd_m = float(self._group.attrs["gsd_m"])
            self.pairing = str(self._group.attrs["pairing"])
            self.scale = int(self._group.attrs["scale"])
            self.bands = tuple(self._group.attrs["bands"])
            rows = len(self)
        except (OSError, KeyError, ValueError) as error:
            raise ArtifactError(f"{folder}: no sample store ({error}); run quality_gate first") from error
        kept = int(self.table["kept"].sum())
        if kept != rows:
            raise ArtifactError(f"{folder}: {rows} rows in {ARRAYS}, expected {kept}, the kept rows of {TABLE}")

    def __len__(self) -> int:
        return int(self._group["lr"].shape[0])

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Frames, bands, rows and columns of a sample's `lr`."""
        _, frames, bands, rows, columns = self._group["lr"].shape
        return int(frames), int(bands), int(rows), int(columns)

    def rows(self, split: str) -> NDArray[np.int64]:
        """Rows of the kept samples of a split, ascending."""
        chosen = self.table.loc[self.table["kept"] & (self.table["split"] == split), "row"]
        return np.sort(chosen.to_numpy(np.int64))

    def read(self, rows: Sequence[int] | NDArray[np.integer]) -> Samples:
        """The samples at `rows`, in their order."""
        index = np.asarray(rows, np.int64)
        return Samples(*(np.asarray(self._group[name].oindex[index]) for name in _names()))


def has_part(folder: Path) -> bool:
    """Whether the part of a patch is finished."""
    return folder.is_dir()


def write_part(folder: Path, candidates: Sequence[Candidate], samples: Samples) -> None:
    """Write what was cut from one patch aside and rename it; `samples` are those of the kept candidates."""
    kept = sum(candidate.kept for candidate in candidates)
    if kept != len(samples):
        raise ValueError(f"found {len(samples)} samples, expected {kept}, the number of kept candidates")
    aside = _aside(folder)
    aside.mkdir(parents=True)
    _table(candidates).to_parquet(aside / TABLE, index=False)
    np.savez(aside / _PART_ARRAYS, **{name: getattr(samples, name) for name in _names()})
    aside.rename(folder)


def read_candidates(parts: Sequence[Path]) -> gpd.GeoDataFrame:
    """The candidates of all parts, in their order; those that are `kept` have images in their part.

    Raises `ArtifactError` when a part cannot be read.
    """
    return _join([_read_part_table(part) for part in parts])


def assemble(
    parts: Sequence[Path], table: gpd.GeoDataFrame, folder: Path, empty: Samples, attributes: Mapping[str, Any]
) -> None:
    """Put the parts together, in their order, as `samples.zarr` and `samples.parquet` in `folder`.

    `table` (`COLUMNS`) is `read_candidates(parts)` after the selection: what is `kept` in it is taken. `empty` gives
    the arrays' shapes, `attributes` are written beside `scale` and `bands`. Raises `ArtifactError` when a part cannot
    be read.
    """
    kept = table["kept"].to_numpy(bool)
    aside = _aside(folder / ARRAYS)
    group = zarr.create_group(store=aside, zarr_format=3)
    group.attrs.update({"scale": SCALE, "bands": list(BANDS), **attributes})
    count = int(kept.sum())
    arrays = {name: _create(group, name, count, getattr(empty, name)) for name in _names()}
    begin = 0
    for block in _blocks(parts, kept[table["psnr"].notna().to_numpy()], empty):
        for name, array in arrays.items():
            array[begin : begin + len(block)] = getattr(block, name)
        begin += len(block)
    shutil.rmtree(folder / ARRAYS, ignore_errors=True)
    aside.rename(folder / ARRAYS)
    aside = _aside(folder / TABLE)
    table.to_parquet(aside, index=False)
    aside.replace(folder / TABLE)


def read_images(parts: Sequence[Path], sample_ids: Iterable[str]) -> dict[str, Samples]:
    """The images of some candidates that have any, kept or not, before the parts are gone."""
    wanted = set(sample_ids)
    found: dict[str, Samples] = {}
    for part in parts:
        table = _read_part_table(part)
        names = table.loc[table["kept"], "sample_id"].tolist()
        mine = [row for row, name in enumerate(names) if name in wanted]
        if mine:
            images = _read_part_arrays(part)
            # chosen by a list, so copied: a view of one would keep all images of the part in memory
            found |= {names[row]: images[np.array([row])] for row in mine}
    return found


def _names() -> list[str]:
    return [field.name for field in fields(Samples)]


def _aside(path: Path) -> Path:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    return aside


def _table(candidates: Sequence[Candidate]) -> gpd.GeoDataFrame:
    columns = [field.name for field in fields(Candidate)]
    rows = [vars(candidate) for candidate in candidates]
    table = gpd.GeoDataFrame(rows, columns=columns, geometry="geometry", crs=_CRS)
    for name in _DATES:
        table[name] = table[name].astype("datetime64[us]")
    kinds = {"n_frames": np.int64, "lr_row": np.int64, "lr_col": np.int64, "kept": bool}
    return table.astype({**kinds, **dict.fromkeys(FLOATS, np.float64)})


def _join(tables: Sequence[gpd.GeoDataFrame]) -> gpd.GeoDataFrame:
    filled = [table for table in tables if len(table)]
    if not filled:
        return _table([])
    return gpd.GeoDataFrame(pd.concat(filled, ignore_index=True), geometry="geometry", crs=_CRS)


def _read_part_table(part: Path) -> gpd.GeoDataFrame:
    try:
        return gpd.read_parquet(part / TABLE)
    except (OSError, ValueError) as error:
        raise _damaged(part, error) from error


def _damaged(part: Path, error: Exception) -> ArtifactError:
    return ArtifactError(f"{part}: damaged part of the sample store ({error}); delete it and run again")


def _read_part_arrays(part: Path) -> Samples:
    try:
        with np.load(part / _PART_ARRAYS) as arrays:
            return Samples(*(arrays[name] for name in _names()))
    except (OSError, KeyError, ValueError) as error:
        raise _damaged(part, error) from error


def _blocks(parts: Sequence[Path], kept: NDArray[np.bool_], empty: Samples) -> Iterator[Samples]:
    """The samples of all parts that are `kept` (one flag an image), in blocks of whole shards."""
    waiting, begin = empty, 0
    for part in parts:
        found = _read_part_arrays(part)
        waiting = Samples.stack([waiting, found[kept[begin : begin + len(found)]]])
        begin += len(found)
        whole = len(waiting) // ROWS_A_SHARD * ROWS_A_SHARD
        if whole:
            yield waiting[:whole]
            waiting = waiting[whole:]
    if len(waiting):
        yield waiting


def _create(group: zarr.Group, name: str, count: int, like: NDArray[Any]) -> zarr.Array:
    shape = like.shape[1:]
    return group.create_array(
        name,
        shape=(count, *shape),
        chunks=(1, *shape),
        shards=(ROWS_A_SHARD, *shape),
        dtype=like.dtype,
        compressors=ZstdCodec(level=3),
    )
