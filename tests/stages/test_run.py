"""`subpixel run` from configuration to report: done twice, stopped by its gate, and killed in every stage."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from components.stage import FOLDERS
from tests.stages.tiny import TINY, write_config

STAGES = [stage for stage in FOLDERS if stage not in ("publish", "report")]  # it publishes nothing, within milliseconds


def subpixel(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "subpixel.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=1450, check=False, **options)


def metrics(root: Path) -> dict:
    found = json.loads((root / "metrics.json").read_text())
    found.pop("timings_s")
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[Path, Path]:
    """Configuration and root of a finished run."""
    folder = tmp_path_factory.mktemp("undisturbed")
    config = write_config(folder)
    done = subpixel("run", config, "--out", folder / "run")
    assert done.returncode == 0, done.stderr + done.stdout
    return config, folder / "run"


@pytest.mark.slow
def test_a_run_leaves_report_metrics_and_products(undisturbed):
    _, root = undisturbed
    found = metrics(root)
    assert found["evaluation"]["test"]["n_samples"] > 0
    assert set(found["evaluation"]["test"]["psnr"]) == {"bicubic", "temporal_mean", "sr"}
    assert set(found["delineation"]["raster"]) >= {"bicubic", "sr"}
    assert found["gate"]["kept"] + sum(found["gate"]["dropped"].values()) == found["gate"]["samples"]
    assert (root / "report.html").stat().st_size > 10_000
    assert list(root.glob("products/*/*/sr.tif"))
    assert list(root.glob("archive/*.mar"))
    assert not list(root.rglob("*.part"))


@pytest.mark.slow
def test_running_again_keeps_everything_and_takes_seconds(undisturbed):
    config, root = undisturbed
    before = {path: path.stat().st_mtime_ns for path in root.rglob("run.json")}
    started = time.monotonic()
    done = subpixel("run", config, "--out", root)
    assert done.returncode == 0, done.stderr
    assert all(f"{stage}: kept" in done.stderr for stage in FOLDERS)
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob("run.json")}
    print(f"second run: {time.monotonic() - started:.0f} s")


@pytest.mark.e2e
@pytest.mark.timeout(900)
def test_killed_in_every_stage_and_started_again_it_ends_in_the_same_metrics(undisturbed, tmp_path):
    config, reference = undisturbed
    root = tmp_path / "run"
    for stage in STAGES:
        seconds = json.loads((reference / FOLDERS[stage] / "run.json").read_text())["seconds"]
        delay = 0.4 * seconds if seconds > 2 else 0.0
        while not kill_while_working(stage, config, root, delay):
            # other work has slowed down the undisturbed run
            shutil.rmtree(root / FOLDERS[stage])
            delay /= 3
    done = subpixel("run", config, "--out", root)
    assert done.returncode == 0, done.stderr
    assert metrics(root) == metrics(reference)


def kill_while_working(stage: str, config: Path, root: Path, delay: float) -> bool:
    """Start the run and SIGKILL it, with all its processes, `delay` seconds after the stage has begun.

    Returns whether the stage was still at work.
    """
    folder = root / FOLDERS[stage]
    command = [sys.executable, "-m", "subpixel.cli", "run", str(config), "--out", str(root)]
    with (root.parent / "log.txt").open("w") as log:
        run = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 300
        while not ((folder / ".key").exists() and not (folder / "run.json").exists()):
            assert run.poll() is None, f"{stage}: the run ended early:\n{(root.parent / 'log.txt').read_text()}"
            assert time.monotonic() < deadline, f"{stage} did not begin"
            time.sleep(0.005)
        time.sleep(delay)
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    return not (folder / "run.json").exists()


@pytest.mark.slow
def test_a_failed_gate_stops_the_run_with_its_report_and_trains_nothing(undisturbed, tmp_path):
    text = TINY.replace("{train: 4, val: 1, test: 1}", "{train: 100000, val: 1, test: 1}")
    done = subpixel("run", write_config(tmp_path, text), "--out", tmp_path / "run")
    assert done.returncode == 1
    assert "quality gate failed" in done.stderr and "100000" in done.stderr
    assert (tmp_path / "run" / "samples" / "gate.html").exists()
    assert not (tmp_path / "run" / "model").exists() and not (tmp_path / "run" / "products").exists()
    assert "evaluation" not in json.loads((tmp_path / "run" / "metrics.json").read_text())
