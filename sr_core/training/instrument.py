"""Sentinel-2 as an instrument that varies: fine images to the frames that it would have delivered of them.

A network that has learned to undo one point-spread function sharpens what another instrument did not blur that way, and
one that has learned from noiseless frames amplifies the noise of real ones. So every training sample is seen through an
instrument of its own, drawn from `InstrumentRanges`.

The point-spread function is a Gaussian given by its modulation transfer function (MTF) at the coarse grid's Nyquist
frequency. Detector footprint, optics and diffusion together are very near to one: of the same 0.25 at Nyquist, a square
detector times a Gaussian differs from it by less than 0.01 at any frequency.

Sources: MTF at Nyquist 0.15 to 0.30, differing by band and direction, and multi-temporal registration of 12 m at 95 %
until March 2021, 5 m since and 3 m within an orbit: Sentinel-2 Products Specification Document, and the mission's L1C
Data Quality Reports. Noise: measured on the flattest ground of real series by `measure_noise`, see there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from sr_core import REFLECTANCE_SCALE, SCALE
from sr_core.config import Fraction, Section
from sr_core.radiometry import resample

MTF_LIMITS = (0.05, 0.6)
MOST_SIGMAS = 3.0
"""Displacements are cut at this many times their rms."""
MOST_UNSEEN = 0.05
"""A coarse pixel is clear when at most this share of its light comes from fine pixels that are not."""
MARGIN_PX = 4
"""Ground around a coarse image that its outermost pixels see, coarse pixels: the reach of the point-spread function
(three standard deviations at the lowest MTF) and of the displacement."""

Range = tuple[float, float]


class InstrumentRanges(Section):
    """What an instrument is drawn from. Ranges are lowest and highest value; equal values fix the instrument."""

    mtf: Range = Field((0.15, 0.35), description="MTF at the coarse Nyquist frequency, mean over bands and directions")
    mtf_spread: float = Field(0.02, ge=0, le=0.1, description="MTF of a band or a direction about that mean, rms")
    displacement_px: Range = Field((0.1, 0.5), description="displacement of a frame, rms a direction, coarse pixels")
    registration_error_px: Range = Field(
        (0.02, 0.05), description="of which co-registration does not know this much, rms a direction, coarse pixels"
    )
    on_latest_grid: Fraction = Field(
        0.3, description="share of samples whose truth lies on the latest frame's own grid, as in Wald's protocol"
    )
    unregistered: Fraction = Field(
        0.1, description="share of samples of whose displacements nothing is known; truth on the latest frame's grid"
    )
    noise: Range = Field((0.02, 0.1), description="noise of a frame, in standard deviations of the place; log-uniform")
    noise_spread: float = Field(0.25, ge=0, le=1, description="noise of a band about that, rms of its logarithm")
    noise_correlation: Range = Field((0.1, 0.4), description="of the noise of neighbouring pixels")
    gain: float = Field(0.02, ge=0, le=0.2, description="gain of an earlier frame's band against the latest, rms")
    offset: float = Field(0.05, ge=0, le=1, description="offset of the same, rms, in standard deviations of the place")

    @model_validator(mode="after")
    def _possible(self) -> InstrumentRanges:
        limits = {
            "mtf": MTF_LIMITS,
            "displacement_px": (0.0, 1.0),
            "registration_error_px": (0.0, 0.5),
            "noise": (0.0, 1.0),
            "noise_correlation": (0.0, 0.49),
        }
        for key, (lowest, highest) in limits.items():
            low, high = getattr(self, key)
            if not lowest <= low <= high <= highest:
                raise ValueError(
                    f"{key}: found [{low:g}, {high:g}]; expected an ascending range in {lowest}..{highest}"
                )
        return self


class Noise(NamedTuple):
    """What `measure_noise` finds, a value a band."""

    sigma: NDArray[np.float64]
    """Standard deviation in reflectance, median over the dates."""
    relative: NDArray[np.float64]
    """The same in standard deviations of the place."""
    correlation: NDArray[np.float64]
    """Of neighbouring pixels, mean of both directions."""
    windows: int
    """How many windows of how many dates ..."""
    dates: int


@dataclass(frozen=True)
class Instrument:
    """One instrument a sample: B samples of T frames and C bands. Tensors of parameters, all on one device."""

    mtf: Tensor
    """(B,C,2) at the coarse Nyquist frequency, along rows and along columns."""
    displacement: Tensor
    """(B,T,2) rows and columns, coarse pixels: a pixel at p shows the ground at p + displacement."""
    registration_error: Tensor
    """(B,T,2) what co-registration finds minus what is true, coarse pixels."""
    registered: Tensor
    """(B) 1 where co-registration finds anything, 0 where displacements are unknown."""
    noise: Tensor
    """(B,C) standard deviation in reflectance."""
    correlation: Tensor
    """(B) of the noise of neighbouring pixels."""
    gain: Tensor
    """(B,T,C)"""
    offset: Tensor
    """(B,T,C) reflectance."""

    @classmethod
    def draw(cls, ranges: InstrumentRanges, frames: int, place_std: Tensor, random: np.random.Generator) -> Instrument:
        """Instruments for the samples of a batch, whose places have the standard deviations `place_std` (B,C) of
        reflectance; on its device, the same on every device."""
        count, bands = place_std.shape

        def uniform(bounds: Range) -> NDArray[np.float64]:
            return random.uniform(*bounds, count)

        def normal(*shape: int) -> NDArray[np.float64]:
            return np.clip(random.standard_normal((count, *shape)), -MOST_SIGMAS, MOST_SIGMAS)

        band, direction = ranges.mtf_spread * normal(bands, 1), ranges.mtf_spread * normal(1, 2)
        mtf = np.clip(uniform(ranges.mtf)[:, None, None] + band + direction / 2, *MTF_LIMITS)
        displacement = uniform(ranges.displacement_px)[:, None, None] * normal(frames, 2)
        error = uniform(ranges.registration_error_px)[:, None, None] * normal(frames, 2)
        unknown = random.random(count) < ranges.unregistered
        on_latest = (random.random(count) < ranges.on_latest_grid) | unknown
        displacement[on_latest, 0] = error[on_latest, 0] = 0.0
        tiny = 1e-6  # noise may be none at all
        level = np.exp(uniform((math.log(ranges.noise[0] + tiny), math.log(ranges.noise[1] + tiny)))) - tiny
        relative = level[:, None] * np.exp(ranges.noise_spread * normal(bands))
        correlation = uniform(ranges.noise_correlation)
        gain, offset = 1.0 + ranges.gain * normal(frames, bands), ranges.offset * normal(frames, bands)
        gain[:, 0], offset[:, 0] = 1.0, 0.0  # the product has the latest frame's radiometry

        def tensor(values: NDArray[np.float64]) -> Tensor:
            return torch.from_numpy(values.astype(np.float32)).to(place_std.device)

        return cls(
            tensor(mtf),
            tensor(displacement),
            tensor(error),
            tensor(np.where(unknown, 0.0, 1.0)),
            tensor(relative) * place_std,
            tensor(correlation),
            tensor(gain),
            tensor(offset) * place_std[:, None],
        )

    def observe(self, fine: Tensor, margin: int, noise: torch.Generator, scale: int = SCALE) -> Tensor:
        """What the instrument delivers, (B,T,C,h,w) in reflectance, of `fine` (B,T,C,H,W), reflectance x 10000.

        `fine` has `margin` coarse pixels of ground more at each side: H = (h + 2 * margin) * scale. Blurred, sampled,
        changed by gain and offset, with noise, and rounded to integers of 1 / 10000.
        """
        down, across = self._weights(fine.shape, margin, scale, self.mtf)
        seen = down @ fine @ across.transpose(-2, -1)
        seen = seen * self.gain[..., None, None] + self.offset[..., None, None] * REFLECTANCE_SCALE
        grain = correlated_noise(seen.shape, self.correlation, noise)
        seen = seen + grain * (self.noise * REFLECTANCE_SCALE)[:, None, :, None, None]
        return seen.round().clamp(min=1.0) / REFLECTANCE_SCALE

    def observe_mask(self, clear: Tensor, margin: int, scale: int = SCALE) -> Tensor:
        """Which pixels (B,T,h,w) are clear, 0 or 1, of fine masks (B,T,H,W)."""
        down, across = self._weights(clear.shape, margin, scale, self.mtf.mean(dim=1, keepdim=True))
        unseen = down[:, :, 0] @ (1.0 - clear) @ across[:, :, 0].transpose(-2, -1)
        return (unseen <= MOST_UNSEEN).float()

    def _weights(self, shape: torch.Size, margin: int, scale: int, mtf: Tensor) -> tuple[Tensor, Tensor]:
        sigma = psf_sigma(mtf, scale)[:, None]
        down = sampling_weights(shape[-2], margin, scale, sigma[..., 0], self.displacement[:, :, None, 0])
        across = sampling_weights(shape[-1], margin, scale, sigma[..., 1], self.displacement[:, :, None, 1])
        return down, across


def psf_sigma(mtf: Tensor, scale: int = SCALE) -> Tensor:
    """As `sr_core.radiometry.resample.psf_sigma`, of a tensor."""
    return (-mtf.log() / 2.0).sqrt() * (2.0 * scale / math.pi)


def sampling_weights(size: int, margin: int, scale: int, sigma: Tensor, shift: Tensor) -> Tensor:
    """Matrices (..., h, size) that sample `size` fine pixels through a Gaussian of `sigma` fine pixels.

    `sigma` and `shift` (coarse pixels) broadcast to (...). The outermost `margin` coarse pixels are not sampled:
    h = size / scale - 2 * margin. Beyond the edges the outermost pixels repeat. Rows sum to one.
    """
    count = size // scale - 2 * margin
    if size % scale or count < 1:
        raise ValueError(f"{size} fine pixels with a margin of {margin} x {scale} at each side: nothing to sample")
    coarse = torch.arange(count, dtype=torch.float32, device=shift.device) + (margin + 0.5)
    centres = (coarse + shift[..., None]) * scale - 0.5
    # the taps that the widest Gaussian needs, not all pixels: exponentials are what this costs
    radius = math.ceil(4.0 * resample.psf_sigma(MTF_LIMITS[0], scale))
    first = centres.floor()
    taps = torch.arange(-radius, radius + 2, dtype=torch.float32, device=shift.device)
    distance = taps - (centres - first)[..., None]
    weights = torch.exp(distance.square() * (-0.5 / sigma.square())[..., None, None])
    weights = weights / weights.sum(dim=-1, keepdim=True)
    places = (first[..., None] + taps).clamp(0, size - 1).long()
    matrices = torch.zeros(*weights.shape[:-1], size, device=shift.device)
    return matrices.scatter_add_(-1, places.expand_as(weights), weights)


def correlated_noise(shape: torch.Size, correlation: Tensor, random: torch.Generator) -> Tensor:
    """Normal noise (B,...,h,w) of variance one whose neighbouring pixels correlate by `correlation` (B), below 0.5.

    White noise through the kernel [a, 1, a] in both directions: resampling to the L1C grid and compression leave
    Sentinel-2's noise like that.
    """
    *outer, rows, columns = shape
    white = torch.randn(*outer, rows + 2, columns + 2, generator=random, device=random.device)
    rho = correlation.view(-1, *[1] * (len(shape) - 1)).clamp(min=1e-6)
    a = (1.0 - (1.0 - 2.0 * rho.square()).sqrt()) / (2.0 * rho)
    smooth = white[..., 1:-1, :] + a * (white[..., :-2, :] + white[..., 2:, :])
    smooth = smooth[..., 1:-1] + a * (smooth[..., :-2] + smooth[..., 2:])
    return smooth / (1.0 + 2.0 * a.square())


def measure_noise(
    bands: NDArray[np.uint16], clear: NDArray[np.bool_], flattest: float = 0.02, window: int = 8
) -> Noise | None:
    """The noise of a real series (T,H,W,C), reflectance x 10000, on its flattest ground; None with too few clear dates.

    Of three consecutive dates that are nearly all clear, the first says which windows are flat (the share `flattest`,
    at least four windows), and the difference of the other two, less its plane, over the root of two, is their noise:
    the ground cancels out, and the choice does not favour windows that happen to have little noise. What the ground
    really changed within a window counts as noise, so that on farmland the figure is an upper bound.
    """
    dates = [index for index in range(len(clear)) if clear[index].mean() >= 0.98]
    if len(dates) < 3:
        return None
    reflectance = bands[dates].astype(np.float64) / REFLECTANCE_SCALE
    std = reflectance.std(axis=(0, 1, 2))
    residual = _plane_remover(window)
    free = window**2 - 3
    sigmas, correlations, count = [], [], 0
    for place in range(len(dates) - 2):
        flat, first, second = (residual @ _windows(reflectance[place + step], window) for step in range(3))
        clearance: NDArray[Any] = clear[dates[place : place + 3]].min(axis=0)[..., None]
        seen = _windows(clearance, window).all(axis=(1, 2))
        roughness = np.where(seen, ((flat / std) ** 2).sum(axis=1).mean(axis=1), np.inf)
        count = min(max(4, int(seen.sum() * flattest)), int(seen.sum()))
        noise = (second - first)[np.argsort(roughness, kind="stable")[:count]] / math.sqrt(2.0)
        sigmas.append(np.median(np.sqrt((noise**2).sum(axis=1) / free), axis=0))
        grid = noise.reshape(count, window, window, -1)
        down, across = grid[:, 1:] * grid[:, :-1], grid[:, :, 1:] * grid[:, :, :-1]
        correlations.append((down + across.swapaxes(1, 2)).mean(axis=(0, 1, 2)) / 2 / (grid**2).mean(axis=(0, 1, 2)))
    sigma = np.median(sigmas, axis=0)
    return Noise(sigma, sigma / std, np.median(correlations, axis=0), count, len(dates))


def _windows(image: NDArray[Any], side: int) -> NDArray[Any]:
    """(H,W,C) as (windows, side * side, C)."""
    rows, columns = image.shape[0] // side, image.shape[1] // side
    blocks = image[: rows * side, : columns * side].reshape(rows, side, columns, side, -1)
    return blocks.swapaxes(1, 2).reshape(rows * columns, side * side, -1)


def _plane_remover(side: int) -> NDArray[np.float64]:
    """The matrix that takes the best plane out of a window."""
    rows, columns = np.mgrid[:side, :side]
    plane = np.stack([np.ones(side**2), rows.ravel(), columns.ravel()], axis=1)
    remover: NDArray[np.float64] = np.eye(side**2) - plane @ np.linalg.pinv(plane)
    return remover
