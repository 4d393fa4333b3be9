"""Masks of clouds and shadows, and which acquisitions of each patch are kept.

Input: `patches/`. Output: `masks/<region>/<patch id>/{s2,vhr}/` and the table `masks/acquisitions.parquet`. Masks are
written for every acquisition; `kept` in the table only guides later stages. `masks/coregistration.json` holds the
displacement of each pass over each region, in 10 m pixels.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from components.stage import STAGES, Context, Result
from sr_core import SCALE
from sr_core.config import CloudShadowFilter
from sr_core.coregistration import PairShift, Shift, pair_shifts, solve, write_shifts
from sr_core.errors import DataError
from sr_core.masks.acquisitions import Acquisition, write_acquisitions
from sr_core.masks.morphology import dilate
from sr_core.masks.s2_clouds import cloud_mask
from sr_core.masks.shadows import shadowed_patches
from sr_core.masks.vhr_clouds import vhr_cloud_mask
from sr_core.patches import EOPatch, Patch, load_part, part_path, read_index, save_part
from sr_core.progress import track

Mask = NDArray[np.bool_]


def work(context: Context) -> Result:
    """Mask clouds and shadows, and tell which acquisitions are kept."""
    section, images, output = context.config.cloud_shadow_filter, context.inputs["download"], context.output
    patches = read_index(images)
    rows: list[Acquisition] = []
    for patch in track(patches, "Sentinel-2 masks"):
        rows += mask_s2(section, images, output, patch)
    if not any(row.kept for row in rows):
        reasons = Counter(row.reason for row in rows)
        raise DataError(
            f"only cloudy dates: none of {len(rows)} Sentinel-2 acquisitions of {len(patches)} patches is clear enough"
            f" ({reasons['cloud']} have more than cloud_shadow_filter.max_cloud_cover = {section.max_cloud_cover:g} of"
            f" cloud, {reasons['nodata']} less valid ground than min_valid = {section.min_valid:g});"
            " take a longer period"
        )
    with_vhr = [patch for patch in patches if part_path(images, patch, "vhr").is_dir()]
    # neighbours decide about shadows, so all clouds are known before the first mask is written
    clouds = {patch: vhr_clouds(section, images, patch) for patch in track(with_vhr, "VHR clouds")}
    shadowed = shadowed_patches(clouds, section.max_cloud_cover)
    for patch in track(with_vhr, "VHR masks"):
        times = {time for flagged, time in shadowed if flagged == patch}
        rows += mask_vhr(section, images, output, patch, times)
    shifts = coregister(output, patches)
    write_shifts(output, shifts)
    write_acquisitions(output, rows)
    registered = sum(len(dates) for dates in shifts.values())
    found = {"patches": len(patches), "co_registered_dates": registered}
    return Result(found | {sensor: counts(rows, sensor) for sensor in ("s2", "vhr")})


def coregister(output: Path, patches: list[Patch]) -> dict[str, dict[dt.datetime, Shift]]:
    """Displacement of every pass over each region, from the pairs of dates of all its patches."""
    pairs: dict[str, list[PairShift]] = defaultdict(list)
    for patch in patches:
        for first, second, rows, columns in load_part(part_path(output, patch, "s2")).meta_info["pair_shifts"]:
            dates = dt.datetime.fromisoformat(first), dt.datetime.fromisoformat(second)
            pairs[patch.region].append(PairShift(*dates, rows, columns))
    return {region: solve(found) for region, found in pairs.items()}


def counts(rows: list[Acquisition], sensor: str) -> dict[str, int]:
    """Acquisitions in, kept, and dropped by reason."""
    mine = [row for row in rows if row.sensor == sensor]
    reasons = Counter(row.reason for row in mine if not row.kept)
    return {"acquisitions": len(mine), "kept": sum(row.kept for row in mine), **dict(sorted(reasons.items()))}


def mask_s2(section: CloudShadowFilter, images: Path, output: Path, patch: Patch) -> list[Acquisition]:
    """Write a patch's Sentinel-2 mask unless it is there. Returns its rows."""
    series = load_part(part_path(images, patch, "s2"))
    valid = series.mask["VALID"][..., 0].astype(bool)
    path = part_path(output, patch, "s2")
    if path.is_dir():
        clear = load_part(path).mask["CLEAR"][..., 0].astype(bool)
    else:
        if section.s2_mask in ("auto", "source") and "CLM" in series.mask:
            cloud, mask_source = series.mask["CLM"][..., 0].astype(bool), series.meta_info.get("mask_kind", "source")
        else:
            cloud, mask_source = cloud_mask(series.data["BANDS"].astype(np.float32) / 10_000, valid), "4-band"
        clear = valid & ~np.stack([dilate(frame, section.dilate_px) for frame in cloud])
        part = EOPatch(bbox=patch.bbox, timestamps=series.get_timestamps())
        part.mask["CLEAR"] = clear[..., None]
        part.meta_info["mask_source"] = mask_source
        part.meta_info["pair_shifts"] = [
            (pair.first.isoformat(), pair.second.isoformat(), pair.rows, pair.columns)
            for pair in pair_shifts(series.data["BANDS"], clear, series.get_timestamps())
        ]
        save_part(part, path)
    none = [False] * len(valid)
    return acquisitions(section, patch, "s2", series, series.meta_info["product_ids"], valid, clear, none)


