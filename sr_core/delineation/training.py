"""Learning to delineate, and delineating: the same loop for every arm of the experiment.

Tiles, their order, flips and gains are a function of seed and step alone, so that two arms see the same ground
in the same order and differ in nothing but the image; and so that a loop that was stopped continues bit by bit.
"""

from __future__ import annotations

import math
import os
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sr_core import REFLECTANCE_SCALE, SCALE
from sr_core.config import Delineate
from sr_core.delineation import HEADS
from sr_core.delineation.losses import delineation_loss
from sr_core.delineation.network import Delineator
from sr_core.errors import ArtifactError, DataError
from sr_core.progress import track

GAIN = 0.1
"""Random gain of each band in training, +-."""
CHECKPOINT_EVERY = 50
QUANTISED = 255.0
"""Targets are kept as bytes, 0 to 255."""


@dataclass(frozen=True)
class Scene:
    """One patch as the network sees it: its dates, and the truth on the ground."""

    images: NDArray[np.uint16]
    """(D, 4, h, w) reflectance x 10000, a date each; h, w are H, W or, at 10 m, a quarter of them."""
    maps: NDArray[np.uint8]
    """(3, H, W) targets times 255, in the order of `HEADS`."""
    clear: NDArray[np.bool_]
    """(D, H / 4, W / 4): where a date shows the ground, at 10 m."""
    ground: NDArray[np.bool_]
    """(H, W): ground to learn from; tiles lie wholly inside."""


class Tiles:
    """The tiles of every step, drawn alike for all arms."""

    def __init__(self, scenes: Sequence[Scene], tile_px: int, seed: int) -> None:
        self.tile_px, self.seed = tile_px, seed
        self.dates = [len(scene.images) for scene in scenes]
        self.corners = [tile_corners(scene.ground, tile_px) for scene in scenes]
        counts = np.array([len(corners) for corners in self.corners], float)
        if not counts.sum():
            raise DataError(
                f"delineate: no square of delineate.tile_px = {tile_px} pixels lies wholly on training ground with"
                " reference parcels; expected at least one: make tiles smaller or blocks of the split larger"
            )
        self.shares = counts / counts.sum()

    def draw(self, step: int, count: int) -> list[tuple[int, int, int, int, int, NDArray[np.float32]]]:
        """`count` tiles of a step: scene, date, row, column, symmetry (0 to 7), and the gain of each band."""
        rng = np.random.default_rng((self.seed, step))
        drawn = []
        for _ in range(count):
            scene = int(rng.choice(len(self.shares), p=self.shares))
            row, column = self.corners[scene][rng.integers(len(self.corners[scene]))]
            gain = rng.uniform(1.0 - GAIN, 1.0 + GAIN, 4).astype(np.float32)
            date, symmetry = int(rng.integers(self.dates[scene])), int(rng.integers(8))
            drawn.append((scene, date, int(row), int(column), symmetry, gain))
        return drawn


