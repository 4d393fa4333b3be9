"""What lies in a folder or an S3 prefix, as the page that shows it wants to know it: `catalog.json`.

A place is a run's own root, a folder of runs, or a published site, whose runs lie below `runs/`. The catalogue is made
from what lies there and from nothing else, so that it can be made again at any time, by anybody.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from components.stage import FOLDERS
from components.super_resolve.main import INDEX
from sr_core.errors import ArtifactError
from sr_core.storage import Entry, Storage

VERSION = 1
CATALOG = "catalog.json"
RUNS = "runs"
"""Where a published site has its runs."""
PRODUCTS = f"{FOLDERS['super_resolve']}/{INDEX}"
REPORT, METRICS = "report.html", "metrics.json"
POLYGONS = tuple(f"{FOLDERS['delineate']}/{name}" for name in ("polygons.geojson", "sr.parquet"))
"""Of them the first that is there is shown."""
READERS = 8
"""Runs that are looked into at the same time."""


def build_catalog(storage: Storage, title: str | None = None) -> dict[str, Any]:
    """What `catalog.json` holds for a place: version, title, time, and its runs by name.

    Without `title` it is that of the catalogue that lies there, or else the place's name. Raises `StorageError` where
    the place cannot be read, and `ArtifactError` where an index is damaged.
    """
    own = describe_run(storage, "")
    if own is None:
        folders = storage.folders()
        places = [f"{RUNS}/{name}" for name in storage.folders(RUNS)] if RUNS in folders else folders
        with ThreadPoolExecutor(READERS) as pool:
            found = [run for run in pool.map(lambda place: describe_run(storage, place), places) if run is not None]
    else:
        found = [own]
    return {
        "version": VERSION,
        "title": title or _title(storage),
        "generated": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "runs": sorted(found, key=lambda run: str(run["name"])),
    }


def describe_run(storage: Storage, place: str) -> dict[str, Any] | None:
    """The line of a run in the catalogue; None where there is neither an index of products nor a report."""
    at_root = _files(storage, place)
    products = _files(storage, _below(place, FOLDERS["super_resolve"])).get(_below(place, PRODUCTS))
    report = at_root.get(_below(place, REPORT))
    newest = [entry.modified for entry in (products, report) if entry is not None]
    if not newest:
        return None
    index = read_products(storage, place) if products is not None else None
    entries = index["products"] if index else []
    days = sorted(entry["datetime"] for entry in entries)
    polygons = _files(storage, _below(place, FOLDERS["delineate"]))
    return {
        "name": place.rpartition("/")[2] or _name(storage),
        "path": place,
        "kind": "products" if report is None else "run",
        "published": max(newest).isoformat(timespec="seconds"),
        "bbox": _union([entry["bbox"] for entry in entries]),
        "start": days[0] if days else None,
        "end": days[-1] if days else None,
        "products": len(entries),
        "simulated": bool(index and index["simulated"]),
        "attribution": sorted({entry["attribution"] for entry in entries}),
        "report": REPORT if report is not None else None,
        "metrics": METRICS if _below(place, METRICS) in at_root else None,
        "polygons": next((name for name in POLYGONS if _below(place, name) in polygons), None),
    }


def read_products(storage: Storage, place: str) -> dict[str, Any] | None:
    """The index of a run's products, or None. Raises `ArtifactError` where it is not what super_resolve writes."""
    name = _below(place, PRODUCTS)
    content = storage.read(name)
    if content is None:
        return None
    try:
        index: dict[str, Any] = json.loads(content)
        for entry in index["products"]:
            _ = entry["path"], entry["datetime"], entry["attribution"], [float(side) for side in entry["bbox"]]
        _ = index["simulated"], index["collection"]
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{storage.uri}/{name}: expected an index of products, found a damaged one"
            f" ({type(error).__name__}: {error}); run super_resolve again"
        ) from error
    return index


def same_runs(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two catalogues say the same, whenever they were made."""
    return all(one[key] == other[key] for key in ("version", "title", "runs"))


def _title(storage: Storage) -> str:
    content = storage.read(CATALOG)
    try:
        said = json.loads(content)["title"] if content else None
    except (ValueError, KeyError, TypeError):
        said = None  # damaged: it is about to be written again
    return str(said or _name(storage))


def _name(storage: Storage) -> str:
    if storage.local is not None:
        return storage.local.resolve().name or "runs"
    return storage.uri.rstrip("/").rpartition("/")[2]


def _files(storage: Storage, place: str) -> dict[str, Entry]:
    """What lies directly in a folder, by name."""
    return {entry.name: entry for entry in storage.entries(place, deep=False)}


def _below(place: str, name: str) -> str:
    return f"{place}/{name}" if place else name


def _union(boxes: list[list[float]]) -> list[float] | None:
    """West, south, east, north of all boxes together, degrees."""
    if not boxes:
        return None
    west, south, east, north = zip(*boxes, strict=True)
    return [min(west), min(south), max(east), max(north)]


def run_name(storage: Storage) -> str:
    """A run is named by its folder."""
    return _name(storage)


def page_files(static: Path) -> dict[str, Path]:
    """The files of the page by their names in a site. Raises `ArtifactError` where it is not built."""
    files = {path.relative_to(static).as_posix(): path for path in sorted(static.rglob("*")) if path.is_file()}
    if "index.html" not in files:
        raise ArtifactError(f"{static}/index.html: missing; build the page (`npm ci && npm run build` in browser/web)")
    return files
