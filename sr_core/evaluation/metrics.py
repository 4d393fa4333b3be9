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
    inner = sr[..., max_shift : max_shift + rows, max_shift : max_shift + columns]
    scores = []
    for down in range(2 * max_shift + 1):
        for across in range(2 * max_shift + 1):
            window = (..., slice(down, down + rows), slice(across, across + columns))
            weight = clear[window].unsqueeze(1)
            pixels = weight.sum(dim=(2, 3), keepdim=True)
            difference = torch.where(weight > 0.5, hr[window] - inner, 0.0)
            bias = difference.sum(dim=(2, 3), keepdim=True) / pixels
            scores.append(decibel(_clear_mean((difference - bias).square(), clear[window])))
    # a window without a clear pixel is NaN and must not win
    best = torch.stack(scores).nan_to_num(nan=-torch.inf).amax(dim=0)
    return torch.where(best.isinf(), torch.nan, best)


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
