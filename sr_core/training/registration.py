"""Registration at the loss: the truth may lie a little beside the low-resolution frames.

The super-resolved image is moved by each shift of a small grid, and the one that fits the truth best is judged;
without this, a network learns to blur. The idea is that of Deudon et al. 2020 (HighRes-net), whose shift a network
of 34 million parameters predicts; a search over half pixels, as Cornebise et al. 2022 (WorldStrat) do, needs none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sr_core.models.alignment import LOBES, translate
from sr_core.training.losses import LossName, masked_error


@dataclass(frozen=True)
class Registration:
    """The grid of shifts: up to `radius` in both directions, every `step` (high-resolution pixels)."""

    radius: float = 0.0
    step: float = 0.5

    @property
    def shifts(self) -> tuple[float, ...]:
        """The shifts along one axis, 0 among them."""
        count = math.floor(self.radius / self.step + 1e-9)
        return tuple(index * self.step for index in range(-count, count + 1))

    @property
    def border(self) -> int:
        """Pixels at each edge that a shift may fill from outside the image; they are not judged."""
        return math.ceil(max(self.shifts)) + LOBES - 1 if len(self.shifts) > 1 else 0


def registered_error(
    sr: Tensor,
    hr: Tensor,
    clear: Tensor,
    registration: Registration,
    kind: LossName = "mse",
    bias_removed: bool = False,
) -> Tensor:
    """`masked_error` of each sample (B) at the shift of the grid that makes it smallest.

    sr, hr (B,C,H,W); clear (B,H,W). The gradient flows through the chosen shift.
    """
    shifts = registration.shifts
    if len(shifts) == 1:
        return masked_error(sr, hr, clear, kind, bias_removed)
    chosen = best_shifts(sr, hr, clear, registration, kind, bias_removed)
    inside = _inside(hr.shape[-2], hr.shape[-1], registration.border)
    down, across = zip(*chosen, strict=True)
    moved = shift(sr, down, across)
    return masked_error(moved[..., *inside], hr[..., *inside], clear[..., *inside], kind, bias_removed)


@torch.no_grad()
def best_shifts(
    sr: Tensor,
    hr: Tensor,
    clear: Tensor,
    registration: Registration,
    kind: LossName = "mse",
    bias_removed: bool = False,
) -> list[tuple[float, float]]:
    """The (rows, columns) by which each image must move to fit the truth best, in high-resolution pixels."""
    inside = _inside(hr.shape[-2], hr.shape[-1], registration.border)
    hr, clear = hr[..., *inside], clear[..., *inside]
    count = len(sr)
    grid, errors = [], []
    for down in registration.shifts:
        rows_moved = shift(sr, [down] * count, [0.0] * count)
        for across in registration.shifts:
            moved = shift(rows_moved, [0.0] * count, [across] * count)[..., *inside]
            grid.append((down, across))
            errors.append(masked_error(moved, hr, clear, kind, bias_removed))
    return [grid[index] for index in torch.stack(errors).argmin(dim=0).tolist()]


def shift(images: Tensor, down: Sequence[float], across: Sequence[float]) -> Tensor:
    """Move each of (B,C,H,W) by its own `down` rows and `across` columns, any fraction; edges are replicated."""
    return translate(images, torch.tensor([down, across], dtype=torch.float64).T)


def _inside(rows: int, columns: int, border: int) -> tuple[slice, slice]:
    return slice(border, rows - border), slice(border, columns - border)
