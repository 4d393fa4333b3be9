"""The dual Tanimoto loss of the three heads.

Source: Diakogiannis et al., ResUNet-a: a deep learning framework for semantic segmentation of remotely sensed
data, 2020 (doi 10.1016/j.isprsjprs.2020.01.013).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from sr_core.delineation import HEADS

EPSILON = 1e-5


def tanimoto(p: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """Tanimoto coefficient (B,) of p and y, both (B, H, W) in [0, 1], over the pixels with weight (B, H, W) 1."""
    product = (weight * p * y).sum((1, 2))
    squares = (weight * (p * p + y * y)).sum((1, 2))
    return (product + EPSILON) / (squares - product + EPSILON)


def delineation_loss(logits: Mapping[str, Tensor], targets: Tensor, valid: Tensor) -> Tensor:
    """Sum over the heads of 1 - (T(p, y) + T(1 - p, 1 - y)) / 2, mean over samples; a scalar.

    `logits` are (B, 1, H, W) a head, `targets` (B, 3, H, W) in the order of `HEADS`, `valid` (B, H, W) bool. The
    complement keeps the gradient useful where a target is empty. Samples without a valid pixel do not count;
    without any such sample the loss is 0. Sums are in float32, whatever the network's precision.
    """
    weight = valid.float()
    used = valid.flatten(1).any(1).float()
    total = targets.new_zeros(targets.shape[0])
    for number, head in enumerate(HEADS):
        p, y = logits[head][:, 0].float().sigmoid(), targets[:, number].float()
        total = total + 1.0 - (tanimoto(p, y, weight) + tanimoto(1.0 - p, 1.0 - y, weight)) / 2.0
    return (total * used).sum() / used.sum().clamp(min=1.0)
