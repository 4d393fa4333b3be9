"""Dockerfiles: clean by hadolint's rules, and alike."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from components.stage import STAGES
from tests.conftest import REPOSITORY

DOCKERFILES = sorted([*REPOSITORY.glob("components/**/Dockerfile"), *REPOSITORY.glob("serving/**/Dockerfile")])


def hadolint(path: Path) -> subprocess.CompletedProcess[str]:
    program = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    assert program, "hadolint: not found beside the Python that runs the tests; install subpixel[dev]"
    rules = REPOSITORY / ".hadolint.yaml"
    return subprocess.run([program, "--config", rules, "--no-color", path], capture_output=True, text=True)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.relative_to(REPOSITORY).parent.as_posix())
def test_dockerfile_is_clean(path):
    done = hadolint(path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_bad_dockerfile_is_found(tmp_path):
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM debian:latest\nRUN apt-get install gcc\n")
    assert "DL3007" in hadolint(bad).stdout


def test_every_stage_has_one_that_ends_unprivileged_and_knows_its_revision():
    for stage in STAGES:
        lines = (REPOSITORY / "components" / stage / "Dockerfile").read_text().splitlines()
        assert [line for line in lines if line.startswith("USER")] == ["USER 1000:1000"], stage
        assert "ENV SUBPIXEL_REVISION=${REVISION}" in lines, stage
        assert lines[-1] == f'ENTRYPOINT ["python3", "-m", "components.{stage}"]', stage
