"""The containers of the chart's pods, run by Docker under the constraints of the rendered manifest."""

import concurrent.futures
import io
import json
import os
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import torch
import yaml
from helm_python import Chart

from charts.documentation import CHART
from components.images import build_serving, docker
from components.stage import STAGES, run
from serving.archive import build_archive
from sr_core.models.bundle import load_bundle, save_bundle
from sr_core.models.highresnet import HighResNet
from sr_core.models.normalization import Normalization
from sr_core.storage import sha256
from tests.e2e.engine import docker_engine
from tests.seaweed import BUCKET, S3Server, seaweed
from tests.stages.test_publish import configuration

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

RELEASE, NAMESPACE = "sr", "earth"
PORTS = {"http": 8080, "management": 8081, "metrics": 8082, "gRPC": 7070, "gRPC management": 7071}
LISTENING = """
import socket, sys
for port in map(int, sys.argv[2:]):
    try:
        socket.create_connection((sys.argv[1], port), 5).close()
        print(port)
    except OSError:
        pass
"""
"""Prints the ports of a host that answer."""
KILL_WORKER = """
import glob, os
names = {path: open(path, "rb").read().split(bytes(1)) for path in glob.glob("/proc/[0-9]*/cmdline")}
workers = [int(path.split("/")[2]) for path, words in names.items() if b"--sock-type" in words]
for pid in workers:
    os.kill(pid, 9)
print(len(workers), "killed")
"""
CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


