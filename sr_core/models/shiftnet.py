"""ShiftNet: a network that looks at two images of the same ground and says how far apart they lie."""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTHS = (32, 32, 64, 64)
"""Channels of the levels, each at half the resolution of the one before it."""


class ShiftNet(nn.Module):
    """(rows, columns), at most `radius` high-resolution pixels each, by which SR must move to lie on the truth.

    Pairs of convolutions and a maximum pool a level, as in HomographyNet (DeTone et al., Deep image homography
    estimation, 2016), which Deudon et al. 2020 (HighRes-net) train beside the super-resolution network. Their fully
    connected layer, which ties 19 to 34 million weights to one image size, is a mean over all places here, and
    GroupNorm makes a sample's shift independent of its batch. The last layer starts at zero: no shift.
    """

    def __init__(self, bands: int, radius: float) -> None:
        super().__init__()
        self.radius = radius
        layers: list[nn.Module] = []
        inputs = 2 * bands
        for level, width in enumerate(WIDTHS):
            if level:
                layers.append(nn.MaxPool2d(2))
            for first in (inputs, width):
                layers += [nn.Conv2d(first, width, 3, padding=1, bias=False), nn.GroupNorm(8, width), nn.ReLU()]
            inputs = width
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(inputs, 2)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, sr: Tensor, hr: Tensor, clear: Tensor) -> Tensor:
        """sr, hr (B,C,H,W) in normalised units, clear (B,H,W) with 0 or 1; at least 8 pixels a side. Returns (B,2).

        What is not clear shows SR on both sides, which speaks for no shift at all. SR is a measurement here: no
        gradient goes back to it.
        """
        sr = sr.detach()
        hr = torch.where((clear > 0.5).unsqueeze(1), hr, sr)
        features = self.body(torch.cat([sr, hr], dim=1)).mean(dim=(2, 3))
        result: Tensor = self.radius * torch.tanh(self.head(features))
        return result
