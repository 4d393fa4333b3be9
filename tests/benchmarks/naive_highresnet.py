"""The published network and its training step, written plainly: what our own is measured against.

Source: Deudon et al., HighRes-net, 2020 (arXiv:2002.06460), with the sizes of Sinergise's configuration for Sentinel-2:
8 residual blocks, 64 channels, recursive fusion, a transposed convolution, 1 038 617 parameters. Float32, eager, NCHW,
zero padding: neither tuned nor slowed down. The shift network of the published loop is left out, in favour of the
naive one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ResidualBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(channels, channels, kernel_size=3, padding=1),
            nn.PReLU(),
            nn.Conv2d(channels, channels, kernel_size=3, padding=1),
            nn.PReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


class NaiveHighResNet(nn.Module):
    """frames (B,T,C,h,w) and their validity (B,T) to an image (B,C,4h,4w)."""

    def __init__(self, bands: int = 4, channels: int = 64, residual_blocks: int = 8) -> None:
        super().__init__()
        self.encode = nn.Sequential(
            nn.Conv2d(2 * bands, channels, kernel_size=3, padding=1),
            nn.PReLU(),
            *[ResidualBlock(channels) for _ in range(residual_blocks)],
            nn.Conv2d(channels, channels, kernel_size=3, padding=1),
        )
        self.fuse = nn.Sequential(
            ResidualBlock(2 * channels),
            nn.Conv2d(2 * channels, channels, kernel_size=3, padding=1),
            nn.PReLU(),
        )
        self.decode = nn.Sequential(
            nn.ConvTranspose2d(channels, channels, kernel_size=3, stride=4, output_padding=1),
            nn.PReLU(),
            nn.Conv2d(channels, bands, kernel_size=1),
        )

    def forward(self, frames: Tensor, valid: Tensor) -> Tensor:
        batch, count, bands, height, width = frames.shape
        references = []
        for sample, sample_valid in zip(frames, valid, strict=True):
            references.append(sample[sample_valid > 0].median(dim=0).values)
        reference = torch.stack(references).unsqueeze(1).expand(-1, count, -1, -1, -1)
        x = torch.cat([frames, reference], dim=2)
        x = self.encode(x.view(batch * count, 2 * bands, height, width))
        x = x.view(batch, count, -1, height, width)

        alphas = valid.view(batch, count, 1, 1, 1)
        while count > 1:
            half = count // 2
            alice, alice_alphas = x[:, :half], alphas[:, :half]
            bob, bob_alphas = x[:, half : 2 * half].flip(1), alphas[:, half : 2 * half].flip(1)
            pair = torch.cat([alice, bob], dim=2)
            fused = self.fuse(pair.view(batch * half, -1, height, width))
            x = alice + bob_alphas * fused.view(batch, half, -1, height, width)
            alphas, count = alice_alphas, half
        return self.decode(x.mean(dim=1))


class NaiveTraining:
    """The network with its optimiser; `step` is one step of the loop."""

    def __init__(self, network: NaiveHighResNet) -> None:
        self.network = network.train()
        self.optimizer = torch.optim.Adam(network.parameters(), lr=7e-4)

    def step(self, frames: Tensor, valid: Tensor, truth: Tensor) -> float:
        self.optimizer.zero_grad()
        loss = F.mse_loss(self.network(frames, valid), truth)
        loss.backward()
        self.optimizer.step()
        return loss.item()
