"""Ratios of one run: what bfloat16 and a window of the whole patch give in inference. `make bench` prints them."""

import time

import numpy as np
import torch

from sr_core import BANDS
from sr_core.inference.windows import super_resolve_window, windows
from sr_core.models.bundle import SuperResolver
from sr_core.models.highresnet import HighResNet
from sr_core.models.normalization import Normalization

SIDE, FRAMES, ROUNDS = 120, 8, 3
PLACE = Normalization((0.05, 0.08, 0.1, 0.3), (0.03, 0.04, 0.05, 0.08))


def seconds(work) -> float:
    """Best of a few rounds, after one to warm up."""
    work()
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def test_ratios_of_inference():
    torch.manual_seed(0)
    resolver = SuperResolver(HighResNet().eval(), FRAMES, {"bands": list(BANDS)})
    random = np.random.default_rng(0)
    frames = random.integers(100, 5000, (FRAMES, len(BANDS), SIDE, SIDE), dtype=np.uint16)
    clear = random.random((FRAMES, SIDE, SIDE)) > 0.1

    def whole(precision):
        return lambda: resolver.predict(frames, clear, PLACE, precision)

    def pieces():
        for window in windows((slice(0, SIDE), slice(0, SIDE)), SIDE // 2):
            super_resolve_window(resolver, frames, clear, PLACE, window, "bfloat16")

    float32, bfloat16, windowed = seconds(whole("float32")), seconds(whole("bfloat16")), seconds(pieces)
    megapixels = (4 * SIDE) ** 2 / 1e6
    print(f"\n{FRAMES} frames of {SIDE} x {SIDE} px, {torch.get_num_threads()} threads")
    print(f"bfloat16 over float32:        {float32 / bfloat16:.2f} x")
    print(f"one window over four of half: {windowed / bfloat16:.2f} x (the halo's share)")
    print(f"bfloat16: {megapixels / bfloat16:.2f} megapixels a second out")