def tile_corners(ground: NDArray[np.bool_], tile_px: int) -> NDArray[np.int64]:
    """Corners (N, 2) of the squares of `tile_px` pixels wholly inside `ground`, on the grid of 10 m pixels."""
    if min(ground.shape) < tile_px:
        return np.zeros((0, 2), np.int64)
    total = np.pad(ground.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    n = tile_px
    inside = total[n:, n:] - total[n:, :-n] - total[:-n, n:] + total[:-n, :-n] == n * n
    return np.argwhere(inside[::SCALE, ::SCALE]) * SCALE


def train(
    network: Delineator, scenes: Sequence[Scene], settings: Delineate, checkpoint: Path, label: str = "delineate"
) -> list[float]:
    """Train `network` in place for `settings.steps` steps, from `checkpoint` on where there is one.

    AdamW under a cosine schedule, dual Tanimoto loss. Returns the loss of every step. Raises `DataError` when no
    tile fits the training ground, or when the loss is no longer a number; `ArtifactError` for a damaged checkpoint.
    """
    tiles = Tiles(scenes, settings.tile_px, settings.seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=1e-4)
    device = next(network.parameters()).device
    losses: list[float] = []
    if checkpoint.is_file():
        try:
            saved = torch.load(checkpoint, map_location=device, weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise ArtifactError(f"{checkpoint}: damaged checkpoint ({error}); delete it and start again") from error
        network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
        losses = saved["losses"]
    network.train()
    for step in track(range(len(losses), settings.steps), label):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * schedule(step, settings.steps)
        image, targets, valid = (part.to(device) for part in batch_of(scenes, tiles, step, settings.batch_size))
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
            logits = network(image)
        loss = delineation_loss(logits, targets, valid)
        if not torch.isfinite(loss):
            raise DataError(
                f"{label}: the loss of step {step} is {loss.item()}, expected a number; lower"
                f" delineate.learning_rate (now {settings.learning_rate:g}) or use precision float32"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if len(losses) % CHECKPOINT_EVERY == 0 or len(losses) == settings.steps:
            save_aside(
                {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "losses": losses}, checkpoint
            )
    return losses


def schedule(step: int, steps: int) -> float:
    """Share of the learning rate at a step: a short linear warm-up, then a cosine to 0."""
    warmup = max(steps // 20, 1)
    return min((step + 1) / warmup, 1.0) * 0.5 * (1.0 + math.cos(math.pi * step / steps))


def batch_of(scenes: Sequence[Scene], tiles: Tiles, step: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images (B, 4, h, w) in reflectance, targets (B, 3, H, W) and valid pixels (B, H, W) of a step."""
    images, targets, valid = [], [], []
    for number, date, row, column, symmetry, gain in tiles.draw(step, count):
        scene = scenes[number]
        scale = scene.maps.shape[-1] // scene.images.shape[-1]
        here = _window(row, column, tiles.tile_px)
        there = _window(row // scale, column // scale, tiles.tile_px // scale)
        image = scene.images[date][:, *there].astype(np.float32) / REFLECTANCE_SCALE * gain[:, None, None]
        images.append(_turned(image, symmetry))
        targets.append(_turned(scene.maps[:, *here], symmetry))
        clear = scene.clear[date][_window(row // SCALE, column // SCALE, tiles.tile_px // SCALE)]
        valid.append(_turned(clear.repeat(SCALE, 0).repeat(SCALE, 1), symmetry))
    return (
        torch.from_numpy(np.stack(images)),
        torch.from_numpy(np.stack(targets)).float() / QUANTISED,
        torch.from_numpy(np.stack(valid)),
    )


def predict(
    network: Delineator, image: NDArray[np.uint16], tile_px: int, precision: str = "float32", batch_size: int = 8
) -> NDArray[np.float32]:
    """Probabilities (3, H, W), in the order of `HEADS`, of one image (4, h, w), reflectance x 10000.

    In tiles of the training's size, because GroupNorm looks at the whole tile, overlapping by a quarter and
    blended with a raised cosine. `tile_px` counts pixels of the output.
    """
    scale = network.upscale
    rows, columns = image.shape[-2] * scale, image.shape[-1] * scale
    height, width = min(tile_px, rows), min(tile_px, columns)
    weight = np.outer(_taper(height), _taper(width)).astype(np.float32)
    total, weights = np.zeros((3, rows, columns), np.float32), np.zeros((rows, columns), np.float32)
    corners = [(row, column) for row in _starts(rows, height) for column in _starts(columns, width)]
    network.eval()
    device = next(network.parameters()).device
    for first in range(0, len(corners), batch_size):
        chosen = corners[first : first + batch_size]
        stack = [image[:, r // scale : (r + height) // scale, c // scale : (c + width) // scale] for r, c in chosen]
        inputs = torch.from_numpy(np.stack(stack).astype(np.float32) / REFLECTANCE_SCALE).to(device)
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            logits = network(inputs)
        found = torch.cat([logits[head] for head in HEADS], 1).float().sigmoid().cpu().numpy()
        for (row, column), tile in zip(chosen, found, strict=True):
            window = (slice(row, row + height), slice(column, column + width))
            total[:, *window] += tile * weight
            weights[window] += weight
    total /= weights
    return total


def save_aside(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint next to its place and rename it."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    torch.save(state, aside)
    aside.replace(path)


def _window(row: int, column: int, size: int) -> tuple[slice, slice]:
    return slice(row, row + size), slice(column, column + size)


def _turned(array: NDArray[Any], symmetry: int) -> NDArray[Any]:
    """One of the eight symmetries of the square, on the last two axes."""
    turned = np.rot90(array, symmetry % 4, axes=(-2, -1))
    return np.ascontiguousarray(turned[..., ::-1] if symmetry >= 4 else turned)


def _starts(size: int, tile: int) -> list[int]:
    step = max((tile * 3 // 4) // SCALE * SCALE, SCALE)
    return [*range(0, size - tile, step), size - tile]


def _taper(size: int) -> NDArray[np.float32]:
    """1 in the middle, falling to the sides along a raised cosine over a quarter of the tile; never 0."""
    ramp = max(size // 4, 1)
    outside = np.minimum(np.arange(size), np.arange(size)[::-1]) + 0.5
    return (0.5 - 0.5 * np.cos(np.pi * np.minimum(outside / ramp, 1.0))).astype(np.float32)
