"""The images of all stages: `python -m components.images` builds them and prints their sizes (`make images`).

A build sees how this machine's pip finds packages and whom it trusts (as build secrets, which no image keeps); where
pip looks into folders, they are served to the build on the loopback interface.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import shutil
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from rich.table import Table

from components.interface import IMAGE_PREFIX, IMAGE_TAG, image_of
from components.stage import STAGES, git_commit
from sr_core.errors import SubpixelError
from sr_core.progress import console

HERE = Path(__file__).parent
SERVING = HERE.parent / "serving" / "Dockerfile"
COMMON = ("tools", "base", "tables", "patches", "learning", "patches-learning")
"""Targets of components/Dockerfile, each before those that stand on it."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m components.images", description=__doc__.splitlines()[0])
    parser.add_argument("--base-image", default="debian:bookworm-slim", help="what all images stand on")
    parser.add_argument("--torch", choices=["cpu", "cuda"], default="cpu", help="which build of PyTorch")
    parser.add_argument("--serving", action="store_true", help="only the image of the model server")
    arguments = parser.parse_args()
    try:
        if arguments.serving:
            build_serving(arguments.base_image, arguments.torch)
            return 0
        build(arguments.base_image, arguments.torch)
    except SubpixelError as error:
        console.print(f"images: error: {error}", markup=False)
        return 1
    show()
    return 0


def build(base_image: str = "debian:bookworm-slim", torch: str = "cpu") -> None:
    """Build every image. Raises `SubpixelError` with the end of the log of one that fails."""
    with pip_configuration() as secrets:
        build_common(COMMON, base_image, torch, secrets)
        for stage in STAGES:
            build_one(image_of(stage), HERE / stage / "Dockerfile", [*revision(), *secrets])
    build_serving(base_image, torch)


def build_serving(base_image: str = "debian:bookworm-slim", torch: str = "cpu") -> str:
    """Build the image of the model server, and what it stands on. Returns its name."""
    image = f"{IMAGE_PREFIX}-serving:{IMAGE_TAG}{'-cuda' if torch == 'cuda' else ''}"
    with pip_configuration() as secrets:
        build_common(("tools", "base"), base_image, torch, secrets)
        build_one(image, SERVING, ["--build-arg", f"TORCH_VARIANT={torch}", *revision(), *secrets])
    return image


def build_common(targets: tuple[str, ...], base_image: str, torch: str, secrets: list[str]) -> None:
    """Build targets of components/Dockerfile."""
    arguments = ["--build-arg", f"BASE_IMAGE={base_image}", "--build-arg", f"TORCH_VARIANT={torch}"]
    for target in targets:
        options = ["--target", target, *arguments, *secrets]
        build_one(f"{IMAGE_PREFIX}-{target}:{IMAGE_TAG}", HERE / "Dockerfile", options)


def revision() -> list[str]:
    """The build argument that names the commit."""
    return ["--build-arg", f"REVISION={git_commit() or 'unknown'}"]


def build_one(image: str, dockerfile: Path, options: list[str]) -> None:
    started = time.monotonic()
    # the host's network, since a build may need its name server and the folders served on its loopback interface
    command = [docker(), "build", "--network", "host", "--tag", image, "--file", str(dockerfile), *options]
    done = subprocess.run(
        [*command, str(HERE.parent)],
        env={**os.environ, "DOCKER_BUILDKIT": "1", "BUILDKIT_PROGRESS": "plain"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        end = "\n".join(done.stdout.splitlines()[-30:])
        raise SubpixelError(f"image {image}: docker build ended with exit status {done.returncode}:\n{end}")
    console.print(f"built {image} in {time.monotonic() - started:.0f} s", markup=False)


@functools.cache
def docker() -> str:
    """The first docker client on the path that can build with secrets (BuildKit)."""
    for folder in os.get_exec_path():
        client = shutil.which("docker", path=folder)
        if client is None:
            continue
        asked = subprocess.run(
            [client, "build", "--help"], env={**os.environ, "DOCKER_BUILDKIT": "1"}, capture_output=True, text=True
        )
        if "--secret" in asked.stdout:
            return client
    raise SubpixelError(
        "no docker client on the path builds with BuildKit; install Docker, and its buildx plug-in where it is apart"
    )


@contextlib.contextmanager
def pip_configuration() -> Iterator[list[str]]:
    """Build secrets: pip's configuration of this machine, and its certificates."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    settings: dict[str, str] = {}
    for line in listed.stdout.splitlines():
        key, _, value = line.partition("=")
        settings[key.rpartition(".")[2]] = value.strip("'\"").replace("\\n", "\n")
    with tempfile.TemporaryDirectory(prefix="subpixel-build-") as temporary, contextlib.ExitStack() as stack:
        lines = ["[global]"]
        for key in ("index-url", "extra-index-url", "find-links"):
            places = [reachable(place, stack) for place in settings.get(key, "").split()]
            if places:
                lines.append(f"{key} = {' '.join(places)}")
        lines += [f"{key} = {settings[key]}" for key in ("trusted-host", "timeout") if key in settings]
        path = Path(temporary) / "pip.conf"
        path.write_text("\n".join([*lines, ""]))
        path.chmod(0o600)
        secrets = ["--secret", f"id=pip_conf,src={path}"]
        certificates = settings.get("cert") or ssl.get_default_verify_paths().cafile
        if certificates and Path(certificates).is_file():
            secrets += ["--secret", f"id=ca,src={certificates}"]
        yield secrets


def reachable(place: str, stack: contextlib.ExitStack) -> str:
    """An address that a build can read: a folder is served until `stack` closes.

    Its parent is, for the pages of an index link to files beside it.
    """
    parts = urlsplit(place)
    if parts.scheme not in ("", "file"):
        return place
    folder = Path(parts.path)
    handler = functools.partial(Silent, directory=str(folder.parent))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    stack.callback(server.server_close)
    stack.callback(server.shutdown)
    return f"http://127.0.0.1:{server.server_port}/{folder.name}/"


class Silent(SimpleHTTPRequestHandler):
    """Serves a folder and says nothing of it."""

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing."""


def sizes() -> dict[str, int]:
    """Bytes of the image of each stage, layers that others share included."""
    found = {}
    for stage in STAGES:
        asked = subprocess.run([docker(), "image", "inspect", image_of(stage)], capture_output=True, text=True)
        if asked.returncode:
            raise SubpixelError(f"image {image_of(stage)}: not found; run `make images`")
        found[stage] = int(json.loads(asked.stdout)[0]["Size"])
    return found


def show() -> None:
    """Print the table of sizes."""
    table = Table("image", "MB", title="images, layers that others share included")
    for stage, size in sizes().items():
        table.add_row(image_of(stage), f"{size / 1e6:.0f}")
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
