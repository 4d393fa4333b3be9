"""A whole run with all its artifacts in S3."""

import json
import os

import pytest

from components.stage import FOLDERS
from sr_core.storage import storage_for
from tests.seaweed import BUCKET, seaweed
from tests.stages.test_run import subpixel
from tests.stages.tiny import write_config

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def test_a_run_leaves_all_it_makes_in_s3_and_is_kept_there(tmp_path, monkeypatch):
    config, root = write_config(tmp_path), f"s3://{BUCKET}/tiny"
    (tmp_path / "s3").mkdir()
    with seaweed(tmp_path / "s3") as s3:
        for name, value in s3.environment.items():
            monkeypatch.setenv(name, value)
        first = subpixel("run", config, "--out", root, env=dict(os.environ))
        assert first.returncode == 0, first.stderr
        store = storage_for(root)
        names = set(store.names())
        assert {f"{folder}/run.json" for folder in FOLDERS.values()} <= names
        assert {"report.html", "metrics.json", "model/model.safetensors"} <= names
        assert json.loads(store.read("metrics.json") or b"")["evaluation"]["test"]["n_samples"] > 0
        second = subpixel("run", config, "--out", root, env=dict(os.environ))
        assert second.returncode == 0
        assert all(f"{stage}: kept" in second.stderr for stage in FOLDERS)


def test_a_run_that_fails_leaves_its_summary_in_s3(tmp_path, monkeypatch):
    config, root = write_config(tmp_path), f"s3://{BUCKET}/failed"
    config.write_text(config.read_text().replace("end: 2020-06-30", "end: 2020-05-02"))
    (tmp_path / "s3").mkdir()
    with seaweed(tmp_path / "s3") as s3:
        for name, value in s3.environment.items():
            monkeypatch.setenv(name, value)
        done = subpixel("run", config, "--out", root, env=dict(os.environ))
        assert done.returncode == 1 and "stopped: stage download" in done.stderr
        assert b"</html>" in (storage_for(root).read("report.html") or b"")
