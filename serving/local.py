"""A real TorchServe on this machine, for as long as it is needed."""

from __future__ import annotations

import ctypes
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from sr_core.errors import ArtifactError

START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 10.0
BLAS = {"OPENBLAS_NUM_THREADS": "1"}
"""For workers: numpy's BLAS starts threads that wait busily for the next product, and so take the cores from the
network's, which then needs three times as long; what is multiplied with numpy is small."""
JAVA = {"JAVA_TOOL_OPTIONS": "-XX:+UseSerialGC -XX:TieredStopAtLevel=1"}
"""Java only passes bytes on: threads that collect and optimise would take more from the network's cores than they
give."""
PR_SET_PDEATHSIG = 1
"""From linux/prctl.h."""


@dataclass(frozen=True)
class Server:
    """A running TorchServe."""

    url: str
    """Where predictions are asked for: POST an .npz."""
    ping: str
    """Answers 200 while TorchServe itself runs."""
    metrics: str
    """Prometheus metrics."""
    logs: Path
    pid: int


@contextmanager
def serve(archive: Path, port: int | None = None, workers: int = 1) -> Iterator[Server]:
    """Serve one archive at `port` of 127.0.0.1 (none: a free one) until the block ends.

    The machine's cores are shared out among the `workers`: with several, one computes while another reads and writes,
    and each request by itself takes longer.

    The Java server is started directly, in a process group of its own: `torchserve` would start it as a child that
    survives the launcher. On Linux it ends even where this process is killed. Raises `ArtifactError` where Java or
    the archive is missing, or the model does not load.
    """
    if not archive.is_file():
        raise ArtifactError(f"{archive}: missing; expected the output of the package stage")
    java = find_java()
    if java is None:
        raise ArtifactError("java: not found; TorchServe needs a Java runtime (11 or later) on PATH or in JAVA_HOME")
    # not below a deep folder: the workers' sockets lie there, and their paths may have 107 characters
    with tempfile.TemporaryDirectory(prefix="ts-") as temporary:
        folder = Path(temporary)
        store, logs = folder / "store", folder / "logs"
        store.mkdir()
        logs.mkdir()
        shutil.copy(archive, store)
        ports = free_ports(5)
        ports[0] = port or ports[0]
        config = folder / "config.properties"
        config.write_text(configuration(ports, workers), encoding="utf-8")
        shared = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // workers))} if workers > 1 else {}
        with (logs / "console.log").open("wb") as console:
            process = subprocess.Popen(
                command(java, config, store, folder),
                cwd=folder,
                env={
                    **BLAS,
                    **JAVA,
                    **shared,
                    **os.environ,
                    "LOG_LOCATION": str(logs),
                    "METRICS_LOCATION": str(logs),
                    "TMPDIR": temporary,
                    # all that a request needs is in the archive
                    "PYTHONPATH": "",
                },
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            )
        try:
            address = f"http://127.0.0.1:{ports[0]}"
            server = Server(
                url=f"{address}/predictions/{archive.stem}",
                ping=f"{address}/ping",
                metrics=f"http://127.0.0.1:{ports[2]}/metrics",
                logs=logs,
                pid=process.pid,
            )
            _wait(process, ports[1], archive, logs)
            yield server
        finally:
            stop(process)


def find_java() -> str | None:
    """The Java program, or None."""
    home = os.environ.get("JAVA_HOME")
    return shutil.which("java", path=str(Path(home) / "bin") if home else None)


def command(java: str, config: Path, store: Path, folder: Path) -> list[str]:
    """What the `torchserve` launcher would run."""
    try:
        package = Path(str(metadata.distribution("torchserve").locate_file("ts")))
    except metadata.PackageNotFoundError:
        raise ArtifactError("torchserve: not installed; install subpixel[serving]") from None
    return [
        *(java, f"-Dmodel_server_home={package.parent}", f"-Djava.io.tmpdir={folder}"),
        *("-cp", str(package / "frontend" / "*"), "org.pytorch.serve.ModelServer"),
        *("--python", sys.executable, "-f", str(config), "-s", str(store), "-ncs"),
    ]


def configuration(ports: list[int], workers: int) -> str:
    """config.properties with another number of workers and other ports: inference, management, metrics, gRPC inference,
    gRPC management."""
    changes = {
        "default_workers_per_model": str(workers),
        "inference_address": f"http://127.0.0.1:{ports[0]}",
        "management_address": f"http://127.0.0.1:{ports[1]}",
        "metrics_address": f"http://127.0.0.1:{ports[2]}",
        "grpc_inference_port": str(ports[3]),
        "grpc_management_port": str(ports[4]),
    }
    lines = (Path(__file__).parent / "config.properties").read_text(encoding="utf-8").splitlines()
    return "\n".join(
        f"{name}={changes[name]}" if (name := line.partition("=")[0]) in changes else line for line in lines
    )


def free_ports(count: int) -> list[int]:
    """Different ports nobody listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _end_with_parent() -> None:
    """Ask the kernel for SIGTERM when the parent is gone; the Java server's workers end with it."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the Java server and its Python workers, whatever state they are in.

    Java first and at once: it would answer 500 for workers that are gone, while a connection that breaks is a reason to
    send the request again.
    """
    process.kill()
    process.wait()
    deadline = time.monotonic() + STOP_TIMEOUT_S
    with suppress(ProcessLookupError):  # of a group that is empty: the workers are not ours to wait for
        while time.monotonic() < deadline:
            os.killpg(process.pid, signal.SIGKILL)
            time.sleep(0.01)


def _wait(process: subprocess.Popen[bytes], management: int, archive: Path, logs: Path) -> None:
    """Until the worker has loaded the model. Raises `ArtifactError` with what the log says where it does not.

    `/ping` is no help: TorchServe calls itself healthy before the first load has ended, and while it fails.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    text = ""
    while time.monotonic() < deadline and process.poll() is None and "Failed to load model" not in text:
        if _ready(management, archive.stem):
            return
        time.sleep(0.2)
        text = (logs / "console.log").read_text(encoding="utf-8", errors="replace")
    said = [line for line in text.splitlines() if "Error: " in line or "Exception: " in line] or text.splitlines()
    raise ArtifactError(f"{archive}: TorchServe does not serve it:\n" + "\n".join(said[-5:]))


def _ready(management: int, model: str) -> bool:
    # http.client asks no proxy
    connection = http.client.HTTPConnection("127.0.0.1", management, timeout=5)
    try:
        connection.request("GET", f"/models/{model}")
        answer = connection.getresponse()
        workers = json.loads(answer.read())[0]["workers"] if answer.status == 200 else []
        return bool(workers) and all(worker["status"] == "READY" for worker in workers)
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
