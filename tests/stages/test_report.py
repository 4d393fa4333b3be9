"""The report stage: it takes what has finished below the root, and writes the page there."""

import json
from pathlib import Path

import pytest

from components.report.main import STAGE
from components.stage import main
from sr_core.storage import storage_for
from tests.fabricated_run import configuration, fabricate
from tests.seaweed import BUCKET, seaweed


def run(root: Path | str, config) -> int:
    return main(STAGE, ["--config", config.model_dump_json(), "--root", str(root)])


def test_page_and_numbers_lie_at_the_root_and_nothing_half_written_beside_them(tmp_path):
    config = configuration()
    fabricate(tmp_path, config)
    assert run(tmp_path, config) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["evaluation"]["test"]["n_samples"] == 72
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {
        "report.html",
        "metrics.json",
        ".report.lock",
    }
    record = json.loads((tmp_path / "report" / "run.json").read_text())
    assert record["counts"] == {"stages_done": 10}
    assert record["metrics"]["psnr_sr"] == metrics["evaluation"]["test"]["psnr"]["sr"]


def test_report_follows_the_run(tmp_path):
    config = configuration()
    fabricate(tmp_path, config, ["download"])
    assert run(tmp_path, config) == 0
    assert "Clouds and shadows did not run" in (tmp_path / "report.html").read_text()
    fabricate(tmp_path, config, ["cloud_shadow_filter"])
    assert run(tmp_path, config) == 0
    assert "Clouds and shadows did not run" not in (tmp_path / "report.html").read_text()
    written = (tmp_path / "report.html").stat().st_mtime_ns
    assert run(tmp_path, config) == 0, "nothing has changed"
    assert (tmp_path / "report.html").stat().st_mtime_ns == written


def test_report_of_an_empty_root(tmp_path):
    assert run(tmp_path, configuration()) == 0
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"timings_s": {}}


def test_damaged_artifact_stops_the_stage_and_is_named(tmp_path, capsys):
    config = configuration()
    folders = fabricate(tmp_path, config)
    (folders["evaluate"] / "gallery" / "0-sr.png").write_bytes(b"no picture")
    assert run(tmp_path, config) == 1
    assert "0-sr.png: expected a picture" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


def test_page_of_a_run_in_s3_lies_at_its_root(tmp_path, monkeypatch: pytest.MonkeyPatch):
    config = configuration()
    folders = fabricate(tmp_path / "run", config)
    with seaweed(tmp_path / "seaweed") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        root = f"s3://{BUCKET}/run"
        store = storage_for(root)
        for folder in folders.values():
            store.upload(folder, folder.name, last="run.json")
        assert run(root, config) == 0
        page, metrics = store.read("report.html"), store.read("metrics.json")
    assert page is not None and b'href="samples/gate.html"' in page
    assert metrics is not None and json.loads(metrics)["evaluation"]["test"]["n_samples"] == 72
