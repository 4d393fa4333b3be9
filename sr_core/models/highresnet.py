"""HighRes-Net: several low-resolution frames of one place become one image of four times the resolution.

Source: Deudon et al., HighRes-net: Recursive Fusion for Multi-Frame Super-Resolution of Satellite
Imagery, 2020 (arXiv:2002.06460). What is kept: a shared encoder that sees each frame beside a median
reference, and a shared fusion block that halves the number of frames until one is left. What is
changed, and why:

- the residual chain is carried by the *latest* frame: the output is to show the latest state of the ground;
- frames merge with their neighbours in time, (0, 1), (2, 3), ..., so that an odd one is carried on, never
  dropped, and padded frames at the end change nothing;
- weights are per pixel: what is not clear is filled from the reference before a convolution can spread it;
- the decoder is a pixel shuffle initialised without a checkerboard (ICNR: Aitken et al., Checkerboard
  artifact free sub-pixel convolution, 2017, arXiv:1707.02937), and predicts the residual over the bicubic
  latest frame, from zero.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sr_core import SCALE


def masked_median(frames: Tensor, clear: Tensor) -> Tensor:
    """Median over the clear frames at each pixel; the mean of the two middle ones where their number is even.

    frames (B,T,C,H,W), clear (B,T,H,W) with 0 or 1. Returns (B,C,H,W), 0 where no frame is clear: in
    normalised units that is the mean of the place.
    """
    usable = (clear > 0.5).unsqueeze(2)
    ordered = torch.where(usable, frames, torch.inf).sort(dim=1).values
    count = usable.sum(dim=1, keepdim=True)
    shape = (-1, -1, frames.shape[2], -1, -1)
    lower = ordered.gather(1, ((count - 1).clamp(min=0) // 2).expand(shape))
    upper = ordered.gather(1, (count // 2).clamp(max=frames.shape[1] - 1).expand(shape))
    return torch.where(count > 0, (lower + upper) / 2, 0.0).squeeze(1)


def fill_masked(frames: Tensor, clear: Tensor, reference: Tensor) -> Tensor:
    """Frames (B,T,C,H,W) with the reference (B,C,H,W) wherever `clear` (B,T,H,W) excludes a pixel."""
    return torch.where((clear > 0.5).unsqueeze(2), frames, reference.unsqueeze(1))


def bicubic(image: Tensor, scale: int = SCALE) -> Tensor:
    """Upsample (B,C,H,W) by cubic convolution, pixel edges aligned."""
    size = (image.shape[-2] * scale, image.shape[-1] * scale)
    return F.interpolate(image, size=size, mode="bicubic", align_corners=False)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions, each followed by PReLU, added to their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv3(channels, channels), nn.PReLU(), conv3(channels, channels), nn.PReLU())

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.body(x)
        return result


class Encoder(nn.Module):
    """A frame beside its reference (N,2*bands,H,W) to features (N,channels,H,W)."""

    def __init__(self, bands: int, channels: int, residual_blocks: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv3(2 * bands, channels),
            nn.PReLU(),
            *(ResidualBlock(channels) for _ in range(residual_blocks)),
            conv3(channels, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.body(x)
        return result


class RecursiveFusion(nn.Module):
    """Merges frames pairwise, a later one with the earlier one next to it, until the latest alone is left."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(ResidualBlock(2 * channels), conv3(2 * channels, channels), nn.PReLU())

    def forward(self, features: Tensor, clear: Tensor) -> Tensor:
        """features (B,T,F,H,W) latest first, clear (B,T,H,W). Returns (B,F,H,W).

        An earlier pixel that is not clear adds exactly nothing. Permuting the earlier frames permutes who
        meets whom in the recursion, so the result is close but not equal; only padding leaves it unchanged.
        """
        clear = clear.unsqueeze(2)
        while features.shape[1] > 1:
            pairs = features.shape[1] // 2
            later, earlier = features[:, 0 : 2 * pairs : 2], features[:, 1 : 2 * pairs : 2]
            later_clear, earlier_clear = clear[:, 0 : 2 * pairs : 2], clear[:, 1 : 2 * pairs : 2]
            both = torch.cat([later, earlier], dim=2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
            merged = later + earlier_clear * self.body(both).unflatten(0, (features.shape[0], pairs))
            features = torch.cat([merged, features[:, 2 * pairs :]], dim=1)
            clear = torch.cat([torch.maximum(later_clear, earlier_clear), clear[:, 2 * pairs :]], dim=1)
        return features[:, 0]


class Decoder(nn.Module):
    """Features (B,channels,H,W) to the residual (B,bands,scale*H,scale*W), zero before training."""

    def __init__(self, bands: int, channels: int, scale: int) -> None:
        super().__init__()
        fine = max(bands, channels // 4)
        self.expand = conv3(channels, fine * scale**2)
        self.shuffle = nn.PixelShuffle(scale)
        self.activation = nn.PReLU()
        self.project = conv3(fine, bands)
        with torch.no_grad():
            for parameter in (self.expand.weight, self.expand.bias):
                assert parameter is not None
                parameter.copy_(parameter[:: scale**2].repeat_interleave(scale**2, dim=0))
            for parameter in self.project.parameters():
                parameter.zero_()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.project(self.activation(self.shuffle(self.expand(x))))
        return result


class HighResNet(nn.Module):
    """HighRes-Net with a per-pixel mask and a residual over the bicubic latest frame.

    Any number of frames, any height and width. Input and output are in the same normalised units.
    """

    def __init__(self, bands: int = 4, channels: int = 64, residual_blocks: int = 2, scale: int = SCALE) -> None:
        super().__init__()
        self.architecture: dict[str, Any] = {
            "bands": bands,
            "channels": channels,
            "residual_blocks": residual_blocks,
            "scale": scale,
        }
        self.scale = scale
        self.encoder = Encoder(bands, channels, residual_blocks)
        self.fusion = RecursiveFusion(channels)
        self.decoder = Decoder(bands, channels, scale)
        nn.Module.to(self, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, frames: Tensor, clear: Tensor) -> Tensor:
        """Super-resolve.

        frames (B,T,C,H,W) normalised, latest first; clear (B,T,H,W) with 1 where a pixel is usable, 0 for
        clouds, nodata and padded frames. Returns float32 (B,C,scale*H,scale*W).
        """
        reference = masked_median(frames, clear)
        filled = fill_masked(frames, clear, reference)
        beside = torch.cat([filled, reference.unsqueeze(1).expand_as(filled)], dim=2)
        features = self.encoder(beside.flatten(0, 1).contiguous(memory_format=torch.channels_last))
        fused = self.fusion(features.unflatten(0, frames.shape[:2]), clear)
        result: Tensor = bicubic(filled[:, 0], self.scale) + self.decoder(fused).float()
        return result

    def receptive_field(self, frames: int) -> int:
        """Side, in low-resolution pixels, of the square that one low-resolution pixel's output depends on."""
        encoder = 2 + 2 * int(self.architecture["residual_blocks"])
        fusion = 3 * math.ceil(math.log2(frames)) if frames > 1 else 0
        decoder = 2  # the convolution before the shuffle, and one fine pixel across the edge after it
        return 2 * (encoder + fusion + decoder) + 1


def conv3(inputs: int, outputs: int) -> nn.Conv2d:
    """A 3 x 3 convolution that keeps height and width; edges are replicated, so that none is darkened."""
    return nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode="replicate")
