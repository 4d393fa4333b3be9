"""The gate: which sets pass, which fail, and that each failure says what was expected and found."""

import datetime as dt
import json
import re

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
from shapely.geometry import box

from sr_core.config import QualityGate
from sr_core.quality.gate import run_gate
from sr_core.quality.scores import Scores
from sr_core.samples.pairs import rejection
from sr_core.samples.store import COLUMNS

CONFIG = QualityGate(frames=4, min_frames=2, min_samples={"train": 6, "val": 2, "test": 3}, max_dropped=0.5)


def samples(train=6, val=2, test=3, dropped=None):
    """A table of kept samples, side by side from west to east, and of dropped ones beyond them."""
    kept = [(split, "") for split, n in (("train", train), ("val", val), ("test", test)) for _ in range(n)]
    rows = []
    for i, (split, reason) in enumerate([*kept, *(("train", r) for r, n in (dropped or {}).items() for _ in range(n))]):
        scored = reason in ("", "ssim", "psnr")
        rows.append(
            {
                "sample_id": f"farm_p_{i:03d}",
                "row": -1 if reason else i,
                "region": "farm",
                "patch": "p",
                "tile": "t",
                "split": split,
                "target_date": dt.datetime(2020, 7, 1),
                "latest_date": dt.datetime(2020, 6, 28) if scored else pd.NaT,
                "n_frames": 4 if scored else 0,
                "lr_row": 0,
                "lr_col": i * 32,
                "ssim": 0.1 if reason == "ssim" else 0.9 if scored else np.nan,
                "psnr": 5.0 if reason == "psnr" else 32.0 if scored else np.nan,
                "mse": 1e-3 if scored else np.nan,
                "kept": not reason,
                "reason": reason,
                "geometry": box(i, 0, i + 1, 1),
            }
        )
    return gpd.GeoDataFrame(rows, columns=list(COLUMNS), crs="EPSG:4326")


def missed(verdict):
    return {check.name: check for check in verdict.checks if not check.success}


def test_a_good_set_passes(tmp_path):
    verdict = run_gate(samples(dropped={"cloud": 3, "ssim": 2}), CONFIG, "vhr", tmp_path)
    assert verdict.verdict == "pass" and not missed(verdict)
    assert verdict.counts == {
        "samples": 16,
        "kept": 11,
        "dropped": {"cloud": 3, "ssim": 2},
        "train": 6,
        "val": 2,
        "test": 3,
    }


@pytest.mark.parametrize(
    ("change", "name", "found"),
    [
        ({"test": 2}, "Kept test samples", "2"),
        ({"train": 0}, "Kept train samples", "0"),
        ({"dropped": {"cloud": 12}}, "Share dropped", "52%"),
    ],
)
def test_too_few_samples_fail(tmp_path, change, name, found):
    verdict = run_gate(samples(**change), CONFIG, "vhr", tmp_path)
    assert verdict.verdict == "fail"
    assert {key: check.found for key, check in missed(verdict).items()} == {name: found}


def test_broken_samples_fail_each_on_its_own_expectation(tmp_path):
    table = samples(train=10)
    for row, (column, value) in enumerate(
        {
            "sample_id": "farm_p_014",
            "row": 14,
            "ssim": 0.19,
            "psnr": 9.9,
            "n_frames": 1,
            "latest_date": pd.NaT,
            "geometry": box(9.5, 0, 10.5, 1),  # half on the first validation chip
        }.items()
    ):
        table.loc[row, column] = value
    verdict = run_gate(table, CONFIG, "vhr", tmp_path)
    assert verdict.verdict == "fail"
    assert {key: check.found for key, check in missed(verdict).items()} == {
        "Unique ids": "2 of 15 samples otherwise",
        "Unique rows": "2 of 15 samples otherwise, from 0 to 14",
        "SSIM": "1 of 15 samples otherwise, from 0.19 to 0.9",
        "PSNR": "1 of 15 samples otherwise, from 9.9 to 32",
        "Frames a sample": "1 of 15 samples otherwise, from 1 to 4",
        "Complete latest_date": "1 of 15 samples otherwise",
        "Ground shared between splits": "1",
    }
    assert missed(verdict)["SSIM"].samples == ("farm_p_002",)


def test_a_missing_column_fails(tmp_path):
    verdict = run_gate(samples().drop(columns="tile"), CONFIG, "vhr", tmp_path)
    assert verdict.verdict == "fail"
    assert set(missed(verdict)) == {"Columns", "Complete tile"}


def test_a_warning_does_not_decide(tmp_path):
    table = samples()
    table["n_frames"] = 3
    verdict = run_gate(table, CONFIG, "vhr", tmp_path)
    assert verdict.verdict == "pass"
    assert missed(verdict)["Full stacks of frames"].severity == "warning"


def test_an_empty_set_fails_on_its_counts(tmp_path):
    verdict = run_gate(samples(0, 0, 0, dropped={"ssim": 3}), CONFIG, "vhr", tmp_path)
    assert set(missed(verdict)) == {"Kept train samples", "Kept val samples", "Kept test samples", "Share dropped"}


@pytest.mark.parametrize(
    ("ssim", "psnr", "reason"),
    [(0.2, 10.0, ""), (0.19, 30.0, "ssim"), (0.9, 9.9, "psnr"), (float("nan"), float("nan"), "ssim")],
)
def test_samples_are_filtered_with_a_reason(ssim, psnr, reason):
    assert rejection(Scores(1e-3, psnr, ssim, (0, 0)), CONFIG) == reason


def test_what_is_written(tmp_path):
    table = samples(test=2, dropped={"ssim": 2, "psnr": 1, "cloud": 4})
    verdict = run_gate(table, CONFIG, "wald", tmp_path)
    written = json.loads((tmp_path / "gate.json").read_text())
    assert written["verdict"] == "fail" and written["counts"] == verdict.counts
    assert {"name", "expected", "found", "success", "severity"} <= set(written["expectations"][0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data_docs", "gate.html", "gate.json"]
    assert (tmp_path / "data_docs" / "index.html").is_file()


def test_the_page_is_self_contained_and_shows_thresholds_and_reasons(tmp_path):
    run_gate(samples(test=2, dropped={"ssim": 2, "cloud": 4}), CONFIG, "wald", tmp_path)
    text = (tmp_path / "gate.html").read_text()
    fetched = re.findall(r"""(?:src|href)=["']?([^"' >]+)|url\(([^)]+)\)|@import""", text)
    assert fetched == [("data_docs/index.html", "")]
    assert "<script" not in text and "prefers-color-scheme: dark" in text
    for part in ("failed", "least SSIM 0.2", "least PSNR 10 dB", "below the least SSIM", "1 of", "Wald"):
        assert part in text, part


def test_gating_again_gives_the_same_answer(tmp_path):
    run_gate(samples(), CONFIG, "vhr", tmp_path)
    first = {name: (tmp_path / name).read_bytes() for name in ("gate.json", "gate.html")}
    run_gate(samples(), CONFIG, "vhr", tmp_path)
    assert first == {name: (tmp_path / name).read_bytes() for name in first}
