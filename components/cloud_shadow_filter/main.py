"""Masks of clouds and shadows, and which acquisitions of each patch are kept.

Input: `patches/`. Output: `masks/<region>/<patch id>/{s2,vhr}/` and the table `masks/acquisitions.parquet`. Masks are
written for every acquisition; `kept` in the table only guides later stages. `masks/coregistration.json` holds the
displacement of each pass over each region, in 10 m pixels.

The work has two phases. Clouds are found in each patch by itself (`find_clouds`); then, as shadows come from clouds of
other patches and VHR is compared with frames that are co-registered over the region, the VHR masks (`finish_vhr`).
"""

from __future__ import annotations

import datetime as dt
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from components.shards import each_patch
from components.stage import STAGES, Context, Result, Shard
from sr_core import REFLECTANCE_SCALE, SCALE
from sr_core.config import CloudShadowFilter, Config
from sr_core.coregistration import PairShift, Registration, Shift, pair_shifts, solve, write_shifts
from sr_core.errors import DataError
from sr_core.masks.acquisitions import Acquisition, write_acquisitions
from sr_core.masks.morphology import dilate
from sr_core.masks.s2_clouds import cloud_mask, shadow_mask
from sr_core.masks.s2cloudless import S2CLOUDLESS_BANDS, s2cloudless_mask
from sr_core.masks.shadows import CloudCover, coarse, geometric_shadow, patches_that_may_shade, shadowed_patches
from sr_core.masks.sun import Sun, sun_on_grid, sun_over
from sr_core.masks.vhr_clouds import vhr_cloud_mask
from sr_core.patches import EOPatch, Patch, load_part, part_path, read_index, save_part
from sr_core.samples.pairs import S2_MTF, degrade_clear
from sr_core.series import S2Series, load_s2
from sr_core.vhr_registration import register_vhr

SHADOW_FRAMES = 3
"""VHR is compared with so many clear Sentinel-2 frames nearest in time: their median forgives one that changed."""
CLOUDS = "vhr_clouds"
"""Part of the first phase: VHR clouds, before anything is known of shadows."""

Mask = NDArray[np.bool_]


class Found(NamedTuple):
    """What the first phase found in a patch."""

    rows: list[Acquisition]
    """Of Sentinel-2."""
    pairs: list[PairShift]
    vhr_cover: dict[dt.datetime, float] | None
    """Cloud cover by VHR time, the cloudiest where two tiles have one time; None where there is no VHR."""


class Surroundings(NamedTuple):
    """What a patch must know of the others' clouds."""

    shadowed: set[dt.datetime]
    """Times at which the neighbour rule flags it."""
    near: list[Patch]
    """Cloudy patches that may shade it, for the geometric rule."""


def work(context: Context) -> Result:
    """Mask clouds and shadows, and tell which acquisitions are kept."""
    section = context.config.cloud_shadow_filter
    patches = read_index(context.inputs["download"])
    found = dict(zip(patches, each_patch(context, patches, find_clouds, "clouds"), strict=True))
    rows = [row for patch in patches for row in found[patch].rows]
    refuse_only_cloudy(section, rows, len(patches))
    shifts = coregister(found)
    write_shifts(context.output, shifts)
    covers = {patch: one.vhr_cover for patch, one in found.items() if one.vhr_cover is not None}
    around = surroundings(section, covers)
    vhr_rows = each_patch(context, list(covers), finish_vhr, "VHR masks", around)
    rows += [row for mine in vhr_rows for row in mine]
    write_acquisitions(context.output, rows)
    return Result(
        {
            "patches": len(patches),
            "co_registered_dates": sum(len(dates) for dates in shifts.values()),
            **{sensor: counts(rows, sensor) for sensor in ("s2", "vhr")},
            "vhr_registration": registration_counts(rows),
        }
    )


def share(context: Context, shard: Shard) -> int:
    """Find the clouds of a shard's patches. Returns how many patches the shard has."""
    patches = shard.of(read_index(context.inputs["download"]))
    each_patch(context, patches, find_clouds, "clouds")
    return len(patches)


