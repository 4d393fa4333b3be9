"""Super-resolve every clear date of the area: one cloud-optimised GeoTIFF a region and date, with STAC.

Inputs: `patches/`, `masks/`, and the model bundle: `super_resolve.bundle`, or the `model/` of this run, or else the
bundle that comes with the project. Output:
`products/<region>/<date>/{sr.tif,consistency.tif,quicklook.png,item.json}`, `collection.json`, `products.json`.
A date that is there is kept. The network's input is normalised by the region's own clear pixels, so that a place the
model has never seen needs no training.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from components.stage import STAGES, Context, Result, Shown
from sr_core import BANDS, REFLECTANCE_SCALE
from sr_core.config import Config, SuperResolve
from sr_core.errors import DataError
from sr_core.inference.dates import PatchDates, Target, find_targets
from sr_core.inference.products import Provenance, index_entry, make_date
from sr_core.inference.stac import write_collection, write_json
from sr_core.models.bundle import SHIPPED, WEIGHTS, SuperResolver, load_bundle
from sr_core.models.normalization import MIN_STD, Normalization
from sr_core.patches import Patch, read_index
from sr_core.progress import say, track
from sr_core.radiometry.statistics import PixelStatistics
from sr_core.series import S2Series, load_s2

INDEX = "products.json"
SERIES_KEPT = 4
"""Patches whose series stay in memory from one date to the next: a small region is read once."""


def work(context: Context) -> Result:
    """Super-resolve every clear date of the area."""
    settings, simulated = context.config.super_resolve, context.config.source.kind == "simulated"
    if settings.threads:
        torch.set_num_threads(settings.threads)
    folder = bundle_folder(context)
    resolver = load_bundle(folder)
    provenance = describe_bundle(resolver, folder, simulated)
    collection = f"{context.config.name}-sr"

    @lru_cache(SERIES_KEPT)
    def load(patch: Patch) -> S2Series:
        return load_s2(context.inputs["download"], context.inputs["cloud_shadow_filter"], patch)

    plans = []
    for region, patches in regions(read_index(context.inputs["download"])).items():
        dates = [PatchDates.of(load(patch)) for patch in track(patches, f"{region}: dates")]
        targets = find_targets(
            dates, frames=resolver.frames, max_age_days=settings.max_age_days, max_cloud=settings.max_frame_cloud
        )
        plans.append((region, patches, dates, targets))
    chosen = choose(settings, [target for *_, targets in plans for target in targets])
    items, kept = [], 0
    for region, patches, dates, targets in plans:
        wanted = [target for target in targets if target.timestamp.date() in chosen]
        wanted = wanted[-settings.max_dates :] if settings.max_dates else wanted
        if not wanted:
            continue
        normalization = region_normalization(dates, settings.max_frame_cloud, load)
        for number, target in enumerate(wanted, start=1):
            item, was_there = make_date(
                context.output,
                region,
                patches,
                target,
                load,
                resolver,
                normalization,
                provenance,
                collection=collection,
                window_px=settings.window_px,
                precision=settings.precision,
            )
            items.append(item)
            kept += was_there
            entry = index_entry(item)
            say(
                f"{region} {target.timestamp:%Y-%m-%d} ({number}/{len(wanted)}):"
                f" {'kept' if was_there else 'made'}, {entry['valid_share']:.0%} of the ground"
            )
    write_collection(
        context.output, collection, "Sentinel-2 super-resolved to 2.5 m, a COG a date.", items, real=not simulated
    )
    entries = [index_entry(item) for item in items]
    index = {"collection": collection, "model": provenance.tags(), "simulated": simulated, "products": entries}
    write_json(context.output / INDEX, index)
    measured = [entry["consistency_mae"] for entry in entries if entry["consistency_mae"] is not None]
    metrics = {"valid_share": float(np.mean([entry["valid_share"] for entry in entries]))}
    if measured:
        metrics["consistency_mae"] = float(np.mean(measured))
    return Result(
        counts={"regions": len({entry["region"] for entry in entries}), "products": len(items), "of_them_kept": kept},
        metrics=metrics,
        artifacts={"products": Shown({"collection": collection, "simulated": simulated, **provenance.tags()})},
    )


def bundle_folder(context: Context) -> Path:
    """The bundle that the configuration names, or the run's own, or the one that comes with the project."""
    if context.config.super_resolve.bundle is not None:
        return context.config.super_resolve.bundle
    return context.inputs.get("train_hrn", SHIPPED)


def describe_bundle(resolver: SuperResolver, folder: Path, simulated: bool) -> Provenance:
    """What products say of the model. A bundle of unknown lineage is named by the digest of its weights."""
    lineage = resolver.description.get("lineage", {})
    key = lineage.get("key") or hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()[:32]
    gsd = lineage.get("gsd_m")
    return Provenance(key, None if gsd is None else float(gsd), simulated)


def regions(patches: Sequence[Patch]) -> dict[str, list[Patch]]:
    """Patches by region; a region that reaches into a second UTM zone becomes a product area for each."""
    by_zone: dict[tuple[str, int], list[Patch]] = defaultdict(list)
    for patch in patches:
        by_zone[patch.region, patch.epsg].append(patch)
    zones: dict[str, int] = defaultdict(int)
    for region, _ in by_zone:
        zones[region] += 1
    return {
        region if zones[region] == 1 else f"{region}-{patches[0].id.partition('_')[0].lower()}": patches
        for (region, _), patches in by_zone.items()
    }


def choose(settings: SuperResolve, targets: Sequence[Target]) -> set[Any]:
    """The days to make. Raises `DataError` where none is clear, or one that was asked for is not."""
    days = sorted({target.timestamp.date() for target in targets})
    if not days:
        raise DataError(
            "super_resolve: no date of any patch is clear; expected one with at most"
            f" super_resolve.max_frame_cloud = {settings.max_frame_cloud:g} of cloud or nodata"
        )
    missing = [str(day) for day in settings.dates if day not in days]
    if missing:
        raise DataError(
            f"super_resolve.dates: {', '.join(missing)}: not clear or not there;"
            f" clear dates are {', '.join(str(day) for day in days)}"
        )
    return set(settings.dates or days)


def region_normalization(dates: Sequence[PatchDates], max_cloud: float, load: Any) -> Normalization:
    """Mean and standard deviation of the region's clear pixels, each ground once, over dates that may be frames."""
    pixels = PixelStatistics(len(BANDS))
    for patch in track(dates, "statistics"):
        series, cell = load(patch.patch), patch.patch.cell_window()
        for index in np.flatnonzero(patch.clear >= 1.0 - max_cloud):
            pixels.add(series.bands[index][cell][series.clear[index][cell]])
    mean, std = pixels.mean() / REFLECTANCE_SCALE, np.maximum(pixels.std() / REFLECTANCE_SCALE, MIN_STD)
    return Normalization(tuple(mean.tolist()), tuple(std.tolist()))


def fingerprint(config: Config) -> str | None:
    """Changes when the bundle that the configuration names does."""
    folder = config.super_resolve.bundle
    if folder is None or not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.glob("model.*") if path.is_file()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


STAGE = STAGES["super_resolve"]
