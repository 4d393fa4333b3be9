"""A compact U-Net that predicts extent, boundary and distance of parcels at 2.5 m.

Heads are conditioned on one another, distance, then boundary, then extent, as in ResUNet-a (Diakogiannis et al.,
2020). GroupNorm makes the result of a tile independent of its batch. The network works at half the resolution of
its output: input pixels are folded 2 x 2 into channels (no information is lost) and every head unfolds its
result, which costs a quarter of a U-Net at full resolution.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from sr_core.errors import ArtifactError

FOLD = 2
WEIGHTS = "network.safetensors"
DESCRIPTION = "network.json"
NAME = "delineator"
VERSION = 1
"""Rises when old weights no longer fit the architecture or mean something else."""


class Delineator(nn.Module):
    """(B, bands, H, W) reflectance to logits of three heads, each (B, 1, upscale * H, upscale * W).

    `upscale` 1 takes images of the output's resolution; 4 takes 10 m images and learns the way to 2.5 m itself.
    `mean` and `std` (reflectance, one a band) normalise inside the module and travel with its weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        channels: int = 16,
        levels: int = 4,
        upscale: int = 1,
    ) -> None:
        super().__init__()
        if upscale not in (1, 4):
            raise ValueError(f"upscale: found {upscale}, expected 1 or 4")
        bands = len(mean)
        self.architecture = {"bands": bands, "channels": channels, "levels": levels, "upscale": upscale}
        self.fold = FOLD if upscale == 1 else 1
        self.multiple = self.fold * 2 ** (levels - 1)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, bands, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, bands, 1, 1))
        widths = [channels * 2**level for level in range(levels)]
        inputs = [bands * self.fold**2, *widths[:-1]]
        self.encoder = nn.ModuleList(_block(a, b) for a, b in zip(inputs, widths, strict=True))
        self.decoder = nn.ModuleList(_block(a + b, a) for a, b in zip(widths[-2::-1], widths[:0:-1], strict=True))
        self.up = _upsampler(channels) if upscale == 4 else nn.Identity()
        self.distance = _head(channels)
        self.boundary = _head(channels + FOLD**2)
        self.extent = _head(channels + 2 * FOLD**2)
        self.upscale = upscale

    def forward(self, image: Tensor, return_features: bool = False) -> dict[str, Any]:
        """Logits "extent", "boundary", "distance"; with `return_features` also "features", the list of activations
        from fine to coarse and the decoder's last, for a perceptual loss. Any H and W: padded by reflection, cropped.
        """
        rows, columns = image.shape[-2:]
        x = _pad((image - self.mean) / self.std, self.multiple)
        x = F.pixel_unshuffle(x, self.fold)
        skips: list[Tensor] = []
        for level, block in enumerate(self.encoder):
            x = block(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        for skip, block in zip(skips[-2::-1], self.decoder, strict=True):
            x = block(torch.cat([skip, F.interpolate(x, scale_factor=2.0, mode="nearest")], 1))
        x = self.up(x)
        distance = self.distance(x)
        boundary = self.boundary(torch.cat([x, distance.sigmoid()], 1))
        extent = self.extent(torch.cat([x, distance.sigmoid(), boundary.sigmoid()], 1))
        heads = {"extent": extent, "boundary": boundary, "distance": distance}
        size = (slice(rows * self.upscale), slice(columns * self.upscale))
        result: dict[str, Any] = {name: F.pixel_shuffle(head, FOLD)[..., *size] for name, head in heads.items()}
        if return_features:
            result["features"] = [*skips, x]
        return result


def save_delineator(folder: Path, network: Delineator, lineage: Mapping[str, Any]) -> None:
    """Write network.safetensors, then network.json: architecture and `lineage`. Both aside, then renamed."""
    folder.mkdir(parents=True, exist_ok=True)
    description = {"architecture": {"name": NAME, "version": VERSION, **network.architecture}, "lineage": dict(lineage)}
    weights = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    files = {WEIGHTS: save(weights), DESCRIPTION: json.dumps(description, indent=1).encode()}
    for name, content in files.items():
        aside = folder / f".{name}"
        aside.write_bytes(content)
        aside.replace(folder / name)


def load_delineator(folder: Path) -> Delineator:
    """Read what `save_delineator` wrote. Raises `ArtifactError` when it is missing, damaged or of another version."""
    path = folder / DESCRIPTION
    try:
        architecture = json.loads(path.read_text(encoding="utf-8"))["architecture"]
        found = architecture["name"], architecture["version"]
    except FileNotFoundError:
        raise ArtifactError(
            f"{path}: missing; expected a folder with {WEIGHTS} and {DESCRIPTION}, as the delineate stage writes it to"
            " networks/<arm>"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path}: not the description of a delineation network ({error!r})") from error
    if found != (NAME, VERSION):
        raise ArtifactError(f"{path}: found {found[0]} version {found[1]}, expected {NAME} version {VERSION}")
    try:
        unset = [0.0] * architecture["bands"], [1.0] * architecture["bands"]
        sizes = {key: architecture[key] for key in ("channels", "levels", "upscale")}
        network = Delineator(*unset, **sizes)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ArtifactError(f"{path}: architecture {architecture} is not one of {NAME}: {error!r}") from error
    path = folder / WEIGHTS
    if not path.is_file():
        raise ArtifactError(f"{path}: missing; expected the weights beside {DESCRIPTION}")
    try:
        network.load_state_dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error}); it is truncated or not a safetensors file") from error
    except RuntimeError as error:
        raise ArtifactError(f"{path}: does not fit the architecture in {DESCRIPTION}: {error}") from error
    return network.eval()


def _block(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for first in (inputs, outputs):
        layers += [
            nn.Conv2d(first, outputs, 3, padding=1, bias=False),
            nn.GroupNorm(min(8, outputs // 2), outputs),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


def _head(inputs: int) -> nn.Sequential:
    width = inputs - inputs % 4
    return nn.Sequential(
        nn.Conv2d(inputs, width, 3, padding=1, bias=False),
        nn.GroupNorm(4, width),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, FOLD**2, 1),
    )


def _upsampler(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, channels * 4, 3, padding=1), nn.PixelShuffle(2), nn.ReLU(inplace=True))


def _pad(image: Tensor, multiple: int) -> Tensor:
    below, right = -image.shape[-2] % multiple, -image.shape[-1] % multiple
    # reflection reaches as far as the image itself: pad small ones in several steps
    while below or right:
        step = min(below, image.shape[-2] - 1), min(right, image.shape[-1] - 1)
        image = F.pad(image, (0, step[1], 0, step[0]), mode="reflect")
        below, right = below - step[0], right - step[1]
    return image
