"""`subpixel serve` and `predict` as programs; a model that is replaced, and a server that is ended, under load."""

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pytest
import rasterio

from serving.local import find_java
from sr_core.errors import ArtifactError, ServiceError
from sr_core.models.bundle import load_bundle
from sr_core.models.normalization import Normalization
from subpixel.client import Client
from subpixel.service import archive_of
from tests.conftest import REPOSITORY
from tests.served import Program, serving, stack, write_archive, write_bundle
from tests.servers.balancer import balance

SAMPLES = REPOSITORY / "examples" / "requests"

pytestmark = pytest.mark.skipif(find_java() is None, reason="java not found: TorchServe cannot run")


def gone(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=20)[1]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two versions of a model, which answer differently."""
    folder = tmp_path_factory.mktemp("bundles")
    return [write_bundle(folder / f"{seed}", seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def archives(bundles: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("archives")
    return [write_archive(bundle, folder / bundle.name, f"{bundle.name}.0") for bundle in bundles]


@pytest.fixture(scope="module")
def server(archives: list[Path]) -> Iterator[Program]:
    with serving(archives[0]) as running:
        yield running


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "subpixel.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=120)


def test_predict_files(server: Program, bundles: list[Path], tmp_path: Path) -> None:
    """The frames are found to be named by their dates: given in any order, the latest is super-resolved."""
    paths = sorted(SAMPLES.glob("*.tif"))
    assert len(paths) == 8
    out = tmp_path / "made" / "sr.tif"

    done = run("predict", *map(str, paths), "--out", str(out), "--server", server.url, "--model", "small")

    assert done.returncode == 0, done.stderr
    frames = np.stack([rasterio.open(path).read() for path in reversed(paths)])
    clear = frames.any(axis=1)
    expected = load_bundle(bundles[0]).predict(frames, clear, Normalization.from_series(frames, clear)) * 10_000
    with rasterio.open(out) as made, rasterio.open(paths[-1]) as latest:
        assert np.abs(made.read() - np.clip(expected, 1, 65535)).max() <= 2
        assert made.crs == latest.crs and made.res == (2.5, 2.5)
        assert np.allclose(made.bounds, latest.bounds)
        assert made.descriptions == ("blue", "green", "red", "nir")
        assert "Contains modified Copernicus Sentinel data 2024" in str(made.tags())
    assert [path.name for path in out.parent.iterdir()] == ["sr.tif"]


def test_predict_says_what_is_wrong(server: Program, tmp_path: Path) -> None:
    (tmp_path / "sr.tif").write_bytes(b"earlier")
    for frames, sentence in (
        ([str(SAMPLES / "render.py")], "small: 4.*GeoTIFF"),
        (["nowhere.tif"], r"nowhere.tif: cannot be read: No such file"),
        (["s3://bucket/a.tif"], "expected all in S3, or all on this machine"),
    ):
        done = run("predict", *frames, "--out", str(tmp_path / "sr.tif"), "--server", server.url, "--model", "small")
        assert done.returncode == 1
        assert re.search(sentence, done.stderr), done.stderr
        assert "Traceback" not in done.stderr
    assert (tmp_path / "sr.tif").read_bytes() == b"earlier"


def test_uncertainty_and_consistency_come_as_arrays(server: Program, tmp_path: Path) -> None:
    paths = [str(path) for path in SAMPLES.glob("*.tif")]
    options = ["--server", server.url, "--model", "small", "--uncertainty", "--consistency"]
    done = run("predict", *paths, "--out", str(tmp_path / "sr.npz"), *options)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "sr.npz") as arrays:
        assert {name: arrays[name].shape for name in ("sr", "uncertainty", "consistency")} == {
            "sr": (4, 192, 192),
            "uncertainty": (4, 192, 192),
            "consistency": (4, 48, 48),
        }
        assert (arrays["consistency"] < 1000).mean() > 0.9


def test_an_archive_is_built_once_for_a_bundle(
    bundles: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Path] = []

    def build(bundle: Path, place: Path, model: str, version: str) -> None:
        built.append(bundle)
        place.mkdir(parents=True)
        for name in (f"{model}.mar", "archive.json"):
            (place / name).write_bytes(bundle.name.encode())

    monkeypatch.setattr("subpixel.service.build_archive", build)
    asked = [bundles[0], bundles[1], bundles[0]]
    assert [archive_of(bundle, "small", tmp_path).read_bytes() for bundle in asked] == [b"0", b"1", b"0"]
    assert built == bundles
    with pytest.raises(ArtifactError, match=r"model.safetensors: missing; expected a model bundle"):
        archive_of(tmp_path, "small", tmp_path)


def test_a_port_that_is_taken(server: Program, archives: list[Path]) -> None:
    done = run("serve", "--archive", str(archives[0]), "--port", str(server.port))
    assert done.returncode == 1
    assert str(server.port) in done.stderr and "Traceback" not in done.stderr


def test_ctrl_c_ends_it_with_all_its_processes(archives: list[Path]) -> None:
    with serving(archives[0]) as running:
        processes = running.processes()
        assert len(processes) >= 3, "expected the program, Java, and a worker"
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(30) == 0
        assert gone(processes)


@dataclass
class Load:
    """Requests one after the other from several threads, until they are told to stop."""

    url: str
    retries: int
    keep: bool
    """Whether a thread keeps its connection; else every request has its own."""
    answers: list[int] = field(default_factory=list)
    """The version that each answer is of."""
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self, threads: int, expected: list[np.ndarray]) -> None:
        frames = stack(seed=5)[0]
        shared = Client(self.url, "small", retries=self.retries)

        def ask() -> None:
            while not self._stop.is_set():
                client = shared if self.keep else Client(self.url, "small", retries=self.retries)
                try:
                    sr = client.predict(frames).sr
                except ServiceError as error:
                    self.failures.append(str(error))
                    continue
                self.answers.append(next((n for n, image in enumerate(expected) if (sr == image).all()), -1))

        self._threads = [threading.Thread(target=ask) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, more: int) -> None:
        """Until so many more answers have come."""
        goal, deadline = len(self.answers) + more, time.monotonic() + 120
        while len(self.answers) < goal and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(self.answers) >= goal, self.failures[-3:]


def alone(program: Program) -> np.ndarray:
    return Client(program.url, "small").predict(stack(seed=5)[0]).sr


@pytest.mark.e2e
def test_a_model_is_replaced_under_load_and_no_request_fails(archives: list[Path]) -> None:
    """A rolling update: the new server is ready, new connections go there, the old one ends what it has begun."""
    with serving(archives[0]) as old, serving(archives[1]) as new, balance(old.port) as service:
        expected = [alone(old), alone(new)]
        assert (expected[0] != expected[1]).any()
        # without a kept connection nothing needs to be sent twice; with one, the client asks again when it breaks
        loads = [Load(service.url, retries=0, keep=False), Load(service.url, retries=6, keep=True)]
        for load in loads:
            load.start(4, expected)
        try:
            loads[0].wait_for(10)
            service.ready = [old.port, new.port]
            loads[0].wait_for(10)
            service.ready = [new.port]
            old.process.terminate()
            assert old.process.wait(90) == 0
            for load in loads:
                load.wait_for(10)
        finally:
            for load in loads:
                load.stop()
    for load in loads:
        assert not load.failures
        assert set(load.answers) == {0, 1}, "expected answers of both versions, and none of a mixture"
        assert load.answers[-1] == 1


def test_what_a_server_has_begun_it_ends(archives: list[Path]) -> None:
    """SIGTERM while many requests wait: each that the server took is answered, then it is gone with its processes."""
    frames = stack(rows=120, columns=120, seed=3)[0]
    with serving(archives[0]) as running:
        processes = running.processes()
        client = Client(running.url, "small", retries=0)
        answers: list[np.ndarray | str] = []

        def ask() -> None:
            try:
                answers.append(client.predict(frames).sr)
            except ServiceError as error:
                answers.append(str(error))

        threads = [threading.Thread(target=ask) for _ in range(12)]
        for thread in threads:
            thread.start()
        taken = time.monotonic() + 60
        while not answers and time.monotonic() < taken:
            time.sleep(0.01)
        assert len(answers) < len(threads), "expected requests that still wait"
        running.process.terminate()
        for thread in threads:
            thread.join()
        assert [answer for answer in answers if isinstance(answer, str)] == []
        assert len(answers) == len(threads)
        assert running.process.wait(60) == 0
        assert gone(processes)


def test_the_samples_are_rendered_by_their_program(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(SAMPLES / "render.py"), str(tmp_path)], check=True)
    made = sorted(tmp_path.glob("*.tif"))
    assert [path.name for path in made] == [path.name for path in sorted(SAMPLES.glob("*.tif"))]
    for path in made:
        with rasterio.open(path) as one, rasterio.open(SAMPLES / path.name) as other:
            assert one.profile == other.profile and one.tags() == other.tags()
            # rendered with floating-point arithmetic, which another processor may round otherwise
            np.testing.assert_allclose(one.read(), other.read(), atol=2)
