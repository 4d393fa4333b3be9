"""A Kubernetes API server with Kubeflow Trainer on this machine: the paths that a launcher of TrainJobs uses.

`serve` answers create, get, list and delete of TrainJobs, get of runtimes, pods and their logs. Jobs are admitted as
the CRD and Trainer's webhook do. What becomes of a job is up to the test: it gives the job pods with `Kubernetes.pod`,
or lets `Kubernetes.run_nodes` run the job's own command, one process a node, as Trainer's controller and kubelets do.
"""

import datetime as dt
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml
from kubeflow_trainer_api import models

TOKEN = "a-token-that-must-not-be-printed"
NAMESPACE = "team"
GROUP = "/apis/trainer.kubeflow.org/v1alpha1"
JOBS = f"{GROUP}/namespaces/{NAMESPACE}/trainjobs"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
REPOSITORY = Path(__file__).resolve().parents[2]


def runtime(name: str) -> dict[str, Any]:
    """A runtime of PyTorch, as Trainer's own `torch-distributed` is."""
    container = {"name": "node", "image": "pytorch"}
    job = {
        "name": "node",
        "template": {
            "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
            "spec": {"template": {"spec": {"containers": [container]}}},
        },
    }
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "ClusterTrainingRuntime",
        "metadata": {"name": name, "labels": {"trainer.kubeflow.org/framework": "torch"}},
        "spec": {"mlPolicy": {"numNodes": 1, "torch": {}}, "template": {"spec": {"replicatedJobs": [job]}}},
    }


