"""All benchmarks, as one page: `python -m tests.benchmarks [docs/benchmarks.md]`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from tests.benchmarks.bench_area import table as areas
from tests.benchmarks.bench_inference import ratios_of_inference
from tests.benchmarks.bench_network import JOB_BATCH, Size, accelerator, inference, machine, training
from tests.benchmarks.bench_preparation import ratios_of_preparation
from tests.benchmarks.bench_serving import load_of_serving

CPU_THREADS = 2
TINY = Size(batch=2, frames=2, side=8, channels=8, residual_blocks=1)
INTRODUCTION = """# Benchmarks

Made by `make bench`. Ratios of one run on one machine: the contestants take turns, and a ratio is taken in every
round, so that whatever else the machine does falls on all of them.

*Naive* is the published HighRes-Net with the sizes of Sinergise's configuration (8 residual blocks, 64 channels,
recursive fusion, 1 038 617 parameters) as one would write it down, with Adam and a squared error:
`tests/benchmarks/naive_highresnet.py`. *Ours* is this project's network of the same capacity: as many blocks, channels
and frames, and the same fusion. Its training step does more: the loss searches the best of 25 shifts, gradients are
clipped, weights are averaged. 8 frames of 32 x 32 pixels, batches of 16.

On the CPU, most of the difference comes from the convolutions (`sr_core/models/winograd.cpp`, compiled at installation
where there is a compiler): a quarter of the products, and edges, PReLU and residual sums on the way. They are used by
everything that runs the network, in training and in inference. Without them, PyTorch's own are: a row says how fast.
"""


def parts() -> Iterator[str]:
    """The page, piece by piece as it is measured."""
    torch.set_num_threads(CPU_THREADS)
    cpu = torch.device("cpu")
    yield INTRODUCTION.strip()
    yield f"## CPU: {machine(cpu)}"
    yield inference(Size(), cpu, rounds=7)
    yield training(Size(), cpu, rounds=5)
    yield "## Windows of a product, CPU"
    yield ratios_of_inference()
    yield "## Products of an area, from patches to finished files (docs/performance.md)"
    yield areas([2, 4], CPU_THREADS)
    yield "## Preparation: some patches of a simulated country, `examples/country.yaml`"
    yield ratios_of_preparation()
    yield "## Serving: TorchServe with the shipped bundle, load from the same machine"
    yield load_of_serving()
    if not torch.cuda.is_available():
        accelerator(TINY, cpu, rounds=2)  # so that the code is known to run
        yield "## GPU\n\nNot measured: no GPU was there."
        return
    card = torch.device("cuda")
    yield f"## GPU: {machine(card)}"
    yield inference(Size(), card, rounds=20)
    yield training(Size(), card, rounds=20)
    yield accelerator(Size(batch=JOB_BATCH), card, rounds=20)


if __name__ == "__main__":
    page = []
    for part in parts():
        print(part, end="\n\n", flush=True)
        page.append(part)
    for path in map(Path, sys.argv[1:]):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n\n".join(page) + "\n", encoding="utf-8")
