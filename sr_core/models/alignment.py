"""Moving images by fractions of a pixel, and bringing the frames of a series onto one grid."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sr_core.models.highresnet import Estimate, HighResNet, fill_masked, masked_median

LOBES = 3
"""Of the Lanczos kernel: a moved pixel depends on this many pixels at each side."""


def align(frames: Tensor, clear: Tensor, shifts: Tensor) -> Tensor:
    """Frames on the common grid.

    frames (B,T,C,H,W), clear (B,T,H,W) with 0 or 1, shifts (B,T,2) rows and columns in pixels: a pixel at p shows the
    ground at p + shift. What is not clear takes the median over time first, so that clouds do not ring.
    """
    # on an accelerator, to look at the shifts would be to wait for it
    if not torch.compiler.is_exporting() and shifts.device.type == "cpu" and not shifts.any():
        return frames
    filled = fill_masked(frames, clear, masked_median(frames, clear))
    return translate(filled.flatten(0, 1), shifts.flatten(0, 1)).view_as(frames)


class AlignedNetwork(nn.Module):
    """A network that takes the frames as they were delivered, with their displacements: what is exported."""

    def __init__(self, network: HighResNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, frames: Tensor, clear: Tensor, shifts: Tensor) -> tuple[Tensor, ...]:
        """As `align` and `HighResNet.forward`, with a plain tuple of what the estimate holds."""
        estimate: Estimate = self.network(align(frames, clear, shifts), clear, shifts)
        return tuple(part for part in estimate if part is not None)


def translate(images: Tensor, distances: Tensor) -> Tensor:
    """Move each of (N,C,H,W) by its own (rows, columns) in `distances` (N,2), any fraction; edges are replicated.

    Normalised Lanczos interpolation, as a product with one matrix a direction: faster than a convolution with a
    single channel. Differentiable in images and distances.
    """
    distances = distances.to(images.device)
    down = lanczos_matrices(images.shape[-2], distances[:, 0])[:, None].to(images)
    across = lanczos_matrices(images.shape[-1], distances[:, 1])[:, None].to(images)
    return down @ images @ across.transpose(-2, -1)


def lanczos_matrices(size: int, distances: Tensor) -> Tensor:
    """(N, size, size) float64 for distances (N): row i samples position i - distance.

    Rows sum to one; the plain kernel brightens by up to 1 %.
    """
    device = distances.device
    position = torch.arange(size, dtype=torch.float64, device=device) - distances.double()[:, None]
    taps = position.floor()[..., None] + torch.arange(1 - LOBES, LOBES + 1, device=device)
    x = taps - position[..., None]
    weights = torch.where(x.abs() < LOBES, torch.sinc(x) * torch.sinc(x / LOBES), 0.0)
    weights = weights / weights.sum(dim=-1, keepdim=True)
    matrices = torch.zeros(distances.shape[0], size, size, dtype=torch.float64, device=device)
    return matrices.scatter_add(2, taps.clamp(0, size - 1).long(), weights)
