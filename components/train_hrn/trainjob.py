"""Training on several nodes: a TrainJob of Kubeflow Trainer v2, launched, watched and cleaned up from here.

Each node runs this stage's own program below torchrun, in this stage's own image, on the same root; the first process
of the first node writes the artifact, as on one machine. The job is named after the stage's key and the root: whoever
asks for the same training finds the job that runs and watches it. It is deleted when it ends, fails, or this program is
told to stop, and it belongs to what this pod belongs to (in Kubeflow Pipelines the run), with which it goes at the
latest.

The SDK's `TrainerClient.train` cannot say that a variable comes from a secret, and Trainer's admission refuses
variables in a patch of the node's container; so the job is written here, and the SDK does the rest.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from sr_core.config import Config
from sr_core.errors import ClusterError, ConfigError
from sr_core.progress import console, say
from sr_core.storage import is_remote
from sr_core.training.stopping import StoppedBySignalError

try:
    from kubeflow.common.types import KubernetesBackendConfig
    from kubeflow.common.utils import get_default_target_namespace
    from kubeflow.trainer import TrainerClient
    from kubeflow.trainer.constants import constants
    from kubernetes.client import ApiException
    from kubernetes.config import ConfigException
    from urllib3.exceptions import HTTPError
except ModuleNotFoundError as missing:
    raise ConfigError(
        f"train_hrn.nodes: more than one needs the package {missing.name}: pip install 'subpixel[trainer]'"
    ) from None

RESOURCE = (constants.GROUP, constants.VERSION)
MANAGER = "subpixel/train-hrn"
"""Who owns our patch of the runtime, beside Kueue's and others'."""
ROOT_ANNOTATION = "subpixel/root"
PASSED_ON = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "WANDB_MODE",
    "WANDB_BASE_URL",
)
"""Variables of this program that the nodes need as well, and that are no secrets."""
STUCK = {
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
}
"""Why a container waits that does not come by waiting; a registry may recover, so not at once."""
POLL_S = 5.0
STUCK_S = 120.0
UNREACHABLE_S = 300.0
"""How long the API server may be away while a job runs."""
BEGIN_S = 120.0
"""How long the API server may refuse a new job for the time being, or an earlier one take to go."""
LAST_LINES = 20
REQUEST_TIMEOUT_S = 30.0


class AwayError(ClusterError):
    """The API server does not answer, or not now: asking again may help."""


@dataclass(frozen=True)
class Pod:
    """What the pod that this program runs in gives to the nodes; nothing outside a cluster."""

    image: str | None = None
    service_account: str | None = None
    image_pull_secrets: Sequence[Mapping[str, Any]] = ()
    references: Sequence[Mapping[str, Any]] = ()
    """Variables that come from a secret or a config map, as references."""
    owners: Sequence[Mapping[str, Any]] = ()

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> Pod:
        """From the pod's manifest; of several containers the one named `main`, as Argo does."""
        spec, metadata = manifest["spec"], manifest["metadata"]
        container = next((one for one in spec["containers"] if one["name"] == "main"), spec["containers"][0])
        references = [
            {"name": variable["name"], "valueFrom": {kind: variable["valueFrom"][kind]}}
            for variable in container.get("env") or []
            for kind in ("secretKeyRef", "configMapKeyRef")
            if (variable.get("valueFrom") or {}).get(kind)
        ]
        owners = [
            {key: owner[key] for key in ("apiVersion", "kind", "name", "uid")}
            for owner in metadata.get("ownerReferences") or []
        ]
        return cls(
            container["image"],
            spec.get("serviceAccountName"),
            spec.get("imagePullSecrets") or (),
            references,
            owners,
        )


@dataclass
class Node:
    """The latest pod of one node, and how often the node has crashed so far."""

    pod: str
    phase: str
    crashes: int
    restarts: int
    """Of the container of this pod: which of its logs is the present one."""
    waits: str = ""
    """Why its container does not run: reason and message."""
    ended: str = ""
    """How its container ended last, where not well."""
    ended_at: str = ""


