"""Sharing out the patches of a stage: over processes of this machine, or over a Ray cluster, by eo-learn's executor.

What a stage does with one patch is an eo-learn workflow of one task; which patches a process takes never changes a
result, only when it is there.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from eolearn.core import EOExecutor, EONode, EOTask, EOWorkflow, OutputTask, WorkflowResults

from components.stage import Context
from sr_core.config import Config
from sr_core.errors import ConfigError, SubpixelError
from sr_core.memory import return_large_arrays, return_what_is_free
from sr_core.patches import Patch
from sr_core.progress import say, track

T = TypeVar("T")
PatchFunction = Callable[..., T]
"""What is done with one patch: (configuration, input folders by stage, output folder, patch), and what is `given` for
the patch. A function of a module, so that other processes find it; it writes files, and what it returns is small."""

WORKER_ENVIRONMENT = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OPENCV_FOR_THREADS_NUM"), "1"
)
"""Of worker processes, where the user has not set it otherwise: they share the cores by patches, and threads beside
that only get in each other's way."""
RESULT = "result"
Arguments = list[dict[EONode, dict[str, object]]]
"""Of each run of the workflow."""


def each_patch(
    context: Context,
    patches: Sequence[Patch],
    function: PatchFunction[T],
    what: str,
    given: Mapping[Patch, Any] | None = None,
) -> list[T]:
    """What `function` returns for each patch, in the patches' order, `preparation.workers` of them in work at a time.

    `what` names the work in the progress. `given` holds for each patch what its work needs to know of the others, a
    small value that becomes the function's last argument. With one worker, or one patch, it is done in this process.
    The first error ends it and is raised as it is; patches that are finished by then stay so. Raises `ConfigError`
    where `preparation.executor` is "ray" and Ray is not there.
    """
    if not patches:
        return []
    leave_errors_to_us()
    return_large_arrays()
    task = EONode(PatchTask(function, context.config, context.inputs, context.output))
    workflow = EOWorkflow([task, EONode(OutputTask(RESULT), inputs=[task])])
    more = {} if given is None else {patch: (given[patch],) for patch in patches}
    arguments: Arguments = [{task: {"patch": patch, "more": more.get(patch, ())}} for patch in patches]
    if context.config.preparation.executor == "ray":
        found = run_on_ray(workflow, arguments, what)
    else:
        found = PatchExecutor(workflow, arguments, what).run(min(context.config.preparation.workers, len(patches)))
    return [outcome(result) for result in found]


class PatchTask(EOTask):
    """A stage's work on one patch, as eo-learn runs it."""

    def __init__(self, function: PatchFunction[Any], config: Config, inputs: Mapping[str, Path], output: Path) -> None:
        self.function, self.config, self.inputs, self.output = function, config, dict(inputs), output

    def execute(self, *, patch: Patch, more: tuple[Any, ...]) -> Any:
        found = self.function(self.config, self.inputs, self.output, patch, *more)
        return_what_is_free()  # so that a process needs as much after three hundred patches as after three
        return found


class PatchExecutor(EOExecutor):
    """eo-learn's executor with processes that are spawned, not forked, and an end at the first error.

    GDAL, HDF5 and torch hold threads and locks that do not survive a fork; and the executor as it is would do a whole
    country before it tells of an error in the first patch.
    """

    def __init__(self, workflow: EOWorkflow, arguments: Arguments, what: str) -> None:
        super().__init__(workflow, arguments)
        self.what = what

    def _run_execution(self, processing_args: list[Any], run_params: Any) -> list[WorkflowResults]:
        workers = run_params.workers
        finished = self._here(processing_args) if workers == 1 else self._in_processes(processing_args, workers)
        found: dict[int, WorkflowResults] = {}
        for index, result in track(finished, self.what, total=len(processing_args)):
            outcome(result)
            found[index] = result
        return [found[index] for index in range(len(processing_args))]

    def _here(self, work: list[Any]) -> Iterator[tuple[int, WorkflowResults]]:
        yield from enumerate(map(self._execute_workflow, work))

    def _in_processes(self, work: list[Any], workers: int) -> Iterator[tuple[int, WorkflowResults]]:
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=become_worker)
        try:
            # `submit` starts the workers, which read it when they load their libraries
            with environment(WORKER_ENVIRONMENT):
                futures: dict[Future[WorkflowResults], int] = {
                    pool.submit(self._execute_workflow, item): index for index, item in enumerate(work)
                }
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise SubpixelError(
                f"{self.what}: one of {workers} worker processes was killed, which is what happens when memory runs"
                " out; expected it to finish its patch. Take fewer `preparation.workers`; finished patches are kept"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def run_on_ray(workflow: EOWorkflow, arguments: Arguments, what: str) -> list[WorkflowResults]:
    """Run a workflow on the Ray cluster that RAY_ADDRESS names, or on one that Ray starts on this machine.

    All its machines must see the run's folder under the same path. Raises `ConfigError` where Ray is not installed.
    """
    try:
        import ray
        from eolearn.core.extra.ray import RayExecutor
    except ImportError as error:
        raise ConfigError(
            "preparation.executor: found 'ray', but Ray is not installed; install `subpixel[ray]`, or choose"
            " 'processes'"
        ) from error
    if not ray.is_initialized():
        ray.init()
    say(f"{what}: {len(arguments)} patches on Ray")
    found: list[WorkflowResults] = RayExecutor(workflow, arguments).run(desc=what)
    return found


def outcome(result: WorkflowResults) -> Any:
    """What the function returned; raises what it raised."""
    failed = result.error_node_uid
    if failed is None:
        return result.outputs[RESULT]
    info = result.stats[failed].exception_info
    assert info is not None
    if not isinstance(info.exception, SubpixelError):
        info.exception.add_note(info.traceback)  # of the process in which it was raised
    raise info.exception


def become_worker() -> None:
    """Make a worker end with the stage: without it, it would wait for work for ever; and quietly at Ctrl-C."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    leave_errors_to_us()
    return_large_arrays()

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def leave_errors_to_us() -> None:
    """eo-learn logs the stack of every error, also of those that the stage explains in a sentence."""
    logging.getLogger("eolearn.core.eoworkflow").setLevel(logging.CRITICAL)


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for processes started inside the block; what the user has set stays."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
