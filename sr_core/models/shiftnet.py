"""ShiftNet: a network that looks at two images of the same ground and says how far apart they lie."""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTHS = (16, 32, 32)
"""Channels of the levels, each at half the resolution of the one before it."""


class ShiftNet(nn.Module):
    """(rows, columns), at most `radius` high-resolution pixels each, by which SR must move to lie on the truth.

    Pairs of convolutions and a maximum pool a level, as in HomographyNet (DeTone et al., Deep image homography
    estimation, 2016), which Deudon et al. 2020 (HighRes-net) train beside the super-resolution network. What differs:

    - the fully connected layer, which ties 19 to 34 million weights to one image size, is the mean over all places of
      every level;
    - the pair is seen in both orders and the difference is taken: exchanged images move the other way and equal ones
      not at all, whatever the weights, so that training cannot run into the bound for all samples at once;
    - no batch normalisation: a sample's shift does not depend on its batch. The pair is scaled to unit contrast;
    - GELU, curved at zero where ReLU is not, learns the product of gradient and difference, which a shift is, sooner.

    The last layer starts at zero: no shift.
    """

    def __init__(self, bands: int, radius: float) -> None:
        super().__init__()
        self.radius = radius
        self.levels = nn.ModuleList()
        inputs = 2 * bands
        for level, width in enumerate(WIDTHS):
            layers: list[nn.Module] = [nn.MaxPool2d(2)] if level else []
            for first in (inputs, width):
                convolution = nn.Conv2d(first, width, 3, padding=1)
                nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
                layers += [convolution, nn.GELU()]
            self.levels.append(nn.Sequential(*layers))
            inputs = width
        self.head = nn.Linear(sum(WIDTHS), 2, bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, sr: Tensor, hr: Tensor, clear: Tensor) -> Tensor:
        """sr, hr (B,C,H,W) in any unit, clear (B,H,W) with 0 or 1; at least 8 pixels a side. Returns (B,2).

        What is not clear shows SR on both sides, which speaks for no shift at all. SR is a measurement here: no
        gradient goes back to it.
        """
        sr = sr.detach()
        hr = torch.where((clear > 0.5).unsqueeze(1), hr, sr)
        mean = torch.cat([sr, hr], dim=2).mean(dim=(2, 3), keepdim=True)  # of each band
        pair = torch.cat([sr - mean, hr - mean], dim=1)
        pair = pair / pair.std(dim=(1, 2, 3), keepdim=True).clamp(min=1e-6)
        x = torch.cat([pair, pair.roll(sr.shape[1], dims=1)])
        means = []
        for level in self.levels:
            x = level(x)
            means.append(x.mean(dim=(2, 3)))
        there, back = torch.cat(means, dim=1).chunk(2)
        result: Tensor = self.radius * torch.tanh(self.head(there - back))
        return result