def launch(config: Config, root: str, key: str) -> None:
    """Train on the nodes of a TrainJob, and return when they are done; `key` is the stage's, of these inputs.

    Raises `ConfigError` where the nodes could not see what they need, `ClusterError` where the cluster refuses the job
    or the job fails, with the last lines of the node that failed first, and KeyboardInterrupt at SIGTERM or Ctrl-C.
    The job is deleted in any case.
    """
    check_nodes_see(config, root)
    cluster = Cluster.connect(config)
    name = job_name(root, key)
    with sigterm_interrupts():
        try:
            cluster.begin(manifest(config, root, key, cluster.own_pod(), cluster.runtime_kind()))
            cluster.watch(name)
        finally:
            cluster.clean_up(name)


def check_nodes_see(config: Config, root: str) -> None:
    """Raises `ConfigError` where root or perceptual network lie in a folder that is not a volume of the nodes."""
    settings, nodes = config.trainjob, config.train_hrn.nodes
    network = config.train_hrn.perceptual_network
    places = ([] if is_remote(root) else [("the root", Path(root))]) + (
        [] if network is None else [("train_hrn.perceptual_network", network)]
    )
    for what, place in places:
        if not any(place.resolve().is_relative_to(mount) for mount in settings.volumes.values()):
            mounts = ", ".join(map(str, settings.volumes.values())) or "none"
            s3 = "s3://bucket/prefix or " if what == "the root" else ""
            raise ConfigError(
                f"train_hrn.nodes: found {nodes} and {what} {place}, a folder of this machine alone; expected {s3}a"
                f" folder below a volume that the nodes mount (trainjob.volumes: {mounts})"
            )


def job_name(root: str, key: str) -> str:
    """The same for the same training below the same root. Short, as names of pods and services begin with it."""
    digest = hashlib.sha256(f"{root.rstrip('/')} {key}".encode()).hexdigest()
    return f"train-hrn-{digest[:16]}"


def manifest(config: Config, root: str, key: str, pod: Pod, runtime_kind: str) -> dict[str, Any]:
    """The TrainJob, as the API takes it. Raises `ConfigError` without an image."""
    settings, training = config.trainjob, config.train_hrn
    image = settings.image or pod.image
    if image is None:
        raise ConfigError("trainjob.image: none given, and this is no pod whose image the nodes could take; name it")
    trainer: dict[str, Any] = {
        "image": image,
        # Trainer tells torchrun the nodes and where they meet by PET_ variables
        "command": ["python3", "-m", "torch.distributed.run"],
        "args": ["-m", "components.train_hrn", "--config", config.model_dump_json(), "--root", root],
        "numNodes": training.nodes,
        "numProcPerNode": training.processes,
    }
    if settings.resources:
        trainer["resourcesPerNode"] = {"requests": dict(settings.resources), "limits": dict(settings.resources)}
    if environment := variables(config, pod):
        trainer["env"] = environment
    metadata: dict[str, Any] = {
        "name": job_name(root, key),
        "labels": {
            "app.kubernetes.io/name": "subpixel",
            "app.kubernetes.io/component": "train-hrn",
            "app.kubernetes.io/instance": key,
        },
        "annotations": {ROOT_ANNOTATION: root},
    }
    if pod.owners:
        metadata["ownerReferences"] = [dict(owner) for owner in pod.owners]
    spec: dict[str, Any] = {
        "runtimeRef": {"name": settings.runtime, "kind": runtime_kind},
        "trainer": trainer,
        "runtimePatches": [runtime_patch(config, pod)],
    }
    if settings.time_limit_h is not None:
        spec["activeDeadlineSeconds"] = max(1, round(3600 * settings.time_limit_h))
    return {
        "apiVersion": constants.API_VERSION,
        "kind": constants.TRAINJOB_KIND,
        "metadata": metadata,
        "spec": spec,
    }


