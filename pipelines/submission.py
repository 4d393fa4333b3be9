"""Runs on a cluster: a graph sent to a Kubeflow Pipelines endpoint, watched until it ends."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import kfp
import kfp_server_api
import requests
import urllib3
from kfp.client.set_volume_credentials import ServiceAccountTokenVolumeCredentials
from kfp.compiler import Compiler
from kfp.dsl.graph_component import GraphComponent
from pydantic import BaseModel

from pipelines.inference import inference_graph
from pipelines.platform import Platform
from pipelines.training import training_graph
from sr_core.config import Config
from sr_core.errors import ConfigError, SubpixelError
from sr_core.storage import is_remote

GRAPHS: dict[str, Callable[[Platform], GraphComponent]] = {"training": training_graph, "inference": inference_graph}
TOKEN = "KF_PIPELINES_TOKEN"
TOKEN_FILE = "KF_PIPELINES_SA_TOKEN_PATH"
"""As kfp itself calls it; in a pod of the cluster Kubernetes mounts a token and renews it."""
TOKEN_MOUNT = Path("/var/run/secrets/kubeflow/pipelines/token")
CONNECT_TIMEOUT_S = 10.0
POLL_S = 10.0
OUTAGE_S = 300.0
"""An endpoint may be away for so long while a run is watched: a restart of the API server is no end of the run."""
FINAL = {"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"}


class SubmissionError(SubpixelError):
    """The endpoint cannot be reached, does not let us in, or refuses the run."""


@dataclass(frozen=True)
class Run:
    """A run on the cluster."""

    id: str
    link: str


def compile_graph(graph: str, platform: Platform, path: Path, config: Config | None = None, root: str = "") -> None:
    """Write a graph as IR YAML, with the configuration and the root as the defaults of its parameters."""
    given = {"config": config.model_dump_json() if config else "", "root": root}
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.stem}.yaml")
    Compiler().compile(
        GRAPHS[graph](platform), str(aside), pipeline_parameters={key: value for key, value in given.items() if value}
    )
    aside.replace(path)


def check(config: Config, root: str | None, platform: Platform) -> str:
    """The root of a run on a cluster. Raises `ConfigError` where pods could not see the root or a file."""
    if root is None or not is_remote(root):
        raise ConfigError(
            f"--root: found {root or 'none'}, expected s3://bucket/prefix: pods of a run share nothing but storage"
        )
    mounts = [volume.mount for volume in platform.volumes]
    for key, path in _paths(config):
        if not any(path.is_relative_to(mount) for mount in mounts):
            seen = ", ".join(map(str, mounts)) or "none"
            raise ConfigError(
                f"{key}: found {path}, which pods do not see; expected a path below a volume of the platform file"
                f" (mounted there: {seen})"
            )
    return root.rstrip("/")


def _paths(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Path]]:
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Path):
            yield f"{prefix}{name}", value
        elif isinstance(value, BaseModel):
            yield from _paths(value, f"{prefix}{name}.")


class Endpoint:
    """A Kubeflow Pipelines API, such as https://kubeflow.example.org/pipeline or a forwarded http://localhost:8888."""

    def __init__(self, url: str, namespace: str | None = None) -> None:
        """Connect. Raises `SubmissionError` where nothing answers, or not to us, or something else does."""
        self.url, self.namespace = url.rstrip("/"), namespace
        credentials = token_credentials()
        self._greet(credentials)
        with said_by("connect", self.url), quiet():
            self.client = kfp.Client(
                host=self.url,
                namespace=namespace or "kubeflow",
                existing_token=os.environ.get(TOKEN),
                credentials=credentials,
            )

    def _greet(self, credentials: ServiceAccountTokenVolumeCredentials | None) -> None:
        # kfp's client retries for a minute and then prints a traceback
        token = os.environ.get(TOKEN) or (credentials._get_token() if credentials else None)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            answer = requests.get(
                f"{self.url}/apis/v2beta1/healthz", headers=headers, timeout=CONNECT_TIMEOUT_S, allow_redirects=False
            )
        except requests.exceptions.SSLError as error:
            raise SubmissionError(f"{self.url}: its certificate is not trusted here: {error}") from None
        except requests.exceptions.RequestException as error:
            raise SubmissionError(
                f"{self.url}: cannot be reached ({type(error).__name__}); is the address that of the Kubeflow Pipelines"
                " API, and is the port forwarded?"
            ) from None
        if answer.status_code in (301, 302, 303, 307, 401, 403):
            raise SubmissionError(refusal(self.url, answer.status_code))
        try:
            answer.raise_for_status()
            json.loads(answer.text)
        except (requests.exceptions.HTTPError, ValueError):
            raise SubmissionError(
                f"{self.url}: found HTTP {answer.status_code} and no Kubeflow Pipelines API, expected"
                " /apis/v2beta1/healthz below it"
            ) from None

    def submit(self, graph: str, config: Config, root: str, platform: Platform, experiment: str, name: str) -> Run:
        """Start a run. What Kubeflow itself keeps of it goes below `<root>/.kubeflow`. Raises `SubmissionError`."""
        with tempfile.TemporaryDirectory(prefix="subpixel-submit-") as folder:
            package = Path(folder) / "graph.yaml"
            compile_graph(graph, platform, package)
            with said_by("submit", self.url), quiet():
                found = self.client.create_experiment(experiment, namespace=self.namespace)
                run = self.client.run_pipeline(
                    found.experiment_id,
                    name,
                    str(package),
                    params={"config": config.model_dump_json(), "root": root},
                    pipeline_root=f"{root}/.kubeflow",
                    service_account=platform.service_account,
                )
        return Run(run.run_id, f"{self.url}/#/runs/details/{run.run_id}")

    def wait(self, run: Run, say: Callable[[str], None], poll_s: float = POLL_S) -> None:
        """Watch a run until it ends, and say which tasks begin and end. Raises `SubmissionError` unless it succeeded.

        The endpoint may be away for `OUTAGE_S` in between.
        """
        told: dict[str, str] = {}
        seen = time.monotonic()
        while True:
            try:
                with said_by("watch", self.url), quiet():
                    found = self.client.get_run(run.id)
                seen = time.monotonic()
            except UnavailableError:
                if time.monotonic() - seen > OUTAGE_S:
                    raise
                time.sleep(poll_s)
                continue
            tasks = list(found.run_details.task_details or ()) if found.run_details else []
            for task in tasks:
                state = task.state or "PENDING"
                if told.get(task.task_id) != state and not task.display_name.endswith("-driver"):
                    told[task.task_id] = state
                    say(f"{task.display_name}: {state.lower()}")
            if (state := found.state or "") in FINAL:
                if state == "SUCCEEDED":
                    return
                failed = [
                    f"{task.display_name}" + (f" ({task.error.message})" if task.error and task.error.message else "")
                    for task in tasks
                    if task.state == "FAILED" and task.pod_name
                ]
                raise SubmissionError(
                    f"run {run.id} ended {state.lower()}"
                    + (f": {', '.join(failed)}" if failed else "")
                    + f"; see {run.link}"
                )
            time.sleep(poll_s)


