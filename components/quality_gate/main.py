"""Samples: cut, scored, filtered, and judged as a set.

Inputs: `patches/`, `masks/`, and for VHR pairs `normalization/`. Output: `samples/` with the sample store
(`samples.zarr`, `samples.parquet`), the verdict (`gate.json`) and its pages (`gate.html`, `data_docs/`).

The output parameter `verdict` is "pass" or "fail"; the stage itself succeeds with either, and the pipeline's
condition decides what follows.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from components.shards import each_patch
from components.stage import STAGES, WHOLE, Context, Result, Shard, Shown
from sr_core import SCALE
from sr_core.config import Config, QualityGate
from sr_core.errors import DataError
from sr_core.masks.acquisitions import read_acquisitions
from sr_core.patches import S2_GSD, Patch, read_index
from sr_core.progress import say
from sr_core.quality.gate_page import Pair, picture_pair
from sr_core.quality.selection import Selection, select
from sr_core.radiometry.histogram import match
from sr_core.radiometry.normalize import Normalization, read_normalization, vhr_to_s2_units
from sr_core.samples.align import align_vhr
from sr_core.samples.pairs import (
    Frames,
    Reasons,
    ToReflectance,
    Truth,
    cut,
    dropped_acquisitions,
    vhr_pairs,
    wald_pairs,
)
from sr_core.samples.split import ChipWindow, chip_windows, keep_apart, split_ground
from sr_core.samples.store import (
    Candidate,
    Samples,
    assemble,
    has_part,
    read_candidates,
    read_images,
    write_part,
)
from sr_core.series import load_s2, load_vhr

PARTS = "parts"


def work(context: Context) -> Result:
    """Cut samples, score and filter them, and validate the set."""
    # read when Great Expectations is imported; versions that send usage statistics stay silent
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "False")
    from sr_core.quality.gate import PAGE, run_gate

    config = context.config.quality_gate
    plan = plan_work(context)
    cut_share(context, plan, WHOLE)
    pairing, gsd = plan.pairing, plan.gsd
    parts = [part_of(context.output, patch) for patch in plan.patches]
    empty = Samples.zeros(0, config.frames, config.chip_px)
    selection = select(read_candidates(parts), config)
    refuse_nothing(selection.table, config, pairing)
    assemble(parts, selection.table, context.output, empty, {"gsd_m": gsd, "pairing": pairing})
    examples, attribution = pictures(context, selection)
    verdict = run_gate(selection, config, pairing, context.output, examples, attribution)
    shutil.rmtree(context.output / PARTS)
    if verdict.verdict == "fail":
        for check in verdict.checks:
            if check.severity == "critical" and not check.success:
                say(f"gate: {check.name}: expected {check.expected}, found {check.found}")
    counts = verdict.counts
    metrics = {
        "samples": counts["samples"],
        "kept": counts["kept"],
        **{f"dropped_{reason}": number for reason, number in counts["dropped"].items()},
    }
    shown = {
        "samples": Shown({"pairing": pairing, "gsd_m": gsd, "verdict": verdict.verdict}),
        "page": Shown(place=f"{STAGE.folder}/{PAGE}"),
    }
    return Result(counts, metrics, {"verdict": verdict.verdict}, shown)


@dataclass(frozen=True)
class Chips:
    """What is to be cut from one patch."""

    pairing: str
    windows: list[ChipWindow]
    reasons: Reasons
    """Of the acquisitions that may be the truth."""


@dataclass(frozen=True)
class Plan:
    """What is to be cut from all patches."""

    pairing: str
    gsd: float
    """Of the frames, metres."""
    patches: dict[Patch, Chips]
    """In the order of the index."""


def plan_work(context: Context) -> Plan:
    """Pairing and chips of all patches: chips of overlapping patches must not share ground across splits."""
    config = context.config.quality_gate
    patches = read_index(context.inputs["download"])
    table = read_acquisitions(context.inputs["cloud_shadow_filter"])
    pairing = choose_pairing(config, "vhr" in set(table["sensor"]), len(patches))
    sensor, gsd = ("vhr", S2_GSD) if pairing == "vhr" else ("s2", S2_GSD * SCALE)
    mine = table[table["sensor"] == sensor]
    rows = dict(iter(mine.groupby(["region", "patch"], sort=False)))
    return Plan(
        pairing,
        gsd,
        {
            patch: Chips(
                pairing, windows, dropped_acquisitions(rows.get((patch.region, patch.id), mine[:0]), patch, sensor)
            )
            for patch, windows in plan_windows(patches, config, gsd).items()
        },
    )


def share(context: Context, shard: Shard) -> int:
    """Cut the samples of a shard's patches, those that are not cut. Returns how many patches the shard has."""
    return cut_share(context, plan_work(context), shard)


def cut_share(context: Context, plan: Plan, shard: Shard) -> int:
    """`share`, the plan being known."""
    patches = shard.of(list(plan.patches))
    todo = [patch for patch in patches if not has_part(part_of(context.output, patch))]
    each_patch(context, todo, cut_patch, "samples", plan.patches)
    return len(patches)


def part_of(output: Path, patch: Patch) -> Path:
    """Folder of what was cut from a patch."""
    return output / PARTS / patch.region / patch.id


def cut_patch(config: Config, inputs: Mapping[str, Path], output: Path, patch: Patch, chips: Chips) -> None:
    """Write the part of one patch."""
    gate = config.quality_gate
    pairs = make_pairs(gate, inputs, patch, chips)
    nothing: tuple[list[Candidate], Samples] = [], Samples.zeros(0, gate.frames, gate.chip_px)
    write_part(part_of(output, patch), *(cut(*pairs, chips.windows, gate) if pairs else nothing))


