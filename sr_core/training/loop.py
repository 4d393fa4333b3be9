"""The training loop of HighRes-Net: one function, read from top to bottom.

All that a step depends on is in the checkpoint or is a function of seed and step, so a run that was stopped
continues as if nothing had happened: on the CPU, with the same number of threads, bit for bit.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sr_core.config import TrainHRN
from sr_core.errors import ArtifactError, DataError
from sr_core.evaluation.baselines import bicubic_latest
from sr_core.evaluation.metrics import decibel
from sr_core.models.alignment import align
from sr_core.models.highresnet import HighResNet
from sr_core.models.normalization import Normalization
from sr_core.progress import say, track
from sr_core.samples.dataset import Batch, BatchSampler, SampleSet, whole_batch
from sr_core.training.losses import LossName
from sr_core.training.registration import Registration, registered_error

CHECKPOINT = "checkpoint.pt"
HISTORY = "history.jsonl"
LOG_EVERY = 10
"""Steps between lines of the history."""
VALIDATION_SAMPLES = 64
"""At most this many, evenly spread over the split, so that validation does not outgrow training."""
MAX_GRADIENT_NORM = 1.0

Record = dict[str, float]
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Trained:
    """The network with the averaged weights that did best in validation, and how well they did."""

    model: HighResNet
    best_step: int
    scores: Record
    """`val_psnr` and `val_psnr_bicubic` in dB at `best_step`; empty without validation samples."""


def train(
    settings: TrainHRN,
    training: SampleSet,
    validation: SampleSet,
    statistics: Mapping[str, Normalization],
    folder: Path,
    listen: Callable[[Record], None] = lambda record: None,
) -> Trained:
    """Train a network, or continue from `folder/checkpoint.pt`.

    `statistics` has the normalisation of every region. `folder` receives checkpoint.pt and history.jsonl, a
    line every 10 steps and every validation; `listen` hears every line. Without validation samples the last
    weights win. Raises `DataError` when loss or gradient is not finite, naming the samples of the batch, or
    when memory runs out.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(settings.seed)  # of the first weights; nothing after them is drawn from torch
    model = HighResNet.from_settings(settings).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    sampler = BatchSampler(
        training,
        statistics,
        settings.batch_size,
        settings.seed,
        settings.crop_px,
        settings.gain_augmentation,
        settings.frame_dropout,
    )
    judge = Judge(settings, statistics, device)
    validation = validation.subset(_spread(len(validation), VALIDATION_SAMPLES))
    average = {name: value.clone() for name, value in model.state_dict().items()}
    best: dict[str, Any] = {"step": 0, "scores": {}, "weights": average}
    history: list[Record] = []
    done, seconds = 0, 0.0
    if (folder / CHECKPOINT).exists():
        saved = _read_checkpoint(folder / CHECKPOINT, device)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        average, best, history = saved["average"], saved["best"], saved["history"]
        done, seconds = saved["step"], saved["seconds"]
        say(f"training: continuing after step {done}")
    _write_history(folder, history)
    bicubic_psnr = judge.psnr(None, validation)
    began = time.monotonic() - seconds
    for step in track(range(done + 1, settings.steps + 1), "training", settings.steps - done):
        rate = learning_rate(settings, step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = sampler.batch(step - 1)
        with _memory_explained(settings):
            loss = judge.loss(model.train(), batch)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            gradient = torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
        if not (loss.isfinite() and gradient.isfinite()):
            names = ", ".join(sorted(set(sampler.names(batch))))
            raise DataError(
                f"training: loss {loss.item():g}, gradient {gradient.item():g} at step {step}, samples {names}:"
                " expected finite numbers; look at these samples, or lower train_hrn.learning_rate"
            )
        optimizer.step()
        _follow(average, model.state_dict(), min(settings.ema_decay, step / (step + 10)))
        validating = step % settings.validate_every == 0 or step == settings.steps
        if not validating and step % LOG_EVERY:
            continue
        seconds = time.monotonic() - began
        record: Record = {"step": step, "loss": loss.item(), "lr": rate, "seconds": round(seconds, 2)}
        if validating:
            trained = {name: value.clone() for name, value in model.state_dict().items()}
            model.load_state_dict(average)
            scores: Record = {}
            if len(validation):
                scores = {"val_psnr": judge.psnr(model, validation), "val_psnr_bicubic": bicubic_psnr}
            model.load_state_dict(trained)
            if scores.get("val_psnr", math.inf) > best["scores"].get("val_psnr", -math.inf):
                weights = {name: value.clone() for name, value in average.items()}
                best = {"step": step, "scores": scores, "weights": weights}
            record |= scores
        history.append(record)
        with (folder / HISTORY).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(record) + "\n")
        listen(record)
        if validating:
            state = {
                "step": step,
                "seconds": seconds,
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "average": average,
                "best": best,
                "history": history,
            }
            torch.save(state, folder / f".{CHECKPOINT}")
            (folder / f".{CHECKPOINT}").replace(folder / CHECKPOINT)
    model.load_state_dict(best["weights"])
    return Trained(model.eval().cpu(), best["step"], best["scores"])


