"""The training loop of HighRes-Net: one function, read from top to bottom.

All that a step depends on is in the checkpoint or is a function of seed and step, so a run that was stopped
continues as if nothing had happened: on the CPU, with the same number of threads, bit for bit.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sr_core.config import TrainHRN
from sr_core.errors import ArtifactError, DataError
from sr_core.evaluation.baselines import bicubic_latest
from sr_core.evaluation.metrics import decibel
from sr_core.models.alignment import align
from sr_core.models.highresnet import Estimate, HighResNet
from sr_core.models.normalization import Normalization
from sr_core.progress import say, track
from sr_core.samples.dataset import Ahead, Batch, Batches, SampleSet, frames_seen, whole_batch
from sr_core.training.distributed import Workers
from sr_core.training.objective import Objective, Scene, validation_error
from sr_core.training.stopping import LossWatch, StoppedBySignalError, noted_signals

CHECKPOINT = "checkpoint.pt"
METRICS = "metrics.jsonl"
LOG_EVERY = 10
"""Steps between lines of the metrics."""
VALIDATION_SAMPLES = 64
"""At most this many, evenly spread over the split, so that validation does not outgrow training."""

Record = dict[str, float]
ALONE = Workers()


@dataclass(frozen=True)
class Trained:
    """The network with the averaged weights that did best in validation, and how well they did."""

    model: HighResNet
    best_step: int
    scores: Record
    """`val_psnr` and `val_psnr_bicubic` in dB at `best_step`; empty without validation samples."""


def train(
    settings: TrainHRN,
    batches: Batches,
    validation: SampleSet,
    statistics: Mapping[str, Normalization],
    folder: Path,
    listen: Callable[[Record], None] = lambda record: None,
    show: Callable[[int, HighResNet], None] = lambda step, model: None,
    workers: Workers = ALONE,
) -> Trained:
    """Train a network, or continue from `folder/checkpoint.pt`.

    `statistics` has the normalisation of every region of `validation`. `folder` receives checkpoint.pt and
    metrics.jsonl, a line every 10 steps and every validation; `listen` hears every line, and `show` is given the
    averaged network at each validation. Without validation samples the last weights win. With several `workers`, all
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
    network = torch.compile(model) if settings.compile else model
    judge = Judge(settings, validation, statistics, device) if workers.first else None
    if workers.first:
        course.write_metrics(folder)
    if device.type == "cuda" and not batches.batch(course.step).lr.is_cuda:
        batches = Ahead(batches, device)
    unread: list[Tensor] = []
    lap, lap_step = time.monotonic(), course.step
    with memory_explained(settings), noted_signals() as noted:
        for step in track(course.steps_left(settings), "training"):
            batch = batches.batch(step - 1).part(workers.rank, workers.world).to(device)
            scene = scene_of(batch)
            with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
                estimate = network(scene.frames, scene.clear, batch.shift)
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
                course.save(folder)
            if stopped:
                raise StoppedBySignalError(*noted[:1])
            if tired:
                say(f"training: no better validation since step {course.best_step}; stopping at step {step}")
                break
            if logging:
                lap, lap_step = time.monotonic(), step
    model.load_state_dict(course.best.state_dict())
    return Trained(model.eval().cpu(), course.best_step, course.scores)


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


def scene_of(batch: Batch) -> Scene:
    """A batch in normalised units, its frames on the common grid."""
    frames = align(_normalised(batch), batch.clear, batch.shift)
    hr = (batch.hr - batch.mean) / batch.std
    return Scene(frames, batch.clear, hr, batch.hr_clear, batch.mean, batch.std)


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
        bicubic = (bicubic_latest(_normalised(batch), batch.clear) for batch in self.batches)
        self.bicubic_psnr = self._psnr(bicubic)

    @torch.no_grad()
    def scores(self, model: HighResNet) -> Record:
        """`val_psnr` and `val_psnr_bicubic`, means over the samples, dB on reflectance; empty without samples."""
        if not self.scenes:
            return {}
        return {"val_psnr": self._psnr(self._images(model)), "val_psnr_bicubic": self.bicubic_psnr}

    def _images(self, model: HighResNet) -> Iterator[Tensor]:
        bfloat16 = self.settings.precision == "bfloat16"
        for scene, batch in zip(self.scenes, self.batches, strict=True):
            with torch.autocast(batch.lr.device.type, torch.bfloat16, enabled=bfloat16):
                estimate: Estimate = model(scene.frames, scene.clear, batch.shift)
            yield estimate.image

    def _psnr(self, images: Iterable[Tensor]) -> float:
        pairs = zip(images, self.scenes, strict=True)
        errors = [validation_error(image, scene, self.settings) for image, scene in pairs]
        return float(decibel(torch.cat(errors)).mean()) if errors else math.nan


