"""Differences between a super-resolved image and what is known about it, over clear pixels only.

All are float32, whatever the network's arithmetic, one value a sample, (B), and 0 for a sample in which nothing can
be judged. What is not clear may hold anything, NaN included: it reaches neither values nor gradients.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from sr_core import SCALE
from sr_core.models.highresnet import LOG_SCALE_RANGE
from sr_core.radiometry.resample import gaussian_matrix, psf_sigma

LossName = Literal["l1", "mse", "ssim", "mixed", "cmse"]

SSIM_RADIUS = 5
SSIM_SIGMA = 1.5
SSIM_RANGE = 6.0
"""Data range in normalised units, from three standard deviations below the place's mean to three above. Normalised
units are unbounded, so a range must be chosen; this one is the same share of every place's contrast, dark or bright,
and keeps the intensities that the luminance term compares positive."""
MIXED_SSIM = 0.1
"""Weight of 1 - SSIM beside the squared error in `mixed`, as in the published multi-temporal-super-resolution."""
SENTINEL2_MTF = 0.3
"""At the Nyquist frequency of 10 m; what `sr_core.radiometry.resample.degrade` takes for Sentinel-2 as well."""


def masked_error(sr: Tensor, hr: Tensor, clear: Tensor, kind: LossName, bias_removed: bool = False) -> Tensor:
    """Difference of each sample (B), the mean over bands.

    sr, hr (B,C,H,W) in normalised units; clear (B,H,W) with 0 or 1. `l1` mean absolute and `mse` mean squared
    difference, `ssim` 1 - SSIM, `mixed` mse + 0.1 (1 - SSIM), `cmse` mse without bias. With `bias_removed`, and
    always in `cmse`, the mean difference of each band is taken out first, so that two sensors' radiometry may differ.
    """
    seen = (clear > 0.5).unsqueeze(1)
    # where, not a product: NaN times 0 is NaN
    sr, hr = torch.where(seen, sr.float(), 0.0), torch.where(seen, hr.float(), 0.0)
    if bias_removed or kind == "cmse":
        sr = torch.where(seen, sr - _clear_mean(sr - hr, seen)[:, :, None, None], 0.0)
    if kind == "l1":
        return _clear_mean((sr - hr).abs(), seen).mean(dim=1)
    if kind == "ssim":
        return _dissimilarity(sr, hr, seen)
    squared = _clear_mean((sr - hr).square(), seen).mean(dim=1)
    return squared + MIXED_SSIM * _dissimilarity(sr, hr, seen) if kind == "mixed" else squared


def mean_difference(sr: Tensor, latest: Tensor, clear: Tensor) -> Tensor:
    """|mean(SR) - mean(latest frame)| of each sample (B), the mean over bands.

    sr (B,C,4h,4w), latest (B,C,h,w), clear (B,h,w) of the latest frame. Both means are taken over the ground that the
    latest frame shows, each of its pixels counted once. (The published code takes the sum over bands, over all pixels.)
    """
    seen = (clear > 0.5).unsqueeze(1)
    coarse = F.avg_pool2d(sr.float(), SCALE)
    difference = torch.where(seen, coarse, 0.0) - torch.where(seen, latest.float(), 0.0)
    return _clear_mean(difference, seen).abs().mean(dim=1)


def low_frequency_error(sr: Tensor, latest: Tensor, clear: Tensor, mtf: float = SENTINEL2_MTF) -> Tensor:
    """Mean absolute difference (B) of the latest frame to SR as Sentinel-2 would have seen it.

    sr (B,C,4h,4w), latest (B,C,h,w), clear (B,h,w) of the latest frame. Only pixels whose whole point-spread function
    lies on clear ground inside the image are compared: elsewhere the latest frame does not say what SR should be.
    """
    reach = math.ceil(4.0 * psf_sigma(mtf) / SCALE)
    whole = -F.max_pool2d(-F.pad(clear.float(), [reach] * 4), 2 * reach + 1, stride=1)
    seen = (whole > 0.5).unsqueeze(1)
    difference = torch.where(seen, degrade(sr.float(), mtf), 0.0) - torch.where(seen, latest.float(), 0.0)
    return _clear_mean(difference.abs(), seen).mean(dim=1)


def degrade(image: Tensor, mtf: float = SENTINEL2_MTF) -> Tensor:
    """(B,C,4h,4w) through Sentinel-2's point-spread function to (B,C,h,w): the differentiable twin of
    `sr_core.radiometry.resample.degrade`, with the same numbers."""
    down, across = (_degradation(size, mtf, image.device) for size in image.shape[-2:])
    return down @ image @ across.T


def laplace_likelihood(image: Tensor, log_scale: Tensor, hr: Tensor, clear: Tensor) -> Tensor:
    """Negative log likelihood (B) of the truth under Laplace distributions: |r| exp(-s) + s + log 2, s = `log_scale`.

    All (B,C,H,W) in normalised units, clear (B,H,W). Mean over clear pixels and bands.
    """
    seen = (clear > 0.5).unsqueeze(1)
    error = (torch.where(seen, image.float(), 0.0) - torch.where(seen, hr.float(), 0.0)).abs()
    # the network stays within this range; interpolation may ring beyond it
    scale = torch.where(seen, log_scale.float(), 0.0).clamp(*LOG_SCALE_RANGE)
    return _clear_mean(error * torch.exp(-scale) + scale + math.log(2.0), seen).mean(dim=1)


def _clear_mean(values: Tensor, seen: Tensor) -> Tensor:
    """(B,C,H,W) to (B,C): mean over pixels where `seen` (B,1,H,W), 0 without any."""
    weight = seen.to(values.dtype)
    return (values * weight).sum(dim=(2, 3)) / weight.sum(dim=(2, 3)).clamp(min=1.0)


def _dissimilarity(sr: Tensor, hr: Tensor, seen: Tensor) -> Tensor:
    """1 - SSIM (B) of images that are finite everywhere.

    Gaussian window of 11 pixels, sigma 1.5, of which only the clear pixels inside the image count, so that every
    clear pixel is judged by all that is known around it. Source: Wang et al., Image quality assessment: from error
    visibility to structural similarity, 2004.
    """
    down, across = (_window(size, sr.device) for size in sr.shape[-2:])
    weight = seen.float()
    share = (down @ weight @ across).clamp(min=1e-6)

    def local(values: Tensor) -> Tensor:
        return (down @ (values * weight) @ across) / share

    x, y = sr / SSIM_RANGE + 0.5, hr / SSIM_RANGE + 0.5
    c1, c2 = 0.01**2, 0.03**2
    mean_x, mean_y = local(x), local(y)
    variance_x, variance_y = local(x * x) - mean_x.square(), local(y * y) - mean_y.square()
    covariance = local(x * y) - mean_x * mean_y
    similarity = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x.square() + mean_y.square() + c1) * (variance_x + variance_y + c2)
    )
    return _clear_mean(1.0 - similarity, seen).mean(dim=1)


@cache
def _window(size: int, device: torch.device) -> Tensor:
    """(size, size), symmetric: the Gaussian window around each pixel, cut at the edges."""
    with torch.inference_mode(False):  # kept for training, whoever asks first
        position = torch.arange(size, dtype=torch.float64)
        distance = position - position[:, None]
        weights = torch.exp(-0.5 * (distance / SSIM_SIGMA).square()) * (distance.abs() <= SSIM_RADIUS)
        return weights.float().to(device)


@cache
def _degradation(size: int, mtf: float, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.from_numpy(gaussian_matrix(size, SCALE, psf_sigma(mtf))).to(device)
