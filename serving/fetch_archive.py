"""Fetch a model's archive from the model store and verify it: the init container of the serving pods.

    python3 -m serving.fetch_archive s3://bucket/models subpixel /models [--version 1.0-1a2b3c4d] [--sha256 DIGEST]

The store is what the publish stage writes: `<store>/<model>/latest.json` names a version, `<version>/index.json` its
files and their digests. Without `--version` the latest is fetched. The archive appears in the folder only when its
SHA-256 is the one that index.json (and `--sha256`, where given) says; one that is there already is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from sr_core.config import StorageSettings
from sr_core.errors import ArtifactError, SubpixelError
from sr_core.storage import Storage, sha256, storage_for


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python3 -m serving.fetch_archive", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("store", help="folder or s3://bucket/prefix that models are published in")
    parser.add_argument("model", help="name of the model")
    parser.add_argument("folder", type=Path, help="where the archive goes")
    parser.add_argument("--version", help="version to fetch; none: the latest")
    parser.add_argument("--sha256", help="what the archive's SHA-256 must be, whatever the store says")
    parser.add_argument("--addressing-style", choices=["auto", "path", "virtual"], default="auto")
    options = parser.parse_args(arguments)
    settings = StorageSettings(addressing_style=options.addressing_style)
    try:
        store = storage_for(f"{options.store.rstrip('/')}/{options.model}", settings)
        path = fetch(store, f"{options.model}.mar", options.folder, options.version or None, options.sha256 or None)
    except SubpixelError as error:
        print(f"fetch_archive: error: {error}", file=sys.stderr)
        return 1
    print(f"{path}: {path.stat().st_size} bytes, SHA-256 {sha256(path)}")
    return 0


def fetch(store: Storage, name: str, folder: Path, version: str | None = None, pinned: str | None = None) -> Path:
    """Copy the archive `name` of a published model into `folder`. Returns its path.

    `store` is the model's place, `version` none the latest, `pinned` the SHA-256 that the archive must have. Raises
    `ArtifactError` where the store has no such version, or the archive is not the one that it names; `StorageError`
    where the store cannot be read.
    """
    if version is None:
        version = str(member(read(store, "latest.json"), f"{store.uri}/latest.json", "version"))
    index = f"{version}/index.json"
    described = member(read(store, index), f"{store.uri}/{index}", "files", name, "sha256")
    if pinned is not None and described != pinned:
        raise ArtifactError(f"{store.uri}/{index}: {name} has SHA-256 {described}, expected {pinned} as configured")
    target = folder / name
    if target.is_file() and sha256(target) == described:
        return target
    partial = folder / f".{name}.{os.getpid()}.part"
    try:
        store.fetch(f"{version}/{name}", partial)
        if (found := sha256(partial)) != described:
            raise ArtifactError(
                f"{store.uri}/{version}/{name}: found SHA-256 {found}, expected {described} as {index} says"
            )
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def read(source: Storage, name: str) -> Any:
    """What a JSON object of the store holds. Raises `ArtifactError` where it is not there or no JSON."""
    content = source.read(name)
    if content is None:
        raise ArtifactError(f"{source.uri}/{name}: missing; expected what the publish stage writes")
    try:
        return json.loads(content)
    except ValueError:
        raise ArtifactError(f"{source.uri}/{name}: expected JSON, found {content[:40]!r}") from None


def member(found: Any, place: str, *keys: str) -> Any:
    """A nested member of a JSON object. Raises `ArtifactError` with the key that is missing."""
    for key in keys:
        if not isinstance(found, dict) or key not in found:
            raise ArtifactError(f"{place}: expected the key {'.'.join(keys)}, found no {key!r}")
        found = found[key]
    return found


if __name__ == "__main__":
    sys.exit(main())