def find_clouds(config: Config, inputs: Mapping[str, Path], output: Path, patch: Patch) -> Found:
    """The first phase: write a patch's Sentinel-2 mask and its VHR clouds unless they are there."""
    section, images = config.cloud_shadow_filter, inputs["download"]
    path = part_path(output, patch, "s2")
    if not path.is_dir():
        save_part(mask_s2(section, load_part(part_path(images, patch, "s2"))), path)
    s2 = load_part(path)
    cover: dict[dt.datetime, float] | None = None
    if part_path(images, patch, "vhr").is_dir():
        path = part_path(output, patch, CLOUDS)
        if not path.is_dir():
            save_part(mask_vhr_clouds(section, load_part(part_path(images, patch, "vhr"))), path)
        vhr, cover = load_part(path), {}
        for time, (share_of_cloud, _) in zip(vhr.get_timestamps(), vhr.meta_info["coverage"], strict=True):
            cover[time] = max(share_of_cloud, cover.get(time, 0.0))
    pairs = [
        PairShift(dt.datetime.fromisoformat(first), dt.datetime.fromisoformat(second), rows, columns)
        for first, second, rows, columns in s2.meta_info["pair_shifts"]
    ]
    return Found(acquisitions(section, patch, "s2", s2), pairs, cover)


def mask_s2(section: CloudShadowFilter, images: EOPatch) -> EOPatch:
    """The mask of a Sentinel-2 series."""
    valid = images.mask["VALID"][..., 0].astype(bool)
    hidden, mask_source = hidden_ground(section, images, valid)
    clear = valid & ~np.stack([dilate(frame, section.dilate_px) for frame in hidden])
    part = EOPatch(bbox=images.bbox, timestamps=images.get_timestamps())
    part.mask["CLEAR"] = clear[..., None]
    part.meta_info["mask_source"] = mask_source
    part.meta_info["pair_shifts"] = [
        (pair.first.isoformat(), pair.second.isoformat(), pair.rows, pair.columns)
        for pair in pair_shifts(images.data["BANDS"], clear, images.get_timestamps())
    ]
    part.meta_info["tiles"] = list(images.meta_info["product_ids"])
    part.meta_info["coverage"] = coverage(valid, clear)
    return part


def hidden_ground(section: CloudShadowFilter, images: EOPatch, valid: Mask) -> tuple[Mask, str]:
    """Clouds and shadows (T, H, W) of a Sentinel-2 series, and what found them: s2cloudless, scl, clm or 4-band.

    Only SCL and our own test know shadows; beside clouds of the others, our test of shadows is added. Raises
    `DataError` where `s2_mask` names a mask that the source has not.
    """
    have_bands, have_source = "CLOUD_BANDS" in images.data, "CLM" in images.mask
    bands = images.data["BANDS"].astype(np.float32) / REFLECTANCE_SCALE
    missing = f"patch {images.meta_info.get('patch_id')}: cloud_shadow_filter.s2_mask is '{section.s2_mask}', but"
    if section.s2_mask == "s2cloudless" and not have_bands:
        raise DataError(
            f"{missing} the source delivered no bands for it (level {images.meta_info.get('level')}); expected L1C with"
            f" {', '.join(S2CLOUDLESS_BANDS)}, or s2_mask 'auto'"
        )
    if section.s2_mask == "source" and not have_source:
        raise DataError(f"{missing} the source delivered neither SCL nor CLM; expected one of them, or s2_mask 'auto'")
    if have_bands and section.s2_mask in ("auto", "s2cloudless"):
        cloud, judged = s2cloudless_mask(images.data["CLOUD_BANDS"], valid.shape[1:])
        if not judged.all():
            cloud[~judged] = cloud_mask(bands, valid)[~judged]
        return cloud | shadow_mask(bands, valid, cloud), "s2cloudless"
    if have_source and section.s2_mask in ("auto", "source"):
        cloud, kind = images.mask["CLM"][..., 0].astype(bool), images.meta_info.get("mask_kind", "source")
        return (cloud if kind == "scl" else cloud | shadow_mask(bands, valid, cloud)), kind
    return cloud_mask(bands, valid), "4-band"


