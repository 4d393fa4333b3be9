"""`subpixel ablate` on a small folder of GeoTIFFs: preparation is shared, points are kept, failures are no results."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import wandb.wandb_agent
import yaml
from typer.testing import CliRunner

from sr_core.training.ablation import read_grid
from subpixel.ablate import Ablation, Task, in_processes
from subpixel.cli import app
from tests.unit.geotiffs import NORTH_WEST, field, product, write_product, write_tiff

WEST, NORTH = NORTH_WEST
BASE = f"""
name: small
source: {{kind: files, path: s2, vhr_path: vhr, vhr_radiance_per_dn: 1, region: plain}}
grid: {{cell_m: 640, buffer_m: 0, anchor: source}}
quality_gate:
  chip_px: 16
  frames: 4
  max_age_days: 90
  min_ssim: -1
  min_psnr: 0
  min_samples: {{train: 4, val: 1, test: 1}}
  split:
    guard_m: 0
    val_boxes: [[{WEST}, {NORTH - 640}, {WEST + 160}, {NORTH}]]
    test_boxes: [[{WEST + 480}, {NORTH - 640}, {WEST + 640}, {NORTH}]]
train_hrn: {{channels: 8, residual_blocks: 1, steps: 30, batch_size: 4, validate_every: 5, warmup_steps: 2}}
evaluate: {{gallery: 1}}
"""
GRID = """
name: small
bases: {plain: run.yaml}
seeds: [0, 1]
baseline: {train_hrn.learning_rate: 0.005}
questions:
  - name: blocks
    asks: How many residual blocks?
    variants:
      - {label: "1"}
      - {label: "1 again", set: {train_hrn.residual_blocks: 1}}
      - {label: "2", set: {train_hrn.residual_blocks: 2}}
  - name: matching
    asks: Does histogram matching help?
    variants:
      - {label: "on"}
      - {label: "off", set: {quality_gate.histogram_matching: false}}
      - {label: "too few", set: {quality_gate.min_samples: {train: 1000, val: 1, test: 1}}}
