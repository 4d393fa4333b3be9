"""Both rules of VHR shadows against the simulation's truth.

    python -m tests.benchmarks.shadow_rules --patches 2000 --write docs/shadows.md

Places of the simulated farmland, patches of 2.4 km, are rendered in spring, summer and autumn; then many skies are
drawn over each and its surroundings. Land and skies are the simulation's own; the skies are evaluated at 10 m, where
the geometric rule works, and at 40 m around the patch, because 2.5 m would take sixteen times as long and more. What is
done is kept below `--work`, so that the command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import datetime as dt
import math
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sr_core import SCALE
from sr_core.config import CloudShadowFilter, SimulatedSource
from sr_core.masks import sun as masks
from sr_core.masks.morphology import closing, dilate, opening
from sr_core.masks.shadows import geometric_shadow, shadowed_patches
from sr_core.masks.vhr_clouds import GAP_PX, ROOF_PX
from sr_core.patches import S2_GSD, VHR_GSD, Patch, make_patch
from sr_core.progress import track
from sr_core.radiometry.resample import Image, degrade
from sr_core.sources.simulated import SimulatedFarmland
from sr_core.sources.simulated.atmosphere import CLOUD_DEPTH, Clouds
from sr_core.sources.simulated.landscape import landscape
from sr_core.sources.simulated.render import Raster, Scene, Sun
from sr_core.sources.simulated.sensors import (
    PATH_RADIANCE,
    SOLAR_IRRADIANCE,
    TRANSMISSION,
    VHR_HOUR,
    acquire_s2,
    s2_clouds,
    s2_days,
)

INTRODUCTION = """# Shadows in VHR: the rule of neighbours and the geometric rule

Written by `python -m tests.benchmarks.shadow_rules --patches 2000 --write docs/shadows.md`, on simulated farmland with
known truth: {patches} patches of 2.4 km, {places} places under skies of the simulation's own drawing, all with clouds
somewhere (cumulus, broken, thin, overcast in its proportions), sun 30 to 65 degrees high. Skies are evaluated at 10 m,
and around the patch, where only clouds matter, at 40 m. Shadow is where the cloud between ground and sun has an optical
depth of 0.25 or more, which takes 15 % of the light in near infrared; ground below a cloud counts as cloud.

Sinergise estimate their rule of neighbours, on their own data, at 60 % true and 2 % false positives."""
SHADOWED = 0.01
"""A patch contains shadow from this share of its clear ground on."""
AROUND_M = 6_200
"""How far around a patch the sky is drawn: the geometric rule's reach."""
SOURCE = SimulatedSource(kind="simulated", seed=11, cloudy_share=0.35)
SEASONS = (dt.date(2020, 5, 8), dt.date(2020, 7, 12), dt.date(2020, 9, 14))
PLACES = 24
CELL_M, BUFFER_M = 2000, 200
FRAMES = 3
"""Clear Sentinel-2 frames nearest in time, which the geometric rule compares with."""


def place(number: int) -> tuple[Patch, dt.date]:
    """A patch and the day on which its land is seen."""
    west, south = 500_000 + 20_000 * number, 5_500_000
    patch = make_patch("place", 32634, (west, south, west + CELL_M, south + CELL_M), BUFFER_M)
    return patch, SEASONS[number % len(SEASONS)]


def render(patch: Patch, day: dt.date, path: Path) -> None:
    """Write what is seen of a patch under a clear sky: `land` (4, H, W) reflectance at VHR's hour, at 10 m, and
    `frames` (3, H, W, 4) reflectance x 10000 of the Sentinel-2 passes nearest to the day."""
    west, _, _, north = frame = SimulatedFarmland(SOURCE)._frame(patch)
    scene = Scene(SOURCE.seed, landscape(SOURCE.seed, patch.epsg, frame), Raster.of(frame, VHR_GSD))
    top, left = round((north - patch.bounds[3]) / VHR_GSD), round((patch.bounds[0] - west) / VHR_GSD)
    rows, columns = patch.hr_shape
    land = scene.reflectance(day, Sun.at(day, VHR_HOUR))[:, top : top + rows, left : left + columns]
    frames = np.stack([acquire_s2(SOURCE, scene, patch, one).bands for one in clear_days(day)])
    aside = path.with_name(f".{path.stem}.{os.getpid()}.npz")
    np.savez(aside, allow_pickle=False, land=degrade(land, SCALE), frames=frames)
    aside.replace(path)


