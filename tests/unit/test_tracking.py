"""Weights & Biases: files without a key, and no trouble for the training."""

import numpy as np
import pytest

from components.train_hrn.main import tracking_mode
from sr_core.training.tracking import Tracker

CONFIG = {"steps": 3, "git_commit": "f00", "versions": {"subpixel": "1.0"}}


def track(mode, folder):
    return Tracker(mode, folder, project="p", run_id="abc", name="n", config=CONFIG)


def drawn():
    return np.zeros((8, 8, 3), np.uint8)


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    for variable in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / "wandb-home"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    (tmp_path / "model.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    return tmp_path


def test_a_run_continues_under_its_own_id(bundle, capsys):
    for step in (1, 2):
        with track("offline", bundle) as tracker:
            assert tracker.run.id == "abc"
            tracker.log({"step": step, "loss": 0.5})
            tracker.picture("validation", drawn, "chip", step)
            tracker.bundle(bundle, {"val_psnr": 39.0})
            assert tracker.run is not None
    assert list((bundle / "wandb").glob("offline-run-*-abc/run-abc.wandb"))
    assert "W&B" not in capsys.readouterr().err


def test_the_model_artifact_says_how_good_it_is_and_which_code_made_it(bundle, monkeypatch):
    with track("offline", bundle) as tracker:
        artifacts = []
        monkeypatch.setattr(tracker.run, "log_artifact", artifacts.append)
        tracker.bundle(bundle, {"val_psnr": 39.0})
        assert tracker.run.config["git_commit"] == "f00"
    (artifact,) = artifacts
    assert artifact.type == "model" and set(artifact.manifest.entries) == {"model.json", "model.safetensors"}
    assert artifact.metadata == {"val_psnr": 39.0, "git_commit": "f00", "versions": {"subpixel": "1.0"}}


def test_a_key_means_online_none_means_files(monkeypatch):
    for variable in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(variable, raising=False)
    assert tracking_mode() == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "key")
    assert tracking_mode() == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert tracking_mode() == "disabled"


def test_disabled_leaves_nothing(bundle):
    with track("disabled", bundle) as tracker:
        tracker.log({"step": 1, "loss": 0.5})
        tracker.picture("validation", lambda: pytest.fail("drawn for nobody"), "chip", 1)
    assert not (bundle / "wandb").exists()


def test_trouble_is_said_and_does_not_stop_training(bundle, capsys):
    with track("online", bundle) as tracker:
        assert tracker.run is None
        tracker.log({"step": 1, "loss": 0.5})
    assert "training goes on without it" in capsys.readouterr().err
    with track("offline", bundle) as tracker:
        tracker.bundle(bundle / "missing", {})
        tracker.log({"step": 1, "loss": 0.5})
    assert "training goes on without it" in capsys.readouterr().err
    with track("offline", bundle) as tracker:
        tracker.picture("validation", lambda: np.zeros((0, 0))[1], "cannot be drawn", 1)
        assert tracker.run is None
