"""A model server on this machine from a bundle, by one command; and requests to a server, from files or from S3."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path, PurePosixPath

from serving.archive import build_archive, digest, sources
from serving.container import drained
from serving.local import Server, serve
from sr_core.errors import ArtifactError, ServiceError, SourceError
from sr_core.models.bundle import DESCRIPTION, WEIGHTS
from sr_core.progress import say
from sr_core.sources.products import sensing_time
from subpixel.client import NPZ, TIFF, Client, content_of, write_whole

ALLOWED_PREFIXES = "SUBPIXEL_ALLOWED_PREFIXES"
"""Environment variable of the server: where in S3 a request may read and write, separated by commas."""
LOOK_EVERY_S = 0.5
DRAIN_TIMEOUT_S = 60.0


def archive_of(bundle: Path, model: str, folder: Path) -> Path:
    """The archive of a bundle below `folder`, built where this bundle has none by this code yet.

    Raises `ArtifactError` where the bundle is missing or damaged.
    """
    for part in (WEIGHTS, DESCRIPTION):
        if not (bundle / part).is_file():
            raise ArtifactError(f"{bundle / part}: missing; expected a model bundle ({WEIGHTS} and {DESCRIPTION})")
    made_from = {part: digest(bundle / part) for part in (WEIGHTS, DESCRIPTION)}
    made_by = {**sources(), "torch": metadata.version("torch")}
    key = hashlib.sha256(json.dumps([made_from, made_by], sort_keys=True).encode()).hexdigest()[:12]
    place = folder / key
    # archive.json is written after the archive
    if not (place / "archive.json").is_file() or not (place / f"{model}.mar").is_file():
        say(f"building the archive of {bundle} (once, some 10 s)")
        build_archive(bundle, place, model, key)
    return place / f"{model}.mar"


def serve_until_stopped(archive: Path, port: int, allowed: Sequence[str], started: Callable[[Server], None]) -> None:
    """Serve an archive at a port of 127.0.0.1 until SIGINT or SIGTERM; `started` is called when the model is loaded.

    `allowed` are the s3:// prefixes that requests may name. Raises `ArtifactError` where the model does not load, and
    `ServiceError` where the port is taken or the server ends by itself.
    """
    for prefix in allowed:
        if not prefix.removeprefix("s3://").partition("/")[0] or not prefix.startswith("s3://"):
            raise ServiceError(f"--allow {prefix}: expected s3://bucket/prefix")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ServiceError(f"--port {port}: {error.strerror}; choose another") from error
    if allowed:
        os.environ[ALLOWED_PREFIXES] = ",".join(allowed)
    stopped = threading.Event()
    before = {sign: signal.signal(sign, lambda *_: stopped.set()) for sign in (signal.SIGINT, signal.SIGTERM)}
    try:
        with serve(archive, port) as server:
            if stopped.is_set():
                return
            started(server)
            while not stopped.wait(LOOK_EVERY_S):
                if os.waitid(os.P_PID, server.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                    log = (server.logs / "console.log").read_text(encoding="utf-8", errors="replace")
                    raise ServiceError("TorchServe has ended by itself:\n" + "\n".join(log.splitlines()[-5:]))
            say("answering what was asked before; no longer than it takes, or a minute")
            drained(server.url, [archive.stem], time.monotonic() + DRAIN_TIMEOUT_S)
    finally:
        for sign, handler in before.items():
            signal.signal(sign, handler)


def predict(
    client: Client,
    frames: Sequence[str],
    output: str,
    clear: Sequence[str] = (),
    window: tuple[int, int, int, int] | None = None,
    uncertainty: bool = False,
    consistency: bool = False,
) -> list[str]:
    """Super-resolve what `frames` name into `output`; returns the places written.

    frames are GeoTIFFs of this machine, one a date (`output` becomes a GeoTIFF); objects in S3, GeoTIFFs or STAC Items
    (`output` is a prefix); or one `.npz` as the server takes it (`output` is an .npz, or a GeoTIFF where the .npz says
    where it lies). Where all names hold a date, frames are sent latest first; else as they are given. Raises
    `ServiceError`.
    """
    wanted = {"uncertainty": uncertainty, "consistency": consistency}
    if clear and len(clear) != len(frames):
        raise ServiceError(f"--clear: found {len(clear)} masks for {len(frames)} frames, expected one a frame")
    dates = dates_of(frames)
    if dates:
        order = sorted(range(len(frames)), key=dates.__getitem__, reverse=True)
        frames, dates = [frames[index] for index in order], [dates[index] for index in order]
        clear = [clear[index] for index in order] if clear else []
    told = [date.isoformat() for date in dates]
    remote = {name.startswith("s3://") for name in (*frames, output)}
    if len(remote) > 1:
        raise ServiceError(f"frames and --out {output}: expected all in S3, or all on this machine")
    if remote == {True}:
        named: list[dict[str, str]] = [{"item" if name.endswith(".json") else "image": name} for name in frames]
        for key, values in (("clear", clear), ("date", told)):
            for frame, value in zip(named, values, strict=False):  # one each, or none
                frame[key] = value
        answer = client.predict_stored(named, output, window, **wanted)
        return [str(place) for place in answer.get("keys", {}).values()]
    if window is not None:
        raise ServiceError("--window: for frames in S3 only; cut files of this machine before they are sent")
    if frames[0].endswith(".npz"):
        if len(frames) > 1 or clear:
            raise ServiceError(f"{frames[0]}: an .npz holds the frames of one request and their masks; give it alone")
        kind = NPZ if output.endswith(".npz") else TIFF
        write_whole(Path(output), client.ask(content_of(Path(frames[0])), NPZ, kind))
        return [output]
    paths, masks = [*map(Path, frames)], [*map(Path, clear)]
    return [str(client.predict_files(paths, Path(output), masks, dates=told, **wanted))]


def dates_of(names: Sequence[str]) -> list[dt.datetime]:
    """The date in each name; nothing where one has none."""
    try:
        return [sensing_time(PurePosixPath(name).name, name) for name in names]
    except SourceError:
        return []
