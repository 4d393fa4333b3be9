"""Preparation at size: what a simulated country costs from download to gate, stage by stage.

    python -m tests.benchmarks.bench_preparation                  # some patches of it, with one worker and with two
    python -m tests.benchmarks.bench_preparation --columns 20     # more of them
    python -m tests.benchmarks.bench_preparation --full           # all of examples/country.yaml, with two workers

Every stage is a program of its own, as in a run. Linux only: memory is read from /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.stage import FOLDERS, RECORD
from sr_core.config import Config, load_config
from sr_core.progress import say

COUNTRY = Path(__file__).parents[2] / "examples" / "country.yaml"
STAGES = ("download", "cloud_shadow_filter", "normalize", "quality_gate")
LOOK_EVERY_S = 0.5
"""Often enough: the kernel itself keeps the peak of what is resident; adding up shared pages takes a while."""
COLUMNS = 2
"""Of each region's cells, in the small version: 10 patches."""


@dataclass(frozen=True)
class Cost:
    """Of one stage."""

    stage: str
    seconds: float
    cpu_seconds: float
    rss_mib: float
    """Peak of the largest process, resident: what it shares counts in each that shares it."""
    pss_mib: float
    """Peak of the largest process, shared pages divided among those who share them."""
    counts: dict[str, Any]


def some_of(config: Config, columns: int) -> Config:
    """The country with the first `columns` of each region's cells."""
    areas = []
    for area in config.areas:
        assert area.bbox is not None
        west, south, east, north = area.bbox
        bbox = (west, south, min(east, west + columns * config.grid.cell_m), north)
        areas.append(area.model_copy(update={"bbox": bbox}))
    return config.model_copy(update={"area": tuple(areas)})


def with_workers(config: Config, workers: int) -> Config:
    """The same work, shared out among as many processes."""
    return config.model_copy(update={"preparation": config.preparation.model_copy(update={"workers": workers})})


def prepare(config: Config, root: Path) -> list[Cost]:
    """Run the stages below `root`, one after the other, and measure each."""
    return [measure(stage, config, root) for stage in STAGES]


def measure(stage: str, config: Config, root: Path) -> Cost:
    """Run one stage and watch its processes."""
    command = [sys.executable, "-m", f"components.{stage}", "--config", config.model_dump_json(), "--root", str(root)]
    # a worker is a core, also where there is one worker, which is the stage's own process
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    cpu, start = cpu_of_children(), time.monotonic()
    process = subprocess.Popen(command, env=environment)
    rss, pss = 0, 0
    while process.poll() is None:
        for member in family(process.pid):
            now = memory_kib(member)
            rss, pss = max(rss, now[0]), max(pss, now[1])
        time.sleep(LOOK_EVERY_S)
    seconds = time.monotonic() - start
    if process.returncode:
        raise SystemExit(f"{stage} ended with status {process.returncode}")
    record = json.loads((root / FOLDERS[stage] / RECORD).read_text(encoding="utf-8"))
    return Cost(stage, seconds, cpu_of_children() - cpu, rss / 1024, pss / 1024, record["counts"])


def cpu_of_children() -> float:
    """CPU seconds of all processes that have ended below this one."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def family(pid: int) -> list[int]:
    """A process and those below it."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(child) for thread in threads for child in (thread / "children").read_text().split()]
    except OSError:  # it has just ended
        return []
    return [pid, *(member for child in children for member in family(child))]


def memory_kib(pid: int) -> tuple[int, int]:
    """Peak of what is resident, and what is resident now with shared pages divided; zeros where it has just ended."""
    try:
        status, smaps = (Path(f"/proc/{pid}/{name}").read_text() for name in ("status", "smaps_rollup"))
        found = [re.search(rf"^{name}:\s+(\d+)", text, re.M) for name, text in (("VmHWM", status), ("Pss", smaps))]
        return int(found[0][1]), int(found[1][1])
    except (OSError, TypeError):
        return 0, 0


def table(costs: Sequence[Cost]) -> str:
    """A row a stage, and what it comes to."""
    total = sum(cost.seconds for cost in costs)
    gate = costs[-1].counts
    rows = [
        "| stage | seconds | share of time | CPU seconds | peak memory of a process, MiB resident (proportional) |",
        "|---|---:|---:|---:|---:|",
        *(
            f"| {cost.stage} | {cost.seconds:.1f} | {cost.seconds / total:.0%} | {cost.cpu_seconds:.1f} |"
            f" {cost.rss_mib:.0f} ({cost.pss_mib:.0f}) |"
            for cost in costs
        ),
    ]
    return "\n".join(rows) + (
        f"\n\n{costs[0].counts['patches']} patches, {gate['samples']} candidates, {gate['kept']} samples kept in"
        f" {total:.0f} s: {gate['samples'] / total:.1f} candidates and {gate['kept'] / total:.1f} samples a second;"
        f" largest process {max(cost.rss_mib for cost in costs):.0f} MiB."
    )


def speedup(one: Sequence[Cost], two: Sequence[Cost]) -> str:
    """How many times as fast two workers are as one."""
    pairs = list(zip(one, two, strict=True))
    rows = [
        "| stage | one worker, s | two workers, s | times as fast |",
        "|---|---:|---:|---:|",
        *(f"| {a.stage} | {a.seconds:.1f} | {b.seconds:.1f} | {a.seconds / b.seconds:.2f} |" for a, b in pairs),
    ]
    whole = sum(cost.seconds for cost in one), sum(cost.seconds for cost in two)
    return "\n".join([*rows, f"| all | {whole[0]:.1f} | {whole[1]:.1f} | {whole[0] / whole[1]:.2f} |"])


def ratios_of_preparation(columns: int = COLUMNS) -> str:
    """Tables of some patches of the country: with one worker, with two, and the ratio."""
    config = some_of(load_config(COUNTRY), columns)
    costs = []
    for workers in (1, 2):
        with tempfile.TemporaryDirectory(prefix="country-") as root:
            costs.append(prepare(with_workers(config, workers), Path(root)))
    return f"{table(costs[1])}\n\n{speedup(*costs)}"


def main(argv: Sequence[str] | None = None) -> None:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.bench_preparation", description=__doc__)
    parser.add_argument("--columns", type=int, default=COLUMNS, help="of each region's cells, five patches of the two")
    parser.add_argument("--full", action="store_true", help="the whole country, with two workers")
    parser.add_argument("--workers", type=int, help="these only, instead of one and two")
    parser.add_argument("--root", type=Path, help="keep the artifacts in this folder")
    arguments = parser.parse_args(argv)
    if not arguments.full and not arguments.workers:
        print(ratios_of_preparation(arguments.columns))
        return
    config = load_config(COUNTRY) if arguments.full else some_of(load_config(COUNTRY), arguments.columns)
    with tempfile.TemporaryDirectory(prefix="country-") as temporary:
        root = arguments.root or Path(temporary)
        say(f"artifacts are in {root}")
        print(table(prepare(with_workers(config, arguments.workers or 2), root)))


if __name__ == "__main__":
    main()
