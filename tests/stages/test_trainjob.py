"""Training on several nodes: the TrainJob that the stage writes, and its launcher against a Kubernetes API server."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from components import stage
from components.stage import run_nodes
from components.train_hrn import trainjob
from components.train_hrn.main import STAGE as TRAIN
from components.train_hrn.trainjob import Pod, job_name, launch, manifest, nodes_of
from sr_core.config import Config, parse_config
from sr_core.errors import ArtifactError, ClusterError, ConfigError
from tests.servers.kubernetes import NAMESPACE, TOKEN, Kubernetes, admit, serve
from tests.stages.test_train_evaluate import write_inputs

REPOSITORY = Path(__file__).resolve().parents[2]
ROOT = "s3://bucket/run"
KEY = "0123456789abcdef0123456789abcdef"


def config(job=None, **train) -> Config:
    small = {"channels": 8, "residual_blocks": 1, "steps": 6, "batch_size": 4, "validate_every": 3, "threads": 1}
    small |= {"precision": "float32", "registration": "none", "nodes": 2}
    job = {"image": "registry.example/subpixel-train-hrn:0.1.0"} | (job or {})
    source = {"kind": "files", "path": "."}
    return parse_config({"name": "nodes", "source": source, "train_hrn": small | train, "trainjob": job})


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    with serve(tmp_path) as cluster:
        monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
        monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(cluster.kubeconfig))
        monkeypatch.setattr(trainjob, "POLL_S", 0.05)
        monkeypatch.setattr(trainjob, "STUCK_S", 0.2)
        monkeypatch.setattr(trainjob, "UNREACHABLE_S", 5.0)
        yield cluster


# the manifest


def test_the_job_runs_the_stage_below_torchrun_on_every_node():
    job = manifest(config(processes=4, batch_size=8), ROOT, KEY, Pod(), "ClusterTrainingRuntime")
    trainer = job["spec"]["trainer"]
    assert job["spec"]["runtimeRef"] == {"name": "torch-distributed", "kind": "ClusterTrainingRuntime"}
    assert trainer["image"] == "registry.example/subpixel-train-hrn:0.1.0"
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (2, 4)
    assert trainer["command"] + trainer["args"][:2] == [
        *("python3", "-m", "torch.distributed.run"),
        *("-m", "components.train_hrn"),
    ]
    passed_on = stage.read_config(trainer["args"][3])
    assert passed_on == config(processes=4, batch_size=8)
    assert trainer["args"][4:] == ["--root", ROOT]
    assert admit(job) == []


def test_all_that_a_platform_asks_for_arrives_in_the_job():
    wanted = config(
        {
            "runtime": "torch-h200",
            "resources": {"cpu": 8, "memory": "32Gi", "nvidia.com/gpu": 1},
            "shared_memory": "8Gi",
            "node_selector": {"pool": "gpu"},
            "tolerations": [{"key": "nvidia.com/gpu", "effect": "NoSchedule"}],
            "service_account": "trainer",
            "secrets": {"AWS_ACCESS_KEY_ID": "s3-credentials/access_key"},
            "environment": {"NCCL_DEBUG": "WARN"},
            "volumes": {"runs": "/mnt/runs"},
            "time_limit_h": 1.5,
        }
    )
    job = manifest(wanted, ROOT, KEY, Pod(), "TrainingRuntime")
    assert admit(job) == []
    spec, trainer = job["spec"], job["spec"]["trainer"]
    assert spec["runtimeRef"] == {"name": "torch-h200", "kind": "TrainingRuntime"}
    assert spec["activeDeadlineSeconds"] == 5400
    amounts = {"cpu": "8", "memory": "32Gi", "nvidia.com/gpu": "1"}
    assert trainer["resourcesPerNode"] == {"requests": amounts, "limits": amounts}
    secret = {"name": "s3-credentials", "key": "access_key", "optional": True}
    assert {"name": "AWS_ACCESS_KEY_ID", "valueFrom": {"secretKeyRef": secret}} in trainer["env"]
    assert {"name": "NCCL_DEBUG", "value": "WARN"} in trainer["env"]
    pod = spec["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert pod["template"]["metadata"]["labels"] == {"sidecar.istio.io/inject": "false"}
    assert pod["template"]["spec"] == {
        "serviceAccountName": "trainer",
        "nodeSelector": {"pool": "gpu"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "volumes": [
            {"name": "volume-0", "persistentVolumeClaim": {"claimName": "runs"}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}},
        ],
        "containers": [
            {
                "name": "node",
                "volumeMounts": [
                    {"name": "volume-0", "mountPath": "/mnt/runs"},
                    {"name": "shm", "mountPath": "/dev/shm"},
                ],
            }
        ],
    }


def test_nodes_take_image_account_secrets_and_owner_from_the_pod_that_launches_them():
    reference = {"secretKeyRef": {"name": "s3-credentials", "key": "secret", "optional": True}}
    pod = Pod.of(
        {
            "metadata": {
                "name": "run-1",
                "ownerReferences": [
                    {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "run", "uid": "7",
                     "controller": True, "blockOwnerDeletion": True}
                ],
            },
            "spec": {
                "serviceAccountName": "default-editor",
                "imagePullSecrets": [{"name": "registry"}],
                "containers": [
                    {"name": "wait", "image": "argoexec"},
                    {
                        "name": "main",
                        "image": "registry.example/train@sha256:1",
                        "env": [
                            {"name": "AWS_SECRET_ACCESS_KEY", "valueFrom": reference},
                            {"name": "KFP_POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                            {"name": "PASSWORD", "value": "in-clear"},
                        ],
                    },
                ],
            },
        }
    )  # fmt: skip
    job = manifest(config({"image": None}), ROOT, KEY, pod, "ClusterTrainingRuntime")
    assert admit(job) == []
    assert job["spec"]["trainer"]["image"] == "registry.example/train@sha256:1"
    assert {"name": "AWS_SECRET_ACCESS_KEY", "valueFrom": reference} in job["spec"]["trainer"]["env"]
    # the run, not the pod: a pod that is tried again finds the job
    owner = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "run", "uid": "7"}
    assert job["metadata"]["ownerReferences"] == [owner]
    assert "in-clear" not in str(job) and "KFP_POD_NAME" not in str(job)
    spec = job["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]["template"]
    assert spec["spec"]["template"]["spec"] == {
        "serviceAccountName": "default-editor",
        "imagePullSecrets": [{"name": "registry"}],
    }


def test_no_secret_of_the_environment_is_written_into_the_job(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    monkeypatch.setenv("WANDB_API_KEY", "very-secret")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://seaweedfs:8333")
    job = manifest(config(), ROOT, KEY, Pod(), "ClusterTrainingRuntime")
    assert "very-secret" not in str(job)
    assert {"name": "AWS_ENDPOINT_URL", "value": "http://seaweedfs:8333"} in job["spec"]["trainer"]["env"]


def test_what_the_cluster_would_refuse_is_refused_by_the_tests_own_admission():
    job = manifest(config(), ROOT, KEY, Pod(), "ClusterTrainingRuntime")
    job["spec"]["trainer"]["numberOfNodes"] = 2
    job["spec"]["trainer"]["env"] = [{"name": "PET_NNODES", "value": "2"}]
    assert [complaint.split(":")[0] for complaint in admit(job)] == [
        "schema",
        "must not have reserved envs, invalid envs configured",
    ]


def test_the_same_training_has_the_same_name_and_another_root_another():
    assert job_name(ROOT, KEY) == job_name(f"{ROOT}/", KEY) != job_name("s3://bucket/other", KEY)


def test_a_root_that_the_nodes_cannot_see_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"found 2 and the root .*, a folder of this machine alone; expected s3://"):
        launch(config(), str(tmp_path), KEY)
    network = {"perceptual": 0.1, "perceptual_network": str(tmp_path / "network")}
    with pytest.raises(ConfigError, match=r"train_hrn.perceptual_network .* volume .*\(trainjob.volumes: /mnt/runs\)"):
        launch(config({"volumes": {"runs": "/mnt/runs"}}, **network), ROOT, KEY)


def test_where_the_nodes_run_does_not_change_what_is_trained():
    assert "trainjob" not in TRAIN.sections
    inputs = {"quality_gate": "a", "normalize": "b"}
    keys = {stage.stage_key(TRAIN, config(job), inputs) for job in ({}, {"image": "other:1", "restarts": 5})}
    assert len(keys) == 1


# the launcher


def finish(cluster: Kubernetes, name: str) -> None:
    """Two nodes say something and are done."""
    for index in (0, 1):
        cluster.pod(name, index, "Succeeded", (f"node {index} trains", "done"))
    cluster.end(name, "Complete", "JobsCompleted")


def test_a_job_that_ends_well_is_deleted_and_its_log_shown(cluster, capsys):
    cluster.on_create = finish
    launch(config(), ROOT, KEY)
    name = job_name(ROOT, KEY)
    assert [job["metadata"]["name"] for job in cluster.created] == [name] == cluster.deleted
    said = capsys.readouterr().err
    assert "node-0 | node 0 trains\n" in said and "node 1 trains" not in said
    assert TOKEN not in said


def test_a_job_that_runs_already_is_watched_and_not_started_twice(cluster, capsys):
    job = manifest(config(), ROOT, KEY, Pod(), "ClusterTrainingRuntime")
    name = job["metadata"]["name"]
    job["metadata"] |= {"namespace": NAMESPACE, "creationTimestamp": "2024-06-01T00:00:00Z"}
    cluster.jobs[name] = job
    finish(cluster, name)
    del job["status"]
    ended = []

    def end_at_third_look(path):
        if path.endswith(name) and not ended and len(cluster.requests) > 12:
            ended.append(cluster.end(name, "Complete", "JobsCompleted"))

    cluster.requests = Watched(end_at_third_look)
    launch(config(), ROOT, KEY)
    assert not cluster.created and cluster.deleted == [name]
    assert "runs already, watching it" in capsys.readouterr().err


class Watched(list):
    """A list of requests that tells of each."""

    def __init__(self, tell) -> None:
        super().__init__()
        self.tell = tell

    def append(self, item) -> None:
        super().append(item)
        self.tell(item[1])


def test_what_an_earlier_job_left_is_replaced(cluster):
    name = job_name(ROOT, KEY)
    cluster.jobs[name] = {"metadata": {"name": name, "namespace": NAMESPACE}, "spec": {}}
    cluster.end(name, "Failed", "JobsFailed")
    cluster.on_create = finish
    launch(config(), ROOT, KEY)
    assert cluster.deleted == [name, name] and len(cluster.created) == 1


def test_a_log_that_breaks_off_goes_on_where_it_ended(cluster, capsys):
    def slowly(cluster: Kubernetes, name: str) -> None:
        cluster.pod(name, 0, "Running", ("one", "two", "three"))
        cluster.cut_logs = 2

    looks = []

    def end_later(path):
        looks.append(path)
        if len(looks) > 60 and cluster.jobs and not cluster.jobs[job_name(ROOT, KEY)].get("status"):
            cluster.pods[f"{job_name(ROOT, KEY)}-node-0-0-a"]["status"]["phase"] = "Succeeded"
            cluster.end(job_name(ROOT, KEY), "Complete", "JobsCompleted")

    cluster.on_create = slowly
    cluster.requests = Watched(end_later)
    launch(config(), ROOT, KEY)
    shown = [line for line in capsys.readouterr().err.splitlines() if line.startswith("node-0")]
    assert shown == ["node-0 | one", "node-0 | two", "node-0 | three"]


def test_the_api_server_may_be_away_for_a_while(cluster, capsys):
    def finish_while_away(cluster: Kubernetes, name: str) -> None:
        finish(cluster, name)
        cluster.away = 3

    cluster.on_create = finish_while_away
    launch(config(), ROOT, KEY)
    assert "the cluster answered 503" in capsys.readouterr().err
    assert cluster.deleted


def test_a_webhook_that_is_starting_is_waited_for(cluster, capsys):
    cluster.on_create = finish
    cluster.no_webhook = 2
    launch(config(), ROOT, KEY)
    assert capsys.readouterr().err.count("answered 500: Internal error occurred: failed calling webhook") == 2
    assert len(cluster.created) == 1


def test_a_job_that_the_cluster_finds_wrong_is_not_tried_again(cluster):
    unheard_of = config({"environment": {"PET_NNODES": "3"}})
    with pytest.raises(ClusterError, match=r"answered 422: admission webhook denied .* invalid envs configured"):
        launch(unheard_of, ROOT, KEY)
    assert [method for method, _ in cluster.requests].count("POST") == 1


def test_a_failed_job_names_the_node_that_failed_first_and_its_last_lines(cluster):
    def fail(cluster: Kubernetes, name: str) -> None:
        def ended(at: str) -> dict:
            terminated = {"exitCode": 1, "reason": "Error", "finishedAt": f"2024-06-01T00:00:{at}Z"}
            return {"state": {"terminated": terminated}}

        cluster.pod(name, 0, "Failed", ("connection closed by peer",), **ended("09"))
        cluster.pod(name, 1, "Failed", ("loading", "train_hrn: error: no samples"), **ended("05"))
        cluster.end(name, "Failed", "JobsFailed", "jobset failed due to one or more job failures")

    cluster.on_create = fail
    expected = (
        r"TrainJob team/train-hrn-\w+: failed \(JobsFailed: jobset failed due to one or more job failures\);"
        r" node-1 \(pod train-hrn-\w+-node-0-1-a\): exit status 1 \(Error\); its last lines:\n"
        r"    loading\n    train_hrn: error: no samples$"
    )
    with pytest.raises(ClusterError, match=expected):
        launch(config(), ROOT, KEY)
    assert cluster.deleted


def test_a_node_without_memory_is_told_so(cluster):
    def fail(cluster: Kubernetes, name: str) -> None:
        killed = {"terminated": {"exitCode": 137, "reason": "OOMKilled", "finishedAt": "2024-06-01T00:00:00Z"}}
        cluster.pod(name, 0, "Failed", ("training: 3/12",), state=killed)
        cluster.end(name, "Failed", "JobsFailed")

    cluster.on_create = fail
    with pytest.raises(ClusterError, match=r"exit status 137 \(OOMKilled\); raise trainjob.resources: memory"):
        launch(config(), ROOT, KEY)


def test_a_job_beyond_its_time_limit_says_so(cluster):
    def overrun(cluster: Kubernetes, name: str) -> None:
        cluster.end(name, "Failed", "DeadlineExceeded", "TrainJob was active longer than specified deadline")

    cluster.on_create = overrun
    with pytest.raises(ClusterError, match=r"failed \(DeadlineExceeded: .*\); no pod was ever there"):
        launch(config({"time_limit_h": 0.01}), ROOT, KEY)
    assert cluster.created[0]["spec"]["activeDeadlineSeconds"] == 36


def test_a_node_that_crashes_again_and_again_ends_the_job(cluster):
    def crash(cluster: Kubernetes, name: str) -> None:
        last = {"terminated": {"exitCode": 1, "reason": "Error", "finishedAt": "2024-06-01T00:00:00Z"}}
        waiting = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 20s restarting failed container"}}
        cluster.pod(name, 1, "Running", ("ValueError: 7",), restartCount=3, state=waiting, lastState=last)

    cluster.on_create = crash
    with pytest.raises(ClusterError, match=r"gave up after trainjob.restarts 2 restarts; node-1 (?s:.*)ValueError: 7"):
        launch(config(), ROOT, KEY)
    assert cluster.deleted


def test_an_image_that_cannot_be_pulled_ends_the_job(cluster):
    def pull(cluster: Kubernetes, name: str) -> None:
        waiting = {"waiting": {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "subpixel"'}}
        cluster.pod(name, 0, "Pending", state=waiting)

    cluster.on_create = pull
    expected = r'node-0 \(pod .*\) cannot start: ImagePullBackOff: Back-off pulling image "subpixel" \(trainjob.image:'
    with pytest.raises(ClusterError, match=expected):
        launch(config(), ROOT, KEY)
    assert cluster.deleted


def test_a_job_that_someone_deletes_is_missed(cluster):
    cluster.requests = Watched(lambda path: cluster.jobs.pop(path.rpartition("/")[2], None))
    with pytest.raises(ClusterError, match=r"was deleted by someone else"):
        launch(config(), ROOT, KEY)


def refuse(cluster: Kubernetes, what: str) -> None:
    if what == "unauthorised":
        cluster.kubeconfig.write_text(cluster.kubeconfig.read_text().replace(TOKEN, "another-token"))
    elif what == "forbidden":
        cluster.may_create = False
    elif what == "no trainer":
        cluster.has_trainer = False
    elif what == "no runtime":
        cluster.runtimes = ()
    elif what == "unreachable":
        cluster.kubeconfig.write_text(cluster.kubeconfig.read_text().replace(cluster.url, "http://127.0.0.1:9"))
    else:
        cluster.kubeconfig.write_text("")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("unauthorised", r"the cluster answered 401: the token is not accepted: renew it"),
        ("forbidden", r"answered 403: .*cannot create resource; the rights that train_hrn needs are in docs/several"),
        ("no trainer", r"the cluster has no trainer.kubeflow.org/v1alpha1: install Kubeflow Trainer v2"),
        (
            "no runtime",
            r'trainjob.runtime: torch-distributed: .* answered 404: .*"torch-distributed" not found',
        ),
        ("unreachable", r"trainjob.runtime: torch-distributed: the cluster does not answer: .*refused"),
        ("no kubeconfig", r"found 2, and no Kubernetes cluster to run them on: .*; run in a pod, or set KUBECONFIG"),
    ],
)
def test_a_cluster_that_does_not_take_the_job_says_why(cluster, what, message):
    refuse(cluster, what)
    with pytest.raises(ClusterError, match=message) as refused:
        launch(config(), ROOT, KEY)
    assert not cluster.created and "token-that" not in str(refused.value)


def test_the_example_role_allows_all_that_the_launcher_asks_for(cluster):
    cluster.on_create = finish
    launch(config(), ROOT, KEY)
    rules = [
        rule
        for document in yaml.safe_load_all((REPOSITORY / "examples/kubeflow/several-nodes.yaml").read_text())
        for rule in document.get("rules", [])
    ]
    allowed = {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    for method, path in cluster.requests:
        if "/configmaps/" in path:
            continue  # the SDK looks for Trainer's version, and goes on without
        named = re.search(r"(trainjobs|trainingruntimes|clustertrainingruntimes|pods)(?:/[^/?]+(/log)?)?", path)
        verb = {"POST": "create", "DELETE": "delete", "GET": "list" if path.split("?")[0].endswith("pods") else "get"}
        resource = named[1] + (named[2] or "")
        assert ("" if "pods" in resource else "trainer.kubeflow.org", resource, verb[method]) in allowed, path


def test_without_an_image_outside_a_pod_the_key_is_named(cluster):
    with pytest.raises(ConfigError, match=r"trainjob.image: none given, and this is no pod"):
        launch(config({"image": None}), ROOT, KEY)


def test_in_a_pod_the_pod_is_asked(cluster, monkeypatch):
    pod = cluster.pod("launcher", 0)
    cluster.pods[pod]["spec"] = {"containers": [{"name": "main", "image": "mine:2"}], "serviceAccountName": "runner"}
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KFP_POD_NAME", pod)
    cluster.on_create = finish
    launch(config({"image": None}), ROOT, KEY)
    assert cluster.created[0]["spec"]["trainer"]["image"] == "mine:2"


def test_an_evicted_pod_is_no_crash():
    labels = {"jobset.sigs.k8s.io/replicatedjob-name": "node", "batch.kubernetes.io/job-completion-index": "0"}

    def pod(name: str, at: str, **status) -> dict:
        return {"metadata": {"name": name, "labels": labels, "creationTimestamp": at}, "status": status}

    evicted = pod("a", "2024-06-01T00:00:00Z", phase="Failed", reason="Evicted", message="low on memory")
    waits = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/3 nodes are available",
    }
    found = nodes_of([pod("b", "2024-06-01T00:01:00Z", phase="Pending", conditions=[waits]), evicted])
    assert (found["node-0"].pod, found["node-0"].crashes) == ("b", 0)
    assert found["node-0"].waits == "Unschedulable: 0/3 nodes are available"


# two nodes for real


def trained(root: Path) -> dict[str, torch.Tensor]:
    return load_file(root / "model" / "model.safetensors")


def write_config(folder: Path, config: Config) -> Path:
    path = folder / "config.json"
    path.write_text(config.model_dump_json())
    return path


@pytest.fixture(scope="module")
def one_node(tmp_path_factory) -> dict[str, torch.Tensor]:
    """Weights after training on one node of two processes."""
    folder = tmp_path_factory.mktemp("one")
    write_inputs(folder / "run")
    path = write_config(folder, config(nodes=1, processes=2))
    call = [sys.executable, "-m", "components.train_hrn", "--config", path, "--root", folder / "run"]
    subprocess.run(call, cwd=REPOSITORY, env=os.environ | {"WANDB_MODE": "disabled"}, check=True, timeout=300)
    return trained(folder / "run")


def test_two_nodes_train_the_weights_of_two_processes(cluster, tmp_path, one_node, capsys, monkeypatch):
    """The launched job's own command runs as two nodes that meet on the loopback interface."""
    root = tmp_path / "run"
    write_inputs(root)
    monkeypatch.setenv("WANDB_MODE", "disabled")  # passed on to the nodes
    cluster.on_create = lambda cluster, name: cluster.run_nodes(name)
    run_nodes(TRAIN, settings := config({"volumes": {"runs": str(tmp_path)}}), str(root))
    weights = trained(root)
    assert weights.keys() == one_node.keys()
    for name, value in weights.items():
        torch.testing.assert_close(value, one_node[name], rtol=0, atol=0)
    said = capsys.readouterr().err
    assert "2 of 2 nodes run" in said and "node-0 | " in said
    run_nodes(TRAIN, settings, str(root))  # kept
    assert len(cluster.created) == 1


def test_nodes_that_leave_no_record_are_not_believed(cluster, tmp_path):
    write_inputs(tmp_path / "run")
    cluster.on_create = finish
    with pytest.raises(ArtifactError, match=r"model: the nodes are done, and left the key None, expected \w{32};"):
        run_nodes(TRAIN, config({"volumes": {"runs": str(tmp_path)}}), str(tmp_path / "run"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_launcher_takes_its_job_along(cluster, tmp_path, number, code):
    write_inputs(tmp_path / "run")
    path = write_config(tmp_path, config({"volumes": {"runs": str(tmp_path)}}))
    cluster.on_create = lambda cluster, name: cluster.pod(name, 0, "Running", ("training",)) and None
    call = [sys.executable, "-m", "components.train_hrn", "--config", path, "--root", tmp_path / "run"]
    launcher = subprocess.Popen(call, cwd=REPOSITORY, env=os.environ, stderr=subprocess.PIPE, text=True)
    for line in launcher.stderr:
        if "node-0 | training" in line:
            break
    launcher.send_signal(number)
    _, said = launcher.communicate(timeout=30)
    assert launcher.returncode == code, said
    assert cluster.deleted == [job["metadata"]["name"] for job in cluster.created]
    assert "run the same command again to continue" in said
