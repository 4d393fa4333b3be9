"""Samples: cut, scored, filtered, and judged as a set.

Inputs: `patches/`, `masks/`, and for VHR pairs `normalization/`. Output: `samples/` with the sample store
(`samples.zarr`, `samples.parquet`), the verdict (`gate.json`) and its pages (`gate.html`, `data_docs/`).

The output parameter `verdict` is "pass" or "fail"; the stage itself succeeds with either, and the pipeline's
condition decides what follows.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from components.stage import STAGES, Context, Result
from sr_core import SCALE
from sr_core.config import QualityGate
from sr_core.errors import DataError
from sr_core.masks.acquisitions import read_acquisitions
from sr_core.patches import S2_GSD, Patch, part_path, read_index
from sr_core.progress import say, track
from sr_core.radiometry.histogram import match
from sr_core.radiometry.normalize import Normalization, read_normalization, vhr_to_s2_units
from sr_core.samples.pairs import Frames, ToReflectance, Truth, cut, dropped_acquisitions, vhr_pairs, wald_pairs
from sr_core.samples.split import ChipWindow, chip_windows, keep_apart, split_ground
from sr_core.samples.store import Candidate, Samples, assemble, has_part, write_part
from sr_core.series import load_s2, load_vhr

PARTS = ".parts"

MakePairs = Callable[[Patch], tuple[Frames, list[Truth]] | None]


def work(context: Context) -> Result:
    """Cut samples, score and filter them, and validate the set."""
    # read when Great Expectations is imported; versions that send usage statistics stay silent
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "False")
    from sr_core.quality.gate import run_gate

    config, images = context.config.quality_gate, context.inputs["download"]
    patches = read_index(images)
    pairing = choose_pairing(config, images, patches)
    gsd = S2_GSD if pairing == "vhr" else S2_GSD * SCALE
    windows = plan_windows(patches, config, gsd)
    make_pairs = pair_maker(context, pairing)

    parts = [context.output / PARTS / patch.region / patch.id for patch in windows]
    for (patch, chips), part in zip(track(windows.items(), "samples"), parts, strict=True):
        if not has_part(part):
            pairs = make_pairs(patch)
            nothing: tuple[list[Candidate], Samples] = [], Samples.zeros(0, config.frames, config.chip_px)
            write_part(part, *(cut(*pairs, chips, config) if pairs else nothing))
    empty = Samples.zeros(0, config.frames, config.chip_px)
    table = assemble(parts, context.output, empty, {"gsd_m": gsd, "pairing": pairing})
    refuse_nothing(table, config, pairing)
    verdict = run_gate(table, config, pairing, context.output)
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
    return Result(counts, metrics, {"verdict": verdict.verdict})


def choose_pairing(config: QualityGate, images: Path, patches: Sequence[Patch]) -> str:
    """ "vhr" or "wald". Raises `DataError` when VHR is asked for and no patch has any."""
    has_vhr = any(part_path(images, patch, "vhr").is_dir() for patch in patches)
    if config.pairing == "auto":
        pairing = "vhr" if has_vhr else "wald"
        say(f"pairs: {'VHR is the truth' if has_vhr else 'no VHR, so Wald protocol: 40 m in, the real 10 m as truth'}")
        return pairing
    if config.pairing == "vhr" and not has_vhr:
        raise DataError(
            f"quality_gate.pairing: found 'vhr', but none of {len(patches)} patches has VHR;"
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


def pair_maker(context: Context, pairing: str) -> MakePairs:
    """How a patch's pairs are made; None for a patch without a truth."""
    config, images, masks = (
        context.config.quality_gate,
        context.inputs["download"],
        context.inputs["cloud_shadow_filter"],
    )
    acquisitions = read_acquisitions(masks)
    if pairing == "wald":

        def wald(patch: Patch) -> tuple[Frames, list[Truth]]:
            s2 = load_s2(images, masks, patch)
            return wald_pairs(s2, dropped_acquisitions(acquisitions, patch, "s2"), config.wald_mtf)

        return wald
    normalization = read_normalization(context.inputs["normalize"])

    def vhr(patch: Patch) -> tuple[Frames, list[Truth]] | None:
        series = load_vhr(images, masks, patch)
        if series is None:
            return None
        reasons = {
            (timestamp, tile): reason or ("" if tile in normalization.vhr else "nodata")
            for (timestamp, tile), reason in dropped_acquisitions(acquisitions, patch, "vhr").items()
        }
        s2 = load_s2(images, masks, patch)
        return vhr_pairs(
            s2,
            series,
            reasons,
            reflectance_of(normalization, patch.region),
            match if config.histogram_matching else None,
        )

    return vhr


def reflectance_of(normalization: Normalization, region: str) -> ToReflectance:
    """VHR radiance to reflectance by the statistics of its tile and of the region."""
    if region not in normalization.s2:
        raise DataError(
            f"region {region}: no Sentinel-2 statistics in normalization.json; it has too few clear pixels"
            " (normalize.min_pixels)"
        )
    return lambda radiance, tile: vhr_to_s2_units(radiance, normalization.vhr[tile], normalization.s2[region])


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
