"""Grids, what they resolve to, paired differences, and the page."""

import math
from pathlib import Path

import pandas as pd
import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args, load_sweep_config

from sr_core.errors import ConfigError
from sr_core.training.ablation import (
    ARMS,
    METRICS,
    NETWORK,
    Difference,
    answer,
    paired_difference,
    read_grid,
    sweep_of,
)
from sr_core.training.ablation_page import draw, page, write_page

BASE = """
name: here
area: {crs: EPSG:32634, bbox: [682240, 6134400, 684160, 6135680]}
period: {start: 2020-05-01, end: 2020-06-30}
source: {kind: simulated}
train_hrn: {channels: 8, steps: 50}
"""
GRID = {
    "name": "small",
    "bases": {"plain": "run.yaml", "noisy": {"config": "run.yaml", "set": {"source.noise": 0.01}}},
    "seeds": [0, 1, 2],
    "baseline": {"train_hrn.channels": 16},
    "questions": [
        {
            "name": "channels",
            "asks": "How many channels?",
            "variants": [
                {"label": "8", "set": {"train_hrn.channels": 8}},
                {"label": "16"},
                {"label": "16 again", "set": {"train_hrn.channels": 16}},
            ],
        },
        {
            "name": "matching",
            "asks": "Does histogram matching help?",
            "bases": ["plain"],
            "variants": [{"label": "on"}, {"label": "off", "set": {"quality_gate.histogram_matching": False}}],
        },
    ],
}
NOWHERE = Path("/network")


def write_grid(folder: Path, **changes: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.yaml").write_text(BASE, encoding="utf-8")
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(GRID | changes, sort_keys=False), encoding="utf-8")
    return path


def asked(*variants: dict, **question: object) -> list[dict]:
    return [{"name": "q", "asks": "?", "variants": [{"label": "reference"}, *variants], **question}]


def test_a_grid_resolves_to_points_and_equal_settings_are_one(tmp_path):
    grid = read_grid(write_grid(tmp_path))
    points = grid.points(NOWHERE)
    # a seed has: 8 and 16 channels on two bases, and matching off on one; "16 again" and "on" are the reference
    assert len(points) == 3 * (2 + 2 + 1)
    assert [point.seed for point in points] == [0] * 5 + [1] * 5 + [2] * 5
    reference = grid.reference_point("plain", 0, NOWHERE)
    shared = next(point for point in points if point.id == reference.id)
    assert shared.roles == (("channels", "16"), ("channels", "16 again"), ("matching", "on"))
    assert shared.config.train_hrn.channels == 16 and shared.config.train_hrn.steps == 50
    noisy = next(point for point in points if point.base == "noisy")
    assert noisy.config.source.noise == 0.01 and noisy.id.startswith("noisy-")
    off = next(point for point in points if point.roles == (("matching", "off"),))
    assert not off.config.quality_gate.histogram_matching and off.test.quality_gate.histogram_matching
    assert {point.config.train_hrn.seed for point in points} == {0, 1, 2}
    assert len(grid.points(NOWHERE, "matching")) == 3 * 2


