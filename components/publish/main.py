"""Publish a model that was promoted: its archive for TorchServe, its bundle, and what is known of both.

`package.publish_to` is a folder or s3://bucket/prefix; without it the stage is skipped. Every model gets a place of its
own there, which is never written again:

    <publish_to>/<model name>/<version>-<first 8 digits of the archive's key>/
        <model name>.mar  archive.json  model.safetensors  model.json  SHA256SUMS  index.json
    <publish_to>/<model name>/latest.json

`index.json` has the digests, the lineage and the scores on test ground. It is written after all that it names, and
`latest.json`, which names the version that was published last, after that: whoever begins with one of them finds whole
models only. `SHA256SUMS` is what `sha256sum --check` reads.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from components.stage import RECORD, STAGES, Context, Result, Shown, git_commit
from sr_core.errors import ArtifactError
from sr_core.progress import say
from sr_core.storage import storage_for

INDEX, LATEST, SUMS = "index.json", "latest.json", "SHA256SUMS"
BUNDLE = ("model.safetensors", "model.json")


def work(context: Context) -> Result:
    """Publish the model and its archive."""
    settings = context.config.package
    if settings.publish_to is None:
        return Result(skipped="package.publish_to is not set")
    archive = read_json(context.inputs["package"] / RECORD)
    version = f"{settings.version}-{archive['key'][:8]}"
    store = storage_for(f"{str(settings.publish_to).rstrip('/')}/{settings.model_name}", context.config.storage)
    place = f"{store.uri}/{version}"
    written = store.read(f"{version}/{INDEX}")
    if written is None:
        folder = context.output / version
        index = gather(context, version, folder)
        store.upload(folder, version, last=INDEX)
        shutil.rmtree(folder)
        say(f"published {place}")
    else:
        index = json.loads(written)
        say(f"{place}: published before")
    pointer = context.output / LATEST
    pointer.write_text(json.dumps({"version": version, "index": f"{version}/{INDEX}"}, indent=1), encoding="utf-8")
    store.send(pointer, LATEST)
    (context.output / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
    about = {"version": version, "place": place, **index["scores"]}
    counts = {"files": len(index["files"]), "bytes": sum(file["bytes"] for file in index["files"].values())}
    return Result(counts, artifacts={"published": Shown(about, place)})


def gather(context: Context, version: str, folder: Path) -> dict[str, Any]:
    """Lay out a version in `folder`. Returns its index.

    Raises `ArtifactError` where the archive is not the one that its description names.
    """
    package, model = context.inputs["package"], context.inputs["train_hrn"]
    archive = read_json(package / "archive.json")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    sources = [package / archive["archive"], package / "archive.json", *(model / name for name in BUNDLE)]
    files = {}
    for source in sources:
        shutil.copyfile(source, folder / source.name)
        files[source.name] = {"sha256": digest(source), "bytes": source.stat().st_size}
    if (found := files[archive["archive"]]["sha256"]) != archive["sha256"]:
        raise ArtifactError(
            f"{sources[0]}: found SHA-256 {found}, expected {archive['sha256']} as archive.json says; run package again"
        )
    (folder / SUMS).write_text("".join(f"{file['sha256']}  {name}\n" for name, file in files.items()), encoding="utf-8")
    index = {
        "model_name": context.config.package.model_name,
        "version": version,
        "run": context.config.name,
        "published": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "files": files,
        "lineage": {name: read_json(context.inputs[name] / RECORD)["key"] for name in context.inputs},
        "scores": read_json(context.inputs["evaluate"] / RECORD)["metrics"] if "evaluate" in context.inputs else {},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
    return index


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """What a JSON file holds."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


STAGE = STAGES["publish"]
