"""What the network is asked to do: one number a sample, from all terms of the configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from sr_core import BANDS
from sr_core.config import TrainHRN
from sr_core.models.alignment import align, translate
from sr_core.models.highresnet import Estimate
from sr_core.models.shiftnet import ShiftNet
from sr_core.samples.dataset import Batch
from sr_core.training.losses import laplace_likelihood, low_frequency_error, masked_error, mean_difference
from sr_core.training.perceptual import BORDER_PX, PerceptualLoss, perceptual_network
from sr_core.training.registration import Registration, best_shifts, inside_of

SHIFT_PENALTY = 1e-3
"""Weight of the length of ShiftNet's shift (high-resolution pixels), as in the published multi-temporal code."""


@dataclass(frozen=True)
class Scene:
    """What is known about a batch of samples; everything on one device."""

    frames: Tensor
    """(B,T,C,h,w) normalised and aligned, latest first."""
    clear: Tensor
    """(B,T,h,w) with 0 or 1."""
    hr: Tensor
    """(B,C,4h,4w) the truth, normalised."""
    hr_clear: Tensor
    """(B,4h,4w) with 0 or 1."""
    mean: Tensor
    """(B,C,1,1) reflectance: that of a normalised 0."""
    std: Tensor
    """(B,C,1,1) reflectance: that of one normalised unit."""


def scene_of(batch: Batch) -> Scene:
    """A batch in normalised units, its frames on the common grid."""
    frames = align(normalised(batch), batch.clear, batch.shift)
    hr = (batch.hr - batch.mean) / batch.std
    return Scene(frames, batch.clear, hr, batch.hr_clear, batch.mean, batch.std)


def normalised(batch: Batch) -> Tensor:
    """The frames (B,T,C,h,w) of a batch as they were delivered, in normalised units."""
    return (batch.lr - batch.mean[:, None]) / batch.std[:, None]


class Objective(nn.Module):
    """The loss of an estimate: a registered pixel loss, and whatever else is asked for.

    The truth lies somewhere beside the frames, the output must not: so all that compares with the truth (pixel,
    perceptual and style loss, likelihood) judges the *registered* image, and so does the matching of means; the
    low-frequency constraint relates the output to the grid of Sentinel-2 and judges it where it lies. (The published
    code registers the pixel loss alone.) The likelihood trains the scale only: it sees the image detached, so that
    asking for uncertainty does not change the image.
    """

    def __init__(self, settings: TrainHRN) -> None:
        super().__init__()
        self.settings = settings
        self.registration = registration_of(settings)
        self.shiftnet: ShiftNet | None = None
        if settings.registration == "shiftnet":
            self.shiftnet = ShiftNet(len(BANDS), settings.registration_px)
        # in a tuple, so that it is neither trained nor saved: it is read again
        self._frozen: tuple[PerceptualLoss, ...] = ()
        if settings.perceptual or settings.style:
            self._frozen = (PerceptualLoss(perceptual_network(settings.perceptual_network, settings.seed)),)

    def forward(self, estimate: Estimate, scene: Scene) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each sample (B), and the mean of each unweighted term, 0-d and detached, for the log."""
        with torch.autocast(scene.hr.device.type, enabled=False):
            return self._terms(estimate, scene)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        for module in self._frozen:
            module._apply(fn, recurse)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _terms(self, estimate: Estimate, scene: Scene) -> tuple[Tensor, dict[str, Tensor]]:
        settings = self.settings
        image = estimate.image.float()
        shift = self._shift(image, scene)
        inside = inside_of(scene.hr, self.registration.border)
        moved = image if shift is None else translate(image, shift)
        hr, hr_clear = scene.hr[inside], scene.hr_clear[inside]
        weighted = [(1.0, "pixel", masked_error(moved[inside], hr, hr_clear, settings.loss, settings.remove_bias))]
        if self.shiftnet is not None and shift is not None:
            weighted.append((SHIFT_PENALTY, "shift", torch.linalg.vector_norm(shift, dim=1)))
        latest, clear = scene.frames[:, 0], scene.clear[:, 0]
        if settings.mean_matching:
            weighted.append((settings.mean_matching, "mean_matching", mean_difference(moved, latest, clear)))
        if settings.low_frequency:
            weighted.append((settings.low_frequency, "low_frequency", low_frequency_error(image, latest, clear)))
        for perceptual in self._frozen:
            inner = inside_of(hr, max(0, BORDER_PX - self.registration.border))
            reflectance = [part[inner] * scene.std + scene.mean for part in (moved[inside], hr)]
            feature, style = perceptual(*reflectance, hr_clear[inner])
            weighted += [(settings.perceptual, "perceptual", feature), (settings.style, "style", style)]
        if estimate.log_scale is not None:
            scale = estimate.log_scale.float()
            scale = scale if shift is None else translate(scale, shift.detach())
            likelihood = laplace_likelihood(moved[inside].detach(), scale[inside], hr, hr_clear)
            weighted.append((1.0, "laplace", likelihood))
        total = torch.stack([weight * value for weight, _, value in weighted]).sum(dim=0)
        return total, {name: value.detach().mean() for _, name, value in weighted}

    def _shift(self, image: Tensor, scene: Scene) -> Tensor | None:
        """(B,2): by how much each image must move to lie on the truth; none where registration is off."""
        if self.shiftnet is not None:
            shift: Tensor = self.shiftnet(image, scene.hr, scene.hr_clear)
            return shift
        if self.settings.registration == "none":
            return None
        return best_shifts(image, scene.hr, scene.hr_clear, self.registration, self.settings.remove_bias)


@torch.no_grad()
def validation_error(image: Tensor, scene: Scene, settings: TrainHRN) -> Tensor:
    """Mean squared error (B) in reflectance over the clear pixels of the truth, all bands together.

    image (B,C,4h,4w) normalised. Taken at the shift of the grid that makes it smallest, unless registration is off;
    whatever else the loss forgives or asks for does not count, so that all configurations are judged alike.
    """
    registration = registration_of(settings)
    image, hr = image.float() * scene.std, scene.hr * scene.std
    if settings.registration != "none":
        image = translate(image, best_shifts(image, hr, scene.hr_clear, registration))
    inside = inside_of(hr, registration.border)
    return masked_error(image[inside], hr[inside], scene.hr_clear[inside], "mse")


def registration_of(settings: TrainHRN) -> Registration:
    """The grid of shifts that the settings ask for; a single one, zero, where registration is off."""
    radius = 0.0 if settings.registration == "none" else settings.registration_px
    return Registration(radius, settings.registration_step_px)
