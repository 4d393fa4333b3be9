"""Where a training stands: its state, its checkpoint and its metrics."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sr_core.config import TrainHRN
from sr_core.errors import ArtifactError, DataError
from sr_core.models.highresnet import HighResNet
from sr_core.progress import say
from sr_core.samples.dataset import Batches
from sr_core.training.objective import Objective
from sr_core.training.stopping import LossWatch

CHECKPOINT = "checkpoint.pt"
METRICS = "metrics.jsonl"
LEARNED = ("model", "objective", "optimizer", "average", "best")
"""Parts of a course that have a state of their own."""

Record = dict[str, float]
"""A line of the metrics."""


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

    def save(self, folder: Path) -> Path:
        """Write the checkpoint, aside and renamed; returns where it is."""
        state = {name: value.state_dict() if name in LEARNED else value for name, value in vars(self).items()}
        torch.save(state | {"watch": asdict(self.watch)}, folder / f".{CHECKPOINT}")
        return (folder / f".{CHECKPOINT}").replace(folder / CHECKPOINT)

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