def clear_days(day: dt.date) -> list[dt.date]:
    """The cloudless passes nearest to a day."""
    around = s2_days(SOURCE, day - dt.timedelta(days=40), day + dt.timedelta(days=40))
    return sorted((one for one in around if s2_clouds(SOURCE, one) is None), key=lambda one: abs(one - day))[:FRAMES]


class Judged(NamedTuple):
    """One patch under one sky: pixels of 10 m, of those that the mask of clouds leaves clear."""

    clear: int
    shadow: int
    found: int
    """Taken for shadow by the geometric rule."""
    both: int
    kept: bool
    """Clear enough by the rule of clouds: only then its shadows matter."""
    flagged: bool
    """By the neighbour rule."""


def judge(patch: Patch, land: Image, frames: NDArray[np.uint16], day: dt.date) -> Judged:
    """Both rules on a patch under the clouds of a day."""
    sun, sky, section = Sun.at(day, VHR_HOUR), Clouds.of(SOURCE.seed, "vhr", day.toordinal()), CloudShadowFilter()
    image, shadow = covered(patch, land, sky, sun)
    bright = image[..., 0] > section.vhr_blue_threshold
    cloud = dilate(closing(opening(bright, ROOF_PX / SCALE), GAP_PX / SCALE), section.dilate_px)
    around = make_patch("around", patch.epsg, patch.cell, AROUND_M)
    wide = clouds_around(around, sky)
    time = dt.datetime.combine(day, dt.time(12))
    covers = {other: {time: float(wide[window(other, around)].mean())} for other in touching(patch)}
    covers[patch] = {time: float(cloud.mean())}
    found = geometric_shadow(
        patch,
        [(patch, cloud), (around, wide)],
        masks.Sun(math.degrees(sun.azimuth), math.degrees(sun.elevation)),
        image,
        ~cloud,
        frames,
        np.ones(frames.shape[:3], bool),
        section.dilate_px,
    )
    flagged = {other for other, _ in shadowed_patches(covers, section.max_cloud_cover)}
    return Judged(
        clear=int((~cloud).sum()),
        shadow=int((shadow & ~cloud).sum()),
        found=int(found.sum()),
        both=int((found & shadow).sum()),
        kept=covers[patch][time] <= section.max_cloud_cover,
        flagged=patch in flagged,
    )


def covered(patch: Patch, land: Image, sky: Clouds, sun: Sun) -> tuple[Image, NDArray[np.bool_]]:
    """VHR radiance (H, W, 4) of land (4, H, W) under a sky, W m-2 sr-1 um-1, and the true mask of shadow."""
    grid = Raster.of(patch.bounds, S2_GSD)
    image, _, shadow = sky.over(land, grid.y, grid.x, sun)
    gain = SOLAR_IRRADIANCE * TRANSMISSION * math.sin(sun.elevation) / math.pi
    radiance = image * gain[:, None, None] + PATH_RADIANCE[:, None, None]
    return np.moveaxis(radiance, 0, -1).astype(np.float32), shadow


def clouds_around(around: Patch, sky: Clouds) -> NDArray[np.bool_]:
    """The clouds of a large patch at 10 m, evaluated at 40 m."""
    grid = Raster.of(around.bounds, SCALE * S2_GSD)
    return (sky.depth(grid.y, grid.x) >= CLOUD_DEPTH).repeat(SCALE, axis=0).repeat(SCALE, axis=1)


