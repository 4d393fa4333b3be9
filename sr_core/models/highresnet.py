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
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sr_core import SCALE
from sr_core.config import TrainHRN
from sr_core.models.convolution import Conv3, Layers


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


def masked_mean(frames: Tensor, clear: Tensor) -> Tensor:
    """Mean over the clear frames at each pixel, (B,C,H,W); 0 where no frame is clear. Arguments as `masked_median`."""
    weight = (clear > 0.5).unsqueeze(2)
    return torch.where(weight, frames, 0.0).sum(dim=1) / weight.sum(dim=1).clamp(min=1)


def bicubic(image: Tensor, scale: int = SCALE) -> Tensor:
    """Upsample (B,C,H,W) by cubic convolution, pixel edges aligned."""
    size = (image.shape[-2] * scale, image.shape[-1] * scale)
    return F.interpolate(image, size=size, mode="bicubic", align_corners=False)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions, each followed by PReLU, added to their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = Layers(Conv3(channels, channels), nn.PReLU(), Conv3(channels, channels), nn.PReLU())

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.body(x, skip=x)
        return result


class Encoder(nn.Module):
    """A frame beside its reference (N,2*bands,H,W), and its phase (N,8), to features (N,channels,H,W)."""

    def __init__(self, bands: int, channels: int, residual_blocks: int) -> None:
        super().__init__()
        self.enter = Conv3(2 * bands, channels)
        self.phase = nn.Linear(PHASES, 2 * channels)
        nn.init.zeros_(self.phase.weight)
        nn.init.zeros_(self.phase.bias)
        self.body = nn.Sequential(
            nn.PReLU(),
            *(ResidualBlock(channels) for _ in range(residual_blocks)),
            Conv3(channels, channels),
        )

    def forward(self, x: Tensor, phases: Tensor) -> Tensor:
        gain, offset = self.phase(phases)[:, :, None, None].chunk(2, dim=1)
        result: Tensor = self.body(torch.addcmul(offset, self.enter(x), 1 + gain))
        return result


