"""The training loop of HighRes-Net: one function, read from top to bottom.

All that a step depends on is in the checkpoint or is a function of seed and step, so a run that was stopped
continues as if nothing had happened: on the CPU, with the same number of threads, bit for bit.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from sr_core.config import TrainHRN
from sr_core.errors import DataError
from sr_core.models.highresnet import HighResNet
from sr_core.models.normalization import Normalization
from sr_core.progress import say, track
from sr_core.samples.dataset import Ahead, Batches, SampleSet
from sr_core.training.course import Course, Record, read_checkpoint
from sr_core.training.distributed import Workers
from sr_core.training.objective import Objective, scene_of
from sr_core.training.stopping import StoppedBySignalError, noted_signals
from sr_core.training.validation import Judge

LOG_EVERY = 10
"""Steps between lines of the metrics."""
OUT_OF_MEMORY = ("DefaultCPUAllocator", "bad_alloc", "could not create a memory object")
"""What torch and oneDNN say on a CPU, where there is no error of its own for it."""
ALONE = Workers()


@dataclass(frozen=True)
class Trained:
    """The network with the averaged weights that did best in validation, and how well they did."""

    model: HighResNet
    best_step: int
    scores: Record
    """`val_psnr` and `val_psnr_bicubic` in dB at `best_step`, and the coverage of the uncertainty where there is one
    (`sr_core.training.calibration`); empty without validation samples."""


def train(
    settings: TrainHRN,
    batches: Batches,
    validation: SampleSet,
    statistics: Mapping[str, Normalization],
    folder: Path,
    listen: Callable[[Record], None] = lambda record: None,
    show: Callable[[int, HighResNet], None] = lambda step, model: None,
    workers: Workers = ALONE,
    keep: Callable[[Path], None] = lambda checkpoint: None,
) -> Trained:
    """Train a network, or continue from `folder/checkpoint.pt`.

    `statistics` has the normalisation of every region of `validation`. `folder` receives checkpoint.pt and
    metrics.jsonl, a line every 10 steps and every validation; `listen` hears every line, and `show` is given the
    averaged network at each validation; `keep` is told of each checkpoint, for a caller whose `folder` does not outlive
    it. Without validation samples the last weights win. With several `workers`, all
    of which call this, the first alone validates, writes, logs and has the best weights.

    Raises `DataError` when loss or gradient is not finite or the loss runs away, naming the samples of the batch, or
    when memory runs out; `StoppedBySignalError`, a KeyboardInterrupt, after SIGTERM or Ctrl-C, its state saved.
    """
    workers.check(settings)
    device = workers.device
    torch.manual_seed(settings.seed)  # of the first weights; nothing after them is drawn from torch
    model = HighResNet.from_settings(settings).to(device)
    objective = Objective(settings).to(device)
    average = copy.deepcopy(model).requires_grad_(False).eval()
    weights = [*model.parameters(), *objective.parameters()]
    optimizer = torch.optim.AdamW(weights, settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
    course = Course(model, objective, optimizer, average, best=copy.deepcopy(average))
    course.restore(workers.told(read_checkpoint(folder) if workers.first else None))
    if settings.compile:
        for part in model.children():
            part.compile()  # in place: the weights keep their names
    if workers.first:
        course.write_metrics(folder)
    if device.type == "cuda" and not batches.batch(course.step).lr.is_cuda:
        batches = Ahead(batches, device)
    unread: list[Tensor] = []
    lap, lap_step = time.monotonic(), course.step
    with memory_explained(settings), noted_signals() as noted:
        judge = Judge(settings, validation, statistics, device) if workers.first else None
        for step in track(course.steps_left(settings), "training"):
            batch = batches.batch(step - 1).part(workers.rank, workers.world).to(device)
            scene = scene_of(batch)
            with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
                estimate = model(scene.frames, scene.clear, batch.shift)
            losses, terms = objective(estimate, scene)
            loss = losses.mean()
            optimizer.zero_grad()
            loss.backward()
            workers.average([loss.detach(), *(weight.grad for weight in weights if weight.grad is not None)])
            norm = nn.utils.clip_grad_norm_(weights, settings.clip_norm)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(settings, step)
            optimizer.step()
            follow(average, model, min(settings.ema_decay, step / (step + 10)))

            course.step = step
            unread.append(torch.stack([loss.detach(), norm]))
            validating = step % settings.validate_every == 0 or step == settings.steps
            logging = validating or step % LOG_EVERY == 0
            if device.type == "cuda" and not logging:
                continue  # to read a number is to wait for the device
            course.judge_losses(torch.stack(unread).tolist(), settings, batches)
            unread.clear()
            spent = time.monotonic() - lap
            scores: Record = {}
            if validating and judge is not None:
                scores = judge.scores(average)
                course.compare(scores)
                show(step, average)
            stopped, tired = workers.any(bool(noted), course.tired(settings))
            if logging or stopped:
                course.seconds += time.monotonic() - lap
            if logging and workers.first:
                rate = settings.batch_size * (step - lap_step) / spent
                record = course.record(terms, norm, learning_rate(settings, step), rate) | scores
                course.log(record, folder)
                listen(record)
            if (validating or stopped) and workers.first:
                keep(course.save(folder))
            if stopped:
                raise StoppedBySignalError(*noted[:1])
            if tired:
                say(f"training: no better validation since step {course.best_step}; stopping at step {step}")
                break
            if logging:
                lap, lap_step = time.monotonic(), step
    best = copy.deepcopy(course.best)
    coverage = judge.calibrate(best) if judge is not None else {}
    return Trained(best.cpu(), course.best_step, course.scores | coverage)


def learning_rate(settings: TrainHRN, step: int) -> float:
    """Linear warm-up, then half a cosine down to 1 % at the last step. `step` counts from 1."""
    if step <= settings.warmup_steps:
        return settings.learning_rate * step / settings.warmup_steps
    progress = (step - settings.warmup_steps) / max(settings.steps - settings.warmup_steps, 1)
    return settings.learning_rate * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the running average of the weights towards those of `model`."""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1.0 - decay)


@contextmanager
def memory_explained(settings: TrainHRN) -> Iterator[None]:
    """Running out of memory, on an accelerator or on the CPU, becomes a `DataError` that says what to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        full = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not full and not any(sign in str(error) for sign in OUT_OF_MEMORY):
            raise
        values = {name: getattr(settings, name) for name in ("batch_size", "crop_px", "channels")}
        raise DataError(
            "training: out of memory; lower "
            + " or ".join(f"train_hrn.{name} (now {value or 'whole samples'})" for name, value in values.items())
        ) from error
