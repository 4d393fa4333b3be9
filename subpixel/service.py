"""A model server on this machine from a bundle, by one command."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

from serving.archive import build_archive, digest, sources
from serving.container import drained
from serving.local import Server, serve
from sr_core.errors import ArtifactError, ServiceError
from sr_core.models.bundle import DESCRIPTION, WEIGHTS
from sr_core.progress import say

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


def serve_until_stopped(
    archive: Path, port: int, allowed: Sequence[str], started: Callable[[Server], None], workers: int = 1
) -> None:
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
        with serve(archive, port, workers) as server:
            if stopped.is_set():
                return
            started(server)
            while not stopped.wait(LOOK_EVERY_S):
                if os.waitid(os.P_PID, server.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                    log = (server.logs / "console.log").read_text(encoding="utf-8", errors="replace")
                    raise ServiceError("TorchServe has ended by itself:\n" + "\n".join(log.splitlines()[-5:]))
            say("answering what was asked before; no longer than it takes, or a minute")
            drained(server.url, [archive.stem], time.monotonic() + DRAIN_TIMEOUT_S, server.logs.parent)
    finally:
        for sign, handler in before.items():
            signal.signal(sign, handler)