def choose_pairing(config: QualityGate, has_vhr: bool, patches: int) -> str:
    """ "vhr" or "wald". Raises `DataError` when VHR is asked for and no patch has any."""
    if config.pairing == "auto":
        pairing = "vhr" if has_vhr else "wald"
        say(f"pairs: {'VHR is the truth' if has_vhr else 'no VHR, so Wald protocol: 40 m in, the real 10 m as truth'}")
        return pairing
    if config.pairing == "vhr" and not has_vhr:
        raise DataError(
            f"quality_gate.pairing: found 'vhr', but none of {patches} patches has VHR;"
            " give the source VHR, or choose 'wald' or 'auto'"
        )
    return config.pairing


def plan_windows(patches: Sequence[Patch], config: QualityGate, gsd: float) -> dict[Patch, list[ChipWindow]]:
    """The chips of each patch, in the patches' order. Raises `DataError` when none fits anywhere."""
    split = split_ground(patches, config.split, config.seed)
    chips = [
        (patch, window)
        for patch in patches
        for window in chip_windows(
            split,
            patch,
            gsd=gsd,
            chip_px=config.chip_px,
            stride_px=config.stride_px,
            guard_m=config.split.guard_m,
        )
    ]
    windows: dict[Patch, list[ChipWindow]] = {patch: [] for patch in patches}
    for patch, window in keep_apart(chips, gsd, config.chip_px):
        windows[patch].append(window)
    if not any(windows.values()):
        raise DataError(
            f"quality_gate.chip_px: a chip of {config.chip_px} pixels of {gsd:g} m is {config.chip_px * gsd:g} m wide"
            f" and fits nowhere: cells are {patches[0].cell[2] - patches[0].cell[0]:g} m wide, blocks"
            f" {config.split.block_m:g} m, the guard {config.split.guard_m:g} m"
        )
    return windows


def make_pairs(
    config: QualityGate, inputs: Mapping[str, Path], patch: Patch, chips: Chips
) -> tuple[Frames, list[Truth]] | None:
    """A patch's frames and truths; None for a patch without a truth."""
    images, masks = inputs["download"], inputs["cloud_shadow_filter"]
    if chips.pairing == "wald":
        return wald_pairs(load_s2(images, masks, patch), chips.reasons, config.wald_mtf)
    series = load_vhr(images, masks, patch)
    if series is None:
        return None
    normalization = read_normalization(inputs["normalize"])
    reasons = {
        (timestamp, tile): reason or ("" if tile in normalization.vhr else "nodata")
        for (timestamp, tile), reason in chips.reasons.items()
    }
    return vhr_pairs(
        load_s2(images, masks, patch),
        align_vhr(series) if config.align_vhr else series,
        reasons,
        reflectance_of(normalization, patch.region),
        match if config.histogram_matching else None,
    )


def reflectance_of(normalization: Normalization, region: str) -> ToReflectance:
    """VHR radiance to reflectance by the statistics of its tile and of the region."""
    if region not in normalization.s2:
        raise DataError(
            f"region {region}: no Sentinel-2 statistics in normalization.json; it has too few clear pixels"
            " (normalize.min_pixels)"
        )
    return lambda radiance, tile: vhr_to_s2_units(radiance, normalization.vhr[tile], normalization.s2[region])


def pictures(context: Context, selection: Selection) -> tuple[dict[str, Pair], str]:
    """Pictures of the selection's examples, while the parts that hold them are there, and their attribution."""
    names = sorted(name for cluster in selection.examples for name in cluster)
    table = selection.table.set_index("sample_id").loc[names]
    parts = sorted({context.output / PARTS / row.region / row.patch for row in table.itertuples()})
    images = read_images(parts, names)
    statistics = read_normalization(context.inputs["normalize"]).s2
    pairs = {
        str(row.Index): picture_pair(
            images[row.Index], statistics[row.region], f"{row.patch}, {row.target_date:%Y-%m-%d}"
        )
        for row in table.itertuples()
        if row.region in statistics
    }
    if context.config.source.kind == "simulated" or not pairs:
        return pairs, ""
    years = sorted({date.year for column in ("latest_date", "target_date") for date in table[column]})
    span = str(years[0]) if len(years) == 1 else f"{years[0]}-{years[-1]}"
    return pairs, f"Contains modified Copernicus Sentinel data {span}."


def refuse_nothing(table: pd.DataFrame, config: QualityGate, pairing: str) -> None:
    """Raise `DataError` when not one pair could be cut."""
    if table["psnr"].notna().any():
        return
    if not len(table):
        truth = "VHR acquisition" if pairing == "vhr" else "Sentinel-2 date"
        raise DataError(f"quality_gate: no candidate sample: found no {truth} over any chip")
    reasons: Mapping[str, int] = table["reason"].value_counts().to_dict()
    what = {
        "cloud": "the truth is cloudy",
        "shadow": "the truth may be shadowed",
        "nodata": "the truth has no data",
        "frames": f"fewer than quality_gate.min_frames = {config.min_frames} clear frames before the target",
        "latest_age": f"the latest frame is older than quality_gate.max_latest_age_days = {config.max_latest_age_days}",
    }
    found = "; ".join(f"{number} times {what[reason]}" for reason, number in reasons.items())
    raise DataError(f"quality_gate: none of {len(table)} candidate samples could be cut: {found}")


STAGE = STAGES["quality_gate"]
