"""A small model for tests that need a served one, `subpixel serve` with it, and requests that fit it."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from serving.archive import build_archive
from serving.local import free_ports
from sr_core.models.bundle import save_bundle
from sr_core.models.highresnet import HighResNet
from tests.conftest import REPOSITORY

FRAMES = 4
START_S = 180.0


def write_bundle(folder: Path, seed: int = 0) -> Path:
    """A bundle whose network changes every pixel, differently with each seed."""
    torch.manual_seed(seed)
    network = HighResNet(channels=8, residual_blocks=1, uncertainty=True)
    torch.nn.init.normal_(network.project.weight, std=0.02)
    save_bundle(folder, network, {"frames": FRAMES, "normalization": {}, "lineage": {}, "scores": {}})
    return folder


def write_archive(bundle: Path, folder: Path, version: str = "1.0", name: str = "small") -> Path:
    """Its archive, `<name>.mar`."""
    build_archive(bundle, folder, name, version)
    return folder / f"{name}.mar"


def stack(
    frames: int = FRAMES, rows: int = 30, columns: int = 41, seed: int = 0
) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
    """Frames (T,4,H,W) of random ground, and masks (T,H,W) of which a fifth is not clear."""
    random = np.random.default_rng(seed)
    images = random.integers(300, 3500, (frames, 4, rows, columns), dtype=np.uint16)
    return images, random.random((frames, rows, columns)) > 0.2


@dataclass
class Program:
    """A running `subpixel serve`."""

    url: str
    port: int
    process: "subprocess.Popen[str]"

    def processes(self) -> list[psutil.Process]:
        this = psutil.Process(self.process.pid)
        return [this, *this.children(recursive=True)]


@contextmanager
def serving(archive: Path, *options: str, **environment: str) -> Iterator[Program]:
    """`subpixel serve --archive` until the block ends; whatever happens, no process is left."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "subpixel.cli", "serve", "--archive", str(archive), "--port", str(port), *options]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        cwd=REPOSITORY,
    )
    said: list[str] = []
    up = threading.Event()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line)
            if line.startswith("model:"):
                up.set()
        up.set()

    reader = threading.Thread(target=read)
    reader.start()
    left: list[psutil.Process] = []
    try:
        assert up.wait(START_S) and process.poll() is None, "".join(said)
        program = Program(f"http://127.0.0.1:{port}", port, process)
        left = program.processes()
        yield program
    finally:
        process.terminate()
        try:
            process.wait(30)
        finally:
            for each in left:
                if each.is_running():
                    each.kill()
            reader.join()
