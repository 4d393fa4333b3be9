"""All benchmarks, as one page: `python -m tests.benchmarks [docs/benchmarks.md] [--only Serving ...]`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
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

Made by `make bench`, on one machine; a section may have been made again by itself (`--only`). The contestants of a
table take turns, and a ratio is taken in every round, so that whatever else the machine does falls on all of them.

*Naive* is the published HighRes-Net with the sizes of Sinergise's configuration (8 residual blocks, 64 channels,
recursive fusion, 1 038 617 parameters) as one would write it down, with Adam and a squared error:
`tests/benchmarks/naive_highresnet.py`. *Ours* is this project's network of the same capacity: as many blocks, channels
and frames, and the same fusion. Its training step does more: the loss searches the best of 25 shifts, gradients are
clipped, weights are averaged. 8 frames of 32 x 32 pixels, batches of 16.

On the CPU, most of the difference comes from the convolutions (`sr_core/models/winograd.cpp`, compiled at installation
where there is a compiler): a quarter of the products, and edges, PReLU and residual sums on the way; in bfloat16 the
processor's matrix unit (AMX) multiplies, where it has one. They are used by everything that runs the network, in
training and in inference, but for the model server, whose program is exported. Without them, PyTorch's own are: rows
say how fast.
"""


def sections() -> dict[str, Callable[[], Iterator[str]]]:
    """Title and what measures it, in the order of the page."""
    cpu = torch.device("cpu")

    def network() -> Iterator[str]:
        yield inference(Size(), cpu, rounds=7)
        yield training(Size(), cpu, rounds=5)

    def card() -> Iterator[str]:
        if not torch.cuda.is_available():
            accelerator(TINY, cpu, rounds=2)  # so that the code is known to run
            yield "Not measured: no GPU was there."
            return
        device = torch.device("cuda")
        yield machine(device)
        yield inference(Size(), device, rounds=20)
        yield training(Size(), device, rounds=20)
        yield accelerator(Size(batch=JOB_BATCH), device, rounds=20)

    return {
        f"CPU: {machine(cpu)}": network,
        "Windows of a product, CPU": lambda: iter([ratios_of_inference()]),
        "Products of an area, from patches to finished files (docs/performance.md)": lambda: iter(
            [areas([2, 4], CPU_THREADS)]
        ),
        "Preparation: some patches of a simulated country, `examples/country.yaml`": lambda: iter(
            [ratios_of_preparation()]
        ),
        "Serving: TorchServe with the shipped bundle, load from the same machine": lambda: iter([load_of_serving()]),
        "GPU": card,
    }


def read_page(path: Path) -> dict[str, str]:
    """The sections of a page that was written before, by title."""
    if not path.exists():
        return {}
    parts = path.read_text(encoding="utf-8").split("\n## ")[1:]
    return {title: text.strip() for title, _, text in (part.partition("\n") for part in parts)}


def main() -> None:
    """Measure and print; with a path, write the page, of which `--only` makes some sections again."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("page", type=Path, nargs="?", help="where the page is written")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="sections whose titles begin so; the rest is kept")
    given = parser.parse_args()
    torch.set_num_threads(CPU_THREADS)
    known, found = read_page(given.page) if given.page and given.only else {}, {}
    for title, measure in sections().items():
        if given.only and not title.startswith(tuple(given.only)):
            found.update({title: known[title]} if title in known else {})
            continue
        print(f"## {title}", end="\n\n", flush=True)
        pieces = []
        for piece in measure():
            print(piece, end="\n\n", flush=True)
            pieces.append(piece)
        found[title] = "\n\n".join(pieces)
    if given.page:
        given.page.parent.mkdir(parents=True, exist_ok=True)
        body = "".join(f"\n\n## {title}\n\n{text}" for title, text in found.items())
        given.page.write_text(f"{INTRODUCTION.strip()}{body}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
