"""Products of a large area: megapixels a second, what the time goes into, and that memory does not grow with the area.

    python -m tests.benchmarks.bench_area --km 5 20

One square kilometre of the simulated farmland is downloaded and masked, and stands for every square kilometre of the
area: the pixels of each patch are read from disk as in a run, its frames, masks and displacements are real ones of the
simulation. What is measured begins where the stage `super_resolve` begins to make a date, and ends with its finished
files. Every area is measured in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.utils.flop_counter import FlopCounterMode

from sr_core import BANDS, SCALE
from sr_core.config import parse_config
from sr_core.inference.dates import PatchDates, find_targets
from sr_core.inference.engine import Shares
from sr_core.inference.mosaic import FrameStore
from sr_core.inference.products import Provenance, halo, make_date
from sr_core.memory import return_large_arrays
from sr_core.models import winograd
from sr_core.models.bundle import SHIPPED, load_bundle
from sr_core.models.normalization import Normalization
from sr_core.patches import Patch, make_patch, read_index
from sr_core.series import S2Series, load_s2

CELL_M, BUFFER_M = 1000, 200
ONE_KM2 = {
    "name": "area",
    "area": {"region": "farmland", "crs": "EPSG:32634", "bbox": [682000, 6134000, 683000, 6135000]},
    "period": {"start": "2020-04-01", "end": "2020-06-30"},
    "source": {"kind": "simulated", "seed": 7, "truth": False},
    "grid": {"cell_m": CELL_M, "buffer_m": BUFFER_M},
    "preparation": {"workers": 1},
}
TILE_KM = 109.8
"""Side of a Sentinel-2 tile."""
H100_TFLOPS = 989.4
"""Of an H100 SXM in bfloat16, dense, as NVIDIA specifies it."""
H100_SHARES = (0.05, 0.2)
"""What small convolutions may reach of it: an assumption, no card has run this."""


@dataclass(frozen=True)
class Measured:
    """One date of one area."""

    km: int
    frames: int
    megapixels: float
    """At 2.5 m."""
    laying: float
    """Seconds in which the patches' frames were laid side by side."""
    shares: Shares
    peak_mib: float
    """Resident memory of the process at its highest."""
    disk_mib: float
    """Of the finished files."""

    @property
    def seconds(self) -> float:
        return self.laying + self.shares.wall

    def row(self) -> str:
        parts = {"laying frames": self.laying, **{name: getattr(self.shares, name) for name in PARTS}}
        shares = " | ".join(f"{part / self.seconds:.0%}" for part in parts.values())
        rate = self.megapixels / self.seconds
        return (
            f"| {self.km} km x {self.km} km | {self.megapixels:.2f} | {self.seconds:.0f} | {rate:.2f} | {shares} |"
            f" {self.peak_mib:.0f} | {self.disk_mib:.0f} |"
        )


PARTS = ("reading", "inference", "writing", "finishing")


def prepare(root: Path) -> None:
    """Download and mask the square kilometre that stands for all."""
    from components.cloud_shadow_filter.main import STAGE as MASK
    from components.download.main import STAGE as DOWNLOAD
    from components.stage import run

    for stage in (DOWNLOAD, MASK):
        run(stage, parse_config(ONE_KM2), str(root))


def measure(root: Path, km: int, threads: int, window_px: int) -> Measured:
    """Make one date of `km` x `km` kilometres in this process."""
    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:threads]))  # the files are made by all cores there are
    torch.set_num_threads(threads)
    return_large_arrays()
    [one] = read_index(root / "patches")
    west, north = one.cell[0], one.cell[3]
    patches = [
        make_patch("farmland", one.epsg, (west + x, north - y - CELL_M, west + x + CELL_M, north - y), BUFFER_M)
        for y in range(0, km * CELL_M, CELL_M)
        for x in range(0, km * CELL_M, CELL_M)
    ]

    def load(patch: Patch) -> S2Series:
        return replace(load_s2(root / "patches", root / "masks", one), patch=patch)

    resolver = load_bundle(SHIPPED)
    resolver.model.to("cuda" if torch.cuda.is_available() else "cpu")
    series = load(one)
    dates = PatchDates.of(series)
    target = find_targets(
        [replace(dates, patch=patch) for patch in patches], frames=resolver.frames, max_age_days=100, max_cloud=0.1
    )[-1]
    place = Normalization.from_series(series.bands.transpose(0, 3, 1, 2), series.clear)
    shares, started = Shares(), time.perf_counter()
    with tempfile.TemporaryDirectory(dir=root) as folder:
        store = FrameStore.write(Path(folder) / "frames", patches, target.frames, load)
        laying = time.perf_counter() - started
        make_date(
            Path(folder),
            "farmland",
            patches,
            target,
            store,
            resolver,
            place,
            Provenance("bench", None, simulated=True),
            collection="bench",
            window_px=window_px,
            precision="bfloat16",
            shares=shares,
        )
        disk = sum(path.stat().st_size for path in (Path(folder) / "farmland").rglob("*.*") if path.is_file())
    return Measured(
        km,
        len(target.frames),
        (km * CELL_M / 2.5) ** 2 / 1e6,
        laying,
        shares,
        peak_mib(),
        disk / 2**20,
    )


