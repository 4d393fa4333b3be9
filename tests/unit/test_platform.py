"""What the platform file asks for arrives in the compiled graphs, and Kubernetes takes it as it is."""

import re
from functools import cache

import kubernetes_validate
import pytest
import yaml

from pipelines.platform import NEEDS, NETWORK, Platform, load_platform
from pipelines.submission import GRAPHS
from sr_core.errors import ConfigError
from tests.conftest import REPOSITORY
from tests.golden import HERE, compiled, golden

KUBEFLOW = REPOSITORY / "examples" / "kubeflow"
MANIFESTS = [path for path in sorted(KUBEFLOW.glob("*.yaml")) if path.name != "platform.yaml"]
SHARDED = ("download", "cloud_shadow_filter", "normalize", "quality_gate")


@cache
def tasks(graph, platform=KUBEFLOW / "platform.yaml"):
    """Of each task: what its container is, how often it is tried again, and what only Kubernetes knows."""
    specification, platforms = compiled(graph, platform)
    executors = specification["deploymentSpec"]["executors"]
    configured = platforms["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    components = specification["components"]
    dags = [specification["root"]["dag"], *(found["dag"] for found in components.values() if "dag" in found)]
    found = {}
    for name, task in ((name, task) for dag in dags for name, task in dag["tasks"].items()):
        label = components[task["componentRef"]["name"]].get("executorLabel")
        if label:
            found[name.replace("-", "_")] = {
                "container": executors[label]["container"],
                "kubernetes": configured[label],
                "retries": task.get("retryPolicy", {}).get("maxRetryCount", 0),
                "cached": task.get("cachingOptions", {}).get("enableCache", False),
            }
    return found


@cache
def example():
    return load_platform(KUBEFLOW / "platform.yaml")


def everything():
    return [
        pytest.param(graph, task, id=f"{graph}-{task}") for graph in GRAPHS for task in tasks(graph)
    ]  # shards as well


def pod(task):
    """The pod that Kubeflow makes of a task, as far as the graph decides on it."""
    container, given = task["container"], task["kubernetes"]
    resources, more = container["resources"], {}
    limits = {"cpu": resources["resourceCpuLimit"], "memory": resources["resourceMemoryLimit"]}
    if accelerator := resources.get("accelerator"):
        limits[accelerator["resourceType"]] = accelerator["resourceCount"]
    mounts = given.get("emptyDirMounts", [])
    if mounts:
        more = {"volumeMounts": [{"name": mount["volumeName"], "mountPath": mount["mountPath"]} for mount in mounts]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "task"},
        "spec": {
            "activeDeadlineSeconds": int(given["activeDeadlineSeconds"]),
            "nodeSelector": given.get("nodeSelector", {}).get("labels", {}),
            "tolerations": given.get("tolerations", []),
            "volumes": [
                {"name": mount["volumeName"], "emptyDir": {"medium": mount["medium"], "sizeLimit": mount["sizeLimit"]}}
                for mount in mounts
            ],
            "containers": [
                {
                    "name": "main",
                    "image": container["image"],
                    "imagePullPolicy": given["imagePullPolicy"],
                    "command": container["command"],
                    "args": container["args"],
                    "securityContext": given["securityContext"],
                    "env": [
                        {
                            "name": key["envVar"],
                            "valueFrom": {
                                "secretKeyRef": {
                                    "name": secret["secretName"],
                                    "key": key["secretKey"],
                                    "optional": secret["optional"],
                                }
                            },
                        }
                        for secret in given["secretAsEnv"]
                        for key in secret["keyToEnv"]
                    ],
                    "resources": {
                        "requests": {
                            "cpu": resources["resourceCpuRequest"],
                            "memory": resources["resourceMemoryRequest"],
                        },
                        "limits": limits,
                    },
                    **more,
                }
            ],
        },
    }


@pytest.mark.parametrize(("graph", "name"), everything())
def test_what_the_platform_asks_for_arrives(graph, name):
    stage, task = name.removesuffix("_shard"), tasks(graph)[name]
    needs, resources = example().stages[stage], task["container"]["resources"]
    assert {key: resources[f"resource{key}"] for key in ("CpuRequest", "CpuLimit", "MemoryRequest", "MemoryLimit")} == {
        "CpuRequest": needs.cpu_request,
        "CpuLimit": needs.cpu_limit,
        "MemoryRequest": needs.memory_request,
        "MemoryLimit": needs.memory_limit,
    }
    accelerator = needs.accelerator and {
        "resourceType": needs.accelerator.type,
        "resourceCount": str(needs.accelerator.count),
    }
    found = resources.get("accelerator")
    assert (found and {key: found[key] for key in ("resourceType", "resourceCount")}) == accelerator
    given = task["kubernetes"]
    assert given.get("tolerations", []) == [found.model_dump(exclude_none=True) for found in needs.tolerations]
    assert given.get("nodeSelector", {}).get("labels", {}) == needs.node_selector
    assert [mount["sizeLimit"] for mount in given.get("emptyDirMounts", [])] == ([needs.shm] if needs.shm else [])
    assert int(given["activeDeadlineSeconds"]) == needs.time_limit_s
    assert given["securityContext"] == {"runAsNonRoot": True}
    assert task["retries"] == (example().retry.attempts if stage in NETWORK else 0)
    assert not task["cached"]
    own = "download" if stage == "plan_shards" else stage
    assert task["container"]["image"] == (
        f"registry.example.org/subpixel/subpixel-{own.replace('_', '-')}:{needs.tag or '0.1.0'}"
    )


