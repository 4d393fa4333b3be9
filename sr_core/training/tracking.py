"""Experiment tracking with Weights & Biases: a courtesy to the people who watch, never a reason to stop training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from sr_core.models.bundle import DESCRIPTION, WEIGHTS
from sr_core.progress import say

Mode = Literal["online", "offline", "disabled"]
CODE = ("git_commit", "versions")
"""Entries of the run's configuration that say which code made it; the bundle's artifact carries them too."""


class Tracker:
    """One W&B run. The same `run_id` continues the same run; files are written below `folder`/wandb.

    Any trouble is said once and ends the tracking, not the training.
    """

    def __init__(
        self, mode: Mode, folder: Path, project: str, run_id: str, name: str, config: Mapping[str, Any]
    ) -> None:
        self.run: Any = None
        self._guard(lambda: self._start(mode, folder, project, run_id, name, config))

    def log(self, record: Mapping[str, float]) -> None:
        """A line of the metrics; its `step` is the axis of the curves."""
        values = {name: value for name, value in record.items() if name != "step"}
        self._guard(lambda: self.run and self.run.log(values, step=int(record["step"])))

    def picture(self, name: str, draw: Callable[[], NDArray[np.uint8]], caption: str, step: int) -> None:
        """An RGB image (H,W,3), drawn only where somebody may see it."""
        self._guard(lambda: self._picture(name, draw, caption, step))

    def bundle(self, folder: Path, scores: Mapping[str, float]) -> None:
        """The bundle's files as an artifact, and its scores in the run's summary."""
        self._guard(lambda: self._bundle(folder, scores))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close the run; after an error it shows as failed."""
        self._guard(lambda: self.run and self.run.finish(exit_code=0 if kind is None else 1))

    def _start(self, mode: Mode, folder: Path, project: str, run_id: str, name: str, config: Mapping[str, Any]) -> None:
        if mode == "disabled":
            return
        import wandb

        self.run = wandb.init(
            mode=mode,
            dir=str(folder),
            project=project,
            id=run_id,
            name=name,
            resume="allow",
            reinit="create_new",
            config=dict(config),
            settings=wandb.Settings(
                console="off", disable_git=True, x_disable_stats=True, silent=True, init_timeout=30
            ),
        )

    def _picture(self, name: str, draw: Callable[[], NDArray[np.uint8]], caption: str, step: int) -> None:
        if self.run:
            import wandb

            self.run.log({name: wandb.Image(draw(), caption=caption)}, step=step)

    def _bundle(self, folder: Path, scores: Mapping[str, float]) -> None:
        if self.run:
            import wandb

            self.run.summary.update(dict(scores))
            code = {name: self.run.config.get(name) for name in CODE}
            artifact = wandb.Artifact(f"{self.run.project}-bundle", type="model", metadata={**scores, **code})
            for name in (WEIGHTS, DESCRIPTION):
                artifact.add_file(str(folder / name))
            self.run.log_artifact(artifact)

    def _guard(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:
            # whatever W&B raises: no network, a full disk, a wrong key
            say(f"W&B: {type(error).__name__}: {error}; training goes on without it")
            run, self.run = self.run, None
            with suppress(Exception):
                run and run.finish(exit_code=1)