class RecursiveFusion(nn.Module):
    """Merges frames pairwise, a later one with the earlier one next to it, until the latest alone is left."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = Layers(ResidualBlock(2 * channels), Conv3(2 * channels, channels), nn.PReLU())

    def forward(self, features: Tensor, clear: Tensor) -> Tensor:
        """features (B,T,F,H,W) latest first, clear (B,T,H,W). Returns (B,F,H,W).

        An earlier pixel that is not clear adds exactly nothing. Permuting the earlier frames permutes who
        meets whom in the recursion, so the result is close but not equal; only padding leaves it unchanged.
        """
        clear = clear.unsqueeze(2).to(features.dtype)
        while features.shape[1] > 1:
            pairs = features.shape[1] // 2
            later, earlier = features[:, 0 : 2 * pairs : 2], features[:, 1 : 2 * pairs : 2]
            later_clear, earlier_clear = clear[:, 0 : 2 * pairs : 2], clear[:, 1 : 2 * pairs : 2]
            merged = self.body(side_by_side(later, earlier)).unflatten(0, (features.shape[0], pairs))
            odd = slice(2 * pairs, None)
            features = _append(torch.addcmul(later, earlier_clear, merged), features[:, odd])
            clear = _append(torch.maximum(later_clear, earlier_clear), clear[:, odd])
        return features[:, 0]


class AttentionFusion(nn.Module):
    """Attention over time, at each pixel by itself: the latest frame asks, all clear frames answer.

    Source of the idea: Garnot and Landrieu, Lightweight Temporal Self-Attention for Classifying Satellite Image
    Time Series, 2020 (arXiv:2007.00586): one query, a share of the channels to each head.
    """

    HEADS = 8

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels % self.HEADS:
            raise ValueError(f"channels: found {channels}, expected a multiple of {self.HEADS} with attention")
        self.query = nn.Conv2d(channels, channels, 1)
        self.key = nn.Conv2d(channels, channels, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.merge = Layers(Conv3(2 * channels, channels), nn.PReLU())

    def forward(self, features: Tensor, clear: Tensor) -> Tensor:
        """features (B,T,F,H,W) latest first, clear (B,T,H,W). Returns (B,F,H,W).

        What is not clear has no weight, however many frames there are; the order of the earlier ones means nothing.
        Where no frame is clear, the latest (which then shows the reference) stands alone.
        """
        batch, count = features.shape[:2]
        latest = features[:, 0]
        flat = features.flatten(0, 1)
        heads = (self.HEADS, -1)
        query = self.query(latest).unflatten(1, heads).unsqueeze(1)
        key = self.key(flat).unflatten(0, (batch, count)).unflatten(2, heads)
        likeness = (query * key).sum(dim=3).float() / math.sqrt(key.shape[3])
        usable = (clear > 0.5).unsqueeze(2)
        nowhere = ~usable.any(dim=1, keepdim=True)
        first = torch.arange(count, device=clear.device).view(1, count, 1, 1, 1) == 0
        weight = likeness.masked_fill(~(usable | (nowhere & first)), -torch.inf).softmax(dim=1)
        value = self.value(flat).unflatten(0, (batch, count)).unflatten(2, heads)
        attended = (weight.to(value.dtype).unsqueeze(3) * value).sum(dim=1).flatten(1, 2)
        result: Tensor = self.merge(side_by_side(latest, attended), skip=latest)
        return result


class TransposedConvolution(nn.ConvTranspose2d):
    """(B,inputs,H,W) to (B,outputs,scale*H,scale*W), with a kernel of twice the stride."""

    def __init__(self, inputs: int, outputs: int, scale: int) -> None:
        super().__init__(inputs, outputs, 2 * scale, stride=scale, padding=scale // 2)
        # PyTorch takes `outputs * (2 scale)**2` for what an output pixel sums; it is 2 x 2 taps of each input
        bound = 1 / math.sqrt(4 * inputs)
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(cast(Tensor, self.bias), -bound, bound)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        # its gradient is a strided convolution, and that of PyTorch's oneDNN is wrong in bfloat16 on matrix units (AMX)
        # where there are 8 or 12 outputs: off by more than the gradient itself, in torch 2.13
        if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return super().forward(x, output_size)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float(), output_size)


class Decoder(nn.Module):
    """Features (B,channels,H,W) to fine features (B,fine,scale*H,scale*W).

    "pixel_shuffle" starts without a checkerboard (ICNR), "transposed" is a transposed convolution whose kernel is
    twice its stride, so that every output pixel is reached alike; "resize" is nearest neighbour and a convolution. All
    three start with an output of the same spread.
    """

    def __init__(self, channels: int, fine: int, scale: int, kind: str) -> None:
        super().__init__()
        if kind == "pixel_shuffle":
            expand = Conv3(channels, fine * scale**2)
            with torch.no_grad():
                for parameter in (expand.weight, expand.bias):
                    assert parameter is not None
                    parameter.copy_(parameter[:: scale**2].repeat_interleave(scale**2, dim=0))
            self.up = nn.Sequential(expand, nn.PixelShuffle(scale))
        elif kind == "transposed":
            self.up = nn.Sequential(TransposedConvolution(channels, fine, scale))
        elif kind == "resize":
            self.up = nn.Sequential(nn.Upsample(scale_factor=scale, mode="nearest"), Conv3(channels, fine))
        else:
            raise ValueError(f"decoder: found {kind!r}, expected pixel_shuffle, transposed or resize")
        self.activation = nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.activation(self.up(x))
        return result


class Estimate(NamedTuple):
    """What the network says about a place, in normalised units."""

    image: Tensor
    """(B,C,scale*H,scale*W) float32."""
    log_scale: Tensor | None
    """Logarithm of the scale of a Laplace distribution around `image`, same shape; None from a network without it."""


class HighResNet(nn.Module):
    """HighRes-Net with per-pixel masks, known sub-pixel displacements and a residual over bicubic interpolation.

    Any number of frames, any height and width. Input and output are in the same normalised units. The arguments are
    those of `sr_core.config.TrainHRN`.
    """

    calibration: Tensor

    def __init__(
        self,
        bands: int = 4,
        channels: int = 64,
        residual_blocks: int = 2,
        scale: int = SCALE,
        *,
        fused_blocks: int = 0,
        reference: str = "median",
        fusion: str = "recursive",
        decoder: str = "pixel_shuffle",
        residual: str = "latest",
        uncertainty: bool = False,
    ) -> None:
        super().__init__()
        self.architecture: dict[str, Any] = {
            "bands": bands,
            "channels": channels,
            "residual_blocks": residual_blocks,
            "scale": scale,
            "fused_blocks": fused_blocks,
            "reference": reference,
            "fusion": fusion,
            "decoder": decoder,
            "residual": residual,
            "uncertainty": uncertainty,
        }
        choices = {"reference": ("median", "latest"), "fusion": tuple(FUSIONS), "residual": ("latest", "mean", "none")}
        for name, allowed in choices.items():
            if self.architecture[name] not in allowed:
                raise ValueError(f"{name}: found {self.architecture[name]!r}, expected one of {', '.join(allowed)}")
        self.scale, self.reference, self.residual = scale, reference, residual
        fine = max(bands, channels // 4)
        self.encoder = Encoder(bands, channels, residual_blocks)
        self.fusion: nn.Module = FUSIONS[fusion](channels)
        self.trunk = nn.Sequential(*(ResidualBlock(channels) for _ in range(fused_blocks)))
        self.decoder = Decoder(channels, fine, scale, decoder)
        self.project = Conv3(fine, bands)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(cast(Tensor, self.project.bias))
        self.spread: nn.Module | None = None
        if uncertainty:
            last = Conv3(fine, bands)
            nn.init.constant_(cast(Tensor, last.bias), FIRST_LOG_SCALE)
            self.spread = Layers(Conv3(fine, fine), nn.PReLU(), last)
            # added to the logarithm: what validation says the scales are wrong by
            self.register_buffer("calibration", torch.zeros(bands))
        nn.Module.to(self, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @classmethod
    def from_settings(cls, settings: TrainHRN) -> HighResNet:
        """The network that a configuration describes."""
        return cls(
            channels=settings.channels,
            residual_blocks=settings.residual_blocks,
            fused_blocks=settings.fused_blocks,
            reference=settings.reference,
            fusion=settings.fusion,
            decoder=settings.decoder,
            residual=settings.residual,
            uncertainty=settings.uncertainty,
        )

    def forward(self, frames: Tensor, clear: Tensor, shifts: Tensor) -> Estimate:
        """Super-resolve.

        frames (B,T,C,H,W) normalised, on a common grid (`sr_core.models.alignment.align`), latest first; clear
        (B,T,H,W) with 1 where a pixel is usable, 0 for clouds, nodata and padded frames; shifts (B,T,2) the
        displacement that each frame had, rows and columns in low-resolution pixels, 0 where unknown.
        """
        median = masked_median(frames, clear)
        filled = fill_masked(frames, clear, median)
        reference = median if self.reference == "median" else filled[:, 0]
        beside = torch.cat([filled, reference.unsqueeze(1).expand_as(filled)], dim=2)
        features = self.encoder(
            beside.flatten(0, 1).contiguous(memory_format=torch.channels_last), phase(shifts).flatten(0, 1)
        )
        fused = self.trunk(self.fusion(features.unflatten(0, frames.shape[:2]), clear))
        fine = self.decoder(fused)
        image = self.project(fine).float()
        if self.residual != "none":
            base = filled[:, 0] if self.residual == "latest" else masked_mean(frames, clear)
            image = image + bicubic(base, self.scale)
        if self.spread is None:
            return Estimate(image, None)
        # detached: being asked about its error does not change the image
        log_scale = self.spread(fine.detach()).float() + self.calibration.view(1, -1, 1, 1)
        return Estimate(image, log_scale.clamp(*LOG_SCALE_RANGE))

    def receptive_field(self, frames: int) -> int:
        """Side, in low-resolution pixels, of the square that one low-resolution pixel's output depends on."""
        encoder = 2 + 2 * int(self.architecture["residual_blocks"])
        fusion = 1
        if self.architecture["fusion"] == "recursive":
            fusion = 3 * math.ceil(math.log2(frames)) if frames > 1 else 0
        trunk = 2 * int(self.architecture["fused_blocks"])
        decoder = 2  # the convolution that upsamples, and fine pixels across the edge after it
        return 2 * (encoder + fusion + trunk + decoder) + 1


