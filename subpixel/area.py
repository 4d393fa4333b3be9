"""`subpixel super-resolve`: an area, a period and a source become products, and a site where one is asked for.

What is asked for becomes a configuration like any other, which the stages of the inference graph follow: download,
cloud_shadow_filter, super_resolve, report. They run in this process, one after the other: no Kubeflow is needed, and
what is finished is kept, as everywhere. The period is that of the images; frames are read from
`super_resolve.max_age_days` before it on.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mgrs
from mgrs.core import MGRSError

from components.download.main import period_of, plan, secrets
from components.stage import STAGES, run
from components.super_resolve.main import regions
from sr_core.config import Config, load_config, parse_config
from sr_core.errors import AreaError, ConfigError
from sr_core.inference.estimate import Estimate, estimate, probe
from sr_core.models.bundle import SHIPPED, load_bundle
from sr_core.patches import Patch
from sr_core.progress import say
from sr_core.sources import Metered, Source, open_source
from sr_core.storage import is_remote

CHAIN = ("download", "cloud_shadow_filter", "super_resolve", "report")
TILE_M = 109_800.0
"""Side of a Sentinel-2 tile."""
SQUARE_M = 100_000.0
"""Side of the square of MGRS that gives the tile its name."""
TILE_GRID_M = 60.0
"""Tiles begin where all of its resolutions have the edge of a pixel."""
TILE_NAME = re.compile(r"T?(?P<square>(0?[1-9]|[1-5][0-9]|60)[C-HJ-NP-X][A-HJ-NP-Z][A-HJ-NP-V])", re.IGNORECASE)
LAUNCH = dt.date(2015, 6, 23)
"""Of Sentinel-2A: nothing is older."""
REVISIT_DAYS = 5
"""Between passes of one orbit, of two satellites."""
SINGLE_CELL_M = 5000
"""A scene of a folder that is no larger is one patch."""
SERVICES: Mapping[str, Mapping[str, Any]] = {
    "earth-search": {"kind": "stac", "catalog": "earth-search"},
    "cdse": {"kind": "stac", "catalog": "copernicus", "collection": "sentinel-2-l2a"},
    "sentinelhub": {"kind": "sentinelhub"},
    # what sensors hide would be four fifths of the space
    "simulated": {"kind": "simulated", "truth": False},
}
"""Sources that need no more than their name."""


@dataclass(frozen=True)
class Request:
    """What is asked for; what is left out is as the configuration says."""

    config: Path | None = None
    area: Path | None = None
    """File of a GeoJSON polygon."""
    bbox: str | None = None
    """West, south, east, north in degrees, with commas."""
    tile: str | None = None
    """Name of a Sentinel-2 tile, such as 32TNR."""
    places: tuple[str, ...] = ()
    """Names of regions that a folder of files covers."""
    start: dt.date | None = None
    end: dt.date | None = None
    dates: tuple[dt.date, ...] = ()
    source: str | None = None
    """A name of `SERVICES`, a catalogue's URL or JSON file, or a folder."""
    bundle: Path | None = None
    storage: Mapping[str, Any] | None = None
    """Keys of `StorageSettings`."""


def configure(request: Request, environment: Mapping[str, str]) -> Config:
    """The configuration that a request means, its period widened by the age of frames.

    Raises `ConfigError` and `AreaError`, which name the option, what was found and what was expected.
    """
    raw: dict[str, Any] = {}
    if request.config is not None:
        raw = json.loads(load_config(request.config, environment).model_dump_json(exclude_unset=True))
    if request.source is not None:
        raw["source"] = source_of(request.source)
    raw.setdefault("source", dict(SERVICES["earth-search"]))
    area = outline(request)
    if area is not None:
        raw["area"] = area
    files = raw["source"]["kind"] == "files"
    if request.places or (files and "area" not in raw and "grid" not in raw):
        raw.update(on_the_grid_of_files(raw, request.places))
    if "area" not in raw and not files:
        raise ConfigError("the area: missing; give --area, --bbox or --tile, or a configuration that has one")
    chosen = raw.setdefault("super_resolve", {})
    if request.bundle is not None:
        chosen["bundle"] = str(request.bundle.resolve())
    if request.storage:
        raw["storage"] = {**raw.get("storage", {}), **request.storage}
    raw.setdefault("name", name_of(raw))
    for key in ("start", "end"):
        if getattr(request, key) is not None:
            raw["period"] = {**raw.get("period", {}), key: str(getattr(request, key))}
    if request.dates:
        if request.start or request.end:
            raise ConfigError("--date: found with --start or --end; give days, or a period")
        chosen["dates"] = [str(day) for day in sorted(request.dates)]
        raw["period"] = {"start": chosen["dates"][0], "end": chosen["dates"][-1]}
    elif "period" in raw and files:
        raw["period"] = {"start": str(LAUNCH), "end": str(dt.date.today()), **raw["period"]}
    elif not files and len(raw.get("period", {})) < 2:
        raise ConfigError("the period: give --start and --end, or each day by --date (YYYY-MM-DD)")
    return widened(parse_config(raw, "super-resolve"))


