"""The gate: which sets pass, which fail, and that each failure says what was expected and found."""

import datetime as dt
import json
import re
from dataclasses import replace

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
from shapely.geometry import box

from sr_core.config import QualityGate
from sr_core.quality import gate
from sr_core.quality.selection import select
from sr_core.samples.store import COLUMNS


def run_gate(table, config, pairing, folder, damage=lambda table: table):
    """The gate on what the selection makes of the candidates, `damage`d on the way."""
    selection = select(table, config)
    return gate.run_gate(replace(selection, table=damage(selection.table)), config, pairing, folder)


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
                **{f"bias_{band}": 0.01 if scored else np.nan for band in ("blue", "green", "red", "nir")},
                "land": "varied" if scored else "",
                "cluster": -1,
                "kept": not reason,
                "reason": reason,
                "geometry": box(i, 0, i + 1, 1),
            }
        )
    table = gpd.GeoDataFrame(rows, columns=list(COLUMNS), crs="EPSG:4326")
    return table.astype(dict.fromkeys(("target_date", "latest_date"), "datetime64[us]"))


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
    def damage(table):
        for row, (column, value) in enumerate(
            {
                "sample_id": "farm_p_014",
                "row": 14,
                "ssim": 0.19,
                "psnr": 9.9,
                "n_frames": 1,
                "latest_date": pd.NaT,
                "geometry": box(11.5, 0, 12.5, 1),  # half on the first validation chip
                "mse": -1.0,
                "land": "moon",
                "reason": "mood",
                "target_date": dt.datetime(2020, 6, 27),
            }.items()
        ):
            table.loc[row, column] = value
        return table

    verdict = run_gate(samples(train=12), CONFIG, "vhr", tmp_path, damage)
    assert verdict.verdict == "fail"
    assert {key: check.found for key, check in missed(verdict).items()} == {
        "Unique ids": "2 of 17 candidates otherwise",
        "Reasons": "1 of 17 candidates otherwise",
        "Unique rows": "2 of 17 samples otherwise, from 0 to 16",
        "SSIM": "1 of 17 samples otherwise, from 0.19 to 0.9",
        "PSNR": "1 of 17 samples otherwise, from 9.9 to 32",
        "MSE": "1 of 17 samples otherwise, from -1 to 0.001",
        "Land": "1 of 17 samples otherwise",
        "Frames a sample": "1 of 17 samples otherwise, from 1 to 4",
        "Frames come first": "1 of 17 samples otherwise",
        "Complete latest_date": "1 of 17 samples otherwise",
        "Ground shared between splits": "1",
        "Rows of the store": "1",
    }
    assert missed(verdict)["SSIM"].samples == ("farm_p_002",)


def test_everything_unexpected_is_kept_in_a_file(tmp_path):
    def damage(table):
        return table.assign(psnr=np.where(np.arange(len(table)) < 25, 9.0, table["psnr"]))

    verdict = run_gate(samples(train=40), CONFIG, "vhr", tmp_path, damage)
    assert len(missed(verdict)["PSNR"].samples) == 10
    unexpected = pd.read_parquet(tmp_path / "unexpected.parquet")
    assert unexpected["check"].unique().tolist() == ["PSNR"] and set(unexpected["severity"]) == {"critical"}
    assert unexpected["name"].tolist() == [f"farm_p_{n:03d}" for n in range(25)]
    run_gate(samples(), CONFIG, "vhr", tmp_path)
    assert pd.read_parquet(tmp_path / "unexpected.parquet").empty


def test_a_row_missing_from_the_store_fails(tmp_path):
    verdict = run_gate(samples(), CONFIG, "vhr", tmp_path, lambda table: table[table["row"] != 4])
    assert missed(verdict)["Rows of the store"].found == "6"


def test_a_wrong_type_fails(tmp_path):
    verdict = run_gate(samples(), CONFIG, "vhr", tmp_path, lambda table: table.astype({"psnr": np.float32}))
    assert {name: check.found for name, check in missed(verdict).items()} == {"Type of psnr": "float32"}


def test_a_missing_column_fails(tmp_path):
    verdict = run_gate(samples(), CONFIG, "vhr", tmp_path, lambda table: table.drop(columns="latest_date"))
    assert verdict.verdict == "fail"
    assert set(missed(verdict)) == {"Columns", "Type of latest_date", "Complete latest_date", "Frames come first"}
    assert missed(verdict)["Complete latest_date"].found == "no such column"


def test_a_warning_does_not_decide(tmp_path):
    table = samples()
    table["n_frames"] = 3
    verdict = run_gate(table, CONFIG, "vhr", tmp_path)
    assert verdict.verdict == "pass"
    assert missed(verdict)["Full stacks of frames"].severity == "warning"


def test_a_tile_that_drifts_from_sentinel_2_is_named(tmp_path):
    table = samples(train=10)
    table.loc[5:9, "tile"] = "t9"
    table.loc[5:8, "bias_red"] = -0.06
    verdict = run_gate(table, CONFIG, "vhr", tmp_path)
    assert verdict.verdict == "pass"
    check = missed(verdict)["Radiometry of tiles"]
    assert (check.severity, check.samples) == ("warning", ("t9",))
    assert check.found == "1 of 2 tiles otherwise, from 0.01 to 0.06"


def test_an_empty_set_fails_on_its_counts(tmp_path):
    verdict = run_gate(samples(0, 0, 0, dropped={"ssim": 3}), CONFIG, "vhr", tmp_path)
    assert set(missed(verdict)) == {"Kept train samples", "Kept val samples", "Kept test samples", "Share dropped"}


def test_what_is_written(tmp_path):
    table = samples(test=2, dropped={"ssim": 2, "psnr": 1, "cloud": 4})
    verdict = run_gate(table, CONFIG, "wald", tmp_path)
    written = json.loads((tmp_path / "gate.json").read_text())
    assert written["verdict"] == "fail" and written["counts"] == verdict.counts
    assert {"name", "expected", "found", "success", "severity"} <= set(written["expectations"][0])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "data_docs", "gate.html", "gate.json", "unexpected.parquet",
    ]  # fmt: skip
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