def mask_vhr_clouds(section: CloudShadowFilter, images: EOPatch) -> EOPatch:
    """The clouds of a VHR series, and what is valid."""
    valid = images.mask["VALID"][..., 0].astype(bool)
    blue = images.data["BANDS"][..., 0].astype(np.float32) / float(images.meta_info["radiance_scale"])
    cloud = vhr_cloud_mask(blue, valid, section.vhr_blue_threshold, section.dilate_px * SCALE)
    part = EOPatch(bbox=images.bbox, timestamps=images.get_timestamps())
    part.mask["CLM"] = cloud[..., None]
    part.meta_info["coverage"] = coverage(valid, valid & ~cloud)
    return part


def surroundings(section: CloudShadowFilter, covers: CloudCover) -> dict[Patch, Surroundings]:
    """What each patch must know of the others' clouds, for the rule that is chosen."""
    if section.shadows == "geometric":
        return {patch: Surroundings(set(), near) for patch, near in patches_that_may_shade(covers).items()}
    shadowed: dict[Patch, set[dt.datetime]] = defaultdict(set)
    for patch, time in shadowed_patches(covers, section.max_cloud_cover):
        shadowed[patch].add(time)
    return {patch: Surroundings(shadowed[patch], []) for patch in covers}


def finish_vhr(
    config: Config, inputs: Mapping[str, Path], output: Path, patch: Patch, around: Surroundings
) -> list[Acquisition]:
    """The second phase: write a patch's VHR masks, with shadows and co-registration, unless they are there.

    Returns the patch's rows of VHR.
    """
    section, images = config.cloud_shadow_filter, inputs["download"]
    path = part_path(output, patch, "vhr")
    if not path.is_dir():
        series = load_part(part_path(images, patch, "vhr"))
        times, bands = series.get_timestamps(), series.data["BANDS"]
        clouds = load_part(part_path(output, patch, CLOUDS))
        valid, cloud = (mask[..., 0].astype(bool) for mask in (series.mask["VALID"], clouds.mask["CLM"]))
        clear, s2 = valid & ~cloud, load_s2(images, output, patch)
        if section.shadows == "geometric":
            others = [(other, load_part(part_path(output, other, CLOUDS))) for other in around.near]
            shadow = geometric_shadows(section, series, clear, [(patch, clouds), *others], s2)
            clear &= ~shadow
        else:
            flags = np.array([time in around.shadowed for time in times])
            shadow = np.broadcast_to(flags[:, None, None], valid.shape)
        part = EOPatch(bbox=patch.bbox, timestamps=times)
        part.mask["CLEAR"], part.mask["CLM"] = clear[..., None], cloud[..., None]
        part.mask["SHADOW"] = np.ascontiguousarray(shadow)[..., None]
        part.meta_info["registration"] = [found.to_json() for found in register_vhr(bands, clear, times, s2)]
        part.meta_info["tiles"] = list(series.meta_info["tile_ids"])
        part.meta_info["coverage"] = clouds.meta_info["coverage"]
        save_part(part, path)
    return acquisitions(section, patch, "vhr", load_part(path))


def geometric_shadows(
    section: CloudShadowFilter, series: EOPatch, clear: Mask, clouds: Sequence[tuple[Patch, EOPatch]], s2: S2Series
) -> Mask:
    """Shadows (T, 4H, 4W) of a VHR series that is `clear` of clouds, from the clouds of the patch and of others."""
    shadow = np.zeros(clear.shape, bool)
    suns = series.meta_info.get("sun") or [None] * len(clear)
    for index, (time, told) in enumerate(zip(series.get_timestamps(), suns, strict=True)):
        masks = [
            (other, coarse(mask))
            for other, part in clouds
            for when, mask in zip(part.get_timestamps(), part.mask["CLM"][..., 0].astype(bool), strict=True)
            if when == time and mask.any()
        ]
        if not masks or not clear[index].any():
            continue
        sun = sun_on_grid(s2.patch, Sun(*told)) if told else sun_over(s2.patch, time)
        seen, seen_clear = degrade_clear(series.data["BANDS"][index], clear[index], S2_MTF)
        frames = sorted(range(len(s2.timestamps)), key=lambda i, at=time: abs(s2.timestamps[i] - at))  # type: ignore[misc]
        frames = [frame for frame in frames if s2.clear[frame].any()][:SHADOW_FRAMES]
        found = geometric_shadow(
            s2.patch, masks, sun, seen, seen_clear, s2.bands[frames], s2.clear[frames], section.dilate_px
        )
        shadow[index] = found.repeat(SCALE, axis=0).repeat(SCALE, axis=1) & clear[index]
    return shadow


