"""Small sample sets for tests: smooth scenes seen by shifted low-resolution frames."""

import numpy as np
import torch

from sr_core.models.normalization import Normalization
from sr_core.radiometry.resample import bicubic_upsample, degrade
from sr_core.samples.dataset import SampleSet

PLACES = {"here": Normalization((0.2, 0.2, 0.2, 0.2), (0.05, 0.05, 0.05, 0.05))}


def scene(seed: int, side: int = 32) -> np.ndarray:
    """Reflectance (4, side, side) with edges finer than a low-resolution pixel."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(0, 0.06, (4, side // 4, side // 4)).astype(np.float32)
    fields = np.where(bicubic_upsample(coarse) > 0, 0.06, -0.06)
    return np.clip(0.2 + fields + rng.normal(0, 0.002, fields.shape), 0.01, 0.9).astype(np.float32)


def sample_set(count: int = 6, frames: int = 3, side: int = 8, seed: int = 0) -> SampleSet:
    """`count` samples of `frames` clear frames of `side` pixels, with sub-pixel shifts between frames."""
    rng = np.random.default_rng(seed)
    scenes = [scene(seed + index, side * 4) for index in range(count)]
    shifts = rng.uniform(-0.4, 0.4, (frames, 2))
    shifts[0] = 0.0
    lr = np.stack([[degrade(image, shift=tuple(shift)) for shift in shifts] for image in scenes])
    return SampleSet(
        lr=torch.from_numpy(np.round(lr * 10_000).astype(np.uint16)),
        clear=torch.ones(count, frames, side, side, dtype=torch.bool),
        valid=torch.ones(count, frames, dtype=torch.bool),
        age=(torch.arange(frames, dtype=torch.int16) * 5).repeat(count, 1),
        shift=torch.zeros(count, frames, 2),
        hr=torch.from_numpy(np.round(np.stack(scenes) * 10_000).astype(np.uint16)),
        hr_clear=torch.ones(count, side * 4, side * 4, dtype=torch.bool),
        region=["here"] * count,
        ids=[f"chip-{index}" for index in range(count)],
        target_date=["2024-06-01"] * count,
    )
