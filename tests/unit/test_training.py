"""The training loop: it learns, it resumes, and it stops with a reason."""

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sr_core.config import TrainHRN
from sr_core.errors import ArtifactError, DataError
from sr_core.samples.dataset import BatchSampler
from sr_core.training import loop
from sr_core.training.loop import learning_rate, train
from sr_core.training.objective import Objective
from sr_core.training.stopping import LossWatch, StoppedBySignalError, noted_signals
from tests.sample_sets import PLACES, sample_set

REPOSITORY = Path(__file__).resolve().parents[2]
TIMES = ("seconds", "samples_per_s")


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


def batches(settings: TrainHRN, count: int = 6) -> BatchSampler:
    return BatchSampler(sample_set(count), PLACES, settings)


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def timeless(records: list[dict]) -> list[dict]:
    return [{name: value for name, value in record.items() if name not in TIMES} for record in records]


PRECISIONS = ("float32", "bfloat16")


def demanding(precision: str) -> TrainHRN:
    """With all that chance and a second network have a part in."""
    return settings(precision=precision, frame_choice="random", max_latest_age_days=5, registration="shiftnet")


def interrupted_program(folder: Path) -> None:
    """A process of its own, which SIGTERM reaches in the thirteenth step of each of two trainings."""
    torch.set_num_threads(1)

    class Signalling(BatchSampler):
        def batch(self, step):
            if step == 12:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().batch(step)

    for precision in PRECISIONS:
        chosen = demanding(precision)
        (folder / precision).mkdir()
        try:
            train(chosen, Signalling(sample_set(), PLACES, chosen), sample_set(3, seed=50), PLACES, folder / precision)
        except StoppedBySignalError as stop:
            status = stop.exit_status
    sys.exit(status)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("interrupted")
    program = f"import pathlib; from {__name__} import *; interrupted_program(pathlib.Path({str(folder)!r}))"
    assert subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY).returncode == 128 + signal.SIGTERM
    return folder


@pytest.mark.parametrize("precision", PRECISIONS)
def test_after_sigterm_training_goes_on_bit_for_bit_as_if_undisturbed(interrupted, tmp_path, precision):
    stopped, chosen = interrupted / precision, demanding(precision)
    assert torch.load(stopped / "checkpoint.pt")["step"] == 13  # neither validated nor logged
    assert [record["step"] for record in metrics(stopped)] == [8, 10]
    for folder in (stopped, tmp_path):
        train(chosen, batches(chosen), sample_set(3, seed=50), PLACES, folder)
    whole, resumed = (torch.load(folder / "checkpoint.pt") for folder in (tmp_path, stopped))
    for part in ("model", "objective", "average", "best"):
        for name, value in whole[part].items():
            assert torch.equal(value, resumed[part][name]), f"{part}.{name}"
    assert [record["step"] for record in metrics(stopped)] == [8, 10, 16, 20, 24]
    assert timeless(metrics(stopped)) == timeless(metrics(tmp_path))


def test_a_kill_costs_the_steps_since_the_last_checkpoint(tmp_path):
    class KilledError(Exception):
        pass

    def kill(record):
        if record["step"] == 20:
            raise KilledError

    validation = sample_set(3, seed=50)
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole = train(settings(), batches(settings()), validation, PLACES, tmp_path / "whole")
    with pytest.raises(KilledError):
        train(settings(), batches(settings()), validation, PLACES, tmp_path / "killed", kill)
    resumed = train(settings(), batches(settings()), validation, PLACES, tmp_path / "killed")
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert whole.scores == resumed.scores and whole.best_step == resumed.best_step
    assert timeless(metrics(tmp_path / "whole")) == timeless(metrics(tmp_path / "killed"))


def test_a_finished_training_only_reads_its_checkpoint(tmp_path):
    validation = sample_set(2, seed=50)
    eight = settings(steps=8)
    first = train(eight, batches(eight), validation, PLACES, tmp_path)
    again = train(eight, batches(eight), validation, PLACES, tmp_path)
    assert first.scores == again.scores
    assert not list(tmp_path.glob(".*"))
    (tmp_path / "checkpoint.pt").write_bytes(b"half a file")
    with pytest.raises(ArtifactError, match=r"checkpoint\.pt: cannot be read"):
        train(eight, batches(eight), validation, PLACES, tmp_path)


def test_one_sample_is_learnt_beyond_bicubic(tmp_path):
    one = sample_set(1, frames=4)
    many = settings(channels=16, steps=150, batch_size=4, validate_every=50, learning_rate=5e-3, registration="none")
    result = train(many, BatchSampler(one, PLACES, many), one, PLACES, tmp_path)
    assert result.scores["val_psnr"] > result.scores["val_psnr_bicubic"] + 1.5
    last = metrics(tmp_path)[-1]
    assert last["loss_pixel"] < metrics(tmp_path)[0]["loss_pixel"] and last["samples_per_s"] > 0


def test_training_stops_when_validation_gets_no_better(tmp_path):
    # nothing to learn: the truth of each sample is another sample's
    samples = sample_set(4)
    samples = replace(samples, hr=samples.hr.roll(1, 0))
    tired = settings(steps=400, validate_every=4, patience=3, learning_rate=1e-2, batch_size=4)
    result = train(tired, BatchSampler(samples, PLACES, tired), sample_set(3, seed=50), PLACES, tmp_path)
    last = metrics(tmp_path)[-1]["step"]
    assert last < 400 and last == result.best_step + 12
    assert train(tired, batches(tired), sample_set(3, seed=50), PLACES, tmp_path).best_step == result.best_step


