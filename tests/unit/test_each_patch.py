"""each_patch: the same results from any number of processes, and an error that says what happened."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import pytest

from components.shards import each_patch
from components.stage import Context
from sr_core.config import Config, parse_config
from sr_core.errors import ConfigError, DataError, SubpixelError
from sr_core.patches import Patch, make_patch

PATCHES = [make_patch("plain", 32634, (west, 0, west + 2000, 2000), 0) for west in range(0, 12_000, 2000)]


def context(output: Path, **preparation: object) -> Context:
    area = {"crs": "EPSG:32634", "bbox": [682000, 6134000, 684000, 6136000]}
    period = {"start": "2020-05-01", "end": "2020-05-02"}
    raw = {"name": "few", "source": {"kind": "simulated"}, "area": area, "period": period, "preparation": preparation}
    return Context(parse_config(raw), {}, output, "key")


def report(config: Config, inputs: Mapping[str, Path], output: Path, patch: Patch) -> tuple[str, int, str | None]:
    """Which patch this is, where it is worked on, and with how many threads."""
    return patch.id, os.getpid(), os.environ.get("OMP_NUM_THREADS")


def refuse_third(config: Config, inputs: Mapping[str, Path], output: Path, patch: Patch) -> None:
    if patch == PATCHES[2]:
        raise DataError(f"patch {patch.id}: found rain, expected sun")
    (output / patch.id).touch()


def stumble(config: Config, inputs: Mapping[str, Path], output: Path, patch: Patch) -> float:
    return 1 / 0


def die(config: Config, inputs: Mapping[str, Path], output: Path, patch: Patch) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wait(config: Config, inputs: Mapping[str, Path], output: Path, patch: Patch) -> None:
    (output / str(os.getpid())).touch()
    time.sleep(60)


def test_results_come_in_the_order_of_the_patches(tmp_path: Path) -> None:
    one = each_patch(context(tmp_path, workers=1), PATCHES, report, "reports")
    two = each_patch(context(tmp_path, workers=2), PATCHES, report, "reports")
    assert [name for name, _, _ in one] == [name for name, _, _ in two] == [patch.id for patch in PATCHES]
    assert {process for _, process, _ in one} == {os.getpid()}
    assert os.getpid() not in {process for _, process, _ in two}
    if "OMP_NUM_THREADS" not in os.environ:
        assert {threads for _, _, threads in two} == {"1"}
    assert each_patch(context(tmp_path, workers=2), [], report, "reports") == []


def name_neighbour(config: Config, inputs: Mapping[str, Path], output: Path, patch: Patch, neighbour: str) -> str:
    return f"{patch.id} beside {neighbour}"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_patch_is_given_what_it_needs_of_the_others(tmp_path: Path, workers: int) -> None:
    neighbours = {patch: PATCHES[index - 1].id for index, patch in enumerate(PATCHES)}
    found = each_patch(context(tmp_path, workers=workers), PATCHES, name_neighbour, "names", neighbours)
    assert found == [f"{patch.id} beside {neighbours[patch]}" for patch in PATCHES]


@pytest.mark.parametrize("workers", [1, 2])
def test_the_first_error_ends_it_and_finished_patches_stay(tmp_path: Path, workers: int) -> None:
    with pytest.raises(DataError, match=f"patch {PATCHES[2].id}: found rain"):
        each_patch(context(tmp_path, workers=workers), PATCHES, refuse_third, "weather")
    assert (tmp_path / PATCHES[0].id).exists()


def test_an_unforeseen_error_shows_where_it_was_raised(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        each_patch(context(tmp_path, workers=2), PATCHES, stumble, "numbers")
    assert "in stumble" in "".join(caught.value.__notes__)


def test_a_killed_worker_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(SubpixelError, match=r"one of 2 worker processes was killed.*preparation\.workers"):
        each_patch(context(tmp_path, workers=2), PATCHES, die, "deaths")


def test_workers_end_with_the_stage(tmp_path: Path) -> None:
    program = f"""
from pathlib import Path
from tests.unit.test_each_patch import PATCHES, context, wait
from components.shards import each_patch
if __name__ == "__main__":
    each_patch(context(Path({str(tmp_path)!r}), workers=2), PATCHES, wait, "sleep")
"""
    stage = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    try:
        until(lambda: len(list(tmp_path.iterdir())) == 2)
    finally:
        stage.kill()
        stage.wait()
    workers = [int(path.name) for path in tmp_path.iterdir()]
    until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))


def until(reached: object) -> None:
    """Wait for it, half a minute at most."""
    assert callable(reached)
    deadline = time.monotonic() + 30
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_ray_is_optional(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"preparation.executor: found 'ray', but Ray is not installed; install"):
        each_patch(context(tmp_path, executor="ray"), PATCHES, report, "reports")


def test_what_is_asked_of_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for those functions of Ray that eo-learn's RayExecutor calls: each call is made at once, and here.

    It shows that the executor gets what it needs and that errors come through; it is no substitute for a cluster.
    """

    class Remote:
        def __init__(self, function: Callable[..., object]) -> None:
            self.remote = function

        def options(self, **settings: object) -> "Remote":
            return self

    ray = ModuleType("ray")
    started: list[bool] = []
    for name, stand_in in {
        "remote": Remote,
        "ObjectRef": object,
        "init": lambda: started.append(True),
        "is_initialized": lambda: bool(started),
        "available_resources": lambda: {"CPU": 2},
        "wait": lambda futures, **_: (list(futures), []),
        "get": lambda result: result,
    }.items():
        setattr(ray, name, stand_in)
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.delitem(sys.modules, "eolearn.core.extra.ray", raising=False)
    try:
        found = each_patch(context(tmp_path, executor="ray"), PATCHES, report, "reports")
        assert [name for name, _, _ in found] == [patch.id for patch in PATCHES] and started == [True]
        with pytest.raises(DataError, match="found rain"):
            each_patch(context(tmp_path, executor="ray"), PATCHES, refuse_third, "weather")
    finally:
        sys.modules.pop("eolearn.core.extra.ray", None)
