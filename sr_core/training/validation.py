"""Validation as training is judged by it: registered, masked, by the weights averaged over time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from sr_core.config import TrainHRN
from sr_core.evaluation.baselines import bicubic_latest
from sr_core.evaluation.metrics import decibel
from sr_core.models.alignment import translate
from sr_core.models.highresnet import Estimate, HighResNet
from sr_core.models.normalization import Normalization
from sr_core.samples.dataset import SampleSet, frames_seen, whole_batch
from sr_core.training.calibration import Errors, calibrate
from sr_core.training.objective import normalised, registration_of, scene_of, validation_error
from sr_core.training.registration import best_shifts, inside_of

VALIDATION_SAMPLES = 64
"""At most this many, evenly spread over the split, so that validation does not outgrow training."""


class Judge:
    """The validation score of a network: its registered, masked PSNR, beside that of the bicubic latest frame."""

    def __init__(
        self,
        settings: TrainHRN,
        samples: SampleSet,
        statistics: Mapping[str, Normalization],
        device: torch.device,
    ) -> None:
        self.settings = settings
        samples = samples.subset(_spread(len(samples), VALIDATION_SAMPLES))
        frames = frames_seen(settings, samples)
        starts = range(0, len(samples), settings.batch_size)
        chosen = (range(first, min(first + settings.batch_size, len(samples))) for first in starts)
        self.batches = [whole_batch(samples, rows, statistics, frames).to(device) for rows in chosen]
        self.scenes = [scene_of(batch) for batch in self.batches]
        bicubic = (bicubic_latest(normalised(batch), batch.clear) for batch in self.batches)
        self.bicubic_psnr = self._psnr(bicubic)

    @torch.no_grad()
    def scores(self, model: HighResNet) -> dict[str, float]:
        """`val_psnr` and `val_psnr_bicubic`, means over the samples, dB on reflectance; empty without samples."""
        if not self.scenes:
            return {}
        psnr = self._psnr(estimate.image for estimate in self._estimates(model))
        return {"val_psnr": psnr, "val_psnr_bicubic": self.bicubic_psnr}

    @torch.no_grad()
    def calibrate(self, model: HighResNet) -> dict[str, float]:
        """Calibrate the uncertainty of a trained network that predicts one: `sr_core.training.calibration`."""
        if not (self.settings.uncertainty and self.scenes):
            return {}
        return calibrate(model, self._errors(model))

    def _estimates(self, model: HighResNet) -> Iterator[Estimate]:
        bfloat16 = self.settings.precision == "bfloat16"
        for scene, batch in zip(self.scenes, self.batches, strict=True):
            with torch.autocast(batch.lr.device.type, torch.bfloat16, enabled=bfloat16):
                estimate: Estimate = model(scene.frames, scene.clear, batch.shift)
            yield estimate

    def _psnr(self, images: Iterable[Tensor]) -> float:
        pairs = zip(images, self.scenes, strict=True)
        errors = [validation_error(image, scene, self.settings) for image, scene in pairs]
        return float(decibel(torch.cat(errors)).mean()) if errors else math.nan

    def _errors(self, model: HighResNet) -> Iterator[Errors]:
        registration = registration_of(self.settings)
        for (image, log_scale), scene in zip(self._estimates(model), self.scenes, strict=True):
            assert log_scale is not None
            if registration.radius:
                shift = best_shifts(image, scene.hr, scene.hr_clear, registration)
                image, log_scale = translate(image, shift), translate(log_scale, shift)
            inside = inside_of(scene.hr, registration.border)
            yield Errors((image - scene.hr)[inside].abs(), log_scale[inside], scene.hr_clear[inside])


def _spread(count: int, most: int) -> list[int]:
    return [index * count // most for index in range(most)] if count > most else list(range(count))