@dataclass
class Course:
    """Where a training stands: all that its next step depends on, and what it has reached."""

    model: HighResNet
    objective: Objective
    optimizer: torch.optim.Optimizer
    average: HighResNet
    best: HighResNet
    """The average when it did best in validation."""
    step: int = 0
    seconds: float = 0.0
    best_step: int = 0
    scores: Record = field(default_factory=dict)
    """Of `best`."""
    stale: int = 0
    """Validations since then."""
    history: list[Record] = field(default_factory=list)
    watch: LossWatch = field(default_factory=LossWatch)

    def steps_left(self, settings: TrainHRN) -> range:
        """The steps to go, counted from 1."""
        return range(self.step + 1, self.step + 1 if self.tired(settings) else settings.steps + 1)

    def tired(self, settings: TrainHRN) -> bool:
        """Whether validation has not become better for as long as the settings wait for it."""
        return settings.patience is not None and self.stale >= settings.patience

    def judge_losses(self, numbers: Sequence[Sequence[float]], settings: TrainHRN, batches: Batches) -> None:
        """Take in loss and gradient norm of the last steps. Raises `DataError` where they say that training fails."""
        for step, (loss, norm) in enumerate(numbers, self.step - len(numbers) + 1):
            finite = math.isfinite(loss) and math.isfinite(norm)
            if finite and not self.watch.follow(loss):
                continue
            names = ", ".join(sorted(set(batches.names(batches.batch(step - 1)))))
            lower = f"lower train_hrn.learning_rate (now {settings.learning_rate:g})"
            if finite:
                raise DataError(
                    f"training: diverges at step {step}, samples {names}: found a loss of {self.watch.mean:g} (running"
                    f" mean) after {self.watch.best:g} at best, expected below {self.watch.limit:g}; {lower}"
                    f" or train_hrn.clip_norm (now {settings.clip_norm:g})"
                )
            raise DataError(
                f"training: loss {loss:g}, gradient {norm:g} at step {step}, samples {names}: expected finite numbers;"
                f" look at these samples, or {lower}"
            )

    def compare(self, scores: Record) -> None:
        """Remember the average where it has done better than ever, or where nothing can tell."""
        self.stale += 1
        if scores.get("val_psnr", math.inf) > self.scores.get("val_psnr", -math.inf):
            self.best.load_state_dict(self.average.state_dict())
            self.best_step, self.scores, self.stale = self.step, scores, 0

    def record(self, terms: Mapping[str, Tensor], norm: Tensor, rate: float, speed: float) -> Record:
        """A line of the metrics: `loss` is its running mean, `loss_<term>` the unweighted terms of this step."""
        values = torch.stack([*terms.values(), norm]).tolist()
        found: Record = {"step": self.step, "loss": self.watch.mean}
        found |= {f"loss_{name}": value for name, value in zip(terms, values, strict=False)}
        found |= {"gradient_norm": values[-1], "lr": rate}
        return found | {"seconds": round(self.seconds, 2), "samples_per_s": round(speed, 2)}

    def log(self, record: Record, folder: Path) -> None:
        """Append a line to metrics.jsonl."""
        self.history.append(record)
        with (folder / METRICS).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(record) + "\n")

    def write_metrics(self, folder: Path) -> None:
        """metrics.jsonl as it was at the last checkpoint."""
        aside = folder / f".{METRICS}"
        aside.write_text("".join(json.dumps(record) + "\n" for record in self.history), encoding="utf-8")
        aside.replace(folder / METRICS)

    def save(self, folder: Path) -> None:
        """Write the checkpoint, aside and renamed."""
        state = {name: value.state_dict() if name in LEARNED else value for name, value in vars(self).items()}
        torch.save(state | {"watch": asdict(self.watch)}, folder / f".{CHECKPOINT}")
        (folder / f".{CHECKPOINT}").replace(folder / CHECKPOINT)

    def restore(self, saved: Mapping[str, Any] | None) -> None:
        """Take over what a checkpoint holds, if there is one."""
        if saved is None:
            return
        for name, value in saved.items():
            if name in LEARNED:
                getattr(self, name).load_state_dict(value)
            else:
                setattr(self, name, LossWatch(**value) if name == "watch" else value)
        say(f"training: continuing after step {self.step}")


LEARNED = ("model", "objective", "optimizer", "average", "best")


def read_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The checkpoint in `folder`, on the CPU, or None. Raises `ArtifactError` when it is damaged."""
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    try:
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch raises many kinds for a damaged file
        raise ArtifactError(f"{path}: cannot be read ({error}); delete it to train from the start") from error
    return saved


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


OUT_OF_MEMORY = ("DefaultCPUAllocator", "bad_alloc", "could not create a memory object")
"""What torch and oneDNN say on a CPU, where there is no error of its own for it."""


def _normalised(batch: Batch) -> Tensor:
    return (batch.lr - batch.mean[:, None]) / batch.std[:, None]


def _spread(count: int, most: int) -> list[int]:
    return [index * count // most for index in range(most)] if count > most else list(range(count))
