"""The packaged archive behind a real TorchServe."""

import io
import json
import re
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import requests

from components.package.main import STAGE
from components.stage import run
from serving import core
from serving.archive import digest
from serving.busy import FOLDER, anyone_busy
from serving.container import drained
from serving.local import Server, find_java, serve
from sr_core.config import parse_config
from sr_core.errors import ArtifactError
from sr_core.models.bundle import load_bundle
from sr_core.models.normalization import Normalization
from tests.bad_requests import BAD, FORM, GRID, JSON, NPZ, OUTSIDE, Bad, npz, stored, tiff
from tests.seaweed import BUCKET, S3Server, seaweed
from tests.served import FRAMES, stack, write_archive, write_bundle

ALLOWED = f"s3://{BUCKET}/allowed"
SECRET = "very-secret-token"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle") / "model")


@pytest.fixture(scope="module")
def archive(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_archive(bundle, tmp_path_factory.mktemp("archive"), "1.2")


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with seaweed(tmp_path_factory.mktemp("seaweed")) as running:
        yield running


@pytest.fixture(scope="module")
def server(archive: Path, s3: S3Server) -> Iterator[Server]:
    if find_java() is None:
        pytest.skip("java not found: TorchServe cannot run")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3.environment.items():
            patch.setenv(name, value)
        patch.setenv("SUBPIXEL_ALLOWED_PREFIXES", ALLOWED)
        patch.setenv("WANDB_API_KEY", SECRET)
        with serve(archive) as running:
            processes = {running.pid, *children(running.pid)}
            assert len(processes) > 1
            yield running
    assert not {pid for pid in processes if Path(f"/proc/{pid}").exists()}, "processes are left behind"
    assert not running.logs.exists()


def post(server: Server, body: bytes, kind: str = NPZ, **headers: str) -> requests.Response:
    return requests.post(server.url, data=body, headers={"Content-Type": kind, **headers}, timeout=120)


def send(server: Server, bad: Bad) -> requests.Response:
    if isinstance(bad.body, dict):
        files = {name: (None if name == "options" else name, content) for name, content in bad.body.items()}
        return requests.post(server.url, files=files, headers={"Accept": bad.accept}, timeout=120)
    return post(server, bad.body, bad.kind, Accept=bad.accept)


def image_of(answer: requests.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text[:500]
    return np.load(io.BytesIO(answer.content), allow_pickle=False)["sr"]


def test_the_archive_holds_all_it_needs_and_nothing_else(archive: Path) -> None:
    with zipfile.ZipFile(archive) as packed:
        assert sorted(name for name in packed.namelist() if not name.endswith("/")) == [
            "MAR-INF/MANIFEST.json",
            "handler.py",
            "model-config.yaml",
            "model.json",
            "program.json",
            "program.pt2",
            "sample.npz",
            "serving/__init__.py",
            "serving/busy.py",
            "serving/core.py",
            "serving/formats.py",
            "serving/objects.py",
            "sr_core/__init__.py",
            "sr_core/radiometry/__init__.py",
            "sr_core/radiometry/resample.py",
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


@pytest.mark.parametrize("kind", ["one file", "a file a date"])
def test_geotiffs_come_back_where_they_lie(server: Server, kind: str) -> None:
    images, clear = stack()
    parts = {"frames": tiff(images.reshape(-1, 30, 41))}
    if kind == "a file a date":
        parts = {f"frame_{number}": tiff(image) for number, image in enumerate(images)}
    parts["clear"] = tiff(clear.astype(np.uint8))
    answer = send(server, Bad(parts, 200, "", FORM, accept="image/tiff"))
    assert answer.headers["content-type"] == "image/tiff"
    with rasterio.MemoryFile(answer.content) as memory, memory.open() as raster:
        assert raster.crs == GRID["crs"] and raster.transform == GRID["transform"] * raster.transform.scale(0.25)
        np.testing.assert_array_equal(raster.read(), image_of(post(server, npz(frames=images, clear=clear))))


def test_uncertainty_and_consistency_come_when_asked_for(server: Server) -> None:
    images, clear = stack()
    answer = post(server, npz(frames=images, clear=clear, uncertainty=True, consistency=True))
    arrays = np.load(io.BytesIO(answer.content))
    assert arrays["uncertainty"].shape == arrays["sr"].shape and arrays["consistency"].shape == images[0].shape
    assert np.load(io.BytesIO(post(server, npz(frames=images, clear=clear)).content)).files == ["sr"]


def test_requests_of_all_kinds_at_once_get_their_own_answers(server: Server, bundle: Path) -> None:
    shapes = [(1, 30, 41), (4, 30, 41), (7, 20, 20), (3, 30, 41), (2, 33, 9), (16, 8, 8)] * 3
    stacks = [stack(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    with ThreadPoolExecutor(8) as threads:
        broken = threads.submit(post, server, b"no npz")
        answers = list(threads.map(lambda pair: image_of(post(server, npz(frames=pair[0], clear=pair[1]))), stacks))
    assert broken.result().status_code == 400
    resolver = load_bundle(bundle)
    for sr, (images, clear) in zip(answers, stacks, strict=True):
        expected = resolver.predict(images, clear, Normalization.from_series(images, clear)) * 10_000
        known = sr.all(axis=0)
        assert np.abs(sr - np.clip(expected, 1, 65535))[:, known].max() <= 2


def test_a_large_request_is_computed_in_windows_without_seams(server: Server, bundle: Path) -> None:
    images, clear = stack(2, core.NETWORK_SIDE + 20, core.NETWORK_SIDE + 40)
    answer = image_of(post(server, npz(frames=images, clear=clear)))
    expected = load_bundle(bundle).predict(images, clear, Normalization.from_series(images, clear)) * 10_000
    known = answer.all(axis=0)
    assert np.abs(answer - np.clip(expected, 1, 65535))[:, known].max() <= 2


def test_the_largest_request_passes(server: Server) -> None:
    side = core.MAX_SIDE
    frames = np.random.default_rng(0).integers(1, 20_000, (core.MAX_FRAMES, 4, side, side), dtype=np.uint16)
    body = npz(frames=frames, clear=np.ones((core.MAX_FRAMES, side, side), bool), uncertainty=True, consistency=True)
    assert image_of(post(server, body)).shape == (4, 4 * side, 4 * side)


def test_a_larger_body_is_refused_before_it_is_read(server: Server) -> None:
    assert post(server, bytes(core.MAX_REQUEST_BYTES * 2)).status_code == 413
    assert post(server, npz(frames=stack()[0])).status_code == 200


def test_bad_requests_are_told_what_is_wrong_and_do_not_end_the_worker(server: Server) -> None:
    workers = children(server.pid)
    assert workers
    for name, bad in BAD.items():
        answer = send(server, bad)
        assert answer.status_code == bad.status, (name, answer.text)
        assert re.search(bad.sentence, answer.json()["message"]), (name, answer.json())
        assert answer.json()["code"] == bad.status
    for odd in ({"X-Odd": "\xff\xfe".encode("latin-1")}, {"X-Request-Id": "a" * 9000}, {"Accept": "\u00ff;q=x"}):
        assert requests.post(server.url, data=b"x", headers=odd, timeout=60).status_code >= 400
    assert post(server, npz(frames=stack()[0])).status_code == 200
    assert children(server.pid) == workers
    assert requests.get(server.ping, timeout=10).json() == {"status": "Healthy"}


@pytest.fixture(scope="module")
def scene(s3: S3Server) -> tuple[np.ndarray, np.ndarray]:
    """A series in S3 of 120 x 110 pixels, once as images with masks, once as STAC Items."""
    images, clear = stack(3, 120, 110)
    client = s3.client()
    for number, (image, mask) in enumerate(zip(images, clear, strict=True)):
        assets = {"s2": {"href": f"../images/{number}.tif"}}
        item = {"type": "Feature", "properties": {"datetime": f"2024-05-0{9 - number}T08:00:00Z"}, "assets": assets}
        for key, body in {
            f"images/{number}.tif": tiff(image, tiled=True, blockxsize=64, blockysize=64, compress="deflate"),
            f"images/clear-{number}.tif": tiff(mask.astype(np.uint8)[None]),
            f"items/{number}.json": json.dumps(item).encode(),
        }.items():
            client.put_object(Bucket=BUCKET, Key=f"allowed/{key}", Body=body)
    return images, clear


def test_objects_in_s3_are_read_by_window_and_written(server: Server, s3: S3Server, scene: Any) -> None:
    images, clear = scene
    place = {"mean": [0.2] * 4, "std": [0.1] * 4}
    frames = [
        {"item": f"{ALLOWED}/items/{number}.json", "clear": f"{ALLOWED}/images/clear-{number}.tif"}
        for number in range(3)
    ]
    request = {"frames": frames, "window": [40, 30, 25, 20], **place, "uncertainty": True, "consistency": True}

    answer = post(server, json.dumps({**request, "output": f"{ALLOWED}/out/one"}).encode(), JSON)

    assert answer.status_code == 200, answer.text
    assert answer.json()["keys"] == {
        name: f"{ALLOWED}/out/one/{name}.tif" for name in ("uncertainty", "consistency", "sr")
    }
    whole = image_of(post(server, npz(frames=images, clear=clear, mean=np.full(4, 0.2), std=np.full(4, 0.1))))
    written = s3.client().get_object(Bucket=BUCKET, Key="allowed/out/one/sr.tif")["Body"].read()
    with rasterio.MemoryFile(written) as memory, memory.open() as raster:
        assert np.abs(raster.read().astype(int) - whole[:, 160:260, 120:200]).max() <= 1
        assert (raster.transform.c, raster.transform.f) == (700_000 + 300, 7_850_000 - 400)
        assert raster.tags()["attribution"] == "Contains modified Copernicus Sentinel data 2024"
    # and inline
    direct = post(server, json.dumps(request).encode(), JSON, Accept=NPZ)
    assert np.abs(image_of(direct).astype(int) - whole[:, 160:260, 120:200]).max() <= 1


def test_places_in_s3_that_are_missing_or_no_images(server: Server, s3: S3Server, scene: Any) -> None:
    s3.client().put_object(Bucket=BUCKET, Key="allowed/text.tif", Body=b"no image")
    s3.client().put_object(
        Bucket=BUCKET, Key="allowed/evil.json", Body=b'{"assets": {"s2": {"href": "../secret.tif"}}}'
    )
    s3.client().put_object(
        Bucket=BUCKET, Key="allowed/web.json", Body=b'{"assets": {"s2": {"href": "http://127.0.0.1:1/a.tif"}}}'
    )
    for frame, status, sentence in (
        ({"image": f"{ALLOWED}/nowhere.tif"}, 404, "there is no such object"),
        ({"image": f"{ALLOWED}/text.tif"}, 422, "cannot be read as a GeoTIFF"),
        ({"item": f"{ALLOWED}/nowhere.json"}, 404, "there is no such object"),
        ({"item": f"{ALLOWED}/evil.json"}, 403, "outside of what"),
        ({"item": f"{ALLOWED}/web.json"}, 403, "is not a place in S3"),
    ):
        answer = post(server, json.dumps({"frames": [frame]}).encode(), JSON)
        assert (answer.status_code, sentence in answer.json()["message"]) == (status, True), answer.text
    for place in OUTSIDE:
        assert post(server, stored(place), JSON).status_code == 403, place
    window = post(server, stored(f"{ALLOWED}/images/0.tif", window=[100, 0, 30, 30]), JSON)
    assert (window.status_code, "does not lie in an image of 120 x 110" in window.json()["message"]) == (422, True)


def test_metrics_tell_what_was_done(server: Server) -> None:
    post(server, npz(frames=stack()[0]))
    metrics = requests.get(server.metrics, timeout=10).text
    for name in ("requests_total", "frames_total", "windows_total", "pixels_total", "consistency_reflectance"):
        assert re.search(rf"^subpixel_{name}{{.*}} [0-9.]+$", metrics, re.MULTILINE), name
    assert "subpixel_inference_seconds_bucket" in metrics
    assert "ts_queue_latency_microseconds" in metrics and "ts_inference_requests_total" in metrics


def test_logs_know_requests_and_no_secrets(server: Server) -> None:
    answer = post(
        server, npz(frames=stack()[0]), **{"Authorization": f"Bearer {SECRET}", "X-Request-Id": "from-the-gateway-7"}
    )
    identity = answer.headers["x-request-id"]
    logs = "".join(path.read_text(errors="replace") for path in server.logs.glob("*"))
    lines = [line.partition("MODEL_LOG - ")[2] for line in logs.splitlines() if identity in line]
    (said,) = {line for line in lines if line.startswith("{")}
    entry = json.loads(said)
    assert (entry["event"], entry["client_request_id"], entry["pixels_total"]) == (
        "answered",
        "from-the-gateway-7",
        19680,
    )
    assert SECRET not in logs and "test-secret-key" not in logs and "test-access-key" not in logs


def test_only_the_loopback_interface_is_listened_on(server: Server) -> None:
    config = (server.logs.parent / "config.properties").read_text()
    for name in ("inference", "management", "metrics"):
        assert re.search(rf"^{name}_address=http://127\.0\.0\.1:\d+$", config, re.MULTILINE)
    port = int(re.search(r"^management_address=.*:(\d+)$", config, re.MULTILINE)[1])  # type: ignore[index]
    with socket.socket(socket.AF_INET) as probe, pytest.raises(OSError):
        probe.bind(("127.0.0.1", port))
    listening = Path("/proc/net/tcp").read_text().splitlines()[1:]
    local = {row.split()[1] for row in listening if row.split()[3] == "0A" and row.split()[1].endswith(f":{port:04X}")}
    assert local <= {f"0100007F:{port:04X}"}


@pytest.mark.parametrize(
    "path", ["/models", "/predictions/../models", "/predictions/%2e%2e/models", "/v2/models/small"]
)
def test_management_is_not_reached_through_the_inference_address(server: Server, path: str) -> None:
    host, _, port = server.url.partition("/predictions")[0].removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = connection.recv(65536).decode()
    assert re.match(r"HTTP/1.1 4\d\d ", answer), answer[:200]


def test_models_cannot_be_changed_while_it_runs(server: Server) -> None:
    config = (server.logs.parent / "config.properties").read_text()
    management = next(line for line in config.splitlines() if line.startswith("management_address")).partition("=")[2]
    answer = requests.post(f"{management}/models", params={"url": "http://127.0.0.1:1/evil.mar"}, timeout=10)
    assert answer.status_code in (403, 405)
    assert "ts_inference_requests_total" in requests.get(server.metrics, timeout=10).text


def test_several_workers_are_waited_for(archive: Path) -> None:
    """Each has a request in hand when the server is asked whether it is drained."""
    if find_java() is None:
        pytest.skip("java not found: TorchServe cannot run")
    body = npz(frames=stack(rows=160, columns=160, seed=5)[0])
    with serve(archive, workers=2) as running, ThreadPoolExecutor(6) as callers:
        requested = [callers.submit(post, running, body) for _ in range(6)]
        folder, deadline = running.logs.parent / FOLDER, time.monotonic() + 60
        while len(list(folder.glob("*"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.005)
        assert anyone_busy(running.logs.parent)
        assert drained(running.url, [archive.stem], time.monotonic() + 120, running.logs.parent)
        answered = wait(requested, timeout=2.0).done
        assert [call.result().status_code for call in answered] == [200] * 6


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
    assert record["counts"]["files"] == 14
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
