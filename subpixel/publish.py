"""`subpixel publish`: runs become a site, static files in a bucket or a folder that a browser shows without a server.

    <site>/index.html, assets/                     the page
    <site>/runs/<name>/products/, report.html, ... what is shown of a run
    <site>/catalog.json                            what the site has, written last

A run's files go first, the index that names them after them, the catalogue after that. What is there already is kept,
and runs that others have published stay. Several may publish at the same time: each makes the catalogue from what lies
there, and again until it agrees with what lies there once it is written, so that the last one to write knows all runs.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from components.stage import FOLDERS
from sr_core.errors import ArtifactError, StorageError
from sr_core.progress import say, track
from sr_core.storage import Content, Remote, S3Storage, Storage
from subpixel.browser.server import STATIC
from subpixel.site import (
    CATALOG,
    METRICS,
    POLYGONS,
    PRODUCTS,
    REPORT,
    RUNS,
    build_catalog,
    page_files,
    read_products,
    run_name,
    same_runs,
)

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
TRIES = 50
"""Of a catalogue, while others publish."""


@dataclass(frozen=True)
class Published:
    """A run on its way into a site."""

    name: str
    run: Storage
    files: tuple[str, ...]
    """Relative to the run's root; the last one names the others."""


def publish(
    runs: Sequence[Storage],
    site: Storage,
    *,
    name: str | None = None,
    title: str | None = None,
    page: Path = STATIC,
) -> dict[str, Any]:
    """Put runs into a site. Returns its catalogue.

    `name` is that of the run in the site, where there is one run; else runs are named by their folders.
    Raises `ArtifactError` where a run is unfinished, or its name is that of another one's there; `StorageError`.
    """
    chosen = [select(run, name or run_name(run)) for run in runs]
    if len({run.name for run in chosen}) < len(chosen):
        found = ", ".join(run.name for run in chosen)
        raise ArtifactError(f"publish: several runs of one name ({found}); publish them one by one, each with --name")
    for run in chosen:
        check_place(run, site)
    shown = page_files(page)
    for run in chosen:
        copied = copy(run, site)
        say(f"{site.uri}/{RUNS}/{run.name}: {copied} of {len(run.files)} files were new")
    index = shown.pop("index.html")
    for file in track(sorted(shown), "page"):
        if site.read(file) != shown[file].read_bytes():
            site.send(shown[file], file)
    if site.read(index.name) != index.read_bytes():
        site.send(index, index.name)
    return write_catalog(site, title)


def select(run: Storage, name: str) -> Published:
    """What of a run is shown. Raises `ArtifactError` where nothing can be, or a product that it names is missing."""
    if not NAME.fullmatch(name):
        raise ArtifactError(f"publish: found the name {name!r}, expected letters, digits, '.', '_' and '-'")
    index = read_products(run, "")
    at_root = set(run.names(deep=False))
    files = [file for file in (METRICS, REPORT) if file in at_root]
    files += [file for file in POLYGONS if file in set(run.names(FOLDERS["delineate"], deep=False))][:1]
    if index is not None:
        folder = FOLDERS["super_resolve"]
        paths = {f"{folder}/{entry['path']}" for entry in index["products"]}
        there = [file for file in run.names(folder) if not any(part.startswith(".") for part in file.split("/"))]
        of_products = [file for file in there if str(PurePosixPath(file).parent) in paths]
        for path in sorted(paths):
            for needed in ("item.json", "sr.tif"):
                if f"{path}/{needed}" not in of_products:
                    raise ArtifactError(
                        f"{run.uri}/{path}/{needed}: missing, though {PRODUCTS} names it; run super_resolve again"
                    )
        beside = [f"{folder}/{file}" for file in ("collection.json", "model.json")]
        files = [*of_products, *(file for file in beside if file in there), *files, PRODUCTS]
    elif REPORT not in files:
        raise ArtifactError(f"{run.uri}: found neither {PRODUCTS} nor {REPORT}; expected a finished run")
    else:
        files = [file for file in files if file != REPORT] + [REPORT]
    return Published(name, run, tuple(files))


def check_place(run: Published, site: Storage) -> None:
    """Raises `ArtifactError` where the run's name is that of another one in the site."""
    there, ours = read_products(site, f"{RUNS}/{run.name}"), read_products(run.run, "")
    if there and ours and there["collection"] != ours["collection"]:
        raise ArtifactError(
            f"{site.uri}/{RUNS}/{run.name}: holds another run (collection {there['collection']}, this one is"
            f" {ours['collection']}); publish under another --name"
        )


def copy(run: Published, site: Storage) -> int:
    """Copy a run's files into the site, the one that names the others last. Returns how many were not there.

    From S3 to S3 of equal settings the server copies; what lies elsewhere in S3 comes through a temporary folder.
    """
    place, source = f"{RUNS}/{run.name}", run.run
    with ExitStack() as held:
        files: dict[str, Content]
        if isinstance(source, S3Storage) and (not isinstance(site, S3Storage) or source.settings == site.settings):
            files = {file: Remote(source, file) for file in run.files}
        else:
            folder = source.local
            if folder is None:
                folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="subpixel-publish-")))
                source.fetch_all(run.files, folder)
            files = {file: folder / file for file in run.files}
        return site.put(files, place, run.files[-1])


def write_catalog(site: Storage, title: str | None = None) -> dict[str, Any]:
    """Write the catalogue of what lies in the site, again until it is the one of what lies there."""
    with tempfile.TemporaryDirectory(prefix="subpixel-publish-") as folder:
        file = Path(folder) / CATALOG
        catalog = build_catalog(site, title)
        for _ in range(TRIES):
            file.write_text(json.dumps(catalog, indent=1), encoding="utf-8")
            site.send(file, CATALOG)
            now = build_catalog(site, title)
            if same_runs(now, catalog):
                return catalog
            catalog = now  # somebody else has published meanwhile
    raise StorageError(f"{site.uri}/{CATALOG}: others have published {TRIES} times meanwhile; publish again")