def admit(job: dict[str, Any]) -> list[str]:
    """What the CRD's schema and rules and Trainer's webhook hold against a TrainJob; empty: nothing."""
    complaints = []
    try:
        understood = models.TrainerV1alpha1TrainJob.from_dict(job).to_dict()
    except ValueError as error:  # pydantic's
        return [f"schema: {error}"]
    if understood != job:  # the models drop fields that they do not know
        complaints.append(f"schema: unknown fields: expected {understood}")
    name, trainer = job["metadata"]["name"], job["spec"]["trainer"]
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) or len(name) > 63:
        complaints.append("metadata.name must match RFC 1035 DNS label format")
    if len(f"{name}-node-0-0") > 63:
        complaints.append("the name leaves no room for those of the pods")
    for key, value in job["metadata"].get("labels", {}).items():
        if len(value) > 63 or not re.fullmatch(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?", value):
            complaints.append(f"metadata.labels: {key}")
    if len(trainer["image"]) > 500 or any(len(text) > 65536 for text in trainer["command"] + trainer["args"]):
        complaints.append("too long: image, command or args")
    if len(trainer["command"]) > 128 or len(trainer["args"]) > 128 or len(trainer.get("env", [])) > 128:
        complaints.append("more than 128 items: command, args or env")
    names = [variable["name"] for variable in trainer.get("env", [])]
    if len(set(names)) != len(names):
        complaints.append("spec.trainer.env: a name twice")
    if reserved := [name for name in names if name.startswith("PET_")]:
        complaints.append(f"must not have reserved envs, invalid envs configured: {reserved}")
    for variable in trainer.get("env", []):
        if ("value" in variable) == ("valueFrom" in variable):
            complaints.append(f"spec.trainer.env: {variable['name']}: either value or valueFrom")
    if job["spec"].get("activeDeadlineSeconds", 1) < 1:
        complaints.append("activeDeadlineSeconds: at least 1")
    patches = job["spec"].get("runtimePatches", [])
    if len({patch["manager"] for patch in patches}) != len(patches):
        complaints.append("spec.runtimePatches: a manager twice")
    for patch in patches:
        for replicated in patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]:
            spec = replicated["template"]["spec"]["template"].get("spec", {})
            volumes = {volume["name"] for volume in spec.get("volumes", [])}
            for container in spec.get("containers", []):
                if container["name"] != "node" or replicated["name"] != "node":
                    complaints.append("must not have container that doesn't exist in the runtime job")
                if container.get("env"):
                    complaints.append("must not have envs for the node container")
                if not {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes:
                    complaints.append("volumeMounts: no such volume")
    return complaints


def status(code: int, reason: str, message: str, name: str = "") -> dict[str, Any]:
    """An error as the API server words it."""
    details = {"name": name} if name else {}
    kind = {"kind": "Status", "apiVersion": "v1", "status": "Failure"}
    return kind | {"code": code, "reason": reason, "message": message, "details": details}


def now() -> str:
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class Kubernetes:
    """The cluster: what is in it, and how it misbehaves."""

    url: str = ""
    kubeconfig: Path = Path()
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    pods: dict[str, dict[str, Any]] = field(default_factory=dict)
    logs: dict[str, list[str]] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    created: list[dict[str, Any]] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    has_trainer: bool = True
    may_create: bool = True
    no_webhook: int = 0
    """So many of the next jobs cannot be admitted, since Trainer's webhook does not answer."""
    runtimes: tuple[str, ...] = ("torch-distributed",)
    away: int = 0
    """So many of the next requests are answered with 503."""
    cut_logs: int = 0
    """So many of the next streams of logs break off after their first line."""
    on_create: Callable[["Kubernetes", str], None] = lambda cluster, name: None
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def pod(
        self,
        job: str,
        index: int,
        phase: str = "Running",
        lines: tuple[str, ...] = (),
        **status: Any,
    ) -> str:
        """Give a job a pod for its node `index`, with a log; further words are those of the container's status."""
        name = f"{job}-node-0-{index}-a"
        labels = {
            "jobset.sigs.k8s.io/jobset-name": job,
            "jobset.sigs.k8s.io/replicatedjob-name": "node",
            "batch.kubernetes.io/job-completion-index": str(index),
        }
        container = {"name": "node", "ready": phase == "Running", "restartCount": 0, "image": "i", "imageID": "i"}
        self.logs[name] = list(lines)
        self.pods[name] = {
            "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels, "creationTimestamp": now()},
            "spec": {"containers": [{"name": "node", "image": "i"}]},
            "status": {"phase": phase, "containerStatuses": [container | status]},
        }
        return name

    def end(self, job: str, kind: str, reason: str, message: str = "") -> None:
        """Complete or fail a job."""
        condition = {"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": now()}
        self.jobs[job]["status"] = {"conditions": [condition]}

    def run_nodes(self, job: str) -> None:
        """Run the job's command as each node's process, with the variables that Trainer's torch plugin sets."""
        threading.Thread(target=self._run_nodes, args=(job,), daemon=True).start()

    def _run_nodes(self, job: str) -> None:
        trainer = self.jobs[job]["spec"]["trainer"]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        env = {variable["name"]: variable["value"] for variable in trainer.get("env", []) if "value" in variable}
        pods, running = [], []
        for index in range(trainer["numNodes"]):
            pods.append(pod := self.pod(job, index))
            pet = {"NNODES": trainer["numNodes"], "NPROC_PER_NODE": trainer["numProcPerNode"], "NODE_RANK": index}
            pet |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            process = subprocess.Popen(
                [sys.executable, *trainer["command"][1:], *trainer["args"]],
                env=os.environ | env | {f"PET_{name}": str(value) for name, value in pet.items()},
                cwd=REPOSITORY,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            running.append(process)
            self.processes.append(process)
            threading.Thread(target=self._collect, args=(process, pod), daemon=True).start()
        for pod, process in zip(pods, running, strict=True):
            code = process.wait()
            self.pods[pod]["status"]["phase"] = "Succeeded" if code == 0 else "Failed"
            ended = {"terminated": {"exitCode": code, "reason": "Error" if code else "Completed", "finishedAt": now()}}
            self.pods[pod]["status"]["containerStatuses"][0]["state"] = ended
        if job in self.jobs:
            failed = any(process.returncode for process in running)
            self.end(job, *(("Failed", "JobsFailed", "jobset failed") if failed else ("Complete", "JobsCompleted")))

    def _collect(self, process: subprocess.Popen[bytes], pod: str) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.logs[pod].append(line.decode().rstrip("\n"))

    def running(self, pod: str) -> bool:
        """Whether the log of a pod still grows: its container runs."""
        status = self.pods.get(pod, {}).get("status", {"phase": ""})
        return status["phase"] == "Running" and not status["containerStatuses"][0].get("state")


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    cluster: Kubernetes

    def answer(self, code: int, body: dict[str, Any] | str) -> None:
        content = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(code)
        self.send_header("Content-Type", "text/plain" if isinstance(body, str) else "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def admitted(self) -> bool:
        """Whether the request goes on: known, not while the server is away, and to something that is installed."""
        cluster = self.cluster
        cluster.requests.append((self.command, self.path))
        if cluster.away:
            cluster.away -= 1
            self.answer(503, status(503, "ServiceUnavailable", "the server is currently unable to handle the request"))
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer(401, status(401, "Unauthorized", "Unauthorized"))
        elif self.path.startswith(GROUP) and not cluster.has_trainer:
            self.answer(404, "404 page not found\n")
        else:
            return True
        return False

    def do_GET(self) -> None:
        if not self.admitted():
            return
        cluster, address = self.cluster, urlsplit(self.path)
        query, name = parse_qs(address.query), address.path.rpartition("/")[2]
        if address.path.startswith(f"{JOBS}/"):
            self.found("trainjobs.trainer.kubeflow.org", name, cluster.jobs.get(name))
        elif address.path == JOBS:
            self.answer(200, {"items": list(cluster.jobs.values())})
        elif address.path.startswith(f"{GROUP}/clustertrainingruntimes/"):
            known = runtime(name) if name in cluster.runtimes else None
            self.found("clustertrainingruntimes.trainer.kubeflow.org", name, known)
        elif address.path.startswith(f"{GROUP}/namespaces/{NAMESPACE}/trainingruntimes/"):
            self.found("trainingruntimes.trainer.kubeflow.org", name, None)
        elif address.path == PODS:
            wanted = re.search(r"jobset-name=([^,]+)", query.get("labelSelector", [""])[0])
            pods = list(cluster.pods.values())
            if wanted:
                label = "jobset.sigs.k8s.io/jobset-name"
                pods = [pod for pod in pods if pod["metadata"].get("labels", {}).get(label) == wanted[1]]
            self.answer(200, {"kind": "PodList", "apiVersion": "v1", "items": pods})
        elif address.path.startswith(PODS) and name == "log":
            self.log(address.path.split("/")[-2], "follow" in query)
        elif address.path.startswith(f"{PODS}/"):
            self.found("pods", name, cluster.pods.get(name))
        else:
            self.answer(404, status(404, "NotFound", f"{self.path} not found", name))

    def found(self, kind: str, name: str, item: dict[str, Any] | None) -> None:
        if item is None:
            self.answer(404, status(404, "NotFound", f'{kind} "{name}" not found', name))
        else:
            self.answer(200, item)

    def log(self, pod: str, follow: bool) -> None:
        """Stream a pod's log; to the end of its container when followed."""
        cluster = self.cluster
        if pod not in cluster.logs:
            self.found("pods", pod, None)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        cut, sent = cluster.cut_logs > 0, 0
        cluster.cut_logs -= cut
        while True:
            going = follow and cluster.running(pod)
            for line in cluster.logs.get(pod, [])[sent:]:
                self.wfile.write(f"{len(line.encode()) + 1:x}\r\n{line}\n\r\n".encode())
                self.wfile.flush()
                sent += 1
                if cut:
                    self.close_connection = True
                    return
            if not going:
                self.wfile.write(b"0\r\n\r\n")
                return
            time.sleep(0.02)

    def do_POST(self) -> None:
        job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.admitted():
            return
        cluster, name = self.cluster, job["metadata"]["name"]
        resource = "trainjobs.trainer.kubeflow.org"
        if not cluster.may_create:
            message = f'{resource} is forbidden: User "system:serviceaccount:team:runner" cannot create resource'
            self.answer(403, status(403, "Forbidden", message))
        elif cluster.no_webhook:
            cluster.no_webhook -= 1
            self.answer(500, status(500, "InternalError", "Internal error occurred: failed calling webhook"))
        elif complaints := admit(job):
            self.answer(422, status(422, "Invalid", f"admission webhook denied the request: {complaints}", name))
        else:
            with cluster.lock:
                known = name in cluster.jobs
                if not known:
                    extra = {"namespace": NAMESPACE, "uid": "1", "creationTimestamp": now()}
                    cluster.jobs[name] = {**job, "metadata": job["metadata"] | extra}
            if known:
                self.answer(409, status(409, "AlreadyExists", f'{resource} "{name}" already exists', name))
                return
            cluster.created.append(job)
            cluster.on_create(cluster, name)
            self.answer(201, cluster.jobs[name])

    def do_DELETE(self) -> None:
        if not self.admitted():
            return
        name = urlsplit(self.path).path.rpartition("/")[2]
        job = self.cluster.jobs.pop(name, None)
        if job is not None:
            self.cluster.deleted.append(name)
            for pod in [pod for pod in self.cluster.pods if pod.startswith(f"{name}-node")]:
                del self.cluster.pods[pod]
        self.found("trainjobs.trainer.kubeflow.org", name, job)

    def log_message(self, *_: Any) -> None:
        """Nothing: tests read `Kubernetes.requests`."""


@contextmanager
def serve(folder: Path) -> Iterator[Kubernetes]:
    """Serve a cluster with a kubeconfig in `folder` until the block ends."""
    cluster = Kubernetes()
    handler = type("Handler", (Handler,), {"cluster": cluster})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    cluster.url = f"http://127.0.0.1:{server.server_port}"
    cluster.kubeconfig = folder / "kubeconfig"
    cluster.kubeconfig.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "here",
                "clusters": [{"name": "here", "cluster": {"server": cluster.url}}],
                "users": [{"name": "me", "user": {"token": TOKEN}}],
                "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me", "namespace": NAMESPACE}}],
            }
        )
    )
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield cluster
    finally:
        for process in cluster.processes:
            process.kill()
        server.shutdown()
        server.server_close()
