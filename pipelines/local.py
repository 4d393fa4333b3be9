"""Running the compiled graphs on this machine, through kfp's own local runner.

kfp 2.17's SubprocessRunner refuses container components, its DockerRunner does not tell how they end, and its `dsl.If`
cannot find the named output of a task: it reads False and reports success. All of it is mended here and nowhere else;
`tests/unit/test_local_runner.py` holds that both branches of a condition are taken.
"""

from __future__ import annotations

import abc
import contextlib
import ctypes
import io
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import kfp
from kfp import local
from kfp.local import docker_task_handler, status, subprocess_task_handler
from kfp.local import io as kfp_io

from pipelines.containers import engine, run_container
from sr_core.errors import SubpixelError
from sr_core.storage import is_remote

Runner = Literal["subprocess", "docker"]
SUPPORTED_KFP = "2.17."
PR_SET_PDEATHSIG = 1
INTERRUPTED = 130


class StageFailedError(SubpixelError):
    """A stage of a local run ended with an error, which it has already explained."""

    def __init__(self, stage: str, exit_status: int) -> None:
        super().__init__(f"stage {stage} ended with exit status {exit_status}")
        self.stage = stage
        self.exit_status = exit_status


class StageTask(abc.ABC):
    """What both runners do with a stage's exit status."""

    failures: dict[tuple[str, ...], StageFailedError] = {}  # noqa: RUF012 - shared: kfp makes an instance a task
    """Of each command that has not succeeded since."""

    full_command: list[str]

    def run(self) -> status.Status:
        if any(interrupted(failure) for failure in self.failures.values()):
            return status.Status.FAILURE  # a shard that waited for its turn when Ctrl-C came
        command = tuple(self.full_command)
        exit_status = self.exit_status()
        if exit_status == 0:
            self.failures.pop(command, None)
            return status.Status.SUCCESS
        self.failures[command] = StageFailedError(_module(self.full_command), exit_status)
        return status.Status.FAILURE

    @abc.abstractmethod
    def exit_status(self) -> int:
        """Run the stage's program to its end."""


class StageProcess(StageTask, subprocess_task_handler.SubprocessTaskHandler):
    """Runs a container component's command as a process of this Python, on this terminal."""

    def validate_image(self, image: str) -> None:
        """Any image will do: the process runs in this environment."""

    def validate_not_container_component(self, full_command: list[str]) -> None:
        """Container components are what this runner is for."""

    def exit_status(self) -> int:
        interpreter = {"python": sys.executable, "python3": sys.executable}
        command = [interpreter.get(part, part) for part in self.full_command]
        process = subprocess.Popen(command, env={**os.environ, **self.env_vars}, preexec_fn=_die_with_parent)
        try:
            return process.wait()
        except KeyboardInterrupt:
            # the terminal has sent Ctrl-C to the stage as well: let it finish its sentence
            return process.wait()


class StageContainer(StageTask, docker_task_handler.DockerTaskHandler):
    """Runs a container component in its container."""

    def exit_status(self) -> int:
        return run_container(self.image, self.full_command, self.pipeline_root)


def run_locally(pipeline: Callable[..., Any], config_json: str, root: str, runner: Runner = "subprocess") -> None:
    """Run a graph below `root`, every stage a process or a container.

    Raises `StageFailedError` when a stage ends with an error, `KeyboardInterrupt` when it was interrupted, and
    `SubpixelError` where containers are asked for and no engine answers.
    """
    StageTask.failures.clear()
    if runner == "docker":
        engine().close()
    with _adapted_kfp(), _kfp_folder(root) as folder, contextlib.redirect_stdout(io.StringIO()):
        chosen = local.DockerRunner() if runner == "docker" else local.SubprocessRunner(use_venv=False)
        local.init(chosen, pipeline_root=str(folder), raise_on_error=False)
        logging.disable(logging.WARNING)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*no effect in the current local runner.*")  # what a cluster gives
                pipeline(config=config_json, root=root)
        finally:
            logging.disable(logging.NOTSET)
    if StageTask.failures:
        failure = next(iter(StageTask.failures.values()))
        if interrupted(failure):
            raise KeyboardInterrupt
        raise failure


def interrupted(failure: StageFailedError) -> bool:
    """Whether a stage ended because of Ctrl-C."""
    return failure.exit_status in (INTERRUPTED, -signal.SIGINT)


@contextlib.contextmanager
def _adapted_kfp() -> Iterator[None]:
    if not kfp.__version__.startswith(SUPPORTED_KFP):
        raise SubpixelError(
            f"kfp {kfp.__version__}: the local runner is adapted to {SUPPORTED_KFP}x; install that version"
        )
    process, container = subprocess_task_handler.SubprocessTaskHandler, docker_task_handler.DockerTaskHandler
    lookup = kfp_io.IOStore.get_parent_input
    subprocess_task_handler.SubprocessTaskHandler = StageProcess
    docker_task_handler.DockerTaskHandler = StageContainer
    kfp_io.IOStore.get_parent_input = _parent_input_or_task_output(lookup)
    try:
        yield
    finally:
        subprocess_task_handler.SubprocessTaskHandler = process
        docker_task_handler.DockerTaskHandler = container
        kfp_io.IOStore.get_parent_input = lookup


def _parent_input_or_task_output(
    lookup: Callable[[kfp_io.IOStore, str], Any],
) -> Callable[[kfp_io.IOStore, str], Any]:
    """kfp names the channel of a task's named output `<task>-<output>`: where no input has that name, split it."""

    def get_parent_input(store: kfp_io.IOStore, key: str) -> Any:
        try:
            return lookup(store, key)
        except ValueError:
            name = key.removeprefix("pipelinechannel--")
            scope: kfp_io.IOStore | None = store
            while scope is not None:
                for task, outputs in scope._task_output_data.items():
                    output = name.removeprefix(f"{task}-")
                    if output != name and output in outputs:
                        return outputs[output]
                scope = scope._parent
            raise

    return get_parent_input


@contextlib.contextmanager
def _kfp_folder(root: str) -> Iterator[Path]:
    """Where kfp keeps its messages between tasks; the artifacts themselves are below the root."""
    if is_remote(root):
        with tempfile.TemporaryDirectory(prefix="subpixel-kfp-") as temporary:
            yield Path(temporary)
        return
    folder = Path(root) / ".kfp"
    # a run that was killed could not remove its own
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _die_with_parent() -> None:
    """A stage ends when the run that started it is killed, so that two never write at once."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _module(command: list[str]) -> str:
    return next((part.removeprefix("components.") for part in command if re.match(r"components\.", part)), command[0])
