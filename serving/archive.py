"""Builds the TorchServe archive of a model bundle: self-contained, it needs torch and numpy but not this project."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import warnings
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from serving import core
from sr_core import BANDS
from sr_core.errors import ArtifactError
from sr_core.models.alignment import AlignedNetwork
from sr_core.models.bundle import DESCRIPTION, SuperResolver, load_bundle
from sr_core.models.normalization import Normalization

HERE = Path(__file__).parent
PACKED = ("handler.py", "model-config.yaml")
PACKAGES = (
    *("serving/__init__.py", "serving/busy.py", "serving/core.py", "serving/formats.py", "serving/objects.py"),
    *("sr_core/__init__.py", "sr_core/radiometry/__init__.py", "sr_core/radiometry/resample.py"),
)
"""What the handler imports of this project; there it lies before an installation of it."""
SAMPLE_SIDE = 24


def build_archive(bundle: Path, output: Path, model_name: str, version: str) -> dict[str, Any]:
    """Write `<model_name>.mar` and `archive.json` into `output`; the latter is returned.

    Raises `ArtifactError` where the bundle cannot be read or the exported program does not give its answers.
    """
    resolver = load_bundle(bundle)
    with tempfile.TemporaryDirectory(prefix="archive-") as temporary:
        folder = Path(temporary)
        for name in PACKED:
            shutil.copy(HERE / name, folder / name)
        shutil.copy(bundle / DESCRIPTION, folder / DESCRIPTION)
        for name in PACKAGES:
            target = folder / "packages" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(HERE.parent / name, target)
        export_program(resolver, folder / "program.pt2")
        describe_program(resolver, folder / "program.json")
        write_sample(resolver, folder)
        output.mkdir(parents=True, exist_ok=True)
        archive = output / f"{model_name}.mar"
        aside = output / f".{archive.name}"
        shutil.copyfile(_pack(folder, model_name, version), aside)
        aside.replace(archive)
        description = {
            "archive": archive.name,
            "model_name": model_name,
            "version": version,
            "sha256": digest(archive),
            "bytes": archive.stat().st_size,
            "files": contents(archive),
            "input": {"frames": resolver.frames, "bands": list(BANDS), "scale": resolver.scale},
            "versions": {
                "python": platform.python_version(),
                **{name: metadata.version(name) for name in ("torch", "numpy", "torch-model-archiver")},
            },
        }
    aside = output / ".archive.json"
    aside.write_text(json.dumps(description, indent=1), encoding="utf-8")
    aside.replace(output / "archive.json")
    return description


def export_program(resolver: SuperResolver, path: Path) -> None:
    """Export the network by `torch.export`: batch, height and width free, the number of frames that of training.

    The recursion over frames is unrolled, hence the fixed number; fewer are padded, which changes nothing.
    """
    dim = torch.export.Dim
    batch = dim("batch", min=1, max=64)
    height, width = (dim(name, min=core.MIN_SIDE, max=core.NETWORK_SIDE) for name in ("height", "width"))
    # a batch of one would be taken for a constant
    frames = torch.zeros(2, resolver.frames, len(BANDS), SAMPLE_SIDE, SAMPLE_SIDE + 4)
    clear = torch.ones(2, resolver.frames, SAMPLE_SIDE, SAMPLE_SIDE + 4)
    shifts = torch.zeros(2, resolver.frames, 2)
    shapes = ({0: batch, 3: height, 4: width}, {0: batch, 2: height, 3: width}, {0: batch})
    network = AlignedNetwork(resolver.model).eval()
    program = torch.export.export(network, (frames, clear, shifts), dynamic_shapes=shapes)
    with warnings.catch_warnings():
        # "no complete tensor found in the group": about weights that share storage, which none here does
        warnings.simplefilter("ignore", UserWarning)
        torch.export.save(program, path)


def describe_program(resolver: SuperResolver, path: Path) -> None:
    """Write what the service must know of the program. Raises `ArtifactError` where it looks too far around it."""
    halo = resolver.receptive_field // 2
    if 2 * (halo + core.BLUR_PX) > core.NETWORK_SIDE // 2:
        raise ArtifactError(
            f"network: looks {halo} pixels around it, expected at most {core.NETWORK_SIDE // 4 - core.BLUR_PX}:"
            " a service would compute surroundings only"
        )
    uncertainty = bool(resolver.description["architecture"].get("uncertainty"))
    facts = {"frames": resolver.frames, "bands": list(BANDS), "scale": resolver.scale, "halo": halo}
    path.write_text(json.dumps({**facts, "uncertainty": uncertainty}, indent=1), encoding="utf-8")


def write_sample(resolver: SuperResolver, folder: Path) -> None:
    """Store a request and its answer, which the handler reproduces before it serves.

    The answer is the exported program's own; it must be the bundle's too, or the export is wrong.
    """
    rng = np.random.default_rng(0)
    shape = (resolver.frames, len(BANDS), SAMPLE_SIDE, SAMPLE_SIDE)
    frames = rng.integers(200, 4000, shape, dtype=np.uint16)
    clear = rng.random((shape[0], *shape[2:])) > 0.2
    clear[:, 0, 0] = False
    shifts = rng.uniform(-0.5, 0.5, (shape[0], 2)).astype(np.float32)
    sr = core.super_resolve(core.load_program(folder), core.Request(frames, clear, shifts=shifts)).sr
    mean, std = core.statistics(core.Request(frames), frames, clear)
    place = Normalization(tuple(mean.tolist()), tuple(std.tolist()))
    expected = resolver.predict(frames, clear, place, shifts=shifts)
    difference = np.abs(sr - np.clip(expected * core.REFLECTANCE_SCALE, 1, 65535))[:, sr.all(axis=0)].max()
    if difference > 1:
        raise ArtifactError(f"exported program: differs from the bundle by {difference:.1f} counts, expected at most 1")
    np.savez_compressed(folder / "sample.npz", frames=frames, clear=clear, shifts=shifts, sr=sr)


def _pack(folder: Path, model_name: str, version: str) -> Path:
    """Run torch-model-archiver on the files of `folder`. Returns the archive's path inside it."""
    # of a folder the archiver takes what lies in it
    extra = [folder / name for name in ("packages", "program.json", DESCRIPTION, "sample.npz")]
    target = folder / "out"
    target.mkdir()
    command = [
        *(sys.executable, "-m", "model_archiver.model_packaging"),
        *("--model-name", model_name, "--version", version),
        *("--serialized-file", str(folder / "program.pt2")),
        *("--handler", str(folder / "handler.py")),
        *("--config-file", str(folder / "model-config.yaml")),
        *("--extra-files", ",".join(str(path) for path in extra)),
        *("--export-path", str(target)),
    ]
    # the archiver collects its files in <temporary folder>/<model name>, which it empties first: give it one of its own
    scratch = folder / "scratch"
    scratch.mkdir()
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TMPDIR": str(scratch)})
    archive = target / f"{model_name}.mar"
    if done.returncode or not archive.is_file():
        raise ArtifactError(f"{archive.name}: torch-model-archiver failed: {done.stderr.strip()[-1000:]}")
    return archive


def sources() -> dict[str, str]:
    """Digests of the files here that an archive is made from and by."""
    paths = [*(HERE / name for name in (*PACKED, Path(__file__).name)), *(HERE.parent / name for name in PACKAGES)]
    return {path.relative_to(HERE.parent).as_posix(): digest(path) for path in paths}


def contents(archive: Path) -> dict[str, dict[str, Any]]:
    """Digest and size of each file in an archive."""
    with zipfile.ZipFile(archive) as packed:
        return {
            entry.filename: {"sha256": hashlib.sha256(packed.read(entry)).hexdigest(), "bytes": entry.file_size}
            for entry in sorted(packed.infolist(), key=lambda entry: entry.filename)
            if not entry.is_dir() and not entry.filename.startswith("MAR-INF/")
        }


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
