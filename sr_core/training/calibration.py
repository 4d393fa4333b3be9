"""Calibration of the uncertainty: what a network says about its errors, held against its errors in validation.

The scales that the likelihood taught are multiplied by one factor a band: the one that validation makes most likely. By
how much the shape of the errors differs from a Laplace distribution then shows in the coverage of its intervals.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from sr_core.errors import DataError
from sr_core.models.highresnet import HighResNet

COVERAGES = (0.5, 0.9)
"""Intervals around the image that are to hold this share of all errors."""


class Errors(NamedTuple):
    """What a network did in validation, in normalised units."""

    absolute: Tensor
    """(B,C,H,W) difference to the truth on which the image was laid, without sign."""
    log_scale: Tensor
    """(B,C,H,W) what the network said about it, laid on the truth as well."""
    clear: Tensor
    """(B,H,W) with 0 or 1: where there is a truth."""


@torch.no_grad()
def calibrate(model: HighResNet, validation: Iterable[Errors]) -> dict[str, float]:
    """Correct the network's scales, and return `coverage_50` and `coverage_90`: the share of validation errors that
    the corrected 50 % and 90 % intervals hold.

    `model` predicts uncertainty. Raises `DataError` where validation has no clear pixel.
    """
    ratios = [_ratios(errors) for errors in validation]
    if not ratios or not sum(len(ratio) for ratio in ratios):
        raise DataError("calibration: no clear validation pixel; give validation ground, or turn uncertainty off")
    # one row a pixel: error over scale of each band
    ratio = torch.cat(ratios)
    factor = ratio.mean(dim=0).clamp(min=1e-6)
    model.calibration += factor.log().to(model.calibration)
    within = ratio / factor
    held = {share: (within < -math.log(1 - share)).float().mean() for share in COVERAGES}
    return {f"coverage_{share * 100:.0f}": float(value) for share, value in held.items()}


def _ratios(errors: Errors) -> Tensor:
    ratio = (errors.absolute * (-errors.log_scale).exp()).movedim(1, -1)
    return ratio[errors.clear > 0.5].cpu()
