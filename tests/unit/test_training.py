"""The training loop: it learns, it resumes, and it stops with a reason."""

import json

import pytest
import torch

from sr_core.config import TrainHRN
from sr_core.errors import ArtifactError, DataError
from sr_core.training import loop
from sr_core.training.loop import learning_rate, train
from tests.sample_sets import PLACES, sample_set


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def settings(**changes) -> TrainHRN:
    small = {"channels": 8, "residual_blocks": 1, "steps": 24, "batch_size": 2, "crop_px": None}
    small |= {"validate_every": 8, "warmup_steps": 4, "precision": "float32", "registration_px": 0.5}
    return TrainHRN(**(small | changes))


class StoppedError(Exception):
    """What a kill is to a test."""


def test_a_resumed_training_equals_an_undisturbed_one_bit_for_bit(tmp_path):
    samples, validation = sample_set(6), sample_set(3, seed=50)
    (tmp_path / "whole").mkdir()
    (tmp_path / "stopped").mkdir()
    whole = train(settings(), samples, validation, PLACES, tmp_path / "whole")

    def stop(record):
        if record["step"] == 20:
            raise StoppedError

    with pytest.raises(StoppedError):
        train(settings(), samples, validation, PLACES, tmp_path / "stopped", stop)
    resumed = train(settings(), samples, validation, PLACES, tmp_path / "stopped")
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert whole.scores == resumed.scores and whole.best_step == resumed.best_step
    lines = [(tmp_path / name / "history.jsonl").read_text().splitlines() for name in ("whole", "stopped")]
    whole_history, resumed_history = ([json.loads(line) for line in part] for part in lines)
    assert [record["step"] for record in resumed_history] == [8, 10, 16, 20, 24]
    for one, other in zip(whole_history, resumed_history, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_a_finished_training_only_reads_its_checkpoint(tmp_path):
    samples, validation = sample_set(4), sample_set(2, seed=50)
    first = train(settings(steps=8), samples, validation, PLACES, tmp_path)
    again = train(settings(steps=8), samples, validation, PLACES, tmp_path)
    assert first.scores == again.scores
    assert not list(tmp_path.glob(".*"))
    (tmp_path / "checkpoint.pt").write_bytes(b"half a file")
    with pytest.raises(ArtifactError, match=r"checkpoint\.pt: cannot be read"):
        train(settings(steps=8), samples, validation, PLACES, tmp_path)


def test_one_sample_is_learnt_beyond_bicubic(tmp_path):
    one = sample_set(1, frames=4)
    many = settings(channels=16, steps=150, batch_size=4, validate_every=50, learning_rate=5e-3, registration="none")
    result = train(many, one, one, PLACES, tmp_path)
    assert result.scores["val_psnr"] > result.scores["val_psnr_bicubic"] + 1.5


def test_a_loss_that_is_not_finite_names_the_samples(tmp_path, monkeypatch):
    samples = sample_set(3)

    def spoiled(sr, hr, clear, registration, kind, bias_removed):
        return sr.mean(dim=(1, 2, 3)) * (torch.nan if kind == "l1" else 1.0)

    monkeypatch.setattr(loop, "registered_error", spoiled)
    with pytest.raises(DataError, match=r"loss nan.* at step 1, samples chip-\d, chip-\d: expected finite"):
        train(settings(), samples, sample_set(2), PLACES, tmp_path)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_out_of_memory_says_what_to_lower(tmp_path, monkeypatch):
    def full(*_):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory")

    monkeypatch.setattr(loop.Judge, "loss", full)
    with pytest.raises(DataError, match=r"train_hrn\.batch_size = 2; lower it"):
        train(settings(), sample_set(3), sample_set(2), PLACES, tmp_path)


def test_without_validation_samples_the_last_weights_win(tmp_path):
    result = train(settings(steps=10), sample_set(3), sample_set(2).subset([]), PLACES, tmp_path)
    assert result.best_step == 10 and result.scores == {}


def test_an_unknown_region_is_named(tmp_path):
    with pytest.raises(DataError, match="no statistics of region 'here'"):
        train(settings(), sample_set(3), sample_set(2), {}, tmp_path)


def test_learning_rate_warms_up_and_falls():
    rates = [learning_rate(settings(steps=100, warmup_steps=10, learning_rate=1e-3), step) for step in range(1, 101)]
    assert rates[0] == pytest.approx(1e-4) and max(rates) == rates[9] == pytest.approx(1e-3)
    assert rates[10:] == sorted(rates[10:], reverse=True) and rates[-1] == pytest.approx(1e-5)
