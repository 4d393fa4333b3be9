"""A small model for tests that need a served one, and requests that fit it."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from serving.archive import build_archive
from sr_core.models.bundle import save_bundle
from sr_core.models.highresnet import HighResNet

FRAMES = 4


def write_bundle(folder: Path, seed: int = 0) -> Path:
    """A bundle whose network changes every pixel, differently with each seed."""
    torch.manual_seed(seed)
    network = HighResNet(channels=8, residual_blocks=1, uncertainty=True)
    torch.nn.init.normal_(network.project.weight, std=0.02)
    save_bundle(folder, network, {"frames": FRAMES, "normalization": {}, "lineage": {}, "scores": {}})
    return folder


def write_archive(bundle: Path, folder: Path, version: str = "1.0") -> Path:
    """Its archive, `small.mar`."""
    build_archive(bundle, folder, "small", version)
    return folder / "small.mar"


def stack(
    frames: int = FRAMES, rows: int = 30, columns: int = 41, seed: int = 0
) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
    """Frames (T,4,H,W) of random ground, and masks (T,H,W) of which a fifth is not clear."""
    random = np.random.default_rng(seed)
    images = random.integers(300, 3500, (frames, 4, rows, columns), dtype=np.uint16)
    return images, random.random((frames, rows, columns)) > 0.2
