"""Image quality of each sample of a batch.

All functions take sr and hr (B,C,H,W) in reflectance and clear (B,H,W) with 0 or 1, judge the clear pixels of the
truth only, all bands together, and return (B); NaN for a sample in which nothing can be judged.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SSIM_RADIUS = 5
SSIM_SIGMA = 1.5


def decibel(mean_squared_error: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of reflectance in [0, 1], in dB; at most 120."""
    return -10.0 * mean_squared_error.clamp(min=1e-12).log10()


def psnr(sr: Tensor, hr: Tensor, clear: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB: one mean squared error over all bands."""
    return decibel(_clear_mean((sr - hr).square(), clear))


def mae(sr: Tensor, hr: Tensor, clear: Tensor) -> Tensor:
    """Mean absolute error, in reflectance."""
    return _clear_mean((sr - hr).abs(), clear)


def cpsnr(sr: Tensor, hr: Tensor, clear: Tensor, max_shift: int = 3) -> Tensor:
    """PSNR in dB at the best whole-pixel shift of up to `max_shift` in both directions, each band's bias removed.

    One shift serves all bands; `max_shift` pixels at each side of `sr` are left out. Source: Märtens et al.,
    Super-resolution of PROBA-V images using convolutional neural networks, 2019 (there for one band).
    """
    rows, columns = sr.shape[-2] - 2 * max_shift, sr.shape[-1] - 2 * max_shift
    inner = sr[..., max_shift : max_shift + rows, max_shift : max_shift + columns].double()
    unknown = ~inner.isfinite().all(dim=1, keepdim=True)
    inner = inner.where(~unknown, 0.0)
    weight = (clear.unsqueeze(1) > 0.5).double()
    truth = torch.where(weight > 0, hr.double(), 0.0)
    # sums over all shifted windows at once, as correlations; in double, for they are differences of large sums
    everywhere = torch.ones_like(inner[:, :1])
    pixels = _windows(weight, everywhere, max_shift)
    excess = _windows(truth, everywhere, max_shift) - _windows(weight, inner, max_shift)
    squares = _windows(truth.square(), everywhere, max_shift) + _windows(weight, inner.square(), max_shift)
    errors = squares - 2.0 * _windows(truth, inner, max_shift) - excess.square() / pixels.clamp(min=1.0)
    mean = errors.sum(dim=1) / (pixels[:, 0] * sr.shape[1])
    # a window without a clear pixel, or in which one meets nothing, must not win
    judged = (pixels[:, 0] > 0) & (_windows(weight, unknown.double(), max_shift)[:, 0] == 0)
    best = torch.where(judged, mean, torch.inf).flatten(1).amin(dim=1)
    return torch.where(best.isinf(), torch.nan, decibel(best)).to(sr.dtype)


def _windows(image: Tensor, inner: Tensor, max_shift: int) -> Tensor:
    """Sum over pixels of `inner` times the window of `image` at each shift, (B,C,2 * max_shift + 1, the same)."""
    size = image.shape[-2:]
    product = torch.fft.rfft2(image) * torch.fft.rfft2(inner, s=size).conj()
    shifts = slice(2 * max_shift + 1)
    # whole sums of zeros and ones come out whole but for rounding
    found = torch.fft.irfft2(product, s=size)[..., shifts, shifts]
    return torch.where(found.abs() < 1e-6, 0.0, found)


def ssim(sr: Tensor, hr: Tensor, clear: Tensor) -> Tensor:
    """Structural similarity: Gaussian window of 11 pixels, sigma 1.5, data range 1, mean over bands.

    Only windows that are clear throughout count. Source: Wang et al., Image quality assessment: from error
    visibility to structural similarity, 2004.
    """
    if min(sr.shape[-2:]) <= 2 * SSIM_RADIUS:
        return sr.new_full((sr.shape[0],), torch.nan)
    c1, c2 = 0.01**2, 0.03**2
    # in double: differences of nearly equal squares
    x, y = sr.double(), hr.double()
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x, variance_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    similarity = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    )
    whole = -F.max_pool2d(-clear.unsqueeze(1), 2 * SSIM_RADIUS + 1, stride=1).squeeze(1)
    return _clear_mean(similarity, whole).to(sr.dtype)


def _blur(image: Tensor) -> Tensor:
    x = torch.arange(-SSIM_RADIUS, SSIM_RADIUS + 1, dtype=image.dtype, device=image.device)
    kernel = torch.exp(-0.5 * (x / SSIM_SIGMA) ** 2)
    kernel = kernel / kernel.sum()
    bands = image.shape[1]
    across = F.conv2d(image, kernel.expand(bands, 1, 1, -1), groups=bands)
    return F.conv2d(across, kernel[:, None].expand(bands, 1, -1, 1), groups=bands)


def _clear_mean(values: Tensor, clear: Tensor) -> Tensor:
    """Mean of (B,C,H,W) over the clear pixels; NaN without any."""
    weight = clear.unsqueeze(1) > 0.5
    total = torch.where(weight, values, 0.0).sum(dim=(1, 2, 3))
    return total / (weight.sum(dim=(1, 2, 3)) * values.shape[1])