def variables(config: Config, pod: Pod) -> list[dict[str, Any]]:
    """Variables of the nodes: those this program has for S3 and W&B, the pod's references, then what is configured."""
    found: dict[str, dict[str, Any]] = {
        name: {"name": name, "value": os.environ[name]} for name in PASSED_ON if os.environ.get(name)
    }
    found |= {variable["name"]: dict(variable) for variable in pod.references}
    found |= {name: {"name": name, "value": value} for name, value in config.trainjob.environment.items()}
    for name, place in config.trainjob.secrets.items():
        secret, _, entry = place.partition("/")
        found[name] = {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": entry, "optional": True}}}
    return list(found.values())


def runtime_patch(config: Config, pod: Pod) -> dict[str, Any]:
    """What the nodes' pods have beside the runtime's own: account, machines, volumes."""
    settings = config.trainjob
    claims = list(settings.volumes.items())
    volumes = [
        {"name": f"volume-{number}", "persistentVolumeClaim": {"claimName": claim}}
        for number, (claim, _) in enumerate(claims)
    ]
    mounts = [{"name": f"volume-{number}", "mountPath": str(path)} for number, (_, path) in enumerate(claims)]
    if settings.shared_memory is not None:
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": settings.shared_memory}})
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})
    account = settings.service_account or pod.service_account
    spec = {
        "serviceAccountName": account,
        "imagePullSecrets": [dict(secret) for secret in pod.image_pull_secrets],
        "nodeSelector": dict(settings.node_selector),
        "tolerations": [one.model_dump(exclude_none=True) for one in settings.tolerations],
        "volumes": volumes,
        "containers": [{"name": constants.NODE, "volumeMounts": mounts}] if mounts else [],
    }
    template = {
        # in a namespace with Istio its proxy would stand between the nodes, and never end
        "metadata": {"labels": {"sidecar.istio.io/inject": "false"}},
        "spec": {key: value for key, value in spec.items() if value},
    }
    node = {"name": constants.NODE, "template": {"spec": {"template": template}}}
    return {"manager": MANAGER, "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [node]}}}}


class Cluster:
    """The namespace of a cluster in which the job runs."""

    def __init__(self, client: TrainerClient, namespace: str, config: Config) -> None:
        self.client = client
        self.custom, self.core = client.backend.custom_api, client.backend.core_api
        self.namespace = namespace
        self.config = config
        self.logs: dict[str, Log] = {}
        """The present log of each node."""

    @classmethod
    def connect(cls, config: Config) -> Cluster:
        """By the service account of this pod, or by kubeconfig. Raises `ClusterError` without either."""
        # it warns of Trainer's version, which needs rights in Trainer's own namespace
        logging.getLogger("kubeflow").setLevel(logging.ERROR)
        try:
            client = TrainerClient(KubernetesBackendConfig(namespace=config.trainjob.namespace))
        except ConfigException as error:
            raise ClusterError(
                f"train_hrn.nodes: found {config.train_hrn.nodes}, and no Kubernetes cluster to run them on: {error};"
                " run in a pod, or set KUBECONFIG"
            ) from error
        return cls(client, client.backend.namespace, config)

    def own_pod(self) -> Pod:
        """The pod that this program runs in, or an empty one outside a cluster."""
        if "KUBERNETES_SERVICE_HOST" not in os.environ:
            return Pod()
        name = os.environ.get("KFP_POD_NAME") or socket.gethostname()
        namespace = get_default_target_namespace()
        with explained(f"pod {namespace}/{name}"):
            manifest = self.core.read_namespaced_pod(name, namespace, _request_timeout=REQUEST_TIMEOUT_S)
        pod = Pod.of(self.core.api_client.sanitize_for_serialization(manifest))
        # accounts, secrets and owners are a namespace's own
        return pod if namespace == self.namespace else Pod(pod.image)

    def runtime_kind(self) -> str:
        """Whether the runtime is the namespace's or the cluster's. Raises `ClusterError` where there is none."""
        name = self.config.trainjob.runtime
        with explained(f"trainjob.runtime: {name}"):
            return str(self.client.get_runtime(name).kind.value)

    def begin(self, job: Mapping[str, Any]) -> None:
        """Create the job, or adopt the one of this training that is at work; a finished one is replaced."""
        name = job["metadata"]["name"]
        where = f"TrainJob {self.namespace}/{name}"
        limit = time.monotonic() + BEGIN_S
        while True:
            try:
                with explained(where):
                    self.custom.create_namespaced_custom_object(
                        *RESOURCE, self.namespace, constants.TRAINJOB_PLURAL, dict(job)
                    )
                say(f"{where}: {job['spec']['trainer']['numNodes']} nodes of {job['spec']['trainer']['image']}")
                return
            except AwayError as error:  # as while Trainer's webhook starts; had the job been made, it will be found
                if time.monotonic() > limit:
                    raise
                say(str(error))
                time.sleep(POLL_S)
                continue
            except ExistsError:
                found = self.job(name)
            if found is not None and "deletionTimestamp" not in found["metadata"]:
                if ending(found) is None:
                    say(f"{where}: runs already, watching it")
                    return
                self.delete(name)
            if time.monotonic() > limit:
                raise ClusterError(f"{where}: an earlier job of this name does not go; see its finalizers")
            time.sleep(POLL_S)

    def job(self, name: str) -> dict[str, Any] | None:
        """The job as the API has it, or None."""
        with explained(f"TrainJob {self.namespace}/{name}"):
            try:
                found: dict[str, Any] = self.custom.get_namespaced_custom_object(
                    *RESOURCE, self.namespace, constants.TRAINJOB_PLURAL, name, _request_timeout=REQUEST_TIMEOUT_S
                )
            except ApiException as error:
                if error.status == 404 and is_status(error):
                    return None
                raise
        return found

    def nodes(self, name: str) -> dict[str, Node]:
        """The nodes that have pods, in order: {"node-0": …}."""
        with explained(f"pods of TrainJob {self.namespace}/{name}"):
            pods = self.core.list_namespaced_pod(
                self.namespace,
                label_selector=constants.POD_LABEL_SELECTOR.format(trainjob_name=name),
                _request_timeout=REQUEST_TIMEOUT_S,
            ).items
        return nodes_of([self.core.api_client.sanitize_for_serialization(pod) for pod in pods])

    def watch(self, name: str) -> None:
        """Follow the job until it is complete. Raises `ClusterError` when it fails or cannot go on."""
        where = f"TrainJob {self.namespace}/{name}"
        nodes: dict[str, Node] = {}
        said, seen, stuck_since = "", time.monotonic(), None
        while True:
            try:
                job = self.job(name)
                nodes = self.nodes(name) or nodes  # those of a failed job may be gone
                seen = time.monotonic()
            except AwayError as error:
                if time.monotonic() - seen > UNREACHABLE_S:
                    raise
                say(str(error))
                time.sleep(POLL_S)
                continue
            if job is None:
                raise ClusterError(f"{where}: was deleted by someone else")
            self.follow(name, nodes)
            end = ending(job)
            if end is not None:
                for log in self.logs.values():
                    log.finish()
                if end[0]:
                    return
                raise ClusterError(f"{where}: failed ({end[1]}){self.blame(nodes)}")
            if (state := progress(job, nodes, self.config.train_hrn.nodes)) != said:
                say(f"{where}: {state}")
                said = state
            restarts = self.config.trainjob.restarts
            if any(node.crashes > restarts for node in nodes.values()):
                raise ClusterError(f"{where}: gave up after trainjob.restarts {restarts} restarts{self.blame(nodes)}")
            stuck = next((one for one in nodes.items() if one[1].waits.partition(":")[0] in STUCK), None)
            stuck_since = (stuck_since or time.monotonic()) if stuck else None
            if stuck and stuck_since is not None and time.monotonic() - stuck_since >= STUCK_S:
                image = self.config.trainjob.image or "this pod's"
                raise ClusterError(
                    f"{where}: {stuck[0]} (pod {stuck[1].pod}) cannot start: {stuck[1].waits} (trainjob.image: {image})"
                )
            time.sleep(POLL_S)

    def follow(self, name: str, nodes: Mapping[str, Node]) -> None:
        """Read the log of every node that has one; the first node's is shown."""
        for step, node in nodes.items():
            if node.phase == "Pending":
                continue
            log = self.logs.get(step)
            if log is None or (log.pod, log.restarts) != (node.pod, node.restarts):
                kept = log.tail if log is not None else deque(maxlen=LAST_LINES)
                log = self.logs[step] = Log(step, node.pod, node.restarts, step == f"{constants.NODE}-0", kept)
            log.read(lambda step=step: self.client.get_job_logs(name, step=step, follow=True))

    def blame(self, nodes: Mapping[str, Node]) -> str:
        """Which node failed first, how, and what it said last."""
        failed = sorted((node.ended_at, step) for step, node in nodes.items() if node.ended)
        step = failed[0][1] if failed else next(iter(nodes), None)
        if step is None:
            return "; no pod was ever there"
        node = nodes[step]
        log = self.logs.get(step)
        if log is not None:
            log.finish()
        lines = "".join(f"\n    {line}" for line in (log.tail if log is not None else ()))
        hint = "; raise trainjob.resources: memory, or lower train_hrn.batch_size" if "OOMKilled" in node.ended else ""
        return f"; {step} (pod {node.pod}): {node.ended or node.waits or node.phase}{hint}; its last lines:{lines}"

    def delete(self, name: str) -> None:
        """Delete the job with its pods; nothing where it is gone."""
        with explained(f"TrainJob {self.namespace}/{name}"):
            try:
                self.client.delete_job(name)
            except RuntimeError as error:
                answer = api_error(error)
                if answer is None or answer.status != 404:
                    raise

    def clean_up(self, name: str) -> None:
        """Delete the job at the end; where that fails, say so, since something else is being said already."""
        try:
            self.delete(name)
        except ClusterError as error:
            say(f"left behind: {error}; kubectl -n {self.namespace} delete trainjob {name}")


@dataclass
class Log:
    """The log of one container, read in a thread of its own, from where an interrupted stream ended."""

    step: str
    pod: str
    restarts: int
    shown: bool
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=LAST_LINES))
    count: int = 0
    thread: threading.Thread | None = None

    def read(self, stream: Callable[[], Iterator[str]]) -> None:
        """Go on reading, unless that is being done."""
        if self.thread is None or not self.thread.is_alive():
            self.thread = threading.Thread(target=self._read, args=(stream,), daemon=True)
            self.thread.start()

    def _read(self, stream: Callable[[], Iterator[str]]) -> None:
        try:
            for line in islice(stream(), self.count, None):
                self.count += 1
                self.tail.append(line)
                if self.shown:
                    console.print(f"{self.step} | {line}", markup=False)
        except (RuntimeError, TimeoutError, HTTPError):
            return  # the next poll begins again here

    def finish(self) -> None:
        """Wait for the rest of a log whose container has ended."""
        if self.thread is not None:
            self.thread.join(timeout=REQUEST_TIMEOUT_S)


