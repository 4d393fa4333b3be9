"""Stages below an S3 root that are killed: what they had finished is in the bucket, and the next call goes on."""

import signal
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from components.stage import run
from components.super_resolve.main import STAGE as SUPER_RESOLVE
from components.train_hrn.main import STAGE as TRAIN
from components.unfinished import UNFINISHED, Unfinished
from sr_core.inference.products import DateWork
from sr_core.models.bundle import WEIGHTS
from sr_core.storage import Storage, storage_for
from tests.seaweed import BUCKET, S3Server, seaweed
from tests.stages import test_super_resolve as products
from tests.stages import test_train_evaluate as training

bundle, inputs = products.bundle, products.inputs
LONG_S = 90


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with seaweed(tmp_path_factory.mktemp("seaweed")) as running:
        yield running


@pytest.fixture
def store(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Storage:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    server.empty()
    return storage_for(f"s3://{BUCKET}/run")


def kept(store: Storage, ending: str) -> set[str]:
    return {name for name in store.names(UNFINISHED) if name.endswith(ending)}


def ended_by(number: int, stage: Any, settings: Any, store: Storage, far_enough: Any) -> int | None:
    """Run a stage in a process of its own until it is far enough, then send it a signal; its exit code."""
    process = get_context("spawn").Process(target=run, args=(stage, settings, store.uri))
    process.start()
    deadline = time.monotonic() + LONG_S
    while process.is_alive() and not far_enough() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.is_alive() and process.pid is not None
    (process.kill if number == signal.SIGKILL else process.terminate)()
    process.join(LONG_S)
    return process.exitcode


def test_windows_of_a_date_outlive_a_kill(
    store: Storage, inputs: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = products.config(bundle=bundle, max_dates=2, window_px=16, threads=1)
    for name in ("patches", "masks"):
        store.upload(inputs / name, name, last="run.json")

    def windows() -> set[str]:
        """Of the second date, once the first is there whole."""
        made = {name.split("/")[-2] for name in kept(store, "item.json")}
        of_date = {
            name: name.split("/")[-3].removeprefix(".").removesuffix(".windows") for name in kept(store, "tally.json")
        }
        return {name for name, date in of_date.items() if made and date not in made}

    ended_by(signal.SIGKILL, SUPER_RESOLVE, settings, store, lambda: len(windows()) >= 3)
    assert store.read("products/run.json") is None
    finished = windows()

    estimated = []
    estimate = DateWork.estimate

    def counted(work: DateWork, window: Any, data: Any) -> Any:
        estimated.append(window)
        return estimate(work, window, data)

    monkeypatch.setattr(DateWork, "estimate", counted)
    record = run(SUPER_RESOLVE, settings, store.uri)
    assert record["counts"] == {"regions": 1, "products": 2, "of_them_kept": 1}
    assert 0 < len(estimated) <= 4 * 8 - len(finished)
    assert not list(store.names(UNFINISHED))

    local = tmp_path / "local"
    for name in ("patches", "masks"):
        store.download(name, local / name)
    run(SUPER_RESOLVE, settings, str(local))
    store.download("products", tmp_path / "products")
    assert products.contents(tmp_path / "products") == {
        name: content for name, content in products.contents(local / "products").items() if name != ".key"
    }


def test_a_training_that_is_told_to_stop_leaves_its_checkpoint_in_the_bucket(store: Storage, tmp_path: Path) -> None:
    settings = training.config(steps=400, validate_every=20)
    training.write_inputs(tmp_path / "inputs")
    for name in ("samples", "normalization"):
        store.upload(tmp_path / "inputs" / name, name, last="run.json")
    code = ended_by(signal.SIGTERM, TRAIN, settings, store, lambda: bool(kept(store, "checkpoint.pt")))
    assert code not in (0, None) and store.read("model/run.json") is None
    (checkpoint,) = kept(store, "checkpoint.pt")
    store.fetch(checkpoint, tmp_path / "checkpoint.pt")
    step = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"]
    assert 20 <= step < 400

    run(TRAIN, settings, store.uri)
    assert not list(store.names(UNFINISHED))
    run(TRAIN, settings, str(tmp_path / "inputs"))
    store.fetch(f"model/{WEIGHTS}", tmp_path / WEIGHTS)
    again, undisturbed = (safetensors.torch.load_file(at / WEIGHTS) for at in (tmp_path, tmp_path / "inputs" / "model"))
    assert all(torch.equal(again[name], undisturbed[name]) for name in undisturbed)


def test_a_bucket_that_fails_ends_no_work(store: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "checkpoint.pt").write_bytes(b"weights")
    nowhere = Unfinished(storage_for("s3://no-such-bucket/run"), tmp_path / "model", "model", "key")
    nowhere.save(tmp_path / "model" / "checkpoint.pt")
    nowhere.discard(tmp_path / "model")
    said = capsys.readouterr().err
    assert "not kept for a restart" in said and "the bucket does not exist" in said