def widened(config: Config) -> Config:
    """The same images, with a period that begins early enough for the first one's frames."""
    if config.period is None:
        return config
    settings, start = config.super_resolve, config.period.start
    earlier = config.period.model_copy(update={"start": start - dt.timedelta(days=settings.max_age_days)})
    since = settings.since or (None if settings.dates else start)
    return config.model_copy(update={"period": earlier, "super_resolve": settings.model_copy(update={"since": since})})


def source_of(text: str) -> dict[str, Any]:
    """The section `source` that `--source` means. Raises `ConfigError`."""
    if text in SERVICES:
        return dict(SERVICES[text])
    path = Path(text)
    if "://" in text or path.suffix == ".json":
        return {"kind": "stac", "catalog": text if "://" in text else str(path.resolve())}
    if path.is_dir():
        return {"kind": "files", "path": str(path.resolve()), "region": slug(path.resolve().name)}
    raise ConfigError(
        f"--source: found {text!r}; expected {', '.join(SERVICES)}, the URL or JSON file of a STAC catalogue,"
        " or a folder"
    )


def outline(request: Request) -> dict[str, Any] | None:
    """The section `area` that the options mean, or None where there is none of them."""
    given = [flag for flag in ("area", "bbox", "tile", "places") if getattr(request, flag)]
    if len(given) > 1:
        flags = ", ".join("--" + flag.removesuffix("s") for flag in given)
        raise ConfigError(f"the area: found {flags}; expected one of them")
    if request.area is not None:
        return {"geojson": str(request.area.resolve()), "region": slug(request.area.stem)}
    if request.bbox is not None:
        sides = re.fullmatch(r"\s*" + r"\s*,\s*".join([r"(-?\d+(?:\.\d*)?)"] * 4) + r"\s*", request.bbox)
        if sides is None:
            raise ConfigError(f"--bbox: found {request.bbox!r}; expected W,S,E,N in degrees, such as 4.0,50.7,4.1,50.8")
        return {"bbox": [float(side) for side in sides.groups()]}
    if request.tile is not None:
        return tile_area(request.tile)
    return None


def tile_area(name: str) -> dict[str, Any]:
    """The ground of a Sentinel-2 tile, 109.8 km square: a square of MGRS, from its north-west corner, which is moved
    outwards onto a grid of 60 m from the zone's origin.

    Raises `AreaError` for a name that is none.
    """
    wrong = f"--tile: found {name!r}; expected a Sentinel-2 tile: zone, band and square, such as 32TNR"
    found = TILE_NAME.fullmatch(name.strip())
    if found is None:
        raise AreaError(wrong)
    square = found["square"].upper()
    try:
        zone, hemisphere, east, north = mgrs.MGRS().MGRSToUTM(square)
    except MGRSError as error:
        raise AreaError(f"{wrong}; its zone and band have no such square") from error
    # of a square without digits, mgrs gives the centre
    corner = (math.floor(east / SQUARE_M) * SQUARE_M, (math.floor(north / SQUARE_M) + 1) * SQUARE_M)
    west = math.floor(corner[0] / TILE_GRID_M) * TILE_GRID_M
    equator = 0.0 if hemisphere == "N" else 1e7
    top = math.ceil((corner[1] - equator) / TILE_GRID_M) * TILE_GRID_M + equator
    epsg = (32600 if hemisphere == "N" else 32700) + int(zone)
    return {"bbox": [west, top - TILE_M, west + TILE_M, top], "crs": f"EPSG:{epsg}", "region": f"t{square.lower()}"}