def vhr_clouds(section: CloudShadowFilter, images: Path, patch: Patch) -> dict[dt.datetime, float]:
    """Cloud cover of a patch by VHR time; the cloudiest where two tiles have one time."""
    series = load_part(part_path(images, patch, "vhr"))
    valid = series.mask["VALID"][..., 0].astype(bool)
    covers = cloud_covers(valid, valid & ~find_vhr_clouds(section, series, valid))
    found: dict[dt.datetime, float] = {}
    for time, cover in zip(series.get_timestamps(), covers, strict=True):
        found[time] = max(cover, found.get(time, 0.0))
    return found


def find_vhr_clouds(section: CloudShadowFilter, series: EOPatch, valid: Mask) -> Mask:
    """Clouds (T, 4H, 4W) of a VHR series."""
    blue = series.data["BANDS"][..., 0].astype(np.float32) / float(series.meta_info["radiance_scale"])
    return vhr_cloud_mask(blue, valid, section.vhr_blue_threshold, section.dilate_px * SCALE)


def mask_vhr(
    section: CloudShadowFilter, images: Path, output: Path, patch: Patch, shadowed: set[dt.datetime]
) -> list[Acquisition]:
    """Write a patch's VHR masks unless they are there. Returns its rows."""
    series = load_part(part_path(images, patch, "vhr"))
    valid = series.mask["VALID"][..., 0].astype(bool)
    flags = [time in shadowed for time in series.get_timestamps()]
    path = part_path(output, patch, "vhr")
    if path.is_dir():
        clear = load_part(path).mask["CLEAR"][..., 0].astype(bool)
    else:
        cloud = find_vhr_clouds(section, series, valid)
        clear = valid & ~cloud
        part = EOPatch(bbox=patch.bbox, timestamps=series.get_timestamps())
        part.mask["CLEAR"] = clear[..., None]
        part.mask["CLM"] = cloud[..., None]
        part.mask["SHADOW"] = np.broadcast_to(np.array(flags)[:, None, None, None], (*valid.shape, 1)).copy()
        save_part(part, path)
    return acquisitions(section, patch, "vhr", series, series.meta_info["tile_ids"], valid, clear, flags)


def cloud_covers(valid: Mask, clear: Mask) -> list[float]:
    """Share of the valid pixels of each date that is not clear; 0 where nothing is valid."""
    return [
        1 - float(seen.sum()) / max(1, int(ground.sum())) if ground.any() else 0.0
        for ground, seen in zip(valid, clear, strict=True)
    ]


def acquisitions(
    section: CloudShadowFilter,
    patch: Patch,
    sensor: str,
    series: EOPatch,
    tiles: list[str],
    valid: Mask,
    clear: Mask,
    shadowed: list[bool],
) -> list[Acquisition]:
    """The rows of one patch and sensor."""
    rows = []
    for index, cover in enumerate(cloud_covers(valid, clear)):
        share = float(valid[index].mean())
        if not valid[index].any() or share < section.min_valid:
            reason = "nodata"
        elif cover > section.max_cloud_cover:
            reason = "cloud"
        else:
            reason = "shadow" if shadowed[index] else ""
        time = series.get_timestamps()[index]
        flag = shadowed[index]
        rows.append(
            Acquisition(patch.region, patch.id, sensor, time, tiles[index], cover, share, flag, not reason, reason)
        )
    return rows


STAGE = STAGES["cloud_shadow_filter"]
