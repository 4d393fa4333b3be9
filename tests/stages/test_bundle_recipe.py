"""`subpixel bundle`: from a recipe to a bundle with its scores."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from sr_core.errors import ConfigError, SourceError, SubpixelError
from sr_core.models.bundle import load_bundle
from sr_core.training.recipe import load_recipe
from sr_core.training.scenes import SceneSampler
from subpixel.bundle import Bundle
from subpixel.cli import app

REPOSITORY = Path(__file__).resolve().parents[2]
RUN = """
name: {name}
area: {{region: {name}, crs: EPSG:32634, bbox: [682240, 6134400, 682560, 6134720]}}
period: {{start: 2020-05-01, end: 2020-06-20}}
source: {{kind: simulated, seed: {seed}}}
grid: {{cell_m: 320, buffer_m: 0}}
normalize: {{min_pixels: 100}}
"""
RECIPE = """
name: tiny
ground:
  - {run: west.yaml}
  - {run: east.yaml, held_out: true}
trials:
  - {name: nominal, instrument: {mtf: [0.25, 0.25], noise: [0.05, 0.05]}}
  - {name: soft, instrument: {mtf: [0.15, 0.15]}}
trial_samples: 2
train_hrn: {frames: 3, channels: 8, residual_blocks: 1, registration: none, steps: 6, batch_size: 2, crop_px: 16,
            validate_every: 3, warmup_steps: 1, threads: 1, precision: float32}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    for name, seed in (("west", 1), ("east", 2)):
        (folder / f"{name}.yaml").write_text(RUN.format(name=name, seed=seed), encoding="utf-8")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def made(recipe) -> Path:
    """A finished bundle."""
    out = recipe.parent / "out"
    done = CliRunner().invoke(app, ["bundle", str(recipe), "--out", str(out), "--card", str(out / "card.md")])
    assert done.exit_code == 0, done.output
    return out


def test_a_bundle_is_made_with_its_lineage_and_scores(made):
    resolver = load_bundle(made)
    assert resolver.frames == 3
    lineage = resolver.description["lineage"]
    assert lineage["gsd_m"] == 10.0
    assert lineage["instrument"]["mtf"] == [0.15, 0.35]
    assert [(part["run"], part["held_out"]) for part in lineage["ground"]] == [("west", False), ("east", True)]
    assert set(resolver.description["normalization"]) == {"west"}  # what was held out was not trained on
    scores = json.loads((made / "scores.json").read_text())
    assert set(scores["trials"]) == {"east/nominal", "east/soft"}
    assert scores["trials"]["east/nominal"]["n_samples"] == 2
    assert {"psnr_sr", "psnr_bicubic", "val_psnr"} <= set(resolver.description["scores"])
    assert str(made.parent) not in (made / "model.json").read_text()  # no path of this machine


def test_the_model_card_says_what_the_scores_say(made):
    card = (made / "card.md").read_text()
    scores = json.loads((made / "scores.json").read_text())
    psnr = scores["trials"]["east/soft"]["psnr"]
    row = next(line for line in card.splitlines() if line.startswith("| east/soft |"))
    assert [f"{psnr[arm]:.2f}" for arm in ("bicubic", "temporal_mean", "sr")] == row.split(" | ")[2:5]
    assert "| west | simulated | 100% | all |" in card
    assert "| east | simulated | held out | all |" in card
    assert "What it may not be used for" in card
    assert str(made.parent) not in card


def test_a_stopped_training_goes_on_to_the_same_weights(recipe, made, tmp_path, monkeypatch):
    stopped = Bundle(load_recipe(recipe), tmp_path, made / "runs")
    stopped.prepare(reuse=True)
    batch = SceneSampler.batch

    def until_step_5(sampler, step):
        if step == 4:
            raise KeyboardInterrupt
        return batch(sampler, step)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(SceneSampler, "batch", until_step_5)
        stopped.make()
    assert not (tmp_path / "model.json").exists()
    stopped.make()
    whole, again = (torch.load(folder / "training" / "checkpoint.pt", weights_only=True) for folder in (made, tmp_path))
    assert again["step"] == whole["step"] == 6
    assert all(torch.equal(again["model"][name], value) for name, value in whole["model"].items())


def test_another_recipe_does_not_go_on_with_this_training(recipe, made):
    changed = load_recipe(recipe, {"train_hrn.steps": 9})
    with pytest.raises(SubpixelError, match="another recipe; choose another --out"):
        Bundle(changed, made, made / "runs").make()


def test_missing_real_data_are_asked_for_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("SR_SAMPLE_DATA", str(tmp_path / "nowhere"))
    recipe = load_recipe(REPOSITORY / "examples" / "bundle" / "recipe.yaml")
    with pytest.raises(SourceError, match="set SR_SAMPLE_DATA"):
        Bundle(recipe, tmp_path, tmp_path).prepare()


def test_the_recipe_of_the_shipped_bundle_keeps_its_held_out_ground_apart():
    recipe = load_recipe(REPOSITORY / "examples" / "bundle" / "recipe.yaml")
    assert all(part.run.is_file() for part in recipe.ground)
    for held_out in (part for part in recipe.ground if part.held_out):
        for trained in (part for part in recipe.ground if not part.held_out and part.run == held_out.run):
            assert trained.box and held_out.box, f"{held_out.run.name}: the same ground twice"
            (west, south, east, north), other = trained.box, held_out.box
            apart = (other[0] - east, west - other[2], other[1] - north, south - other[3])
            assert max(apart) >= 80, f"{held_out.run.name}: {max(apart)} m apart, a frame sees further than that"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"train_hrn.frame_dropout": 0.5}, "train_hrn.frame_dropout: has no effect"),
        ({"train_hrn.crop_px": None}, "crop_px: missing"),
        ({"instrument.mtf": [0.3, 0.1]}, "mtf: found"),
        ({"ground": [{"run": "west.yaml"}]}, "held_out"),
        ({"instrument.zoom": 2}, "instrument.zoom"),
    ],
)
def test_a_wrong_recipe_is_refused_by_its_key(recipe, change, expected):
    with pytest.raises(ConfigError, match=expected):
        load_recipe(recipe, change)


@pytest.mark.parametrize("command", [("bundle", "bundle/recipe.yaml"), ("ablate", "ablations/blog.yaml")])
def test_a_place_in_s3_is_refused_where_links_and_locks_are_needed(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(
        app, [command[0], str(REPOSITORY / "examples" / command[1]), "--out", "s3://bucket/prefix"]
    )
    assert done.exit_code == 2 and "expected a folder" in done.output
    assert not list(tmp_path.iterdir())
