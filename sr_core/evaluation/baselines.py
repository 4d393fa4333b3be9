"""What super-resolution has to beat: images of the right size that need no training.

frames (B,T,C,H,W) latest first, clear (B,T,H,W) with 0 or 1, in any units in which 0 is a sensible value where no
frame is clear (normalised units: the mean of the place). Both return (B,C,4H,4W).
"""

from __future__ import annotations

from torch import Tensor

from sr_core.models.highresnet import bicubic, fill_masked, masked_median


def bicubic_latest(frames: Tensor, clear: Tensor) -> Tensor:
    """Cubic convolution of the latest frame; its masked pixels are filled from the median of the clear ones."""
    reference = masked_median(frames, clear)
    return bicubic(fill_masked(frames[:, :1], clear[:, :1], reference)[:, 0])


def temporal_mean(frames: Tensor, clear: Tensor) -> Tensor:
    """Cubic convolution of the mean of the clear frames at each pixel.

    Where all frames are clear, this is the mean of the bicubic frames; taking the mean first keeps clouds from
    ringing into their surroundings.
    """
    weight = (clear > 0.5).unsqueeze(2).to(frames.dtype)
    total = fill_masked(frames, clear, frames.new_zeros(frames[:, 0].shape)).sum(dim=1)
    return bicubic(total / weight.sum(dim=1).clamp(min=1.0))
