"""Running the stages of a graph in containers of this machine: what each may see, and how it ends.

kfp 2.17's own handler counts a container that is gone as a success, and shows a stage no folder but kfp's own. Here the
exit status is always the program's, and a stage sees the run's root, and read-only what its configuration names.
"""

from __future__ import annotations

import ipaddress
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import docker
from docker.errors import DockerException, ImageNotFound

from sr_core.config import Config, Section, parse_config
from sr_core.errors import SubpixelError
from sr_core.storage import is_remote

IMAGE_USER = 1000
"""Who runs the images' programs, and owns their home."""
PASSED = ("AWS_", "SH_CLIENT_", "WANDB_", "OMP_NUM_THREADS", "NO_PROXY")
"""Beginnings of the names of variables that stages see: credentials, places and threads."""
SHARED_MEMORY = "2g"


def run_container(image: str, command: list[str], kfp_folder: str) -> int:
    """Run a stage's program in a container, its words on this terminal. Returns the program's exit status.

    Ctrl-C and the end of this process end the container as well. Raises `SubpixelError` where no engine answers or the
    image is missing.
    """
    config, root = told(command)
    with closing(engine()) as client:
        try:
            container = client.containers.run(
                image,
                command[1:],
                entrypoint=command[:1],  # as Kubernetes takes it: in the place of the image's own
                detach=True,
                init=True,
                user=str(user()),
                environment={"HOME": "/tmp", "TMPDIR": "/tmp", **passed(os.environ)},
                volumes=volumes(config, root, kfp_folder),
                network_mode="host" if on_loopback(config, os.environ) else None,
                shm_size=SHARED_MEMORY,
                labels={"subpixel.root": root},
            )
        except ImageNotFound:
            raise SubpixelError(f"image {image}: not found by the Docker engine; run `make images`") from None
        try:
            for words in container.logs(stream=True, follow=True):
                sys.stderr.buffer.write(words)
                sys.stderr.flush()
            return int(container.wait()["StatusCode"])
        except KeyboardInterrupt:
            container.kill("SIGINT")
            return int(container.wait()["StatusCode"])
        finally:
            container.remove(force=True)


def engine() -> docker.DockerClient:
    """The Docker engine that answers. Raises `SubpixelError` where none does."""
    try:
        client = docker.from_env()
        client.ping()
    except DockerException as error:
        raise SubpixelError(
            f"no Docker engine answers at {os.environ.get('DOCKER_HOST', 'the default socket')} ({error}); start one,"
            " or use --runner subprocess"
        ) from None
    return client


def told(command: list[str]) -> tuple[Config, str]:
    """The configuration and the root in a stage's ExecutorInput; no root where it has none."""
    values = json.loads(command[command.index("--executor-input") + 1])["inputs"]["parameterValues"]
    return parse_config(json.loads(values["config"])), values.get("root", "")


def user() -> int:
    """Who a stage runs as: who runs this, so that the files are theirs; never root."""
    return os.getuid() or IMAGE_USER


def passed(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of this process that stages see."""
    return {name: value for name, value in environment.items() if name.startswith(PASSED)}


def volumes(config: Config, root: str, kfp_folder: str) -> dict[str, dict[str, str]]:
    """What a container sees of this machine, under the same paths."""
    seen = {str(path): {"bind": str(path), "mode": "ro"} for path in paths(config) if path.exists()}
    for folder in filter(None, (kfp_folder, "" if is_remote(root) else root)):
        if not os.getuid():
            give(Path(folder))
        seen[folder] = {"bind": folder, "mode": "rw"}
    return seen


def give(folder: Path) -> None:
    """Make a folder, and what is in it, the stages' own, where root runs this."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in (folder, *folder.rglob("*")):
        os.chown(path, IMAGE_USER, IMAGE_USER, follow_symlinks=False)


def paths(section: Section) -> Iterator[Path]:
    """Every path that a configuration names."""
    for key in type(section).model_fields:
        values = getattr(section, key)
        for value in values if isinstance(values, tuple) else (values,):
            if isinstance(value, Section):
                yield from paths(value)
            elif isinstance(value, Path):
                yield value


def on_loopback(config: Config, environment: Mapping[str, str]) -> bool:
    """Whether storage or the source is a server of this machine, which only the machine's own network reaches."""
    places: list[Any] = [environment.get("AWS_ENDPOINT_URL"), environment.get("AWS_ENDPOINT_URL_S3")]
    places += [getattr(config.source, key, None) for key in ("base_url", "token_url", "catalog")]
    return any(is_loopback(urlsplit(place).hostname) for place in places if place)


def is_loopback(host: str | None) -> bool:
    """Whether a host name means this machine."""
    try:
        return host == "localhost" or (host is not None and ipaddress.ip_address(host).is_loopback)
    except ValueError:
        return False
