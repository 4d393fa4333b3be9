"""Super-resolve every clear date of the area: one cloud-optimised GeoTIFF a region and date, with STAC.

Inputs: `patches/`, `masks/`, and the model bundle: `super_resolve.bundle`, or the `model/` of this run, or else the
bundle that comes with the project. Output:
`products/<region>/<date>/{sr,s2,consistency,uncertainty}.tif`, `quicklook.png` and `item.json` beside them;
`collection.json`, `model.json`, `products.json`. A date that is there is kept, and so are the finished windows of one
that was begun. The network's input is normalised by the region's own clear pixels, so that a place the
model has never seen needs no training.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import shutil
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from components.stage import STAGES, Context, Result, Shown
from sr_core import BANDS, REFLECTANCE_SCALE
from sr_core.config import Config, SuperResolve
from sr_core.errors import DataError
from sr_core.files import write_json
from sr_core.inference.dates import Pass, PatchDates, Target, find_targets
from sr_core.inference.engine import Shares
from sr_core.inference.estimate import Estimate, estimate, probe
from sr_core.inference.mosaic import FrameStore
from sr_core.inference.products import Provenance, index_entry, kept_date, make_date, windows_of
from sr_core.inference.stac import write_collection, write_model
from sr_core.memory import return_large_arrays
from sr_core.models.bundle import SHIPPED, WEIGHTS, SuperResolver, load_bundle
from sr_core.models.normalization import MIN_STD, Normalization
from sr_core.patches import Patch, read_index
from sr_core.progress import say, track
from sr_core.radiometry.statistics import PixelStatistics
from sr_core.series import S2Series, load_s2

INDEX = "products.json"
FRAMES = ".frames"
"""Where a region's frames lie while its products are made."""
SERIES_KEPT = 4
"""Patches whose series stay in memory from the statistics to the frames: a small region is read once."""


def work(context: Context) -> Result:
    """Super-resolve every clear date of the area."""
    settings, simulated = context.config.super_resolve, context.config.source.kind == "simulated"
    return_large_arrays()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    folder = bundle_folder(context)
    resolver = load_bundle(folder)
    resolver.model.to("cuda" if torch.cuda.is_available() else "cpu")
    provenance = describe_bundle(resolver, folder, simulated)
    collection = f"{context.config.name}-sr"

    @lru_cache(SERIES_KEPT)
    def load(patch: Patch) -> S2Series:
        return load_s2(context.inputs["download"], context.inputs["cloud_shadow_filter"], patch)

    plans = []
    for region, patches in regions(read_index(context.inputs["download"])).items():
        plans.append(plan(region, patches, settings, resolver.frames, load))
    days = choose(settings, [target for each in plans for target in each.targets])
    plans = [each.only(days, settings.max_dates) for each in plans]
    announce(context, plans, resolver)
    shares, items, kept = Shares(), [], 0
    for each in plans:
        store = None
        for number, target in enumerate(each.targets, start=1):
            item = kept_date(context.output, each.region, target)
            if item is not None:
                kept += 1
            else:
                if store is None:
                    store = FrameStore.write(
                        context.output / FRAMES / each.region, each.patches, each.frames(context.output), load
                    )
                    load.cache_clear()
                item = make_date(
                    context.output,
                    each.region,
                    each.patches,
                    target,
                    store,
                    resolver,
                    each.normalization,
                    provenance,
                    collection=collection,
                    window_px=settings.window_px,
                    precision=settings.precision,
                    shares=shares,
                    keep=context.unfinished.save,
                )
                context.unfinished.discard(windows_of(context.output, each.region, target))
            items.append(item)
            say(
                f"{each.region} {target.timestamp:%Y-%m-%d} ({number}/{len(each.targets)}):"
                f" {item['properties']['subpixel:valid_share']:.0%} of the ground"
            )
        if store is not None:
            store.remove()
    if shares.wall:
        say(f"{shares.wall:.0f} s: {shares}")
    shutil.rmtree(context.output / FRAMES, ignore_errors=True)
    write_model(context.output, provenance.bundle_key, resolver.description)
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