def on_the_grid_of_files(raw: Mapping[str, Any], places: Sequence[str]) -> dict[str, Any]:
    """Sections `area` and `grid` of places that a folder covers, all of them where none is named; patches begin at the
    scene's own corner, and a small scene is one.

    Raises `ConfigError` where the source is not a folder, and `AreaError` for a place that it does not have.
    """
    source = raw["source"]
    if source["kind"] != "files":
        raise ConfigError(f"--place: found the source {source['kind']}, expected a folder, whose scenes have names")
    covered = {
        region.name: region for region in open_source(parse_config({"name": "area", "source": source})).regions()
    }
    missing = [name for name in places if name not in covered]
    if missing:
        raise AreaError(f"--place: found {', '.join(missing)}; the source has {', '.join(sorted(covered))}")
    chosen = [covered[name] for name in places] or list(covered.values())
    corners = [region.bounds for region in chosen]
    side = max(max(east - west, north - south) for west, south, east, north in corners)
    grid = dict(raw.get("grid", {}))
    if "grid" not in raw:
        grid["anchor"] = "source"
        if side <= SINGLE_CELL_M:
            grid |= {"cell_m": max(160, math.ceil(side / 40) * 40), "buffer_m": 0}
    if not places:
        return {"grid": grid}
    areas = [{"bbox": list(region.bounds), "crs": f"EPSG:{region.epsg}", "region": region.name} for region in chosen]
    return {"grid": grid, "area": areas}


def name_of(raw: Mapping[str, Any]) -> str:
    """A run without a configuration is named by its ground."""
    area = raw.get("area")
    if isinstance(area, list):
        area = area[0]
    return str((area or raw["source"]).get("region", "area"))


def slug(text: str) -> str:
    """A text as names of regions and runs may be."""
    return re.sub(r"[^a-z0-9_-]+", "-", text.lower()).strip("-_") or "area"


@dataclass(frozen=True)
class Outlook:
    """What a request will take, as far as it is known before it starts."""

    patches: int
    outside: int
    """Patches of the area that the source does not cover."""
    km2: float
    passes: int | None
    """Expected in the period; None where there is no period."""
    a_date: Estimate
    """Of one date that sees all of the area."""
    bytes: int | None
    """That the source will send, where it says so."""


def look_ahead(config: Config) -> Outlook:
    """Ask the source and measure the network. Raises what reading the area and the source raises."""
    source = open_source(config, secrets())
    patches, outside = plan(config, source)
    settings = config.super_resolve
    resolver = load_bundle(settings.bundle or SHIPPED)
    found = Estimate()
    for group in regions(patches).values():
        found += estimate(group, 1, resolver.frames, resolver, settings.window_px)
    found = found.timed(probe(resolver, settings.window_px, settings.precision))
    passes, size = expected(config, source, patches)
    return Outlook(len(patches), outside, sum(ground_km2(patch) for patch in patches), passes, found, size)


def expected(config: Config, source: Source, patches: Sequence[Patch]) -> tuple[int | None, int | None]:
    """How many passes there will be, of which clouds leave some, and bytes to read, where they are known."""
    period = period_of(config)
    if isinstance(source, Metered):
        said = source.estimate(patches, period)
        return math.ceil(said.acquisitions.get("s2", 0) / len(patches)), said.bytes
    if config.super_resolve.dates:
        return len(config.super_resolve.dates), None
    if period is None or config.source.kind == "files":
        return None, None
    days = (period[1] - (config.super_resolve.since or period[0])).days + 1
    return math.ceil(days / REVISIT_DAYS), None


def ground_km2(patch: Patch) -> float:
    """Of a patch's cell."""
    west, south, east, north = patch.cell
    return (east - west) * (north - south) / 1e6


def announce(config: Config, root: str) -> None:
    """Say what a request will take. Raises `StorageError` where a local disk cannot hold one image."""
    found, period, settings = look_ahead(config), config.period, config.super_resolve
    say(f"{config.name}: {found.km2:.1f} km2 in {found.patches} patches, from {config.source.kind}")
    if found.outside:
        say(f"{found.outside} patches of the area lie outside the ground that the source covers: they are left out")
    if period is not None:
        days = ", ".join(map(str, settings.dates)) or f"{settings.since or period.start} to {period.end}"
        passes = f": about {found.passes} passes, of which the clear ones become images" if found.passes else ""
        say(f"images of {days}, frames since {period.start}{passes}")
    if found.bytes is not None:
        say(f"to read: at most {found.bytes / 1e6:.1f} MB")
    say(f"a date: {found.a_date}")
    if not is_remote(root):
        folder = next(place for place in (Path(root), *Path(root).parents) if place.exists())
        found.a_date.check(folder)


def super_resolve(config: Config, root: str) -> dict[str, Any]:
    """Do all stages below `root`, keeping what is finished. Returns the record of super_resolve."""
    return {name: run(STAGES[name], config, root) for name in CHAIN}["super_resolve"]
