"""Statistics of clear pixels: a region's for Sentinel-2, a tile's for VHR.

Inputs: `patches/`, `masks/`. Output: `normalization/normalization.json`. Kept acquisitions count, each ground once:
a patch counts the pixels of its cell, not those it shares with its neighbours.

The histograms of each patch are a part of its own, `normalization/parts/<region>/<patch id>.npz`, until all are merged:
sums of whole numbers, so that neither the order nor the shards change a digit.
"""

from __future__ import annotations

import math
import os
import shutil
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from components.shards import each_patch
from components.stage import STAGES, WHOLE, Context, Result, Shard
from sr_core import BANDS
from sr_core.config import Config
from sr_core.errors import ArtifactError, DataError
from sr_core.masks.acquisitions import read_acquisitions
from sr_core.patches import S2_GSD, VHR_GSD, Patch, read_index
from sr_core.progress import track
from sr_core.radiometry.jumps import Steps, refuse_jumps, steps_between
from sr_core.radiometry.normalize import Normalization, Statistics, band_statistics, write_normalization
from sr_core.radiometry.statistics import PixelStatistics
from sr_core.series import load_s2, load_vhr

S2_SCALE = 10_000.0
PARTS = "parts"

Kept = tuple[NDArray[np.intp], NDArray[np.intp]]
"""Indices along time of a patch's kept acquisitions: Sentinel-2 and VHR."""


def work(context: Context) -> Result:
    """Compute statistics of clear pixels of each region and each VHR tile.

    Raises `DataError` where a region has too few clear pixels, or where its dates are not of one radiometry.
    """
    section = context.config.normalize
    share(context, WHOLE)
    percentiles = (section.lower_percentile, section.upper_percentile)
    found: dict[str, dict[str, Statistics]] = {"s2": {}, "vhr": {}}
    counted: dict[str, list[int]] = {"s2": [], "vhr": []}
    parts = places(context.output, read_index(context.inputs["download"]))
    for (sensor, place), paths in track(sorted(parts.items()), "merging"):
        if sensor == "s2":
            refuse_jumps(place, [read_steps(path, place) for path in paths])
        pixels, scale = merge(paths, sensor, place)
        counted[sensor].append(pixels.n_pixels)
        if pixels.n_pixels >= section.min_pixels:
            found[sensor][place] = band_statistics(pixels, scale, percentiles)
    if not found["s2"]:
        raise DataError(
            f"normalize: found at most {max(counted['s2'], default=0)} clear Sentinel-2 pixels in a region; expected at"
            f" least normalize.min_pixels = {section.min_pixels}"
        )
    write_normalization(context.output, Normalization(found["s2"], found["vhr"], percentiles))
    shutil.rmtree(context.output / PARTS)
    return Result(
        {
            "regions": len(found["s2"]),
            "tiles": len(found["vhr"]),
            "too_few_pixels": sum(len(counted[sensor]) - len(found[sensor]) for sensor in found),
            "clear_pixels": {sensor: sum(pixels) for sensor, pixels in counted.items()},
        }
    )


def share(context: Context, shard: Shard) -> int:
    """Count the pixels of a shard's patches, those that are not counted. Returns how many patches the shard has."""
    table = read_acquisitions(context.inputs["cloud_shadow_filter"])
    kept = {
        place: np.flatnonzero(rows) for place, rows in table.groupby(["region", "patch", "sensor"], sort=False)["kept"]
    }
    none = np.array([], np.intp)
    patches = shard.of(read_index(context.inputs["download"]))
    todo = {
        patch: tuple(kept.get((patch.region, patch.id, sensor), none) for sensor in ("s2", "vhr"))
        for patch in patches
        if not part_of(context.output, patch).exists()
    }
    each_patch(context, list(todo), count_pixels, "statistics", todo)
    return len(patches)


def part_of(output: Path, patch: Patch) -> Path:
    """File with the histograms of a patch."""
    return output / PARTS / patch.region / f"{patch.id}.npz"


def count_pixels(config: Config, inputs: Mapping[str, Path], output: Path, patch: Patch, kept: Kept) -> None:
    """Write the histograms of a patch's kept acquisitions: members `s2/<region>/...` and `vhr/<tile>/...`; and by how
    much its Sentinel-2 dates differ, `steps/<region>/...`."""
    images, masks = inputs["download"], inputs["cloud_shadow_filter"]
    s2 = load_s2(images, masks, patch)
    cell, region = patch.cell_window(S2_GSD), PixelStatistics(len(BANDS))
    for index in kept[0]:
        region.add(s2.bands[index][cell][s2.clear[index][cell]])
    steps = steps_between(s2.bands[:, *cell], s2.clear[:, *cell], kept[0].tolist(), s2.timestamps)
    found = {f"s2/{patch.region}": (region, S2_SCALE)}
    vhr = load_vhr(images, masks, patch) if len(kept[1]) else None
    if vhr is not None:
        cell = patch.cell_window(VHR_GSD)
        for index in kept[1]:
            place = f"vhr/{vhr.tile_ids[index]}"
            tile, _ = found.setdefault(place, (PixelStatistics(len(BANDS)), vhr.radiance_scale))
            tile.add(vhr.bands[index][cell][vhr.clear[index][cell]])
    arrays: dict[str, NDArray[Any]] = {f"steps/{patch.region}/{name}": array for name, array in steps.items()}
    for place, (pixels, scale) in found.items():
        arrays |= {f"{place}/{name}": array for name, array in pixels.to_arrays().items()}
        arrays[f"{place}/scale"] = np.array(scale)
    path = part_of(output, patch)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.stem}.{os.getpid()}.npz")
    np.savez_compressed(aside, allow_pickle=False, **arrays)
    aside.replace(path)


def places(output: Path, patches: Sequence[Patch]) -> dict[tuple[str, str], list[Path]]:
    """Sensor and region, or sensor and tile, to the parts that count its pixels."""
    found: dict[tuple[str, str], list[Path]] = defaultdict(list)
    for path in (part_of(output, patch) for patch in patches):
        with readable(path) as file:
            for name in file.files:
                sensor, _, rest = name.partition("/")
                place, _, what = rest.rpartition("/")
                if what == "scale":
                    found[sensor, place].append(path)
    return found


def merge(paths: Sequence[Path], sensor: str, place: str) -> tuple[PixelStatistics, float]:
    """The histograms of one region or tile, and its scale, from its parts. Memory for one, however many there are."""
    merged, scale = PixelStatistics(len(BANDS)), math.nan
    for path in paths:
        with readable(path) as file:
            names = ("shape", "bins", "counts")
            merged.merge(PixelStatistics.from_arrays({name: file[f"{sensor}/{place}/{name}"] for name in names}))
            scale = float(file[f"{sensor}/{place}/scale"])
    return merged, scale


def read_steps(path: Path, region: str) -> Steps:
    """By how much the dates of a patch differ, from its part."""
    with readable(path) as file:
        return {name: file[f"steps/{region}/{name}"] for name in ("early", "late", "change")}


@contextmanager
def readable(path: Path) -> Iterator[NpzFile]:
    """An opened part. Raises `ArtifactError` where it is damaged."""
    try:
        with np.load(path) as file:
            yield file
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise ArtifactError(f"{path}: damaged part ({error}); delete it and run normalize again") from error


STAGE = STAGES["normalize"]
