"""A Docker engine for the tests: the one that answers, or one that is installed, started and stopped here."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BASE_IMAGE = "debian:bookworm-slim"
START_TIMEOUT_S = 60
UNNEEDED = ("var/lib/apt/lists", "var/cache/apt", "var/log", "usr/share/doc", "usr/share/man", "usr/share/locale")
"""What the published slim image leaves out as well."""


@contextmanager
def docker_engine(folder: Path) -> Iterator[dict[str, str]]:
    """The environment in which `docker` reaches an engine that has `BASE_IMAGE`.

    Where none answers, Docker is installed by apt (as root, on Debian and its kin) and started with its data in
    `folder`; it is stopped by its pid, and its data are removed, when the block ends.
    """
    if answers({}):
        have_base_image({}, folder)
        yield {}
        return
    install("dockerd", "docker.io")
    socket, pid, log = folder / "docker.sock", folder / "docker.pid", folder / "docker.log"
    environment = {"DOCKER_HOST": f"unix://{socket}"}
    places = ["--data-root", folder / "data", "--exec-root", folder / "exec", "--pidfile", pid]
    command = ["dockerd", *map(str, places), "-H", f"unix://{socket}", "--storage-driver", "overlay2"]
    folder.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        engine = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not answers(environment):
            assert engine.poll() is None, f"dockerd ended:\n{log.read_text()[-2000:]}"
            assert time.monotonic() < deadline, f"dockerd does not answer:\n{log.read_text()[-2000:]}"
            time.sleep(0.5)
        have_base_image(environment, folder)
        yield environment
    finally:
        engine.terminate()
        engine.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def answers(environment: dict[str, str]) -> bool:
    """Whether an engine answers."""
    if shutil.which("docker") is None:
        return False
    done = subprocess.run(["docker", "info"], env={**os.environ, **environment}, capture_output=True)
    return done.returncode == 0


def have_base_image(environment: dict[str, str], folder: Path) -> None:
    """Have `BASE_IMAGE` in the engine: it is there, it can be pulled, or it is made of Debian's packages."""
    found = {**os.environ, **environment}
    for command in (["docker", "image", "inspect", BASE_IMAGE], ["docker", "pull", "--quiet", BASE_IMAGE]):
        if subprocess.run(command, env=found, capture_output=True).returncode == 0:
            return
    install("debootstrap", "debootstrap")
    root = folder / "debian"
    root.parent.mkdir(parents=True, exist_ok=True)
    made = subprocess.run(
        ["debootstrap", "--variant=minbase", "--include=ca-certificates", "bookworm", str(root)],
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stdout[-2000:] + made.stderr[-2000:]
    for place in UNNEEDED:
        for path in (root / place).iterdir() if (root / place).is_dir() else ():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    archive = subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE)
    subprocess.run(
        ["docker", "import", "-", BASE_IMAGE], env=found, stdin=archive.stdout, check=True, capture_output=True
    )
    assert archive.wait() == 0
    shutil.rmtree(root)


def install(program: str, package: str) -> None:
    """Install a Debian package unless its program is there. Fails with what to do where that cannot be done here."""
    if shutil.which(program):
        return
    assert shutil.which("apt-get") and os.getuid() == 0, f"{program}: not found; install {package}, or start Docker"
    for command in (["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "-qq", package]):
        done = subprocess.run(
            command, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{' '.join(command)}:\n{done.stderr[-2000:]}"