def peak_mib() -> float:
    """Resident memory of this process at its highest; what `getrusage` says begins with that of the parent."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(r"^VmHWM:\s+(\d+)", status, re.M)
    assert found
    return int(found[1]) / 1024


def table(sides: Sequence[int], threads: int, window_px: int = 256) -> str:
    """Areas of these sides in kilometres, each measured in a process of its own, as a page."""
    with tempfile.TemporaryDirectory(prefix="subpixel-bench-") as folder:
        prepare(Path(folder))
        found = [_in_process_of_its_own(Path(folder), km, threads, window_px) for km in sides]
        alone = _in_process_of_its_own(Path(folder), sides[0], 1, window_px)
    lines = [
        f"| area | megapixels | s | a second | laying frames | {' | '.join(PARTS)} | peak memory, MiB | files, MiB |",
        f"|---|{'---:|' * (6 + len(PARTS))}",
        *(each.row() for each in found),
        "",
        f"One date from {found[0].frames} frames, the bundle that ships, bfloat16, windows of {window_px} pixels,"
        f" {threads} threads on {os.cpu_count()} cores. Reading, inference and writing overlap, so that the shares add"
        " up to more than all.",
    ]
    if len(found) > 1:
        growth = found[-1].peak_mib / found[0].peak_mib - 1
        lines[-1] += f" Memory from {found[0].km} km to {found[-1].km} km: {growth:+.1%}."
    return "\n".join([*lines, "", whole_tile(found[-1], found[0], alone, threads, window_px)])


def whole_tile(largest: Measured, some: Measured, alone: Measured, threads: int, window_px: int) -> str:
    """A whole Sentinel-2 tile: by the largest area, and estimates for what is not here.

    `some` and `alone` are the same area on `threads` cores and on one: what of its time is shared out by cores (Amdahl
    1967) says how 16 would do. An H100 computes the network at a share of its specified rate that is not known here.
    """
    megapixels = (TILE_KM * 1000 / 2.5) ** 2 / 1e6
    seconds = largest.seconds * megapixels / largest.megapixels
    rest = (largest.seconds - largest.shares.inference) * megapixels / largest.megapixels
    shared = (1 - some.seconds / alone.seconds) / (1 - 1 / threads) if threads > 1 else 0.0

    def on(cores: int, taken: float) -> float:
        return taken * (1 - shared + shared / cores) / (1 - shared + shared / threads)

    tera = operations_a_megapixel(window_px) * megapixels / 1e12
    card = [tera / (H100_TFLOPS * share) for share in H100_SHARES]
    lines = [
        f"| a whole Sentinel-2 tile: {TILE_KM:g} km, {megapixels:.0f} megapixels | |",
        "|---|---:|",
        f"| {threads} cores, at the speed of the last row above | {_told(seconds)} |",
        f"| 16 cores, estimated: {shared:.0%} of {some.km} km x {some.km} km is shared out"
        f" ({_told(alone.seconds)} on one core, {_told(some.seconds)} on {threads}) | {_told(on(16, seconds))} |",
        f"| one H100, the network alone, estimated: {tera:.0f} TFLOP at {H100_SHARES[0]:.0%} and"
        f" {H100_SHARES[1]:.0%} of its {H100_TFLOPS:g} TFLOP/s in bfloat16 | {card[0]:.0f} s and {card[1]:.0f} s |",
        f"| one H100 and 16 cores, estimated: the network as slow as that, and all else on the cores |"
        f" {max(card) + on(16, rest):.0f} s |",
    ]
    return "\n".join(lines)


def operations_a_megapixel(window_px: int) -> float:
    """Floating-point operations of the network for a megapixel at 2.5 m, what windows compute twice included."""
    resolver = load_bundle(SHIPPED)
    side, reach = 64, 2 * halo(resolver)
    frames = torch.zeros(1, resolver.frames, len(BANDS), side, side)
    masks, shifts = torch.ones(1, resolver.frames, side, side), torch.zeros(1, resolver.frames, 2)
    plain = mock.patch.object(winograd, "supported", lambda dtype: False)  # whose operations are not counted
    with plain, torch.no_grad(), FlopCounterMode(display=False) as counter:
        resolver.model(frames, masks, shifts)
    return counter.get_total_flops() / (SCALE * side) ** 2 * ((window_px + reach) / window_px) ** 2 * 1e6


def _told(seconds: float) -> str:
    return (
        f"{seconds / 3600:.1f} h"
        if seconds > 5400
        else f"{seconds / 60:.0f} min"
        if seconds > 300
        else f"{seconds:.0f} s"
    )


def _in_process_of_its_own(root: Path, km: int, threads: int, window_px: int) -> Measured:
    """On as many cores as there are threads."""
    arguments = ["--root", str(root), "--km", str(km), "--threads", str(threads), "--window", str(window_px)]
    command = [sys.executable, "-m", "tests.benchmarks.bench_area", *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    raw: dict[str, Any] = json.loads(done.stdout)
    return Measured(**{**raw, "shares": Shares(**raw["shares"])})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.bench_area")
    parser.add_argument("--km", type=int, nargs="+", default=[5, 20], help="sides of the areas, kilometres")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads of the network")
    parser.add_argument("--window", type=int, default=256, help="super_resolve.window_px")
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.root is None:
        print(table(given.km, given.threads, given.window))
    else:
        print(json.dumps(asdict(measure(given.root, *given.km, given.threads, given.window))))


if __name__ == "__main__":
    main()