def call(*arguments: str | Path, ok: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([docker(), *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0 or not ok, f"docker {' '.join(map(str, arguments))}:\n{done.stdout}{done.stderr}"
    return done


@dataclass
class Cluster:
    """What of a cluster the pods see: a network, a model store in S3, a secret."""

    image: str
    store: S3Server
    network: str
    version: str
    archive: Path
    bundle: Path
    pods: list[str] = field(default_factory=list)
    volumes: list[str] = field(default_factory=list)

    def manifest(self, **values: Any) -> list[dict[str, Any]]:
        """The rendered chart for this cluster."""
        repository, _, tag = self.image.partition(":")
        given = {
            "image": {"repository": repository, "tag": tag},
            "model": {"name": "fields", "version": self.version, "sha256": sha256(self.archive)},
            "modelStore": {"uri": f"s3://{BUCKET}/models"},
            "s3": {
                "endpoint": self.store.endpoint,
                "region": "us-east-1",
                "addressingStyle": "path",
                "existingSecret": "s3",
            },
            "drain": {"delay": 2},
            "server": {"threads": 2},
            **values,
        }
        files = Chart.load(str(CHART)).render(given, name=RELEASE, namespace=NAMESPACE)
        texts = [text for path, text in files.items() if not path.endswith(".txt")]
        return [each for text in texts for each in yaml.safe_load_all(text) if each]

    def start(
        self, pod: dict[str, Any], container: dict[str, Any], *options: str, ok: bool = True, models: str = ""
    ) -> str:
        """Run a container as its manifest says. `models` is the Docker volume in place of the pod's."""
        security, confined = pod["securityContext"], container["securityContext"]
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}  # Docker's own, unless told otherwise
        flags = ["--user", f"{security['runAsUser']}:{security['runAsGroup']}", "--group-add", str(security["fsGroup"])]
        flags += ["--read-only"] * confined["readOnlyRootFilesystem"]
        flags += ["--security-opt", "no-new-privileges"] * (not confined["allowPrivilegeEscalation"])
        flags += [f"--cap-drop={name}" for name in confined["capabilities"]["drop"]]
        memory = container["resources"]["limits"]["memory"].replace("Gi", "g").replace("Mi", "m")
        flags += ["--memory", memory, "--memory-swap", memory]
        volumes = {volume["name"]: volume["emptyDir"] for volume in pod.get("volumes", [])}
        for mount in container.get("volumeMounts", []):
            path, about = mount["mountPath"], volumes[mount["name"]]
            size = about.get("sizeLimit", "64Mi").replace("Gi", "g").replace("Mi", "m")
            if mount["name"] == "models":
                flags += ["--volume", f"{models}:{path}" + ":ro" * mount.get("readOnly", False)]
            elif path == "/dev/shm":
                flags += ["--shm-size", size]
            else:
                flags += ["--tmpfs", f"{path}:size={size},mode=1777"]
        environment = {each["name"]: each["value"] for each in container.get("env", [])}
        if "envFrom" in container:
            environment |= {name: self.store.environment[name] for name in CREDENTIALS}
        flags += [part for name, value in environment.items() for part in ("--env", f"{name}={value}")]
        entrypoint, *rest = [*container["command"], *container.get("args", [])]
        return call("run", *flags, *options, "--entrypoint", entrypoint, container["image"], *rest, ok=ok)

    def serve(self, **values: Any) -> "Pod":
        """A server's pod: its init container, and then the server, ready by its own probe."""
        objects = self.manifest(**values)
        deployment = next(each for each in objects if each["kind"] == "Deployment")
        pod = deployment["spec"]["template"]["spec"]
        (init,), (server,) = pod["initContainers"], pod["containers"]
        models = self.volume()
        # the store listens on this machine's loopback interface, which a pod's network does not reach
        self.start(pod, init, "--rm", "--network", "host", models=models)
        service = f"{deployment['metadata']['name']}.{NAMESPACE}.svc"
        ports = [f"--publish=127.0.0.1::{port}" for port in PORTS.values()]
        network = ["--network", self.network, "--network-alias", service]
        name = self.start(pod, server, "--detach", *network, *ports, models=models).stdout.strip()
        self.pods.append(name)
        found = Pod(name, service, objects, pod, server)
        probe = server["startupProbe"]
        for _ in range(probe["failureThreshold"]):
            if found.exec(*probe["exec"]["command"]).returncode == 0:
                return found
            time.sleep(1)
        raise AssertionError(f"not ready:\n{found.logs()[-3000:]}")

    def volume(self) -> str:
        """A new one, in place of a pod's emptyDir that its containers share."""
        self.volumes.append(call("volume", "create").stdout.strip())
        return self.volumes[-1]

    def from_another_pod(self, *arguments: str) -> str:
        command = ["run", "--rm", "--network", self.network, "--entrypoint", "python3", self.image, *arguments]
        return call(*command).stdout


@dataclass(frozen=True)
class Pod:
    """A running server."""

    container: str
    service: str
    objects: list[dict[str, Any]]
    pod: dict[str, Any]
    server: dict[str, Any]

    def exec(self, *command: str) -> subprocess.CompletedProcess[str]:
        return call("exec", self.container, *command, ok=False)

    def logs(self) -> str:
        done = call("logs", self.container)
        return done.stdout + done.stderr

    def url(self, port: str = "http") -> str:
        address = call("port", self.container, f"{PORTS[port]}/tcp").stdout.splitlines()[0]
        return f"http://{address}"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("cluster")
    with (
        docker_engine(folder / "docker") as environment,
        seaweed(folder / "s3") as s3,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in {**environment, **s3.environment}.items():
            patch.setenv(name, value)
        bundle, archive = made(folder)
        run(STAGES["publish"], configuration(f"s3://{BUCKET}/models"), str(folder / "run"))
        network = call("network", "create", f"subpixel-test-{os.getpid()}").stdout.strip()
        found = Cluster(build_serving(), s3, network, "1.0-01234567", archive, bundle)
        try:
            yield found
        finally:
            for name in found.pods:
                call("rm", "--force", name, ok=False)
            for name in found.volumes:
                call("volume", "rm", name, ok=False)
            call("network", "rm", network)


def made(folder: Path) -> tuple[Path, Path]:
    """A small network that changes every pixel, and its archive, as a run that publish can read."""
    torch.manual_seed(0)
    network = HighResNet(channels=8, residual_blocks=1)
    torch.nn.init.normal_(network.project.weight, std=0.002)
    root = folder / "run"
    save_bundle(root / "model", network, {"frames": 8, "normalization": {}, "lineage": {}, "scores": {}})
    build_archive(root / "model", root / "archive", "fields", "1.0")
    (root / "evaluation").mkdir()
    for name in ("model", "archive", "evaluation"):
        (root / name / "run.json").write_text(json.dumps({"key": "0123456789abcdef", "metrics": {}}))
    return root / "model", root / "archive" / "fields.mar"


@pytest.fixture(scope="module")
def pod(cluster: Cluster) -> Pod:
    return cluster.serve()


def frames(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(300, 3500, (8, 4, rows, columns), dtype=np.uint16)


def ask(pod: Pod, images: np.ndarray) -> requests.Response:
    body = io.BytesIO()
    np.savez(body, frames=images)
    headers = {"Content-Type": "application/x-npz"}
    return requests.post(f"{pod.url()}/predictions/fields", body.getvalue(), headers=headers, timeout=300)


def test_it_answers_as_the_library_does_under_the_manifest_s_constraints(cluster, pod):
    images = frames(48, 40)
    answer = ask(pod, images)
    assert answer.status_code == 200, answer.text
    sr = np.load(io.BytesIO(answer.content))["sr"]
    clear = np.ones((8, 48, 40), bool)
    expected = load_bundle(cluster.bundle).predict(images, clear, Normalization.from_series(images, clear)) * 10_000
    assert np.abs(sr - np.clip(expected, 1, 65535)).max() <= 2
    # the first process is as the manifest says, which the engine could have overlooked
    status = dict(line.split(":", 1) for line in pod.exec("cat", "/proc/1/status").stdout.splitlines())
    assert status["Uid"].split()[:2] == ["1000", "1000"]
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert (status["NoNewPrivs"].strip(), status["Seccomp"].strip()) == ("1", "2")
    for place in ("/x", "/home/subpixel/x", "/models/x"):
        assert "Read-only file system" in pod.exec("touch", place).stderr
    limit = json.loads(call("inspect", pod.container).stdout)[0]["HostConfig"]["Memory"]
    assert limit == 4 << 30


def test_probes_pass_and_the_liveness_probe_needs_no_token(pod):
    assert pod.exec(*pod.server["readinessProbe"]["exec"]["command"]).returncode == 0
    live = pod.server["livenessProbe"]["httpGet"]
    assert requests.get(f"{pod.url()}{live['path']}", timeout=10).json() == {"status": "Healthy"}


def test_a_worker_that_died_is_not_ready_until_it_has_loaded_the_model_again(pod):
    ready = pod.server["readinessProbe"]["exec"]["command"]
    assert pod.exec("python3", "-c", KILL_WORKER).stdout == "1 killed\n"
    assert pod.exec(*ready).returncode == 1
    deadline = time.monotonic() + 120
    while pod.exec(*ready).returncode:
        assert time.monotonic() < deadline, pod.logs()[-2000:]
        time.sleep(1)
    assert ask(pod, frames(16, 16)).status_code == 200


def test_other_pods_reach_predictions_and_nothing_else(cluster, pod):
    ports = [str(port) for port in PORTS.values()]
    assert cluster.from_another_pod("-c", LISTENING, pod.service, *ports).split() == ["8080"]
    assert requests.post(f"{pod.url()}/models?url=http://example.org/x.mar", timeout=10).status_code in (404, 405)


def test_metrics_are_open_by_value_and_management_is_not(cluster):
    pod = cluster.serve(metrics={"enabled": True})
    ports = [str(port) for port in PORTS.values()]
    assert cluster.from_another_pod("-c", LISTENING, pod.service, *ports).split() == ["8080", "8082"]
    assert ask(pod, frames(16, 16)).status_code == 200
    metrics = requests.get(f"{pod.url('metrics')}/metrics", timeout=10).text
    # what the chart scales on
    assert "ts_inference_requests_total{" in metrics and "ts_queue_latency_microseconds{" in metrics


def test_helm_test_super_resolves_a_sample_through_the_service(cluster, pod):
    test = next(each for each in pod.objects if each["kind"] == "Pod")["spec"]
    (container,) = test["containers"]
    done = cluster.start(test, container, "--rm", "--network", cluster.network)
    assert "super-resolved 32 x 32 px of 8 dates" in done.stdout
    elsewhere = {**container, "args": [container["args"][0].replace("fields", "meadows")]}
    failed = cluster.start(test, elsewhere, "--rm", "--network", cluster.network, ok=False)
    assert failed.returncode == 1 and "answered 404" in failed.stderr


def test_an_archive_that_is_not_the_pinned_one_keeps_the_pod_from_starting(cluster):
    objects = cluster.manifest(model={"name": "fields", "version": cluster.version, "sha256": "a" * 64})
    pod = next(each for each in objects if each["kind"] == "Deployment")["spec"]["template"]["spec"]
    models = cluster.volume()
    done = cluster.start(pod, pod["initContainers"][0], "--rm", "--network", "host", models=models, ok=False)
    assert done.returncode == 1
    assert f"expected {'a' * 64} as configured" in done.stderr
    assert call("run", "--rm", "--volume", f"{models}:/m", "--entrypoint", "ls", cluster.image, "-A", "/m").stdout == ""


def test_sigterm_under_load_answers_all_and_ends_cleanly(cluster):
    pod = cluster.serve()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, pod, frames(256, 256, seed)) for seed in range(8)]
        time.sleep(1)
        assert not all(each.done() for each in asked)
        grace = pod.pod["terminationGracePeriodSeconds"]
        started = time.monotonic()
        call("stop", "--time", str(grace), pod.container)
        stopped = time.monotonic() - started
        assert [each.result().status_code for each in asked] == [200] * 8
    assert stopped < grace / 2
    state = json.loads(call("inspect", pod.container).stdout)[0]["State"]
    assert (state["ExitCode"], state["OOMKilled"]) == (0, False)
    logs = pod.logs()
    assert "all requests are answered" in logs
    events = [json.loads(line) for line in logs.splitlines() if line.startswith("{")]
    assert len(events) > 10 and all({"time", "level", "logger"} <= set(event) for event in events)
    assert not [event for event in events if "GET /models/" in event.get("message", "")]
    assert not [name for name in CREDENTIALS if cluster.store.environment[name] in logs]