def test_a_points_name_does_not_depend_on_the_machine_nor_on_what_it_does_not_read(tmp_path):
    source = {"source": {"kind": "files", "path": "data"}, "area": None, "period": None}
    named = []
    for folder, delineate in (("here", 100), ("there", 200)):
        path = write_grid(tmp_path / folder, bases={"plain": "run.yaml"}, questions=GRID["questions"][:1])
        raw = yaml.safe_load(BASE) | source | {"delineate": {"steps": delineate}}
        (tmp_path / folder / "run.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
        named.append([point.id for point in read_grid(path).points(tmp_path / folder / "network")])
    assert named[0] == named[1] and len(set(named[0])) == 6


def test_the_trained_network_is_a_folder_that_comes_later(tmp_path):
    variants = [
        {"label": "random", "set": {"train_hrn.perceptual": 0.1}},
        {"label": "trained", "set": {"train_hrn.perceptual": 0.1, "train_hrn.perceptual_network": NETWORK}},
    ]
    raw = {"questions": asked(*variants, bases=["noisy"]), "perceptual_from": "plain", "seeds": [0]}
    grid = read_grid(write_grid(tmp_path / "a", **raw))
    points = {point.roles[0][1]: point for point in grid.points(tmp_path / "out")}
    assert points["trained"].needs_network and not points["random"].needs_network
    assert points["trained"].config.train_hrn.perceptual_network == tmp_path / "out"
    elsewhere = {point.roles[0][1]: point for point in grid.points(tmp_path / "elsewhere")}
    assert elsewhere["trained"].id == points["trained"].id
    # another base to learn from is another network, and so another point
    other = read_grid(write_grid(tmp_path / "b", **raw | {"perceptual_from": "noisy"}))
    assert {point.id for point in other.points(tmp_path)} & {point.id for point in points.values()} == {
        points["reference"].id,
        points["random"].id,
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [0, 0]}, "seeds must differ"),
        ({"bases": {"plain": "missing.yaml"}, "questions": GRID["questions"][:1]}, "missing.yaml: cannot be read"),
        ({"baseline": {"train_hrn.chanels": 8}}, "baseline on 'plain'.*\n.*`train_hrn.chanels`: unknown key"),
        ({"baseline": {"train_hrn.channels.x": 8}}, "`channels` is a value and holds no keys"),
        ({"questions": asked({"label": "b", "set": {"train_hrn.channels": 1}})}, "'q', variant 'b' on 'plain'"),
        ({"questions": asked({"label": "b"})}, "exactly one variant, the reference, sets nothing"),
        ({"questions": asked({"label": "reference", "set": {"train_hrn.steps": 9}})}, "labels of variants must differ"),
        ({"questions": asked({"label": "b", "set": {"train_hrn.seed": 9}})}, "would change `train_hrn.seed`"),
        ({"questions": asked({"label": "b", "set": {"evaluate.border_px": 9}})}, "would change `evaluate`"),
        ({"questions": asked({"label": "b", "set": {"quality_gate": {}}})}, "would change `quality_gate.split`"),
        ({"questions": asked({"label": "b", "set": {"x": 1}}, bases=["plane"])}, "base 'plane': unknown"),
        ({"questions": asked({"label": "b", "set": {"train_hrn.perceptual_network": NETWORK}})}, "`perceptual_from`"),
        ({"question": []}, "`question`: Extra inputs"),
    ],
)
def test_a_wrong_grid_is_explained(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        read_grid(write_grid(tmp_path, **changes)).points(NOWHERE)


def test_an_unknown_question_is_named(tmp_path):
    with pytest.raises(ConfigError, match="question 'colour' is unknown; known here: channels, matching"):
        read_grid(write_grid(tmp_path)).points(NOWHERE, "colour")


def test_differences_are_paired_by_seed():
    """By hand: differences 0.1, 0.2, 0.3; mean 0.2, standard deviation 0.1, t(2, 97.5 %) = 4.302653."""
    reference = {0: 30.0, 1: 35.0, 2: 25.0}
    found = paired_difference({0: 30.1, 1: 35.2, 2: 25.3}, reference)
    assert found.values == pytest.approx((0.1, 0.2, 0.3))
    assert found.mean == pytest.approx(0.2) and found.std == pytest.approx(0.1)
    assert found.half_width == pytest.approx(4.302653 * 0.1 / math.sqrt(3), abs=1e-6)
    assert found.verdict == "no difference"  # 0.2 ± 0.248
    # the spread of the seeds themselves, 5 dB, does not matter
    assert paired_difference({0: 30.19, 1: 35.2, 2: 25.21}, reference).verdict == "better"
    assert paired_difference({0: 29.81, 1: 34.8, 2: 24.79}, reference).verdict == "worse"
    assert paired_difference({0: 30.19, 1: 35.2, 2: 25.21}, reference, lower_is_better=True).verdict == "worse"


def test_no_claim_without_three_pairs():
    assert paired_difference({0: 9.0, 1: 9.0}, {0: 1.0, 1: 1.0, 2: 1.0}).verdict == "no claim"
    assert paired_difference({0: 9.0}, {0: 1.0}) == Difference((8.0,), "no claim")
    assert paired_difference({}, {0: 1.0}).verdict == "no claim"
    assert paired_difference(dict.fromkeys(range(3), 1.0), dict.fromkeys(range(3), 1.0)).verdict == "no difference"


def results_of(grid, network: Path, gains: dict[str, list[float]], failed: tuple[str, ...] = ()) -> pd.DataFrame:
    """Results with `gains[label][seed]` dB over a bicubic of 30 dB; the labels in `failed` have failed."""
    rows = []
    for point in grid.points(network):
        label = point.roles[0][1]
        row = {
            "id": point.id,
            "status": "done",
            "error": None,
            "parameters": 1000,
            "training_seconds": 10.0 + point.seed,
        }
        row |= {f"{metric}_{arm}": 30.0 for metric in METRICS for arm in ARMS}
        for metric in ("psnr", "cpsnr"):
            row[f"{metric}_sr"] = 30.0 + gains[label][point.seed]
        if label in failed:
            row |= dict.fromkeys(row, math.nan) | {"id": point.id, "status": "failed", "error": "it broke"}
        rows.append(row)
    return pd.DataFrame(rows)


FACTS = {
    "bases": {
        name: {
            "pairing": "vhr",
            "gsd_m": 10.0,
            "samples": {"train": 9, "val": 3, "test": 4},
            "frames": [3.0, 5.0, 8.0],
            "psnr": {"bicubic": 30.0, "temporal_mean": 29.0},
        }
        for name in ("plain", "noisy")
    },
    "commits": ["c0ffee"],
    "codes": ["1"],
    "failed": {},
    "missing": 0,
}
GAINS = {"8": [0.9, 1.02, 0.95], "16": [1.2, 1.3, 1.25], "off": [1.2, 1.32, 1.27]}


def test_answers_and_their_page(tmp_path):
    grid = read_grid(write_grid(tmp_path))
    answers = answer(grid, results_of(grid, NOWHERE, GAINS), NOWHERE)
    eight, sixteen, again = answers["questions"][0]["variants"]
    found = eight["bases"]["plain"]
    assert found["gain"]["psnr"] == {"mean": 0.956667, "std": 0.060277}
    assert found["difference"]["psnr"]["values"] == [-0.3, -0.28, -0.3]
    assert found["difference"]["psnr"]["verdict"] == "worse"
    assert found["difference"]["ssim"]["verdict"] == "no difference"
    assert sixteen["bases"]["noisy"]["difference"]["psnr"]["verdict"] == "same configuration"
    assert again["bases"]["noisy"]["difference"]["psnr"]["verdict"] == "same configuration"

    write_page(tmp_path / "docs" / "out.md", grid, answers, FACTS, "subpixel ablate grid.yaml")
    text = (tmp_path / "docs" / "out.md").read_text()
    assert "subpixel ablate grid.yaml" in text and "`c0ffee`" in text and "`train_hrn.channels: 16`" in text
    assert "**plain**, against 16: worse: 8 (−0.293 dB); same configuration: 16 again." in text
    assert "| 8 | 1,000 | +0.96 ± 0.06 | **−0.293 ± 0.029, worse** | **−0.293 ± 0.029, worse** | 11 s |" in text
    assert "| *16* | 1,000 | +1.25 ± 0.05 | – | – | 11 s |" in text
    assert "against on: no difference: off." in text and "| +0.013 ± 0.029, no difference |" in text
    assert "3 differences in PSNR are judged on this page" in text
    assert sorted(path.name for path in (tmp_path / "docs" / "out").iterdir()) == ["channels.svg", "matching.svg"]

    drawn = {path: path.read_bytes() for path in (tmp_path / "docs").rglob("*") if path.is_file()}
    write_page(tmp_path / "docs" / "out.md", grid, answers, FACTS, "subpixel ablate grid.yaml")
    assert drawn == {path: path.read_bytes() for path in (tmp_path / "docs").rglob("*") if path.is_file()}


def test_a_failed_point_is_named_and_is_no_result(tmp_path):
    grid = read_grid(write_grid(tmp_path))
    results = results_of(grid, NOWHERE, GAINS, failed=("off",))
    answers = answer(grid, results, NOWHERE)
    off = answers["questions"][1]["variants"][1]["bases"]["plain"]
    assert off["gain"] == {} and off["difference"] == {} and off["failed"] == dict.fromkeys("012", "it broke")
    text = page(grid, answers, FACTS | {"failed": {"plain-x": "it broke"}}, "")
    assert "- `plain-x`: it broke" in text and "| off | – | failed | – | – | – |" in text
    assert "not finished: off." in text
    draw(answers["questions"][1], tmp_path / "failed.png")
    assert (tmp_path / "failed.png").stat().st_size > 5000


def test_one_seed_makes_no_claim(tmp_path):
    grid = read_grid(write_grid(tmp_path, seeds=[0]))
    answers = answer(grid, results_of(grid, NOWHERE, GAINS), NOWHERE)
    text = page(grid, answers, FACTS, "")
    assert "**No claim is made on this page**" in text
    assert "| 8 | 1,000 | +0.90 | −0.300, no claim | −0.300, no claim | 10 s |" in text


def test_the_grid_of_the_documentation_is_one_that_resolves():
    grid = read_grid(Path(__file__).parents[2] / "examples" / "ablations" / "blog.yaml", {})
    points = grid.points(NOWHERE)
    assert len(points) == 3 * len({point.id for point in points if point.seed == 0})
    assert {point.base for point in points if ("histogram-matching", "not matched") in point.roles} == {"simulation"}
    assert sum(point.needs_network for point in points) == 3 * 2


def test_the_sweep_is_one_that_agents_can_run(tmp_path):
    grid = read_grid(write_grid(tmp_path))
    points = grid.points(NOWHERE)
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep_of(grid, points, ["subpixel", "ablate", "grid.yaml"])))
    sweep = load_sweep_config(str(tmp_path / "sweep.yaml"))
    assert sweep["method"] == "grid" and sweep["parameters"] == {"point": {"values": [point.id for point in points]}}
    # as wandb.wandb_agent fills in the command for one run
    macros = create_sweep_command_args({"args": {"point": {"value": points[4].id}}})
    macros |= {"env": ["/usr/bin/env"], "program": [sweep["program"]]}
    words = [word for part in create_sweep_command(sweep["command"]) for word in macros.get(part[2:-1], [part])]
    assert words == ["/usr/bin/env", "subpixel", "ablate", "grid.yaml", f"--point={points[4].id}"]