def learning_rate(settings: TrainHRN, step: int) -> float:
    """Linear warm-up, then half a cosine down to 1 % at the last step. `step` counts from 1."""
    if step <= settings.warmup_steps:
        return settings.learning_rate * step / settings.warmup_steps
    progress = (step - settings.warmup_steps) / max(settings.steps - settings.warmup_steps, 1)
    return settings.learning_rate * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)


@dataclass(frozen=True)
class Judge:
    """Loss and validation score, both with the same registration."""

    settings: TrainHRN
    statistics: Mapping[str, Normalization]
    device: torch.device

    def loss(self, model: HighResNet, batch: Batch) -> Tensor:
        """Mean error of a batch, in normalised units."""
        sr, hr, clear, _ = self._super_resolve(model, batch)
        return self._error(sr, hr, clear, self.settings.loss).mean()

    @torch.no_grad()
    def psnr(self, model: HighResNet | None, samples: SampleSet) -> float:
        """Mean PSNR over the samples, dB on reflectance; without a model that of the bicubic latest frame."""
        if model is not None:
            model.eval()
        errors = []
        for first in range(0, len(samples), self.settings.batch_size):
            rows = range(first, min(first + self.settings.batch_size, len(samples)))
            batch = whole_batch(samples, rows, self.statistics)
            with _memory_explained(self.settings):
                sr, hr, clear, std = self._super_resolve(model, batch)
                errors.append(self._error(sr * std, hr * std, clear, "mse"))
        return float(decibel(torch.cat(errors)).mean()) if errors else math.nan

    def _super_resolve(self, model: HighResNet | None, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Prediction and truth in normalised units, the truth's mask, and the unit (B,C,1,1)."""
        mean, std = batch.mean.to(self.device), batch.std.to(self.device)
        frames = (batch.lr.to(self.device) - mean[:, None]) / std[:, None]
        clear = batch.clear.to(self.device)
        bfloat16 = self.settings.precision == "bfloat16"
        if model is None:
            sr = bicubic_latest(frames, clear)
        else:
            shifts = batch.shift.to(self.device)
            aligned = align(frames, clear, shifts)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16):
                sr = model(aligned, clear, shifts).image
        return sr, (batch.hr.to(self.device) - mean) / std, batch.hr_clear.to(self.device), std

    def _error(self, sr: Tensor, hr: Tensor, clear: Tensor, kind: LossName) -> Tensor:
        settings = self.settings
        registration = Registration(settings.registration_px, settings.registration_step_px)
        return registered_error(sr, hr, clear, registration, kind, settings.remove_bias)


def _read_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    try:
        saved: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        # torch raises many kinds for a damaged file
        raise ArtifactError(f"{path}: cannot be read ({error}); delete it to train from the start") from error
    return saved


def _follow(average: Weights, weights: Weights, decay: float) -> None:
    for name, value in weights.items():
        average[name].lerp_(value, 1.0 - decay)


def _spread(count: int, most: int) -> list[int]:
    return [index * count // most for index in range(most)] if count > most else list(range(count))


def _write_history(folder: Path, history: list[Record]) -> None:
    aside = folder / f".{HISTORY}"
    aside.write_text("".join(json.dumps(record) + "\n" for record in history), encoding="utf-8")
    aside.replace(folder / HISTORY)


@contextmanager
def _memory_explained(settings: TrainHRN) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        short = isinstance(error, MemoryError | torch.OutOfMemoryError) or "not enough memory" in str(error)
        if not short:
            raise
        raise DataError(
            f"training: out of memory with train_hrn.batch_size = {settings.batch_size}; lower it"
        ) from error
