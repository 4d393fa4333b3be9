"""The packaged archive behind a real TorchServe."""

import io
import json
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import torch

from components.package.main import STAGE
from components.stage import run
from serving import core
from serving.archive import build_archive, digest
from serving.local import Server, find_java, serve
from sr_core.config import parse_config
from sr_core.errors import ArtifactError
from sr_core.models.bundle import load_bundle, save_bundle
from sr_core.models.highresnet import HighResNet
from sr_core.models.normalization import Normalization

FRAMES = 4


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network that changes every pixel."""
    torch.manual_seed(0)
    network = HighResNet(channels=8, residual_blocks=1)
    torch.nn.init.normal_(network.project.weight, std=0.02)
    folder = tmp_path_factory.mktemp("bundle") / "model"
    save_bundle(folder, network, {"frames": FRAMES, "normalization": {}, "lineage": {}, "scores": {}})
    return folder


@pytest.fixture(scope="module")
def archive(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("archive")
    build_archive(bundle, output, "small", "1.2")
    return output / "small.mar"


@pytest.fixture(scope="module")
def server(archive: Path) -> Iterator[Server]:
    if find_java() is None:
        pytest.skip("java not found: TorchServe cannot run")
    with serve(archive) as running:
        processes = {running.pid, *children(running.pid)}
        assert len(processes) > 1
        yield running
    assert not {pid for pid in processes if Path(f"/proc/{pid}").exists()}, "processes are left behind"
    assert not running.logs.exists()


def stack(frames: int = FRAMES, rows: int = 30, columns: int = 41) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(frames)
    return (
        rng.integers(300, 3500, (frames, 4, rows, columns), dtype=np.uint16),
        rng.random((frames, rows, columns)) > 0.2,
    )


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def post(server: Server, body: bytes) -> requests.Response:
    return requests.post(server.url, data=body, headers={"Content-Type": "application/octet-stream"}, timeout=60)


def test_the_archive_holds_all_it_needs_and_nothing_else(archive: Path) -> None:
    with zipfile.ZipFile(archive) as packed:
        assert sorted(packed.namelist()) == [
            "MAR-INF/MANIFEST.json",
            "core.py",
            "handler.py",
            "model-config.yaml",
            "model.json",
            "program.pt2",
            "sample.npz",
        ]
        manifest = json.loads(packed.read("MAR-INF/MANIFEST.json"))
    assert manifest["model"]["modelVersion"] == "1.2"
    described = json.loads((archive.parent / "archive.json").read_text())
    assert described["sha256"] == digest(archive)
    assert described["bytes"] == archive.stat().st_size
    assert described["input"]["frames"] == FRAMES


@pytest.mark.parametrize("frames", [1, 3, FRAMES, 6])
def test_the_service_answers_what_the_bundle_does(server: Server, bundle: Path, frames: int) -> None:
    images, clear = stack(frames)
    clear[:, 5, 6] = False  # never seen
    images[0, :, 7, 8] = 0  # no data in the latest frame
    normalization = Normalization((0.08, 0.1, 0.12, 0.3), (0.05, 0.06, 0.07, 0.1))

    answer = post(
        server, npz(frames=images, clear=clear, mean=np.array(normalization.mean), std=np.array(normalization.std))
    )

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/x-npz"
    sr = np.load(io.BytesIO(answer.content), allow_pickle=False)["sr"]
    assert sr.dtype == np.uint16
    used = clear & images.any(axis=1)
    known = (used[:FRAMES].any(axis=0) & images[0].any(axis=0)).repeat(4, axis=0).repeat(4, axis=1)
    expected = load_bundle(bundle).predict(images, used, normalization) * 10_000
    assert np.abs(sr.astype(float) - np.clip(expected, 1, 65535))[:, known].max() <= 2
    assert not sr[:, ~known].any()
    assert not sr[:, 20:24, 24:28].any()


def test_the_request_s_own_statistics_are_the_default(server: Server, bundle: Path) -> None:
    images, clear = stack()
    sr = np.load(io.BytesIO(post(server, npz(frames=images, clear=clear)).content))["sr"]
    expected = load_bundle(bundle).predict(images, clear, Normalization.from_series(images, clear)) * 10_000
    known = sr.all(axis=0)
    assert known.mean() > 0.99
    assert np.abs(sr - np.clip(expected, 1, 65535))[:, known].max() <= 2


def test_displaced_frames_are_aligned(server: Server, bundle: Path) -> None:
    images, clear = stack()
    shifts = np.random.default_rng(5).normal(0, 0.3, (len(images), 2))
    normalization = Normalization.from_series(images, clear)
    sr = np.load(io.BytesIO(post(server, npz(frames=images, clear=clear, shifts=shifts)).content))["sr"]
    resolver = load_bundle(bundle)
    expected = resolver.predict(images, clear, normalization, shifts=shifts.astype(np.float32)) * 10_000
    known = sr.all(axis=0)
    assert np.abs(sr - np.clip(expected, 1, 65535))[:, known].max() <= 2
    assert np.abs(sr - resolver.predict(images, clear, normalization) * 10_000)[:, known].max() > 20


BAD = {
    "text": (b"not an npz", "is not an .npz file"),
    "empty": (b"", "no body|not an .npz"),
    "torn": (npz(frames=stack()[0])[:-40], "not an .npz file"),
    "no frames": (npz(images=stack()[0]), "no array `frames`; found images"),
    "unknown": (npz(frames=stack()[0], mask=stack()[1]), "unknown arrays mask"),
    "float": (npz(frames=stack()[0].astype(np.float32)), "`frames` is float32; expected uint16"),
    "bands": (npz(frames=stack()[0][:, :3]), r"shape \(4, 3, 30, 41\); expected \(T, 4, H, W\)"),
    "one frame without T": (npz(frames=stack()[0][0]), r"expected \(T, 4, H, W\)"),
    "17 frames": (npz(frames=np.ones((17, 4, 8, 8), np.uint16)), "holds 17 frames; expected 1 to 16"),
    "small": (npz(frames=np.ones((1, 4, 7, 8), np.uint16)), "each side must be 8 to 256"),
    "large": (npz(frames=np.ones((1, 4, 257, 8), np.uint16)), "each side must be 8 to 256"),
    "mask": (npz(frames=stack()[0], clear=stack()[1][:2]), r"`clear` is bool of shape \(2, 30, 41\); expected"),
    "cloudy": (npz(frames=stack()[0], clear=np.zeros_like(stack()[1])), "No pixel is clear"),
    "half": (npz(frames=stack()[0], mean=np.ones(4)), "`mean` and `std` belong together"),
    "flat": (npz(frames=stack()[0], mean=np.ones(4), std=np.zeros(4)), "`std` must be above 0"),
    "nan": (npz(frames=stack()[0], mean=np.full(4, np.nan), std=np.ones(4)), "`mean` must be 4 finite numbers"),
    "shifts": (npz(frames=stack()[0], shifts=np.zeros((1, 2))), r"`shifts` is float64 of shape \(1, 2\); expected"),
    "far": (npz(frames=stack()[0], shifts=np.full((len(stack()[0]), 2), 9.0)), "`shifts` must be finite and at most 2"),
    "pickle": (npz(frames=np.array([{"a": 1}], dtype=object)), "cannot be read"),
}


def bomb() -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, frames=np.zeros((16, 4, 1024, 1024), np.uint16))
    return buffer.getvalue()


@pytest.mark.parametrize("name", [*BAD, "bomb"])
def test_a_bad_request_is_told_what_is_wrong(server: Server, name: str) -> None:
    body, sentence = BAD.get(name) or (bomb(), "unpacks to [0-9]+ bytes; at most")
    answer = post(server, body)
    assert answer.status_code == 400
    assert re.search(sentence, answer.json()["message"]), answer.json()["message"]


def test_bad_requests_do_not_end_the_worker(server: Server) -> None:
    workers = children(server.pid)
    assert workers
    for body, _ in BAD.values():
        post(server, body)
    assert post(server, npz(frames=stack()[0])).status_code == 200
    assert children(server.pid) == workers
    assert requests.get(server.ping, timeout=10).json() == {"status": "Healthy"}


def test_the_largest_request_passes(server: Server) -> None:
    frames = np.random.default_rng(0).integers(1, 65535, (16, 4, 256, 256), dtype=np.uint16)
    answer = post(server, npz(frames=frames, clear=np.ones((16, 256, 256), bool)))
    assert answer.status_code == 200
    assert np.load(io.BytesIO(answer.content))["sr"].shape == (4, 1024, 1024)


def test_models_cannot_be_changed_while_it_runs(server: Server) -> None:
    config = (server.logs.parent / "config.properties").read_text()
    management = next(line for line in config.splitlines() if line.startswith("management_address")).partition("=")[2]
    answer = requests.post(f"{management}/models", params={"url": "http://127.0.0.1:1/evil.mar"}, timeout=10)
    assert answer.status_code in (403, 405)
    assert "ts_inference_requests_total" in requests.get(server.metrics, timeout=10).text


def test_killing_who_serves_ends_the_server(archive: Path) -> None:
    if find_java() is None or sys.platform != "linux":
        pytest.skip("java not found, or not Linux")
    program = (
        "import sys, time, pathlib, serving.local as local\n"
        "with local.serve(pathlib.Path(sys.argv[1])) as server:\n"
        "    print(server.pid, server.logs.parent, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program, str(archive)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    java, _, folder = parent.stdout.readline().strip().partition(" ")
    processes = {int(java), *children(int(java))}
    assert len(processes) > 1
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 20
    while (left := {pid for pid in processes if Path(f"/proc/{pid}").exists()}) and time.monotonic() < deadline:
        time.sleep(0.2)
    shutil.rmtree(folder)  # what nobody was left to remove
    assert not left


def test_the_program_runs_on_another_device(archive: Path, tmp_path: Path) -> None:
    """No tensor of the program stays behind on the CPU: `meta` stands for a GPU here."""
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(tmp_path)
    program = core.load_program(tmp_path, "meta")
    inputs = (
        torch.zeros(1, FRAMES, 4, 20, 24, device="meta"),
        torch.ones(1, FRAMES, 20, 24, device="meta"),
        torch.zeros(1, FRAMES, 2, device="meta"),
    )
    output, *_ = program.module(*inputs)
    assert (output.device.type, tuple(output.shape)) == ("meta", (1, 4, 80, 96))


def test_a_program_that_answers_otherwise_is_not_served(archive: Path, tmp_path: Path) -> None:
    if find_java() is None:
        pytest.skip("java not found: TorchServe cannot run")
    spoiled = tmp_path / "small.mar"
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(spoiled, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name == "sample.npz":
                sample = dict(np.load(io.BytesIO(content)))
                content = npz(**{**sample, "sr": sample["sr"] + np.uint16(9)})
            target.writestr(name, content)
    with (
        pytest.raises(ArtifactError, match=r"(?s)small.mar: TorchServe does not serve it.*differs by 9 counts"),
        serve(spoiled),
    ):
        pass


def test_the_package_stage(bundle: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    (root / "model").mkdir(parents=True)
    for path in bundle.iterdir():
        (root / "model" / path.name).write_bytes(path.read_bytes())
    (root / "model" / "run.json").write_text(json.dumps({"key": "k", "counts": {}}))
    config = parse_config(
        {"name": "t", "source": {"kind": "files", "path": "."}, "package": {"model_name": "hrn", "version": "3.1"}}
    )

    record = run(STAGE, config, str(root))

    assert {path.name for path in (root / "archive").iterdir()} == {"hrn.mar", "archive.json", "run.json", ".key"}
    assert record["counts"]["files"] == 6
    modified = (root / "archive" / "hrn.mar").stat().st_mtime_ns
    assert run(STAGE, config, str(root)) == record
    assert (root / "archive" / "hrn.mar").stat().st_mtime_ns == modified


def children(pid: int) -> set[int]:
    """Processes below `pid`."""
    tree: dict[int, set[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        tree.setdefault(int(fields[1]), set()).add(int(status.parent.name))
    found: set[int] = set()
    while new := set().union(*(tree.get(each, set()) for each in {pid, *found})) - found:
        found |= new
    return found
