"""Read the patches of an area from a source.

Inputs: the configuration's `area`, `period`, `source` and `grid`. Output: `patches/<region>/<patch id>/` with the parts
`s2`, `vhr`, `reference`, `truth`, `truth_vhr` as far as the source has them, and the index `patches.json`.

A patch whose part `s2` is there is finished and kept: it is written after the patch's other parts.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import os
import shutil
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from components.shards import each_patch
from components.stage import STAGES, WHOLE, Context, Result, Shard, Shown, working_key
from sr_core.config import Config, Grid, parse_config
from sr_core.errors import AreaError, DataError
from sr_core.patches import EOPatch, Patch, make_patch, part_path, plan_patches, save_part, write_index
from sr_core.sources import SECRETS, Dates, Metered, Region, Source, open_source

NO_DATA = "nodata"
"""Empty file in the folder of a patch that was read and has no valid pixel, until the stage is finished."""


def work(context: Context) -> Result:
    """Read the patches of an area from a source."""
    config = context.config
    share(context, WHOLE)
    patches, outside = plan(config, source_of(context))
    kept = [patch for patch in patches if part_path(context.output, patch, "s2").is_dir()]
    if not kept:
        raise DataError(
            f"source {config.source.kind}: all pixels of all dates of all {len(patches)} patches are nodata;"
            " expected some data (is source.nodata right?)"
        )
    for marker in context.output.glob(f"*/*/{NO_DATA}"):
        shutil.rmtree(marker.parent)
    write_index(context.output, kept)
    counts = {
        "patches": len(kept),
        "s2_acquisitions": sum(dates_of(part_path(context.output, patch, "s2")) for patch in kept),
        "vhr_acquisitions": sum(dates_of(part_path(context.output, patch, "vhr")) for patch in kept),
        "left_out": {"not_covered": outside, "nodata": len(patches) - len(kept)},
    }
    about = {"source": config.source.kind, "regions": ", ".join(sorted({patch.region for patch in kept}))}
    return Result(counts, artifacts={"patches": Shown(about)})


def share(context: Context, shard: Shard) -> int:
    """Read a shard's patches, those that are not there. Returns how many patches the shard has."""
    source = source_of(context)
    every = plan(context.config, source)[0]
    patches = shard.of(every)
    todo = [patch for patch in patches if not is_read(context.output, patch)]
    if todo and isinstance(source, Metered):
        source.admit(every, period_of(context.config))
    each_patch(context, todo, fetch_patch, "patches")
    return len(patches)


def is_read(output: Path, patch: Patch) -> bool:
    """Whether a patch is finished, with data or without."""
    return any(part_path(output, patch, part).exists() for part in ("s2", NO_DATA))


def plan(config: Config, source: Source) -> tuple[list[Patch], int]:
    """The patches to read, and how many patches of the area the source does not cover.

    Raises `AreaError` when it covers none of them.
    """
    regions = source.regions()
    if not config.areas:
        return [patch for region in regions for patch in region_patches(region, config.grid)], 0
    offset = regions[0].bounds[:2] if regions and config.grid.anchor == "source" else (0.0, 0.0)
    patches = [patch for area in config.areas for patch in plan_patches(area, config.grid, offset)]
    covered = [patch for patch in patches if not regions or any(covers(region, patch) for region in regions)]
    if not covered:
        ground = "; ".join(f"{region.name}: EPSG:{region.epsg} {region.bounds}" for region in regions)
        raise AreaError(
            f"area: none of its {len(patches)} patches (the first: EPSG:{patches[0].epsg} {patches[0].cell}) lies on"
            f" the ground that the source covers ({ground})"
        )
    return covered, len(patches) - len(covered)


def region_patches(region: Region, grid: Grid) -> list[Patch]:
    """Patches over a whole region, cells counted from its south-west corner.

    They stay in the region's own UTM zone, also where its ground lies across the border of the next one.
    """
    west, south, east, north = region.bounds
    rows, columns = math.ceil((north - south) / grid.cell_m), math.ceil((east - west) / grid.cell_m)
    corners = [
        (west + column * grid.cell_m, south + row * grid.cell_m)
        for row in reversed(range(rows))
        for column in range(columns)
    ]
    return [
        make_patch(region.name, region.epsg, (x, y, x + grid.cell_m, y + grid.cell_m), grid.buffer_m)
        for x, y in corners
    ]


def covers(region: Region, patch: Patch) -> bool:
    """Whether some of the patch's cell lies in the region."""
    west, south, east, north = region.bounds
    return (
        region.epsg == patch.epsg
        and patch.cell[0] < east
        and patch.cell[2] > west
        and patch.cell[1] < north
        and patch.cell[3] > south
    )


def period_of(config: Config) -> Dates | None:
    """First and last day; None for all dates of the source."""
    return (config.period.start, config.period.end) if config.period else None


def source_of(context: Context) -> Source:
    """The source that a stage reads."""
    return opened(context.config.model_dump_json(), context.key)


@lru_cache(maxsize=1)
def opened(config_text: str, key: str) -> Source:
    """The source of a configuration, opened once a process; `key` stands for what its files were."""
    return open_source(parse_config(json.loads(config_text)), secrets())


def fetch_patch(config: Config, inputs: Mapping[str, Path], output: Path, patch: Patch) -> None:
    """Read one patch, or note that it has no data."""
    source = opened(config.model_dump_json(), working_key(output) or "")
    if not fetch(config, source, output, patch):
        marker = part_path(output, patch, NO_DATA)
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()


def fetch(config: Config, source: Source, output: Path, patch: Patch) -> bool:
    """Write all parts of a patch, `s2` last. Returns whether it has any valid Sentinel-2 pixel; without, nothing is
    written. Raises `DataError` when there is no Sentinel-2 date at all.
    """
    period = period_of(config)
    s2 = source.s2(patch, period)
    if not s2.get_timestamps():
        asked = f"{period[0]} to {period[1]}" if period else "the whole series"
        raise DataError(f"patch {patch.id} of region {patch.region}: no Sentinel-2 date in the period {asked}")
    if not s2.mask["VALID"].any():
        return False
    parts: dict[str, EOPatch | None] = {
        "vhr": source.vhr(patch, period),
        "reference": source.reference(patch),
        **source.truth(patch, period),
        "s2": s2,
    }
    folder = part_path(output, patch, "s2").parent
    # what a killed run left aside
    for leftover in folder.glob(".*"):
        shutil.rmtree(leftover)
    for name, part in parts.items():
        if part is not None:
            save_part(part, folder / name)
    return True


def dates_of(path: Path) -> int:
    """Number of dates of an EOPatch; 0 where there is none."""
    if not path.is_dir():
        return 0
    timestamps: list[dt.datetime] = EOPatch.load(str(path), lazy_loading=True).get_timestamps()
    return len(timestamps)


def secrets() -> dict[str, str]:
    """What the environment holds for the source; never written, never printed."""
    return {name: os.environ[name] for name in SECRETS if os.environ.get(name)}


def fingerprint(config: Config) -> Any:
    """The source's own files."""
    return open_source(config, secrets()).fingerprint()


STAGE = STAGES["download"]