def spoil(monkeypatch, begin: int, factor: float) -> None:
    """From its step `begin` on, the objective's losses are `factor` times what they are."""

    class Spoiled(Objective):
        calls = 0

        def forward(self, estimate, scene):
            losses, terms = super().forward(estimate, scene)
            self.calls += 1
            return losses * (factor if self.calls >= begin else 1.0), terms

    monkeypatch.setattr(loop, "Objective", Spoiled)


def test_a_loss_that_is_not_finite_names_step_and_samples(tmp_path, monkeypatch):
    spoil(monkeypatch, 3, math.nan)
    drawn = batches(settings())
    names = ", ".join(sorted(drawn.names(drawn.batch(2))))
    with pytest.raises(DataError, match=rf"loss nan.* at step 3, samples {names}: expected finite.*learning_rate"):
        train(settings(), drawn, sample_set(2), PLACES, tmp_path)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_a_loss_that_runs_away_says_what_to_lower(tmp_path, monkeypatch):
    spoil(monkeypatch, 30, 20.0)
    match = r"diverges at step 1\d\d, samples chip-\d.* expected below .*learning_rate \(now 0.001\) or .*clip_norm"
    long = settings(steps=200)
    with pytest.raises(DataError, match=match):
        train(long, batches(long), sample_set(2), PLACES, tmp_path)


def test_a_noisy_or_negative_loss_does_not_count_as_divergence():
    def diverges(losses):
        watch = LossWatch()
        return any(watch.follow(loss) for loss in losses)

    fall = [math.exp(-step / 100) for step in range(300)]
    assert not diverges(value * (1 + 0.9 * math.sin(step)) for step, value in enumerate(fall))
    assert not diverges(value - 1 for value in fall)
    assert not diverges([*fall, *[3.0] * 20, *fall])
    assert diverges([*fall, *[10.0] * 120])
    assert diverges([value - 1 for value in fall] + [10.0] * 120)


@pytest.mark.parametrize("real", [True, False])
def test_out_of_memory_says_what_to_lower(tmp_path, monkeypatch, real):
    def full(_):
        if real:
            return torch.empty(2**50)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(loop, "scene_of", full)
    expected = r"lower train_hrn\.batch_size \(now 2\) or .*crop_px \(now whole samples\) or .*channels \(now 8\)"
    with pytest.raises(DataError, match=expected):
        train(settings(), batches(settings()), sample_set(2).subset([]), PLACES, tmp_path)


def test_a_second_signal_ends_the_program():
    with noted_signals() as noted:
        signal.raise_signal(signal.SIGINT)
        assert noted == [signal.SIGINT]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_without_validation_samples_the_last_weights_win(tmp_path):
    ten = settings(steps=10)
    result = train(ten, batches(ten), sample_set(2).subset([]), PLACES, tmp_path)
    assert result.best_step == 10 and result.scores == {}


def test_a_compiled_network_learns_the_same_and_leaves_plain_weights(tmp_path, monkeypatch):
    compile_part = torch.nn.Module.compile
    # traced, but not given to a C++ compiler, which would take minutes
    monkeypatch.setattr(torch.nn.Module, "compile", lambda part: compile_part(part, backend="eager"))
    results = []
    for name, chosen in (("plain", settings(steps=10)), ("compiled", settings(steps=10, compile=True))):
        (tmp_path / name).mkdir()
        results.append(train(chosen, batches(chosen), sample_set(2, seed=50), PLACES, tmp_path / name))
    plain, compiled = (result.model.state_dict() for result in results)
    assert plain.keys() == compiled.keys() == torch.load(tmp_path / "compiled" / "checkpoint.pt")["model"].keys()
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=0, atol=1e-5)


def test_uncertainty_is_calibrated_on_validation_once(tmp_path):
    unsure = settings(uncertainty=True)
    validation = sample_set(3, seed=50)
    first, again = (train(unsure, batches(unsure), validation, PLACES, tmp_path) for _ in range(2))
    assert first.model.calibration.abs().min() > 0
    assert torch.equal(first.model.calibration, again.model.calibration)
    assert 0.3 < first.scores["coverage_50"] < 0.7 and first.scores["coverage_90"] > 0.7
    assert {"loss_pixel", "loss_laplace"} <= metrics(tmp_path)[0].keys()


def test_an_unknown_region_is_named(tmp_path):
    with pytest.raises(DataError, match="no statistics of region 'here'"):
        BatchSampler(sample_set(), {}, settings())
    with pytest.raises(DataError, match="no statistics of region 'here'"):
        train(settings(), batches(settings()), sample_set(2), {}, tmp_path)


def test_learning_rate_warms_up_and_falls():
    rates = [learning_rate(settings(steps=100, warmup_steps=10, learning_rate=1e-3), step) for step in range(1, 101)]
    assert rates[0] == pytest.approx(1e-4) and max(rates) == rates[9] == pytest.approx(1e-3)
    assert rates[10:] == sorted(rates[10:], reverse=True) and rates[-1] == pytest.approx(1e-5)
