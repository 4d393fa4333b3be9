"""The examples as a user runs them, with the figures that README names."""

import json

import pytest

from tests.conftest import REPOSITORY
from tests.stages.test_run import subpixel

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500)]


def run_example(name: str, root) -> dict:
    done = subpixel("run", REPOSITORY / "examples" / f"{name}.yaml", "--out", root)
    assert done.returncode == 0, done.stderr
    return json.loads((root / "metrics.json").read_text())


def test_demo_beats_its_baselines(tmp_path):
    found = run_example("demo", tmp_path)
    test, raster = found["evaluation"]["test"], found["delineation"]["raster"]
    assert test["psnr"]["sr"] > max(test["psnr"]["bicubic"] + 2.0, test["psnr"]["temporal_mean"] + 1.0)
    assert test["win_rate_vs_bicubic"] > 0.9
    assert raster["sr"]["boundary_mcc"] > raster["bicubic"]["boundary_mcc"]


@pytest.mark.realdata
def test_okavango_beats_bicubic_on_ground_it_has_not_seen(tmp_path, sample_data):
    test = run_example("okavango", tmp_path)["evaluation"]["test"]
    assert test["psnr"]["sr"] > 39.2
    assert 37.8 < test["psnr"]["bicubic"] < 38.2


@pytest.mark.realdata
def test_belgium_runs_through_with_its_own_masks(tmp_path, sample_data):
    found = run_example("belgium", tmp_path)
    test = found["evaluation"]["test"]
    assert test["n_samples"] >= 8
    assert test["psnr"]["sr"] > test["psnr"]["bicubic"] + 1.0
    assert "delineation" not in found