FUSIONS: dict[str, type[nn.Module]] = {"recursive": RecursiveFusion, "attention": AttentionFusion}
FIRST_LOG_SCALE = -2.0
LOG_SCALE_RANGE = (-7.0, 3.0)
"""Of a standard deviation of the place: from less than a count of the sensor to nothing known."""
PHASES = 8


def phase(shifts: Tensor) -> Tensor:
    """What part of a pixel each frame is displaced by, (..., 2) to (..., 8): sines and cosines, single and paired.

    Detail beyond the Nyquist frequency is folded into a frame with a sign and weight that depend on just these; from
    frames on a common grid alone a network could not tell, and so not unfold it.
    """
    turn = 2 * math.pi * shifts
    down, across = turn.unbind(-1)
    first = torch.stack([down.cos(), down.sin()], -1)
    second = torch.stack([across.cos(), across.sin()], -1)
    return torch.cat([first, second, (first.unsqueeze(-1) * second.unsqueeze(-2)).flatten(-2)], dim=-1)


def side_by_side(first: Tensor, second: Tensor) -> Tensor:
    """The channels of both (..., C, H, W) as images (N,2C,H,W), channels last, copied once."""
    both = torch.cat([first.movedim(-3, -1), second.movedim(-3, -1)], dim=-1)
    return both.flatten(0, -4).movedim(-1, -3)


def _append(frames: Tensor, rest: Tensor) -> Tensor:
    return torch.cat([frames, rest], dim=1) if rest.shape[1] else frames
