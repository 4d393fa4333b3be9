"""The first process of the serving container: TorchServe, until the container is asked to end.

    python3 -m serving.container          serve the archives of $SUBPIXEL_MODEL_STORE
    python3 -m serving.container ready    exit status 0 where all of them are loaded and their workers wait for requests

The configuration is config.properties with the addresses that `SUBPIXEL_INFERENCE_ADDRESS` and
`SUBPIXEL_METRICS_ADDRESS` name and the number of `SUBPIXEL_WORKERS` a model, nothing else changed; management stays on
the container's own loopback interface.

TorchServe drops what it is working on when it gets SIGTERM, and what waits. So SIGTERM comes here first: for
`SUBPIXEL_DRAIN_DELAY_S` seconds all goes on as before, for as long takes Kubernetes to tell its proxies that
the pod is leaving; then what was accepted is answered; then TorchServe is ended.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from serving.busy import anyone_busy
from sr_core.errors import ArtifactError, ConfigError, SubpixelError

INFERENCE, METRICS, WORKERS = "SUBPIXEL_INFERENCE_ADDRESS", "SUBPIXEL_METRICS_ADDRESS", "SUBPIXEL_WORKERS"
MODEL_STORE, DRAIN_DELAY, DRAIN_TIMEOUT = "SUBPIXEL_MODEL_STORE", "SUBPIXEL_DRAIN_DELAY_S", "SUBPIXEL_DRAIN_TIMEOUT_S"
DEFAULTS = {
    INFERENCE: "http://127.0.0.1:8080",
    METRICS: "http://127.0.0.1:8082",
    WORKERS: "1",
    MODEL_STORE: "/models",
    DRAIN_DELAY: "0",
    DRAIN_TIMEOUT: "600",
}
MANAGEMENT_PORT = 8081
PROBE_TIMEOUT_S = 5.0
QUIET_S = 0.5
"""A request that is answered faster found nothing before it."""
ESTABLISHED = "01"
"""State of a connection in /proc/net/tcp."""
SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}


def main(arguments: list[str]) -> int:
    settings = {**DEFAULTS, **os.environ}
    try:
        if arguments == ["ready"]:
            return 0 if ready(models(settings)) else 1
        if not arguments:
            return run(settings)
    except SubpixelError as error:
        print(f"serving: error: {error}", file=sys.stderr)
        return 1
    print(__doc__, file=sys.stderr)
    return 2


def run(settings: Mapping[str, str]) -> int:
    """Serve until SIGTERM, or until TorchServe ends by itself. Returns the exit status."""
    from serving.local import BLAS, command, find_java  # not for the probe, which runs every few seconds

    names = models(settings)
    java = find_java()
    if java is None:
        raise ArtifactError("java: not found; TorchServe needs a Java runtime (11 or later) on PATH or in JAVA_HOME")
    delay, timeout = (seconds(settings, name) for name in (DRAIN_DELAY, DRAIN_TIMEOUT))
    # the same after a restart of the container, whose /tmp outlives it in a pod
    folder = Path(tempfile.gettempdir()) / "torchserve"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    config = folder / "config.properties"
    config.write_text(configuration(settings), encoding="utf-8")
    server, *options = command(java, config, Path(settings[MODEL_STORE]), folder)
    logging = f"-Dlog4j2.configurationFile={Path(__file__).parent / 'log4j2.xml'}"
    # blocked, so that none is missed between two looks, and given back to the child
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    process = subprocess.Popen(
        [server, logging, *options],
        cwd=folder,
        env={**BLAS, **os.environ, "TMPDIR": str(folder)},
        preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS),
    )
    while True:
        if signal.sigwait(SIGNALS) == signal.SIGCHLD:
            status = reap(process.pid)
            if status is not None:
                print(f"serving: TorchServe ended by itself with status {status}", file=sys.stderr)
                return status or 1
            continue
        time.sleep(delay)
        whole = drained(settings[INFERENCE], names, time.monotonic() + timeout, folder)
        print(f"serving: {'all requests are answered' if whole else 'not all requests are answered'}", file=sys.stderr)
        # at once: TorchServe would answer 500 for workers that it ends; what a broken connection lost is sent again
        process.kill()
        process.wait()
        return 0


def models(settings: Mapping[str, str]) -> list[str]:
    """Names of the archives in the model store. Raises `ArtifactError` where there is none."""
    store = Path(settings[MODEL_STORE])
    names = sorted(path.stem for path in store.glob("*.mar"))
    if not names:
        raise ArtifactError(f"{store}: expected model archives (*.mar), found none")
    return names


def configuration(settings: Mapping[str, str]) -> str:
    """config.properties with what the environment says. Raises `ConfigError` where an address or number is none."""
    if not re.fullmatch(r"[1-9]\d?", settings[WORKERS]):
        raise ConfigError(f"{WORKERS}: expected a number from 1 to 99, found {settings[WORKERS]!r}")
    changes = {
        "default_workers_per_model": settings[WORKERS],
        "inference_address": settings[INFERENCE],
        "management_address": f"http://127.0.0.1:{MANAGEMENT_PORT}",
        "metrics_address": settings[METRICS],
    }
    for name, address in ((INFERENCE, settings[INFERENCE]), (METRICS, settings[METRICS])):
        if not urlsplit(address).hostname or not urlsplit(address).port:
            raise ConfigError(f"{name}: expected http://address:port, found {address!r}")
    lines = (Path(__file__).parent / "config.properties").read_text(encoding="utf-8").splitlines()
    return "\n".join(
        f"{key}={changes[key]}" if (key := line.partition("=")[0]) in changes else line for line in [*lines, ""]
    )


def seconds(settings: Mapping[str, str], name: str) -> float:
    """A duration of the environment. Raises `ConfigError`."""
    try:
        return max(0.0, float(settings[name]))
    except ValueError:
        raise ConfigError(f"{name}: expected a number of seconds, found {settings[name]!r}") from None


def reap(server: int) -> int | None:
    """Take leave of all processes that ended. Returns the exit status of `server` where it is one of them."""
    status = None
    while True:
        try:
            pid, found = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status
        if pid == 0:
            return status
        if pid == server:
            status = os.waitstatus_to_exitcode(found)


def ready(names: list[str]) -> bool:
    """Whether all workers of these models wait for requests.

    `/ping` answers Healthy as soon as a worker's process exists, before it has loaded the model.
    """
    for name in names:
        connection = http.client.HTTPConnection("127.0.0.1", MANAGEMENT_PORT, timeout=PROBE_TIMEOUT_S)
        try:
            connection.request("GET", f"/models/{name}")
            answer = connection.getresponse()
            workers = json.loads(answer.read())[0]["workers"] if answer.status == 200 else []
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
        if not workers or any(worker["status"] != "READY" for worker in workers):
            return False
    return True


def drained(address: str, names: list[str], deadline: float, temporary: Path) -> bool:
    """Wait until what was accepted is answered and sent. Returns whether it was before `deadline` (monotonic seconds).

    A model's workers take requests in their order: when an empty one is refused, all before it were taken. Then it is
    seen that no worker, whose folder for temporary files is `temporary`, has one in hand; twice, since a request is
    in nobody's hand while it is on its way to a worker.
    """
    port, quiet = urlsplit(address).port or 80, 0
    while (left := deadline - time.monotonic()) > 0:
        started = time.monotonic()
        try:
            passed = all(fence(port, name, left) for name in names)
        except ConnectionRefusedError:
            return False  # the server is gone
        at_rest = passed and time.monotonic() - started < QUIET_S and not anyone_busy(temporary) and not unsent(port)
        quiet = quiet + 1 if at_rest else 0
        if quiet == 2:
            return True
        time.sleep(QUIET_S / 2)
    return False


def fence(port: int, name: str, timeout: float) -> bool:
    """Send a model an empty request. Returns whether a worker has answered (503: the queue is full).

    Raises `ConnectionRefusedError` where nobody listens.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("POST", f"/predictions/{name}", headers={"Content-Type": "application/octet-stream"})
        return connection.getresponse().status != 503
    except ConnectionRefusedError:
        raise
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def unsent(port: int) -> bool:
    """Whether a connection to this port has bytes that its peer has not yet taken."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            rows = Path(table).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            _, local, _, state, queues = row.split()[:5]
            if state == ESTABLISHED and int(local.rpartition(":")[2], 16) == port and int(queues.partition(":")[0], 16):
                return True
    return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