"""


def write_inputs(folder: Path) -> Path:
    """Three dates of 640 m, VHR of the last, a run configuration, and a grid, whose path is returned."""
    for day in ("20170401", "20170411", "20170421"):
        write_product(folder / "s2", product(day), field())
    write_tiff(folder / "vhr" / "tile_20170423.tif", (field(256) / 30).astype(np.uint16), gsd=2.5)
    (folder / "run.yaml").write_text(BASE, encoding="utf-8")
    (folder / "grid.yaml").write_text(GRID, encoding="utf-8")
    return folder / "grid.yaml"


def ablate(grid: Path, *options: object):
    """The command, in this process."""
    return CliRunner().invoke(app, ["ablate", str(grid), "--out", str(grid.parent / "out"), *map(str, options)])


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[Path, int]:
    """A grid that has been worked off, two points at a time, and the exit status."""
    grid = write_inputs(tmp_path_factory.mktemp("ablate"))
    return grid, ablate(grid, "--jobs", 2).exit_code


def table(grid: Path) -> pd.DataFrame:
    return pd.read_parquet(grid.parent / "out" / "ablations.parquet")


def when_written(folder: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in sorted(folder.glob("out/points/*/point.json"))}


def test_equal_settings_are_one_point_and_a_failed_one_is_no_result(done):
    grid, status = done
    found = table(grid)
    assert found["questions"].tolist()[:2] == ["blocks: 1; blocks: 1 again; matching: on", "blocks: 2"]
    assert found["status"].tolist() == ["done", "done", "done", "failed"] * 2 and status == 1
    failed = found[found["status"] == "failed"]
    assert failed["error"].str.contains("the quality gate failed .*expected .*found").all()
    assert failed["psnr_sr"].isna().all() and found["psnr_sr"].notna().sum() == 6
    page = (grid.parent / "out" / "ablations.md").read_text()
    assert all(f"`{name}`: the quality gate failed" in page for name in failed["id"])
    assert "see prepared/quality_gate-" in page and f"see {grid.parent}" not in page
    assert "| too few | – | failed |" in page and (grid.parent / "out" / "ablations" / "matching.svg").is_file()


def test_preparation_is_shared_and_all_are_tested_on_the_references_samples(done):
    grid, _ = done
    out = grid.parent / "out"
    prepared = sorted(path.name.split("-")[0] for path in (out / "prepared").iterdir() if path.is_dir())
    assert prepared == ["cloud_shadow_filter", "download", "normalize", "quality_gate", "quality_gate", "quality_gate"]
    used = {row["questions"]: out / "points" / row["id"] for _, row in table(grid).head(3).iterrows()}
    reference, two, off = used.values()
    assert (two / "samples").resolve() == (reference / "samples").resolve() != (off / "samples").resolve()
    assert {(root / "test" / "samples").resolve() for root in used.values()} == {(reference / "samples").resolve()}
    assert not [path for path in out.glob("points/*/**/*.zarr") if not path.is_symlink()]


def test_scores_are_those_of_the_evaluation(done):
    grid, _ = done
    first = table(grid).iloc[0]
    root = grid.parent / "out" / "points" / first["id"]
    scores = json.loads((root / "test" / "evaluation" / "metrics.json").read_text())["test"]
    assert first["psnr_sr"] == scores["psnr"]["sr"] and first["mae_bicubic"] == scores["mae"]["bicubic"]
    answers = json.loads((grid.parent / "out" / "ablations.json").read_text())
    two = answers["questions"][0]["variants"][2]["bases"]["plain"]
    found = table(grid)
    by_hand = found["psnr_sr"][[1, 5]].to_numpy() - found["psnr_sr"][[0, 4]].to_numpy()
    assert two["difference"]["psnr"]["values"] == pytest.approx(by_hand.tolist(), abs=1e-6)
    assert two["difference"]["psnr"]["verdict"] == "no claim"
    assert answers["bases"]["plain"]["samples"]["test"] == scores["n_samples"]


def test_finished_points_are_kept_and_failed_ones_tried_again(done):
    grid, _ = done
    before = when_written(grid.parent)
    result = ablate(grid)
    assert result.exit_code == 1 and "8 points, 6 of them finished" in result.stderr
    after = when_written(grid.parent)
    assert {name for name in before if after[name] != before[name]} == set(table(grid)["id"][[3, 7]])


def test_the_page_is_written_again_without_running(done):
    grid, _ = done
    before = when_written(grid.parent)
    page = grid.parent / "docs" / "matching.md"
    assert ablate(grid, "--no-run", "--only", "matching", "--write", page).exit_code == 0
    assert when_written(grid.parent) == before
    text = page.read_text()
    assert "Does histogram matching help?" in text and "residual blocks" not in text
    assert "--only matching --write" in text and (page.parent / "matching" / "matching.svg").is_file()


@pytest.mark.e2e
def test_a_killed_run_goes_on_to_the_same_scores(done, tmp_path):
    grid, _ = done
    shutil.copytree(grid.parent, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("points"), symlinks=True)
    command = [sys.executable, "-m", "subpixel.cli", "ablate", str(tmp_path / "grid.yaml"), "--only", "blocks"]
    command += ["--out", str(tmp_path / "out"), "--jobs", "2"]
    process = subprocess.Popen(command, start_new_session=True)
    deadline = time.monotonic() + 400
    while not (when_written(tmp_path) and len(list(tmp_path.glob("out/points/*/model/checkpoint.pt"))) > 1):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = when_written(tmp_path)
    assert 0 < len(kept) < 4
    assert subprocess.run(command, check=False).returncode == 0
    after = when_written(tmp_path)
    assert len(after) == 4 and {name: after[name] for name in kept} == kept
    scores, undisturbed = (table(path).set_index("id")["psnr_sr"] for path in (tmp_path / "grid.yaml", grid))
    assert scores.dropna().to_dict() == pytest.approx(undisturbed[list(after)].to_dict(), abs=1e-6)


def test_wandb_agents_share_the_grid(done, tmp_path, monkeypatch):
    """The sweep file, through the agent's own code, up to the process that it starts."""
    grid, _ = done
    monkeypatch.chdir(tmp_path)
    assert ablate(grid, "--sweep", tmp_path / "sweep.yaml", "--only", "blocks").exit_code == 0
    sweep = yaml.safe_load((tmp_path / "sweep.yaml").read_text())
    points = Ablation(read_grid(grid), grid.parent / "out").points("blocks")
    assert sweep["parameters"]["point"]["values"] == [point.id for point in points]
    started = []
    monkeypatch.setattr(wandb.wandb_agent, "AgentProcess", lambda command, **_: started.append(command) or AgentStub())
    agent = wandb.wandb_agent.Agent(None, None, sweep_id="s")
    agent._sweep_command = sweep["command"]
    agent._command_run({"args": {"point": {"value": points[1].id}}, "program": sweep["program"], "run_id": "r"})
    monkeypatch.delenv("WANDB_RUN_ID")
    monkeypatch.delenv("WANDB_SWEEP_PARAM_PATH")
    ((env, program, *words),) = started
    assert (env, program) == ("/usr/bin/env", "subpixel")
    result = CliRunner().invoke(app, words)
    gain = table(grid).set_index("id").eval("psnr_sr - psnr_bicubic")[points[1].id]
    assert result.exit_code == 0 and result.stdout == f"psnr_gain={gain:.4f}\n"
    assert not when_written(grid.parent).keys() - set(table(grid)["id"])


class AgentStub:
    """A process that the agent believes to run."""


def test_one_point_says_what_is_wrong(done):
    grid, _ = done
    result = ablate(grid, "--point", table(grid)["id"][3])
    assert result.exit_code == 1 and "the quality gate failed" in str(result.exception)
    assert "no point 'plain-0'" in str(ablate(grid, "--point", "plain-0").exception)


def test_a_process_that_is_killed_is_seen(tmp_path):
    tasks = [Task(name, end, (name, tmp_path), tmp_path / name) for name in ("killed", "well", "exits")]
    assert {task.name: status for task, status in in_processes(tasks, 2)} == {
        "killed": -signal.SIGKILL,
        "well": 0,
        "exits": 3,
    }
    assert (tmp_path / "well").read_text() == "well\n"


def test_stopping_stops_the_processes(tmp_path):
    tasks = [Task(name, end, (name, tmp_path), tmp_path / name) for name in ("sleeps", "waits for it")]
    work = in_processes(tasks, 2)
    assert next(work)[0].name == "waits for it"
    work.close()
    assert "told to stop" in (tmp_path / "sleeps").read_text()


def end(how: str, folder: Path) -> None:
    print(how, flush=True)
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "exits":
        sys.exit(3)
    if how == "sleeps":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to stop"))
        (folder / "asleep").touch()
        time.sleep(60)
    while how == "waits for it" and not (folder / "asleep").exists():
        time.sleep(0.01)