def refuse_only_cloudy(section: CloudShadowFilter, rows: Sequence[Acquisition], patches: int) -> None:
    """Raise `DataError` when no Sentinel-2 acquisition of any patch is kept."""
    if any(row.kept for row in rows):
        return
    reasons = Counter(row.reason for row in rows)
    raise DataError(
        f"only cloudy dates: none of {len(rows)} Sentinel-2 acquisitions of {patches} patches is clear enough"
        f" ({reasons['cloud']} have more than cloud_shadow_filter.max_cloud_cover = {section.max_cloud_cover:g} of"
        f" cloud, {reasons['nodata']} less valid ground than min_valid = {section.min_valid:g});"
        " take a longer period"
    )


def coregister(found: Mapping[Patch, Found]) -> dict[str, dict[dt.datetime, Shift]]:
    """Displacement of every pass over each region, from the pairs of dates of all its patches."""
    pairs: dict[str, list[PairShift]] = defaultdict(list)
    for patch, one in found.items():
        pairs[patch.region] += one.pairs
    return {region: solve(mine) for region, mine in pairs.items()}


def counts(rows: Sequence[Acquisition], sensor: str) -> dict[str, int]:
    """Acquisitions in, kept, and dropped by reason."""
    mine = [row for row in rows if row.sensor == sensor]
    reasons = Counter(row.reason for row in mine if not row.kept)
    return {"acquisitions": len(mine), "kept": sum(row.kept for row in mine), **dict(sorted(reasons.items()))}


def registration_counts(rows: Sequence[Acquisition]) -> dict[str, int]:
    """Of the VHR acquisitions: how many have a known displacement, and how many of those are not rigid."""
    known = [found for row in rows if row.sensor == "vhr" and (found := row.registration).known]
    return {"known": len(known), "non_rigid": sum(not found.rigid for found in known)}


def coverage(valid: Mask, clear: Mask) -> list[tuple[float, float]]:
    """Of each date: share of the valid pixels that is not clear (0 where none is valid), and share of valid pixels."""
    return [
        (1 - float(seen.sum()) / int(ground.sum()) if ground.any() else 0.0, float(ground.mean()))
        for ground, seen in zip(valid, clear, strict=True)
    ]


def acquisitions(section: CloudShadowFilter, patch: Patch, sensor: str, part: EOPatch) -> list[Acquisition]:
    """The rows of one patch and sensor, from its masks."""
    times, info = part.get_timestamps(), part.meta_info
    registrations = [Registration.from_json(raw) for raw in info["registration"]] if sensor == "vhr" else []
    rows = []
    for index, (cover, valid) in enumerate(info["coverage"]):
        shade = float(part.mask["SHADOW"][index].mean()) if sensor == "vhr" else 0.0
        registration = registrations[index] if registrations else None
        if not valid or valid < section.min_valid:
            reason = "nodata"
        elif cover > section.max_cloud_cover:
            reason = "cloud"
        elif shade > section.max_cloud_cover:
            reason = "shadow"
        elif registration is not None and registration.known and registration.distance_m > section.max_shift_m:
            reason = "shift"
        else:
            reason = ""
        row = Acquisition(
            region=patch.region,
            patch=patch.id,
            sensor=sensor,
            timestamp=times[index],
            tile=info["tiles"][index],
            cloud_cover=cover,
            valid=valid,
            shadowed=shade > 0,
            kept=not reason,
            reason=reason,
        )
        rows.append(row if registration is None else row.registered(registration))
    return rows


STAGE = STAGES["cloud_shadow_filter"]
