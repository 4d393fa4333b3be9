"""The recipe of a model bundle: on what ground it is trained and judged, through which instruments, and how.

A YAML file; the runs that prepare the ground are configurations of their own, which it names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from sr_core.config import Box, Section, TrainHRN, read_yaml, validated
from sr_core.errors import ConfigError
from sr_core.training.instrument import InstrumentRanges

IDLE = ("frame_choice", "max_latest_age_days", "frame_dropout", "processes", "wandb_project")
"""Keys of `train_hrn` that mean nothing where samples are made anew each time they are drawn."""


class Ground(Section):
    """Ground of one run: all of it, or what lies in a box."""

    run: Path = Field(description="configuration of the run that prepares it (download to normalize)")
    weight: float = Field(1.0, gt=0, description="share of the training samples, of any sum; shared by area inside")
    box: Box | None = Field(None, description="only this ground: xmin ymin xmax ymax in UTM metres")
    held_out: bool = Field(False, description="never trained on: the bundle is judged here")
    chooses: bool = Field(
        True, description="held-out ground only: its trials choose which weights of a training are kept"
    )


class Trial(Section):
    """A fixed instrument that the bundle is judged through on held-out ground, by Wald's protocol."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    instrument: InstrumentRanges


class Recipe(Section):
    """All that a bundle is made of."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", description="name of the bundle")
    ground: tuple[Ground, ...] = Field(min_length=1)
    instrument: InstrumentRanges = Field(default_factory=lambda: InstrumentRanges())
    trials: tuple[Trial, ...] = Field(min_length=1)
    trial_samples: int = Field(32, ge=1, description="samples of each trial on each held-out run")
    field_dates: int = Field(8, ge=1, description="dates or pairs of dates of each check on real frames")
    train_hrn: TrainHRN

    @model_validator(mode="after")
    def _complete(self) -> Recipe:
        if all(ground.held_out for ground in self.ground) or not any(ground.held_out for ground in self.ground):
            raise ValueError("ground: expected some to train on and some that is `held_out: true` to judge on")
        if not any(ground.held_out and ground.chooses for ground in self.ground):
            raise ValueError("ground: expected some held-out ground that `chooses` the weights")
        if self.train_hrn.crop_px is None:
            raise ValueError("train_hrn.crop_px: missing; it is the side of a training sample, low-resolution pixels")
        idle = sorted(self.train_hrn.model_fields_set & set(IDLE))
        if idle:
            raise ValueError(f"train_hrn.{idle[0]}: has no effect on a bundle; remove it")
        if len({trial.name for trial in self.trials}) < len(self.trials):
            raise ValueError("trials: expected names that differ")
        return self

    @property
    def frames(self) -> int:
        """Frames that the network sees."""
        return self.train_hrn.frames or 8


def load_recipe(path: Path, changes: Mapping[str, Any] | None = None) -> Recipe:
    """Read and validate a recipe; its paths are relative to the file. `changes` are dotted keys and their values.

    Raises `ConfigError` with every problem.
    """
    raw = read_yaml(path, "recipe")
    for key, value in (changes or {}).items():
        *sections, last = key.split(".")
        section = raw
        for name in sections:
            section = section.setdefault(name, {}) if isinstance(section, dict) else None
        if not isinstance(section, dict):
            raise ConfigError(f"recipe {path}: no section for {key!r}; expected a key such as train_hrn.steps")
        section[last] = value
    recipe = validated(Recipe, raw, f"recipe {path}")
    folder = path.resolve().parent
    ground = tuple(part.model_copy(update={"run": folder / part.run}) for part in recipe.ground)
    settings = recipe.train_hrn
    if settings.perceptual_network is not None:
        settings = settings.model_copy(update={"perceptual_network": folder / settings.perceptual_network})
    return recipe.model_copy(update={"ground": ground, "train_hrn": settings})
