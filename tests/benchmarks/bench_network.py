"""The network and its training step against the published ones, written plainly (`naive_highresnet`), in one run.

8 frames of 32 x 32 pixels, batches of 16. All contestants take turns, round after round, so that whatever else the
machine does falls on all of them; only ratios of one run mean something. `python -m tests.benchmarks` prints tables.
"""

from __future__ import annotations

import copy
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sr_core import BANDS, SCALE
from sr_core.config import TrainHRN
from sr_core.models import winograd
from sr_core.models.highresnet import Estimate, HighResNet
from sr_core.training.loop import follow
from sr_core.training.objective import Objective, Scene
from tests.benchmarks.naive_highresnet import NaiveHighResNet, NaiveTraining

NAIVE = "naive, float32"
JOB_SAMPLES, JOB_EPOCHS, JOB_BATCH = 18_000, 50, 128
"""The training of the blog post, with the batch of its configuration."""


@dataclass(frozen=True)
class Size:
    """How much is computed; the defaults are those of the published figures."""

    batch: int = 16
    frames: int = 8
    side: int = 32
    channels: int = 64
    residual_blocks: int = 8

    def settings(self, **others: object) -> TrainHRN:
        """Our network of the same capacity: as many blocks and channels, and the same fusion."""
        ours = {"channels": self.channels, "residual_blocks": self.residual_blocks, "fusion": "recursive"}
        return TrainHRN.model_validate(ours | others)

    def scene(self, device: torch.device) -> Scene:
        """Random frames, all clear, and a random truth."""
        generator = torch.Generator().manual_seed(0)
        frames = torch.randn(self.batch, self.frames, len(BANDS), self.side, self.side, generator=generator)
        fine = self.side * SCALE
        hr = torch.randn(self.batch, len(BANDS), fine, fine, generator=generator)
        clear, hr_clear = torch.ones_like(frames[:, :, 0]), torch.ones_like(hr[:, 0])
        unit = torch.ones(self.batch, len(BANDS), 1, 1)
        return Scene(*(part.to(device) for part in (frames, clear, hr, hr_clear, 0 * unit, unit)))


