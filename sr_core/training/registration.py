"""Registration at the loss: the truth may lie a little beside the low-resolution frames.

The super-resolved image is moved by each shift of a small grid, and the one that fits the truth best is judged;
without this, a network learns to blur. The idea is that of Deudon et al. 2020 (HighRes-net), whose shift a network
of 34 million parameters predicts (`sr_core.models.shiftnet`); a search over half pixels, as Cornebise et al. 2022
(WorldStrat) do, needs none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from types import EllipsisType

import torch
from torch import Tensor

from sr_core.models.alignment import LOBES, lanczos_matrices


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
        return math.ceil(self.radius) + LOBES - 1 if self.radius else 0

    @property
    def phases(self) -> tuple[float, ...]:
        """The fractions of a pixel among the shifts, 0 first: all else of a shift is whole pixels."""
        return tuple(sorted({_split(shift)[1] for shift in self.shifts}))


@torch.no_grad()
def best_shifts(
    sr: Tensor,
    hr: Tensor,
    clear: Tensor,
    registration: Registration,
    bias_removed: bool = False,
    refine: bool = False,
) -> Tensor:
    """The (rows, columns) (B,2) by which each image must move to fit the truth best, in high-resolution pixels.

    The shift of the grid with the smallest squared error, as `shift_errors` has it; of equals, the first. With
    `refine`, between the grid's points: in both axes the lowest point of the parabola through the best one and its
    neighbours, or the outermost three, never beyond the grid.
    """
    errors = shift_errors(sr, hr, clear, registration, bias_removed)
    side = errors.shape[-1]
    best = errors.flatten(1).argmin(dim=1)
    found = torch.stack([best // side, best % side], dim=1)
    position = found.float()
    if refine and side > 2:
        sample = torch.arange(len(errors), device=errors.device)
        lines = errors[sample, :, found[:, 1]], errors[sample, found[:, 0]]
        for axis, line in enumerate(lines):
            middle = found[:, axis].clamp(1, side - 2)
            before, here, after = (line[sample, middle + step] for step in (-1, 0, 1))
            bend = (before - 2 * here + after).clamp(min=1e-12)
            position[:, axis] = middle + ((before - after) / (2 * bend)).clamp(-1.0, 1.0)
    return (position - side // 2) * registration.step


@torch.no_grad()
def shift_errors(
    sr: Tensor, hr: Tensor, clear: Tensor, registration: Registration, bias_removed: bool = False
) -> Tensor:
    """Mean squared difference (B,S,S) of each sample at each (rows, columns) of the grid's S x S shifts.

    sr, hr (B,C,H,W); clear (B,H,W) with 0 or 1; all bands together, `registration.border` left out. With
    `bias_removed` each band's mean difference is taken out first, at each shift anew.
    """
    shifts, border = registration.shifts, registration.border
    rows, columns = hr.shape[-2] - 2 * border, hr.shape[-1] - 2 * border
    inside = inside_of(hr, border)
    seen = (clear[inside] > 0.5).unsqueeze(1)
    weight = seen.float()
    negative = torch.where(seen, -hr[inside].float(), 0.0)
    pixels = weight.sum(dim=(1, 2, 3)).clamp(min=1.0)
    # only fractions of a pixel need interpolation; whole pixels are a matter of where to look
    images = _moved_by_phases(sr.float(), registration)
    errors = []
    for down in map(_split, shifts):
        for across in map(_split, shifts):
            top, left = border - down[0], border - across[0]
            moved = images[down[1], across[1]][..., top : top + rows, left : left + columns]
            difference = torch.addcmul(negative, moved, weight)
            error = torch.linalg.vector_norm(difference, dim=(1, 2, 3)).square()
            if bias_removed:
                error = error - (difference.sum(dim=(2, 3)).square().sum(dim=1) / pixels)
            errors.append(error)
    surface = torch.stack(errors, dim=1).view(-1, len(shifts), len(shifts))
    return surface / (pixels * hr.shape[1])[:, None, None]


def inside_of(images: Tensor, border: int) -> tuple[EllipsisType, slice, slice]:
    """Index of the rows and columns of (..., H, W) that lie at least `border` from each edge."""
    rows, columns = images.shape[-2:]
    return ..., slice(border, rows - border), slice(border, columns - border)


def _moved_by_phases(images: Tensor, registration: Registration) -> dict[tuple[float, float], Tensor]:
    """The images moved by every pair of the grid's phases, (rows, columns)."""
    phases = registration.phases
    down, across = (_phase_matrices(phases, size, images.device) for size in images.shape[-2:])
    moved = {}
    for i, rows in enumerate(phases):
        by_rows = down[i] @ images if rows else images
        for j, columns in enumerate(phases):
            moved[rows, columns] = by_rows @ across[j].T if columns else by_rows
    return moved


@cache
def _phase_matrices(phases: tuple[float, ...], size: int, device: torch.device) -> Tensor:
    return lanczos_matrices(size, torch.tensor(phases)).float().to(device)


def _split(shift: float) -> tuple[int, float]:
    """Whole pixels and the fraction (0 to 1) of a shift."""
    whole = math.floor(shift + 1e-9)
    return whole, round(max(shift - whole, 0.0), 9)