@dataclass(frozen=True)
class Plan:
    """What is to be made of a region."""

    region: str
    patches: Sequence[Patch]
    targets: Sequence[Target]
    normalization: Normalization

    def only(self, days: Collection[dt.date], max_dates: int | None) -> Plan:
        """The targets of these days, of them the latest `max_dates`."""
        wanted = [target for target in self.targets if target.timestamp.date() in days]
        return replace(self, targets=wanted[-max_dates:] if max_dates else wanted)

    def missing(self, output: Path) -> list[Target]:
        """Targets that are not made."""
        return [target for target in self.targets if kept_date(output, self.region, target) is None]

    def frames(self, output: Path) -> list[Pass]:
        """The passes that those are made from."""
        return list({frame.name: frame for target in self.missing(output) for frame in target.frames}.values())


def plan(
    region: str, patches: Sequence[Patch], settings: SuperResolve, frames: int, load: Callable[[Patch], S2Series]
) -> Plan:
    """The clear dates of a region, and the statistics of its clear pixels.

    Mean and standard deviation are of each ground once, over the dates at which a patch is clear enough for a frame.
    """
    dates, pixels = [], PixelStatistics(len(BANDS))
    for patch in track(patches, f"{region}: dates"):
        series, cell = load(patch), patch.cell_window()
        dates.append(PatchDates.of(series))
        for index in np.flatnonzero(dates[-1].clear >= 1.0 - settings.max_frame_cloud):
            pixels.add(series.bands[index][cell][series.clear[index][cell]])
    targets = find_targets(dates, frames=frames, max_age_days=settings.max_age_days, max_cloud=settings.max_frame_cloud)
    if not pixels.n_pixels:
        return Plan(region, patches, [], Normalization((0.0,) * len(BANDS), (1.0,) * len(BANDS)))
    mean, std = pixels.mean() / REFLECTANCE_SCALE, np.maximum(pixels.std() / REFLECTANCE_SCALE, MIN_STD)
    return Plan(region, patches, targets, Normalization(tuple(mean.tolist()), tuple(std.tolist())))


def announce(context: Context, plans: Sequence[Plan], resolver: SuperResolver) -> None:
    """Say how much work there is, how long it will take and what disk it needs.

    Raises `StorageError` where the disk cannot hold it.
    """
    settings = context.config.super_resolve
    missing = [(each, each.missing(context.output)) for each in plans]
    if not any(targets for _, targets in missing):
        return
    found = sum(
        (
            estimate(each.patches, len(targets), len(each.frames(context.output)), resolver, settings.window_px)
            for each, targets in missing
        ),
        start=Estimate(),
    )
    say(str(found.timed(probe(resolver, settings.window_px, settings.precision))))
    found.check(context.output)


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


def choose(settings: SuperResolve, targets: Sequence[Target]) -> set[dt.date]:
    """The days to make. Raises `DataError` where none is clear, or one that was asked for is not."""
    days = sorted({target.timestamp.date() for target in targets})
    if settings.since is not None:
        days = [day for day in days if day >= settings.since]
    if not days:
        since = f" since {settings.since}" if settings.since else ""
        raise DataError(
            f"super_resolve: no date of any patch{since} is clear; expected one with at most"
            f" super_resolve.max_frame_cloud = {settings.max_frame_cloud:g} of cloud or nodata"
        )
    missing = [str(day) for day in settings.dates if day not in days]
    if missing:
        raise DataError(
            f"super_resolve.dates: {', '.join(missing)}: not clear or not there;"
            f" clear dates are {', '.join(str(day) for day in days)}"
        )
    return set(settings.dates or days)


def fingerprint(config: Config) -> str:
    """Changes when the bundle that the configuration names does, or else the one that comes with the project."""
    folder = config.super_resolve.bundle or SHIPPED
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.glob("model.*") if path.is_file()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


STAGE = STAGES["super_resolve"]
