"""Inference of products: what bfloat16 and a window of the whole patch give."""

from __future__ import annotations

import numpy as np
import torch

from sr_core import BANDS, SCALE
from sr_core.inference.windows import super_resolve_window, windows
from sr_core.models.bundle import SuperResolver
from sr_core.models.highresnet import HighResNet
from sr_core.models.normalization import Normalization
from tests.benchmarks.bench_network import take_turns

PLACE = Normalization((0.05, 0.08, 0.1, 0.3), (0.03, 0.04, 0.05, 0.08))


def ratios_of_inference(side: int = 120, frames: int = 8, rounds: int = 3) -> str:
    """Table of `SuperResolver.predict` over a patch of 1.2 km: float32, bfloat16, and bfloat16 in four windows."""
    torch.manual_seed(0)
    resolver = SuperResolver(HighResNet().eval(), frames, {"bands": list(BANDS)})
    random = np.random.default_rng(0)
    series = random.integers(100, 5000, (frames, len(BANDS), side, side), dtype=np.uint16)
    clear = random.random((frames, side, side)) > 0.1

    def pieces() -> None:
        for window in windows((slice(0, side), slice(0, side)), side // 2):
            super_resolve_window(resolver, series, clear, PLACE, window, "bfloat16")

    works = {
        "float32": lambda: resolver.predict(series, clear, PLACE, "float32"),
        "bfloat16": lambda: resolver.predict(series, clear, PLACE, "bfloat16"),
        "bfloat16, four windows of half the side (their halo costs)": pieces,
    }
    times = take_turns(works, rounds, torch.device("cpu"))
    megapixels = (SCALE * side) ** 2 / 1e6 / times.best("bfloat16")
    table = times.table(f"{frames} frames of {side} x {side} pixels")
    return f"{table}\n\nbfloat16: {megapixels:.2f} megapixels a second out."
