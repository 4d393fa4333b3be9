"""Perceptual loss: what a field-delineation network sees in the output should be what it sees in the truth.

Feature and style terms are those of Johnson et al., Perceptual losses for real-time style transfer and
super-resolution, 2016, with a network that looks for parcels instead of one that names photographs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from sr_core.delineation.network import Delineator, load_delineator
from sr_core.errors import ArtifactError

BORDER_PX = 8
"""Pixels at each edge of an image that are not shown to the network: moving the image has filled some from outside."""
FARMLAND = (0.06, 0.09, 0.09, 0.28), (0.03, 0.03, 0.05, 0.10)
"""Mean and standard deviation of blue, green, red and near infrared over farmland in season, reflectance: the
normalisation inside the control, which has no training data to take it from."""


class PerceptualLoss(nn.Module):
    """Distance of two images in the features of a frozen network.

    `network(images, return_features=True)["features"]` is a list of (B,C,H,W). Each layer's distance is divided by
    the size of the truth's own features, and layers are averaged: 0 for equal images, around 1 for unrelated ones,
    whatever the network. That makes weights comparable between networks, the random control among them. Dividing by
    the values at the start of training would do so too, but these would be one more thing for a run to remember.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """The network is never in training mode."""
        return super().train(False)

    def forward(self, sr: Tensor, hr: Tensor, clear: Tensor) -> tuple[Tensor, Tensor]:
        """Feature and style distance, each (B). The gradient flows to `sr` alone.

        sr, hr (B,C,H,W) in reflectance, registered; clear (B,H,W) of the truth. What is not clear is made equal in
        both before the network sees it: convolutions would carry a difference out from under the mask.
        """
        seen = (clear > 0.5).unsqueeze(1)
        hr = torch.where(seen, hr.float(), sr.detach().float())
        sr = torch.where(seen, sr.float(), hr)
        with torch.no_grad():
            truth = self.network(hr, return_features=True)["features"]
        found = self.network(sr, return_features=True)["features"]
        feature = torch.stack([_relative(a, b) for a, b in zip(found, truth, strict=True)])
        style = torch.stack([_relative(gram(a), gram(b)) for a, b in zip(found, truth, strict=True)])
        return feature.mean(dim=0), style.mean(dim=0)


def gram(features: Tensor) -> Tensor:
    """(B,C,H,W) to the products of channels (B,C,C), the mean over places: what there is, not where."""
    flat = features.flatten(2)
    return flat @ flat.mT / flat.shape[1:].numel()


def perceptual_network(folder: Path | None, seed: int) -> nn.Module:
    """The delineation network in `folder`; without one, a network of random weights, the control: what it gains is
    gained by any convolutions, what the trained one gains beyond that by knowing parcels.

    Raises `ArtifactError` for a folder without a usable network.
    """
    if folder is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Delineator(*FARMLAND)
    network = load_delineator(folder)
    if network.upscale != 1:
        raise ArtifactError(
            f"{folder}: this delineation network reads images of 10 m (arm s2_x4), expected one that reads 2.5 m:"
            " point train_hrn.perceptual_network to the arm truth, bicubic or sr"
        )
    return network


def _relative(found: Tensor, truth: Tensor) -> Tensor:
    """|found - truth|² / |truth|² of each sample (B)."""
    size = truth.flatten(1).square().sum(dim=1)
    return (found - truth).flatten(1).square().sum(dim=1) / size.clamp(min=1e-12)
