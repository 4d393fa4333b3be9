"""Every stage in its own container: the images, and both graphs through them with all artifacts in S3."""

import json
import os
import subprocess

import pytest

from components.images import build, docker, sizes
from components.interface import image_of
from components.stage import FOLDERS, STAGES
from sr_core.storage import storage_for
from tests.e2e.engine import docker_engine
from tests.seaweed import BUCKET, seaweed
from tests.stages.test_run import subpixel
from tests.stages.tiny import write_config

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(3600)]

MB = 1_000_000
LIMITS = {"download": 900 * MB, "train_hrn": 1600 * MB}
LOOK = """
command -v gcc g++ cc pip pip3 && echo a compiler or pip
find / -xdev -name pip.conf -size +0 2>/dev/null
find / -xdev -path '*/.cache/pip' 2>/dev/null
find / -xdev -name '_pip*' -prune -o -type d -name pip -path '*site-packages*' -print 2>/dev/null
true
"""
"""Lists what should not be in an image."""


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """A Docker engine with all images."""
    with docker_engine(tmp_path_factory.mktemp("docker")) as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        build()
        yield


def in_image(stage: str, *arguments: str, entrypoint: str | None = None) -> subprocess.CompletedProcess[str]:
    how = ["--entrypoint", entrypoint] if entrypoint else []
    return subprocess.run(
        [docker(), "run", "--rm", "--network", "none", *how, image_of(stage), *arguments],
        capture_output=True,
        text=True,
    )


def test_images_hold_what_their_stage_needs_and_nothing_else(engine):
    for stage in STAGES:
        tested = in_image(stage, "--self-test")
        assert tested.returncode == 0, f"{stage}: {tested.stdout}{tested.stderr}"
        assert in_image(stage, "-u", entrypoint="id").stdout.strip() == "1000"
        assert in_image(stage, "-c", LOOK, entrypoint="sh").stdout == "", stage
        assert in_image(stage, "-c", "import kfp", entrypoint="python3").returncode == 1
    found = sizes()
    assert {stage: size for stage, size in found.items() if size > LIMITS.get(stage, found[stage])} == {}


def test_both_graphs_in_containers_give_the_figures_of_processes(engine, tmp_path, monkeypatch):
    config, root = write_config(tmp_path), f"s3://{BUCKET}/tiny"
    (tmp_path / "s3").mkdir()
    with seaweed(tmp_path / "s3") as s3:
        for name, value in s3.environment.items():
            monkeypatch.setenv(name, value)
        first = subpixel("run", config, "--out", root, "--runner", "docker", env=dict(os.environ))
        assert first.returncode == 0, first.stderr
        store = storage_for(root)
        names = set(store.names())
        assert {f"{folder}/run.json" for folder in FOLDERS.values()} <= names
        assert any(name.startswith("products/") and name.endswith(".tif") for name in names)
        contained = json.loads(store.read("metrics.json") or b"")
        second = subpixel("run", config, "--out", root, "--runner", "docker", env=dict(os.environ))
        assert second.returncode == 0, second.stderr
        assert all(f"{stage}: kept" in second.stderr for stage in FOLDERS)
    assert subpixel("run", config, "--out", tmp_path / "processes").returncode == 0
    processes = json.loads((tmp_path / "processes" / "metrics.json").read_text())
    for part in ("evaluation", "delineation"):
        assert numbers(contained[part]) == pytest.approx(numbers(processes[part]), abs=1e-6, nan_ok=True)


def numbers(found, place="") -> dict[str, float]:
    """Every number in nested metrics, by its place; seconds are not among them."""
    if isinstance(found, dict):
        return {key: value for name, item in found.items() for key, value in numbers(item, f"{place}/{name}").items()}
    return {place: float(found)} if isinstance(found, int | float) and "seconds" not in place else {}


def test_a_failing_stage_says_so_and_the_report_is_written_all_the_same(engine, tmp_path):
    config = write_config(tmp_path)
    config.write_text(config.read_text().replace("end: 2020-06-30", "end: 2020-05-02"))
    done = subpixel("run", config, "--out", tmp_path / "run", "--runner", "docker", env=dict(os.environ))
    assert done.returncode == 1
    assert "stopped: stage" in done.stderr and "Traceback" not in done.stderr
    assert (tmp_path / "run" / "report.html").stat().st_size > 1000
