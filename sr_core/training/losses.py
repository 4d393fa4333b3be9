"""Differences between a super-resolved image and the truth, over the clear pixels of the truth only."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

LossName = Literal["l1", "mse"]


def masked_error(sr: Tensor, hr: Tensor, clear: Tensor, kind: LossName, bias_removed: bool = False) -> Tensor:
    """Mean absolute (`l1`) or squared (`mse`) difference of each sample, all bands together.

    sr, hr (B,C,H,W); clear (B,H,W) with 0 or 1. Returns (B), 0 for a sample without a clear pixel. With
    `bias_removed` the mean difference of each band is taken out first, so that two sensors' radiometry may differ.
    """
    weight = clear.unsqueeze(1)
    pixels = weight.sum(dim=(2, 3)).clamp(min=1.0)
    # where, not a product: what is not clear may be anything, NaN included
    difference = torch.where(weight > 0.5, sr - hr, 0.0)
    if bias_removed:
        bias = difference.sum(dim=(2, 3)) / pixels
        difference = (difference - bias[:, :, None, None]) * weight
    error = difference.abs() if kind == "l1" else difference.square()
    return (error.sum(dim=(2, 3)) / pixels).mean(dim=1)