@pytest.mark.parametrize(("graph", "name"), everything())
def test_secrets_are_optional_and_seen_by_those_who_need_them_only(graph, name):
    seen = {secret["secretName"]: secret["optional"] for secret in tasks(graph)[name]["kubernetes"]["secretAsEnv"]}
    expected = {"subpixel-s3"}
    if name in ("plan_shards", "download", "download_shard"):
        expected.add("subpixel-sentinel-hub")
    if name == "train_hrn":
        expected.add("subpixel-wandb")
    assert seen == dict.fromkeys(expected, True)


@pytest.mark.parametrize(("graph", "name"), everything())
def test_kubernetes_takes_the_pod_of_a_task(graph, name):
    kubernetes_validate.validate(pod(tasks(graph)[name]), "1.29", strict=True)


def test_the_graphs_hold_every_stage_and_its_shards():
    assert set(tasks("training")) | set(tasks("inference")) == {*NEEDS, *(f"{stage}_shard" for stage in SHARDED)}


def test_only_the_configuration_and_the_root_are_parameters():
    for graph in GRAPHS:
        assert set(compiled(graph)[0]["root"]["inputDefinitions"]["parameters"]) == {"config", "root"}


def test_no_more_shards_run_at_once_than_the_platform_says():
    loops = [
        task["iteratorPolicy"]["parallelismLimit"]
        for component in compiled("training")[0]["components"].values()
        for task in component.get("dag", {}).get("tasks", {}).values()
        if "parameterIterator" in task
    ]
    assert loops == [8, 8, 8, 8]


def test_volumes_pull_secrets_and_policies_arrive(tmp_path):
    path = tmp_path / "platform.yaml"
    path.write_text("volumes: [{claim: series, mount: /data}]\npull_secrets: [robot]\npull_policy: Always\n")
    for task in tasks("training", path).values():
        given = task["kubernetes"]
        assert [
            (mount["pvcNameParameter"]["runtimeValue"]["constant"], mount["mountPath"]) for mount in given["pvcMount"]
        ]
        assert [secret["secretName"] for secret in given["imagePullSecret"]] == ["robot"]
        assert given["imagePullPolicy"] == "Always"


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_graphs_compile_to_what_they_did(graph):
    assert golden(graph) == (HERE / f"{graph}.yaml").read_text(), "meant? then: python -m tests.golden"


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_manifests_are_strictly_valid(path):
    for document in yaml.safe_load_all(path.read_text()):
        kubernetes_validate.validate(document, "1.29", strict=True)


def test_manifests_agree_with_each_other():
    documents = [document for path in MANIFESTS for document in yaml.safe_load_all(path.read_text())]
    secrets = {found["metadata"]["name"]: set(found["stringData"]) for found in documents if found["kind"] == "Secret"}
    assert secrets == {secret.name: set(secret.environment) for secret in example().secrets}
    accounts = {found["metadata"]["name"] for found in documents if found["kind"] == "ServiceAccount"}
    assert accounts == {example().service_account}
    for found in (found for found in documents if found["kind"] == "ConfigMap"):
        credentials = yaml.safe_load(found["data"]["providers"])["s3"]["default"]["credentials"]
        if not credentials["fromEnv"]:
            reference = credentials["secretRef"]
            assert {reference["accessKeyKey"], reference["secretKeyKey"]} <= secrets[reference["secretName"]]


def test_a_file_changes_only_what_it_names(tmp_path):
    path = tmp_path / "platform.yaml"
    path.write_text("stages: {train_hrn: {memory_limit: 64Gi}}")
    changed, default = load_platform(path), Platform()
    assert changed.stages["train_hrn"] == default.stages["train_hrn"].model_copy(update={"memory_limit": "64Gi"})
    assert changed.stages["evaluate"] == default.stages["evaluate"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stages: {trian_hrn: {}}", "unknown stage trian_hrn; stages are plan_shards, download"),
        ("stages: {download: {memory_limit: 4 GB}}", "`stages.download.memory_limit`"),
        ("stages: {download: {memory_request: 8Gi}}", "memory_request 8Gi is more than memory_limit 4Gi"),
        ("stages: {train_hrn: {shm: 16Gi}}", "shm 16Gi counts as memory"),
        ("stages: {download: {tolerations: [{key: a, operator: Equal}]}}", "`value` belongs to `operator: Equal`"),
        ("secrets: [{name: a, environment: {}, stages: [donwload]}]", "secret a: unknown stage donwload"),
        ("volumes: [{claim: a, mount: data}]", "an absolute path"),
        ("gpu: 1", "`gpu`"),
    ],
)
def test_a_wrong_platform_is_refused_by_name(tmp_path, text, said):
    path = tmp_path / "platform.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(said)):
        load_platform(path)