class UnavailableError(SubmissionError):
    """The endpoint does not answer now."""


def token_credentials() -> ServiceAccountTokenVolumeCredentials | None:
    """Credentials from a mounted token, read again for each request. Raises `SubmissionError` where it is missing."""
    if os.environ.get(TOKEN):
        return None
    named = os.environ.get(TOKEN_FILE)
    path = Path(named) if named else TOKEN_MOUNT
    if path.is_file():
        return ServiceAccountTokenVolumeCredentials(str(path))
    if named:
        raise SubmissionError(f"{TOKEN_FILE}: found {named}, which is no file; expected one that holds a token")
    return None


def refusal(url: str, status: int) -> str:
    """What a status says that is about who we are."""
    how = f"set {TOKEN} to a token, or {TOKEN_FILE} to a file that holds one"
    if status == 403:
        return f"{url}: forbidden (HTTP 403): this account may not run pipelines here; {how}, or name its --namespace"
    return f"{url}: not authorised (HTTP {status}); {how}"


@contextlib.contextmanager
def said_by(what: str, url: str) -> Iterator[None]:
    """Say errors of kfp's client in a line."""
    try:
        yield
    except kfp_server_api.ApiException as error:
        if error.status in (401, 403):
            raise SubmissionError(refusal(url, error.status)) from None
        if error.status and error.status >= 500 and error.status != 500:
            raise UnavailableError(f"{url}: cannot {what}: HTTP {error.status}") from None
        raise SubmissionError(f"{url}: cannot {what}: HTTP {error.status}: {_message(error)}") from None
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise UnavailableError(f"{url}: cannot {what}: {type(error).__name__}") from None


def _message(error: kfp_server_api.ApiException) -> str:
    try:
        return str(json.loads(error.body)["message"])
    except (ValueError, TypeError, KeyError):
        return str(error.reason)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the links and warnings that kfp's client prints."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
