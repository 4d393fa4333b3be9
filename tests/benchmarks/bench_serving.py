"""A real TorchServe under load: throughput against the bare model, latency, memory.

The bare model is the archive's own program in a loop: what the machine could do without a server. Loop and server take
turns with the same requests, so that whatever else the machine does falls on both. For itself:
`python -m tests.benchmarks.bench_serving`.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import torch

from serving import core
from serving.archive import build_archive
from serving.local import Server, find_java, serve
from sr_core import BANDS, SCALE
from sr_core.models.bundle import SHIPPED
from subpixel.client import NPZ, Client, pack
from tests.benchmarks.bench_network import machine, take_turns

FRAMES = 8
CONCURRENCY = (1, 8, 32)
WORKERS = 2
COMPARED = 8
"""Requests at a time at which the server is compared with the bare model."""
SIDES = (16, 24, 20, 32)
"""Of the requests that memory is watched over: sizes in turn, so that buffers of many lengths are asked for."""
MEASURED = 300
"""Requests behind the percentiles: the slowest hundredth should be more than one."""
MEBIBYTE = 1 << 20


def load_of_serving(bundle: Path = SHIPPED, side: int = 64, rounds: int = 5, batch: int = 32, many: int = 2000) -> str:
    """Tables of throughput, latency and memory; `batch` requests a measurement, `many` for the memory."""
    if find_java() is None:
        return "Not measured: TorchServe needs Java."
    with served(bundle) as (server, shared, folder):
        program = core.load_program(folder, "cuda" if torch.cuda.is_available() else "cpu")
        client, several = client_of(server), client_of(shared)
        parts = [throughput(client, several, program, side, rounds, batch)]
        for name, one in (("one worker", client), (f"{WORKERS} workers", several)):
            parts.append(latencies(name, one, side, batch))
        return "\n\n".join([*parts, memory(client, server, many)])


def client_of(server: Server) -> Client:
    """That sends each request once."""
    return Client(server.url.partition("/predictions/")[0], server.url.rpartition("/")[2], retries=0)


@contextmanager
def served(bundle: Path) -> Iterator[tuple[Server, Server, Path]]:
    """Two TorchServes with the archive of a bundle, with one worker and with several, and the archive unpacked."""
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
        build_archive(bundle, Path(temporary), "subpixel", "1.0")
        archive, folder = Path(temporary) / "subpixel.mar", Path(temporary) / "unpacked"
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(folder)
        with serve(archive) as server, serve(archive, workers=WORKERS) as shared:
            yield server, shared, folder


def throughput(client: Client, several: Client, program: core.Program, side: int, rounds: int, batch: int) -> str:
    """Table: requests a second of the network alone, of the core, and of the servers at `COMPARED` at a time."""
    frames, clear = sample(side)
    request, body = core.Request(frames, clear), pack(frames=frames, clear=clear)
    tensors = network_inputs(program, side)

    def network() -> None:
        half = torch.autocast(program.device.type, torch.bfloat16, enabled=program.precision == "bfloat16")
        with torch.inference_mode(), half:
            for _ in range(batch):
                program.module(*tensors)[0].cpu()

    def arrays() -> None:
        for _ in range(batch):
            core.super_resolve(program, request)

    works = {
        "the bare network, in a loop": network,
        "the core, arrays to arrays, in a loop": arrays,
        f"the server, {COMPARED} requests at a time": lambda: ask(client, [body] * batch, COMPARED),
        f"the server with {WORKERS} workers, {COMPARED} requests at a time": lambda: ask(
            several, [body] * batch, COMPARED
        ),
    }
    for warm in (client, several):  # Java compiles what is called often
        ask(warm, [body] * 8 * batch, COMPARED)
    times = take_turns(works, rounds, program.device)
    rows = [
        f"| {FRAMES} frames of {side} x {side} pixels | requests a second | megapixels a second out"
        " | share of the bare network, median | quartiles |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, taken in times.seconds.items():
        rate = batch / statistics.median(taken)
        middle, low, high = (f"{100 * ratio:.0f} %" for ratio in times.ratio(name))
        rows.append(f"| {name} | {rate:.1f} | {rate * (SCALE * side) ** 2 / 1e6:.2f} | {middle} | {low} to {high} |")
    return "\n".join(rows)


def network_inputs(program: core.Program, side: int) -> tuple[torch.Tensor, ...]:
    """Normalised frames, mask and displacements as the network takes them."""
    frames = torch.randn(1, program.frames, len(BANDS), side, side)
    mask = torch.ones(1, program.frames, side, side)
    return tuple(part.to(program.device) for part in (frames, mask, torch.zeros(1, program.frames, 2)))


def latencies(name: str, client: Client, side: int, batch: int) -> str:
    """Table: what a request waits for its answer, by how many are asked at a time."""
    body = pack(**dict(zip(("frames", "clear"), sample(side), strict=True)))
    rows = [
        f"| {name}, {FRAMES} frames of {side} x {side} pixels, at a time | p50, ms | p95, ms | p99, ms | requests |"
    ]
    rows.append("|---:|---:|---:|---:|---:|")
    for together in CONCURRENCY:
        count = max(MEASURED, batch)
        waits = np.array(ask(client, [body] * count, together)) * 1e3
        shown = " | ".join(f"{value:.0f}" for value in np.percentile(waits, (50, 95, 99)))
        rows.append(f"| {together} | {shown} | {count} |")
    return "\n".join(rows)


def memory(client: Client, server: Server, requests: int) -> str:
    """Table: resident memory of Java and of the model's processes over many requests of several sizes."""
    bodies = itertools.cycle([pack(**dict(zip(("frames", "clear"), sample(side), strict=True))) for side in SIDES])
    rows = ["| requests answered | Java, MiB | model, MiB |", "|---:|---:|---:|"]
    done, held = 0, []
    for share in (0.05, 0.25, 0.5, 0.75, 1.0):
        more = round(share * requests) - done
        ask(client, list(itertools.islice(bodies, more)), COMPARED)
        done += more
        java, model = resident(server.pid)
        held.append(java + model)
        rows.append(f"| {done} | {java / MEBIBYTE:.0f} | {model / MEBIBYTE:.0f} |")
    sides = ", ".join(map(str, sorted(SIDES)))
    change = 100 * (held[-1] / held[1] - 1)
    told = f"{FRAMES} frames of {sides} pixels a side in turn, {COMPARED} requests at a time. From a quarter of the"
    return "\n".join([*rows, "", f"{told} requests to all, both together changed by {change:+.1f} %."])


def ask(client: Client, bodies: Sequence[bytes], together: int) -> list[float]:
    """Send requests, so many at a time; seconds that each waited. Raises `ServiceError` where one fails."""

    def one(body: bytes) -> float:
        started = time.perf_counter()
        client.ask(body, NPZ, NPZ)
        return time.perf_counter() - started

    with ThreadPoolExecutor(together) as threads:
        return list(threads.map(one, bodies))


def resident(pid: int) -> tuple[int, int]:
    """Bytes that the server itself holds, and its workers together; pages shared by several count in parts."""
    java = psutil.Process(pid)
    return java.memory_full_info().pss, sum(each.memory_full_info().pss for each in java.children(recursive=True))


def sample(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Random frames and masks, a tenth of them clouded."""
    random = np.random.default_rng(side)
    frames = random.integers(100, 5000, (FRAMES, len(BANDS), side, side), dtype=np.uint16)
    return frames, random.random((FRAMES, side, side)) > 0.1


if __name__ == "__main__":
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{machine(device)}\n\n{load_of_serving(*map(Path, sys.argv[1:]))}")