@dataclass(frozen=True)
class Times:
    """Seconds of every contestant, a number a round; the first is what the others are compared with."""

    seconds: Mapping[str, Sequence[float]]

    def best(self, name: str) -> float:
        return min(self.seconds[name])

    def ratio(self, name: str) -> tuple[float, float, float]:
        """By how much faster than the first: median over the rounds, and the quartiles."""
        first = next(iter(self.seconds.values()))
        ratios = [slow / fast for slow, fast in zip(first, self.seconds[name], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return middle, low, high

    def table(self, what: str) -> str:
        lines = [f"| {what} | best, ms | times as fast, median | quartiles |", "|---|---:|---:|---:|"]
        for name in self.seconds:
            middle, low, high = self.ratio(name)
            lines.append(f"| {name} | {1e3 * self.best(name):.1f} | {middle:.2f} | {low:.2f} to {high:.2f} |")
        return "\n".join(lines)


def without_library(device: torch.device, works: Mapping[str, Callable[[], object]]) -> dict[str, Callable[[], object]]:
    """The same without what speeds it up on this processor: the matrix unit, the compiled convolutions."""

    def under(
        condition: Callable[[], AbstractContextManager[object]], work: Callable[[], object]
    ) -> Callable[[], object]:
        def run() -> object:
            with condition():
                return work()

        return run

    if device.type != "cpu" or not winograd.supported(torch.float32):
        return {}
    conditions: dict[str, Callable[[], AbstractContextManager[object]]] = {
        "without the compiled convolutions": lambda: mock.patch.object(winograd, "supported", lambda dtype: False)
    }
    if winograd.has_matrix_unit():
        conditions = {"without the matrix unit in ours": winograd.without_matrix_unit, **conditions}
    return {f"{name}, {what}": under(how, work) for what, how in conditions.items() for name, work in works.items()}


def take_turns(works: Mapping[str, Callable[[], object]], rounds: int, device: torch.device) -> Times:
    """Time all works in turn, `rounds` times after two to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 2):
        for name, work in works.items():
            _wait(device)
            started = time.perf_counter()
            work()
            _wait(device)
            if turn >= 2:
                seconds[name].append(time.perf_counter() - started)
    return Times(seconds)


def inference(size: Size, device: torch.device, rounds: int) -> str:
    """Table of a forward pass, and how far bfloat16 is from float32."""
    scene = size.scene(device)
    naive = naive_network(size, device).eval()
    ours, default = (network(settings, device).eval() for settings in (size.settings(), TrainHRN(frames=size.frames)))
    valid, shifts = scene.clear[:, :, 0, 0], torch.zeros(*scene.clear.shape[:2], 2, device=device)

    def plain() -> Tensor:
        with torch.no_grad():
            return naive(scene.frames, valid)

    def estimate(model: HighResNet, bfloat16: bool) -> Callable[[], Estimate]:
        def work() -> Estimate:
            with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                return model(scene.frames, scene.clear, shifts)

        return work

    works = {
        NAIVE: plain,
        "ours, float32": estimate(ours, False),
        "ours, bfloat16": estimate(ours, True),
        **without_library(device, {"ours, bfloat16": estimate(ours, True)}),
        f"another network: the default one ({described(default)}), bfloat16": estimate(default, True),
    }
    table = take_turns(works, rounds, device).table("inference")
    exact, rounded = (estimate(ours, bfloat16)().image for bfloat16 in (False, True))
    unchanged = network(size.settings(residual_blocks=1), device, last_layer=False)
    base = estimate(unchanged.eval(), False)().image  # what a network adds its residual to
    error, residual, image = (rms(part) for part in (rounded - exact, exact - base, exact))
    return (
        f"{table}\n\nbfloat16 against float32, root mean square of the difference: {error / residual:.1e} of the"
        f" network's residual, {error / image:.1e} of the image."
    )


def training(size: Size, device: torch.device, rounds: int) -> str:
    """Table of a training step: ours with registration, gradient clipping, AdamW and averaged weights."""
    scene = size.scene(device)
    naive = NaiveTraining(naive_network(size, device))
    valid = scene.clear[:, :, 0, 0]
    float32, bfloat16 = (Training(size.settings(precision=kind), device) for kind in ("float32", "bfloat16"))
    default = Training(TrainHRN(frames=size.frames), device)
    works = {
        NAIVE: lambda: naive.step(scene.frames, valid, scene.hr),
        "ours, float32": lambda: float32.step(scene),
        "ours, bfloat16": lambda: bfloat16.step(scene),
        **without_library(device, {"ours, bfloat16": lambda: bfloat16.step(scene)}),
        f"another network: the default one ({described(default.model)}), bfloat16": lambda: default.step(scene),
    }
    return take_turns(works, rounds, device).table("training step")


class Training:
    """Our network, its objective and its optimiser; `step` is what the loop of `sr_core.training.loop` does a step."""

    def __init__(self, settings: TrainHRN, device: torch.device) -> None:
        self.settings, self.device = settings, device
        self.model = network(settings, device)
        self.objective = Objective(settings).to(device)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.network = torch.compile(self.model) if settings.compile else self.model
        self.weights = list(self.model.parameters())
        self.optimizer = torch.optim.AdamW(
            self.weights, settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )

    def step(self, scene: Scene) -> Tensor:
        shifts = torch.zeros(*scene.clear.shape[:2], 2, device=self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bfloat16"):
            estimate = self.network(scene.frames, scene.clear, shifts)
        loss = self.objective(estimate, scene)[0].mean()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights, self.settings.clip_norm)
        self.optimizer.step()
        follow(self.average, self.model, self.settings.ema_decay)
        return loss.detach()


def accelerator(size: Size, device: torch.device, rounds: int) -> str:
    """Table of what a card does with large batches: samples a second, share of its ceiling, time for the blog's job."""
    scene = size.scene(device)
    bfloat16 = Training(size.settings(), device)
    seconds = take_turns({"step": lambda: bfloat16.step(scene)}, rounds, device).best("step")
    operations = 3 * forward_operations(bfloat16.model, size, device)  # backward costs twice the forward
    rate = size.batch / seconds
    ceiling = matmul_ceiling(device)
    return "\n".join(
        [
            f"| training, bfloat16, batches of {size.batch} | |",
            "|---|---:|",
            f"| samples a second | {rate:.0f} |",
            f"| measured ceiling of bfloat16 matrix products, TFLOP/s | {ceiling / 1e12:.2f} |",
            f"| reached, TFLOP/s | {operations / seconds / 1e12:.2f} |",
            f"| share of the ceiling | {100 * operations / seconds / ceiling:.0f} % |",
            f"| the blog's job, {JOB_SAMPLES} samples x {JOB_EPOCHS} epochs, minutes"
            f" | {JOB_SAMPLES * JOB_EPOCHS / rate / 60:.1f} |",
        ]
    )


def forward_operations(model: HighResNet, size: Size, device: torch.device) -> float:
    """Floating-point operations of a forward pass, as PyTorch counts them: convolutions and matrix products."""
    scene = size.scene(device)
    plain = mock.patch.object(winograd, "supported", lambda dtype: False)  # whose operations are not counted
    with plain, torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(scene.frames, scene.clear, torch.zeros(*scene.clear.shape[:2], 2, device=device))
    return float(counter.get_total_flops())


def matmul_ceiling(device: torch.device) -> float:
    """Floating-point operations a second of a large bfloat16 matrix product."""
    side = 8192 if device.type == "cuda" else 1024
    matrix = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    return 2 * side**3 / take_turns({"product": lambda: matrix @ matrix}, 5, device).best("product")


def network(settings: TrainHRN, device: torch.device, last_layer: bool = True) -> HighResNet:
    """Ours, its last layer as PyTorch initialises it and not zero: as if trained, so that rounding shows."""
    torch.manual_seed(0)
    model = HighResNet.from_settings(settings)
    if last_layer:
        model.project.reset_parameters()
    return model.to(device)


def naive_network(size: Size, device: torch.device) -> NaiveHighResNet:
    torch.manual_seed(0)
    return NaiveHighResNet(len(BANDS), size.channels, size.residual_blocks).to(device)


def described(model: HighResNet) -> str:
    architecture = model.architecture
    return (
        f"{architecture['residual_blocks']} blocks, {architecture['channels']} channels,"
        f" {architecture['fusion']} fusion, {architecture['fused_blocks']} blocks after it"
    )


def rms(image: Tensor) -> float:
    return image.double().square().mean().sqrt().item()


def machine(device: torch.device) -> str:
    """What was measured on, in words."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, PyTorch {torch.__version__}"
    kinds = {"amx_bf16": "AMX BF16", "avx512_bf16": "AVX-512 BF16", "avx512f": "AVX-512", "avx2": "AVX2"}
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text(encoding="utf-8").split() if cpuinfo.exists() else []
    known = next((name for flag, name in kinds.items() if flag in flags), platform.machine())
    compiled = "with" if winograd.supported(torch.float32) else "without"
    return (
        f"{torch.get_num_threads()} threads on {os.cpu_count()} cores, {known}, PyTorch {torch.__version__},"
        f" {compiled} the compiled convolutions"
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