def nodes_of(pods: Sequence[Mapping[str, Any]]) -> dict[str, Node]:
    """The nodes of a job's pods (manifests with status): of a node's pods the latest, with the crashes of all."""
    found: dict[str, Node] = {}
    crashes: dict[str, int] = {}
    for pod in sorted(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp"))):
        labels = pod["metadata"]["labels"]
        if labels.get(constants.JOBSET_RJOB_NAME_LABEL) != constants.NODE:
            continue
        step = f"{constants.NODE}-{labels[constants.JOB_INDEX_LABEL]}"
        status = pod.get("status", {})
        container = next(
            (one for one in status.get("containerStatuses") or [] if one["name"] == constants.NODE),
            {"restartCount": 0},
        )
        state, last = container.get("state") or {}, container.get("lastState") or {}
        end = state.get("terminated") or last.get("terminated") or {}
        waiting = state.get("waiting") or {}
        scheduled = next((one for one in status.get("conditions") or [] if one["type"] == "PodScheduled"), {})
        if not waiting and scheduled.get("status") == "False":
            waiting = {"reason": scheduled.get("reason"), "message": scheduled.get("message")}
        phase = status.get("phase", "Pending")
        # one that goes because it was evicted or its machine went has not crashed
        failed = phase == "Failed" and bool(end.get("exitCode"))
        crashes[step] = crashes.get(step, 0) + container["restartCount"] + failed
        node = Node(pod["metadata"]["name"], phase, crashes[step], container["restartCount"])
        if waiting.get("reason"):
            node.waits = ": ".join(filter(None, (waiting["reason"], waiting.get("message"))))
        if end.get("exitCode"):
            node.ended = f"exit status {end['exitCode']} ({end.get('reason', 'Error')})"
            node.ended_at = str(end.get("finishedAt") or "")
        elif status.get("reason"):
            node.ended = ": ".join(filter(None, (status["reason"], status.get("message"))))
        found[step] = node
    return dict(sorted(found.items(), key=lambda one: int(one[0].rpartition("-")[2])))


def ending(job: Mapping[str, Any]) -> tuple[bool, str] | None:
    """Whether a job ended well, and why; None while it has not ended."""
    for condition in job.get("status", {}).get("conditions") or []:
        ends = condition["type"] in (constants.TRAINJOB_COMPLETE, constants.TRAINJOB_FAILED)
        if ends and condition["status"] == "True":
            why = ": ".join(filter(None, (condition.get("reason"), condition.get("message"))))
            return condition["type"] == constants.TRAINJOB_COMPLETE, why
    return None


def progress(job: Mapping[str, Any], nodes: Mapping[str, Node], wanted: int) -> str:
    """What the nodes are at: `1 of 2 nodes run; node-1: ImagePullBackOff: …`."""
    conditions = job.get("status", {}).get("conditions") or []
    if any(one["type"] == "Suspended" and one["status"] == "True" for one in conditions):
        return "suspended, until a queue admits it"
    running = sum(node.phase == "Running" and not node.waits for node in nodes.values())
    parts = [f"{running} of {wanted} nodes run"]
    for step, node in nodes.items():
        if node.waits:
            parts.append(f"{step} waits: {node.waits}")
        if node.crashes:
            parts.append(f"{step} crashed {node.crashes} times, last with {node.ended}")
    return "; ".join(parts)


class ExistsError(ClusterError):
    """There is an object of this name already."""


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turns errors of the SDK and of the Kubernetes client into `ClusterError`s that say what to do."""
    try:
        yield
    except (RuntimeError, TimeoutError, ApiException, HTTPError, ConfigException) as error:
        answer = api_error(error)
        if answer is None or not answer.status:
            cause = error.__cause__ or error
            reason = re.sub(r"\s+", " ", str(getattr(cause, "reason", None) or cause))
            raise AwayError(f"{what}: the cluster does not answer: {reason}") from error
        said = message_of(answer)
        if answer.status == 401:
            advice = "the token is not accepted: renew it, or see the pod's service account"
        elif answer.status == 403:
            advice = f"{said}; the rights that train_hrn needs are in docs/several-nodes.md"
        elif answer.status == 404 and not is_status(answer):
            advice = f"the cluster has no {constants.GROUP}/{constants.VERSION}: install Kubeflow Trainer v2"
        elif answer.status == 409:
            raise ExistsError(f"{what}: exists already") from error
        elif answer.status == 429 or answer.status >= 500:
            raise AwayError(f"{what}: the cluster answered {answer.status}: {said}") from error
        else:
            advice = said
        raise ClusterError(f"{what}: the cluster answered {answer.status}: {advice}") from error


def api_error(error: BaseException | None) -> ApiException | None:
    """The answer of the API server below an error of the SDK."""
    while error is not None and not isinstance(error, ApiException):
        error = error.__cause__
    return error


def is_status(error: ApiException) -> bool:
    """Whether the API knows the resource, and says something of one object: a `Status` message."""
    return status_of(error).get("kind") == "Status" and bool((status_of(error).get("details") or {}).get("name"))


def message_of(error: ApiException) -> str:
    return str(status_of(error).get("message") or error.reason)


def status_of(error: ApiException) -> dict[str, Any]:
    try:
        found = json.loads(error.body or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """SIGTERM, by which Kubernetes ends a pod, unwinds the program as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # the job is being deleted
        raise StoppedBySignalError(number)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