def touching(patch: Patch) -> list[Patch]:
    """The eight patches around."""
    west, south, east, north = patch.cell
    steps = [(right, up) for right in (-CELL_M, 0, CELL_M) for up in (-CELL_M, 0, CELL_M) if right or up]
    return [make_patch("place", patch.epsg, (west + x, south + y, east + x, north + y), BUFFER_M) for x, y in steps]


def window(patch: Patch, around: Patch) -> tuple[slice, slice]:
    top, left = (around.bounds[3] - patch.bounds[3]) / S2_GSD, (patch.bounds[0] - around.bounds[0]) / S2_GSD
    rows, columns = patch.shape
    return slice(round(top), round(top) + rows), slice(round(left), round(left) + columns)


def measure(number: int, skies: int, work: Path) -> pd.DataFrame:
    """A row a sky over one place, read where it is already there."""
    kept = work / f"place-{number:03d}-{skies}.parquet"
    if not kept.exists():
        patch, day = place(number)
        rendered = work / f"place-{number:03d}.npz"
        if not rendered.exists():
            render(patch, day, rendered)
        with np.load(rendered) as arrays:
            land, frames = arrays["land"], arrays["frames"]
        days = [day + dt.timedelta(days=sky - skies // 2) for sky in range(skies)]
        table = pd.DataFrame([judge(patch, land, frames, one) for one in days])
        aside = kept.with_name(f".{kept.name}.{os.getpid()}")
        table.to_parquet(aside)
        aside.replace(kept)
    return pd.read_parquet(kept)


def rates(table: pd.DataFrame) -> list[tuple[str, float, float, float, float]]:
    """Each rule: of patches and of pixels, the share of shadow that is found and the share of the rest that is lost."""
    has = table.shadow > SHADOWED * table.clear
    sunlit = table.clear - table.shadow
    rules = []
    for name, flagged, hit, lost in (
        ("neighbours", table.flagged, table.shadow * table.flagged, sunlit * table.flagged),
        ("geometric", table.found > SHADOWED * table.clear, table.both, table.found - table.both),
    ):
        rules.append(
            (
                name,
                float(flagged[has].mean()),
                float(flagged[~has].mean()),
                float(hit.sum() / max(1, table.shadow.sum())),
                float(lost.sum() / max(1, sunlit.sum())),
            )
        )
    return rules


def page(table: pd.DataFrame) -> str:
    """The result as Markdown."""
    parts = [INTRODUCTION.format(patches=len(table), places=PLACES)]
    for title, rows in (
        ("Patches that the rule of clouds keeps (at most 10 % cloud): only here the rules decide", table[table.kept]),
        ("All patches with clear ground", table[table.clear > 0]),
    ):
        share = float((rows.shadow > SHADOWED * rows.clear).mean())
        lines = [
            f"## {title}",
            "",
            f"{len(rows)} patches, {share:.0%} of them with shadow on more than {SHADOWED:.0%} of their clear ground.",
            "",
            "| rule | shadowed patches: found | others: lost | pixels in shadow: found | pixels in the sun: lost |",
            "|---|---|---|---|---|",
        ]
        for name, *figures in rates(rows):
            lines.append(f"| {name} | " + " | ".join(f"{100 * figure:.1f} %" for figure in figures) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.shadow_rules", description=__doc__)
    parser.add_argument("--patches", type=int, default=2000, help="at least so many")
    parser.add_argument("--work", type=Path, default=Path("artifacts/shadow-rules"), help="where results are kept")
    parser.add_argument("--write", type=Path, help="Markdown file to write")
    chosen = parser.parse_args()
    chosen.work.mkdir(parents=True, exist_ok=True)
    skies = math.ceil(chosen.patches / PLACES)
    tables = [measure(number, skies, chosen.work) for number in track(range(PLACES), "places")]
    text = page(pd.concat(tables, ignore_index=True))
    print(text)
    if chosen.write:
        chosen.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
