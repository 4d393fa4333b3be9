"""The Helm chart, rendered by Helm's own library: valid manifests, refused values, and what it promises of its pods."""

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from helm_python import Chart, lint
from helm_python.errors import HelmError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from charts.documentation import CHART, README, SCHEMA, VALUES, readme, schema
from serving.container import DEFAULTS
from serving.objects import VARIABLE as ALLOWED_PREFIXES
from tests.conftest import REPOSITORY

EXAMPLES = sorted(CHART.glob("ci/*.yaml"))
KUBERNETES = ("1.30", "1.34", "1.37")
CUSTOM = {
    "ServiceMonitor": {"selector", "endpoints", "podTargetLabels"},
    "ScaledObject": {"scaleTargetRef", "minReplicaCount", "maxReplicaCount", "cooldownPeriod", "advanced", "triggers"},
}
"""Kinds of operators, which Kubernetes' schemas do not have, and the keys of their `spec` that are used."""
STORE = {"modelStore": {"uri": "s3://models"}}
HARDENED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


@pytest.fixture(scope="module")
def chart():
    return Chart.load(str(CHART))


def rendered(chart: Chart, values: dict[str, Any], name: str = "sr") -> list[dict[str, Any]]:
    files = chart.render(values, name=name, namespace="earth")
    documents = [yaml.safe_load_all(text) for path, text in files.items() if not path.endswith(".txt")]
    return [document for document in itertools.chain(*documents) if document]


def of_kind(objects: list[dict[str, Any]], kind: str, suffix: str = "") -> dict[str, Any]:
    (found,) = [
        each for each in objects if each["kind"] == kind and each["metadata"]["name"] == f"sr-subpixel-serving{suffix}"
    ]
    return found


def server_of(objects: list[dict[str, Any]], suffix: str = "") -> dict[str, Any]:
    return of_kind(objects, "Deployment", suffix)["spec"]["template"]["spec"]["containers"][0]


def environment(container: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container["env"]}


def example(name: str) -> dict[str, Any]:
    return yaml.safe_load((CHART / "ci" / f"{name}-values.yaml").read_text())


def check(objects: list[dict[str, Any]], versions: tuple[str, ...] = KUBERNETES) -> None:
    """Strictly valid for every version, or of a known operator; names differ and are short enough."""
    names = [(each["kind"], each["metadata"]["name"]) for each in objects]
    assert len(set(names)) == len(names)
    for each in objects:
        assert len(each["metadata"]["name"]) <= 63
        if each["kind"] in CUSTOM:
            assert set(each["spec"]) <= CUSTOM[each["kind"]]
            continue
        for version in versions:
            kubernetes_validate.validate(each, version, strict=True)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_strictly_valid_for_three_kubernetes_versions(chart, path):
    check(rendered(chart, yaml.safe_load(path.read_text())))


@pytest.mark.parametrize("path", [None, *EXAMPLES], ids=lambda path: path.stem if path else "defaults")
def test_lint_finds_nothing(path):
    found = lint(str(CHART), yaml.safe_load(path.read_text()) if path else None, strict=True)
    assert found["errors"] == []
    assert [each for each in found["messages"] if each["error"] != "icon is recommended"] == []


def test_a_manifest_that_kubernetes_would_refuse_is_found(chart):
    deployment = of_kind(rendered(chart, STORE), "Deployment")
    deployment["spec"]["replica"] = 2
    with pytest.raises(kubernetes_validate.ValidationError, match="replica"):
        check([deployment])


def test_the_model_store_must_be_given(chart):
    with pytest.raises(HelmError, match=r"modelStore\.uri: where models are published"):
        rendered(chart, {})


REFUSED = {
    "unknown key": ({"replicas": 3}, "additional properties 'replicas' not allowed"),
    "unknown nested key": ({"gpu": {"number": 2}}, "additional properties 'number' not allowed"),
    "type": ({"replicaCount": "two"}, "/replicaCount.*got string, want integer"),
    "store that is no store": ({"modelStore": {"uri": "https://models.example.org"}}, "/modelStore/uri"),
    "path without a volume": ({"modelStore": {"uri": "/store/models"}}, "/modelStore/uri"),
    "volume without a path": ({"modelStore": {"existingClaim": "models"}}, "/modelStore/uri"),
    "short checksum": ({"model": {"sha256": "9f86d08"}}, "/model/sha256"),
    "moving tag": ({"image": {"tag": "latest"}}, "/image/tag"),
    "root": ({"podSecurityContext": {"runAsUser": 0}}, "/podSecurityContext/runAsUser"),
    "writable root": ({"securityContext": {"readOnlyRootFilesystem": False}}, "readOnlyRootFilesystem"),
    "capability": ({"securityContext": {"capabilities": {"add": ["NET_ADMIN"]}}}, "capabilities/add"),
    "no memory limit": ({"resources": {"limits": None}}, "/resources"),
    "scaling without metrics": ({"autoscaling": {"enabled": True}}, "/metrics/enabled"),
    "scaling on nothing": (
        {"autoscaling": {"enabled": True, "queueLatencyMilliseconds": 0}},
        "/autoscaling/cpuPercent",
    ),
    "monitor without metrics": ({"metrics": {"serviceMonitor": {"enabled": True}}}, "/metrics/enabled"),
    "canary of nothing": ({"canary": {"enabled": True}}, "/canary/version"),
    "ingress for nobody": ({"ingress": {"enabled": True}}, "/ingress/hosts"),
    "standstill": ({"strategy": {"rollingUpdate": {"maxSurge": 0}}}, "/strategy/rollingUpdate"),
    "open management": (
        {"server": {"extraEnv": [{"name": "TS_MANAGEMENT_ADDRESS", "value": "http://0.0.0.0:8081"}]}},
        "/server/extraEnv/0/name",
    ),
    "prefix that is none": ({"s3": {"allowedPrefixes": ["imagery"]}}, "/s3/allowedPrefixes/0"),
}


@pytest.mark.parametrize(("values", "message"), REFUSED.values(), ids=REFUSED)
def test_values_are_refused_with_their_place(chart, values, message):
    with pytest.raises(HelmError, match=message):
        rendered(chart, {**STORE, **values, "modelStore": {**STORE["modelStore"], **values.get("modelStore", {})}})


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_container_is_confined(chart, path):
    objects = rendered(chart, yaml.safe_load(path.read_text()))
    pods = [each["spec"]["template"]["spec"] for each in objects if each["kind"] == "Deployment"]
    pods += [each["spec"] for each in objects if each["kind"] == "Pod"]
    assert len(pods) >= 2
    for pod in pods:
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 1000
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert not [volume for volume in pod.get("volumes", []) if "hostPath" in volume]
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            assert container["securityContext"] == HARDENED
            assert container["resources"]["limits"]["memory"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_management_is_never_open_and_metrics_only_by_value(chart, path):
    values = yaml.safe_load(path.read_text())
    objects = rendered(chart, values)
    open_metrics = values.get("metrics", {}).get("enabled", False)
    server = server_of(objects)
    allowed = {8080, 8082} if open_metrics else {8080}
    assert {port["containerPort"] for port in server["ports"]} == allowed
    assert (
        environment(server)["SUBPIXEL_METRICS_ADDRESS"] == f"http://{'0.0.0.0' if open_metrics else '127.0.0.1'}:8082"
    )
    for service in (each for each in objects if each["kind"] == "Service"):
        targets = {port["targetPort"] for port in service["spec"]["ports"]}
        assert targets == ({"metrics"} if service["metadata"]["name"].endswith("-metrics") else {"http"})
    for policy in (each for each in objects if each["kind"] == "NetworkPolicy"):
        rules = policy["spec"]["ingress"]
        assert {port["port"] for rule in rules for port in rule["ports"]} == allowed
        assert all(rule["from"] for rule in rules if rule["ports"] == [{"port": 8082}])
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]


def test_the_environment_that_the_chart_sets_is_the_one_that_the_container_reads(chart):
    given = {name for name in environment(server_of(rendered(chart, STORE))) if name.startswith("SUBPIXEL_")}
    assert given == {*DEFAULTS, ALLOWED_PREFIXES}


def test_gpus_are_asked_for_tolerated_and_served_by_the_cuda_image(chart):
    objects = rendered(
        chart, {**STORE, "gpu": {"enabled": True}, "tolerations": [{"key": "batch", "operator": "Exists"}]}
    )
    pod = of_kind(objects, "Deployment")["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"] == {"memory": "4Gi", "nvidia.com/gpu": 1}
    assert pod["containers"][0]["image"] == "subpixel-serving:0.1.0-cuda"
    assert [each["key"] for each in pod["tolerations"]] == ["batch", "nvidia.com/gpu"]
    without = of_kind(rendered(chart, STORE), "Deployment")["spec"]["template"]["spec"]
    assert "tolerations" not in without and "nvidia.com/gpu" not in without["containers"][0]["resources"]["limits"]


def test_credentials_are_the_init_container_s_alone_unless_requests_may_name_objects(chart):
    values = example("on-premises")
    pod = of_kind(rendered(chart, values), "Deployment")["spec"]["template"]["spec"]
    secret = [{"secretRef": {"name": "subpixel-s3"}}]
    assert pod["initContainers"][0]["envFrom"] == pod["containers"][0]["envFrom"] == secret
    assert environment(pod["containers"][0])["SUBPIXEL_ALLOWED_PREFIXES"] == (
        "s3://imagery/sentinel-2,s3://products/requests"
    )
    values["s3"]["allowedPrefixes"] = []
    pod = of_kind(rendered(chart, values), "Deployment")["spec"]["template"]["spec"]
    assert pod["initContainers"][0]["envFrom"] == secret
    assert "envFrom" not in pod["containers"][0]
    assert not [name for name in environment(pod["containers"][0]) if name.startswith("AWS_")]


@pytest.mark.parametrize(
    ("endpoint", "ports"),
    {
        "": [443],
        "https://s3.example.org": [443],
        "http://minio": [80, 443],
        "http://seaweedfs:8333": [8333, 443],
        "https://[fd00::1]:9000": [9000, 443],
    }.items(),
)
def test_pods_reach_the_port_of_their_s3_server(chart, endpoint, ports):
    policy = of_kind(rendered(chart, {**STORE, "s3": {"endpoint": endpoint}}), "NetworkPolicy")
    assert [port["port"] for port in policy["spec"]["egress"][1]["ports"]] == ports
    assert policy["spec"]["egress"][1]["to"][0]["ipBlock"]["except"] == ["169.254.169.254/32"]


def test_the_example_s_ingress_lets_the_largest_request_and_the_longest_answer_pass(chart):
    annotations = of_kind(rendered(chart, example("on-premises")), "Ingress")["metadata"]["annotations"]
    properties = (REPOSITORY / "serving" / "config.properties").read_text().splitlines()
    (largest,) = [int(line.partition("=")[2]) for line in properties if line.startswith("max_request_size=")]
    assert int(annotations["nginx.ingress.kubernetes.io/proxy-body-size"].removesuffix("m")) << 20 >= largest
    workers = yaml.safe_load((REPOSITORY / "serving" / "model-config.yaml").read_text())
    assert int(annotations["nginx.ingress.kubernetes.io/proxy-read-timeout"]) >= workers["responseTimeout"]


def test_a_canary_shares_the_service_and_has_one_of_its_own(chart):
    objects = rendered(chart, example("canary"))
    stable, canary = of_kind(objects, "Deployment"), of_kind(objects, "Deployment", "-canary")
    assert (stable["spec"]["replicas"], canary["spec"]["replicas"]) == (9, 1)
    versions = [
        argument
        for deployment in (stable, canary)
        for argument in deployment["spec"]["template"]["spec"]["initContainers"][0]["args"]
        if argument.startswith("--version")
    ]
    assert versions == ["--version=1.0-1a2b3c4d", "--version=1.1-5e6f7a8b"]
    both, alone = of_kind(objects, "Service"), of_kind(objects, "Service", "-canary")
    assert selects(both, stable) and selects(both, canary)
    assert selects(alone, canary) and not selects(alone, stable)
    # a Deployment that selected the other's pods would fight for them
    assert stable["spec"]["selector"] != canary["spec"]["selector"]


def selects(service: dict[str, Any], deployment: dict[str, Any]) -> bool:
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    return service["spec"]["selector"].items() <= labels.items()


def test_the_test_pod_is_let_in_but_gets_no_requests(chart):
    objects = rendered(chart, example("gpu"))
    labels = of_kind(objects, "Pod", "-test")["metadata"]["labels"]
    peers = of_kind(objects, "NetworkPolicy")["spec"]["ingress"][0]["from"]
    assert any(peer["podSelector"]["matchLabels"].items() <= labels.items() for peer in peers if "podSelector" in peer)
    assert not of_kind(objects, "Service")["spec"]["selector"].items() <= labels.items()


def test_scaling_follows_the_queue_and_leaves_the_number_of_pods_to_the_scaler(chart):
    objects = rendered(chart, example("gpu"))
    assert "replicas" not in of_kind(objects, "Deployment")["spec"]
    scaler = of_kind(objects, "HorizontalPodAutoscaler")["spec"]
    assert scaler["metrics"][0]["pods"]["metric"]["name"] == "subpixel_queue_latency_milliseconds"
    trigger = of_kind(rendered(chart, example("keda")), "ScaledObject")["spec"]["triggers"][0]
    assert trigger["metadata"]["threshold"] == "250"
    assert 'service="sr-subpixel-serving-metrics"' in trigger["metadata"]["query"]
    # what the adapter serves is what the autoscaler asks for
    assert f"as: {scaler['metrics'][0]['pods']['metric']['name']}" in README.read_text()


def test_a_pod_outlives_its_last_request(chart):
    pod = of_kind(rendered(chart, {**STORE, "drain": {"delay": 5, "timeout": 60}}), "Deployment")["spec"]["template"][
        "spec"
    ]
    told = environment(pod["containers"][0])
    assert pod["terminationGracePeriodSeconds"] > float(told["SUBPIXEL_DRAIN_DELAY_S"]) + float(
        told["SUBPIXEL_DRAIN_TIMEOUT_S"]
    )
    workers = yaml.safe_load((REPOSITORY / "serving" / "model-config.yaml").read_text())
    defaults = yaml.safe_load(VALUES.read_text())
    assert defaults["drain"]["timeout"] >= workers["responseTimeout"]
    assert defaults["probes"]["period"] * defaults["probes"]["startupFailures"] > workers["startupTimeout"]


def test_notes_say_where_and_warn(chart):
    notes = {
        name: chart.render(example(name), name="sr", namespace="earth")["subpixel-serving/templates/NOTES.txt"]
        for name in ("minimal", "on-premises", "canary", "air-gapped")
    }
    assert "model.version is not set" in notes["minimal"]
    assert "WARNING" not in notes["on-premises"]
    assert "https://sr.example.org/predictions/subpixel" in notes["on-premises"]
    assert "Version 1.1-5e6f7a8b takes requests too: 1 pod of it" in notes["canary"]
    assert "networkPolicy.enabled is false" in notes["air-gapped"]


def test_readme_and_schema_say_what_values_say():
    assert README.read_text() == readme(), "run `python -m charts.documentation`"
    assert SCHEMA.read_text() == schema(), "run `python -m charts.documentation`"


def test_every_default_is_described_and_every_described_value_has_a_default():
    def keys(node: Any, place: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
        found = set()
        for name, each in node.items():
            found.add((*place, name))
            if isinstance(each, dict):
                found |= keys(each, (*place, name))
        return found

    def described(node: dict[str, Any], place: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
        found = set()
        for name, each in node.get("properties", {}).items():
            found |= {(*place, name)} | described(each, (*place, name))
        return found

    content = json.loads(SCHEMA.read_text())
    values = keys(yaml.safe_load(VALUES.read_text()))
    in_schema = described(content) - {("global",)}
    assert {key for key in in_schema if key not in values} == {
        ("securityContext", "privileged"),
        ("securityContext", "capabilities", "add"),
    }
    assert {
        key for key in values if key not in in_schema and key[:-1] in in_schema and strict(content, key[:-1])
    } == set()


def strict(content: dict[str, Any], path: tuple[str, ...]) -> bool:
    """Whether the schema refuses unknown keys at a place."""
    for name in path:
        content = content["properties"][name]
    return content.get("additionalProperties") is False


words = st.from_regex(r"[a-z]([a-z0-9-]{0,12}[a-z0-9])?", fullmatch=True)
labels = st.dictionaries(st.from_regex(r"[a-z]{1,8}\.example\.org/[a-z]{1,8}", fullmatch=True), words, max_size=2)
digests = st.from_regex(r"[0-9a-f]{63}[a-f]", fullmatch=True)
versions = st.from_regex(r"[0-9]\.[0-9]-[0-9a-f]{7}[a-f]", fullmatch=True)
peers = st.lists(
    st.builds(lambda name: {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}, words),
    min_size=1,
    max_size=2,
)
stores = st.one_of(
    st.builds(lambda bucket, prefix: {"uri": f"s3://{bucket}x/{prefix}"}, words, words),
    st.builds(lambda claim, path: {"uri": f"/store/{path}", "existingClaim": claim}, words, words),
)


@st.composite
def valid_values(draw: st.DrawFn) -> dict[str, Any]:
    """Values that the schema accepts: every switch, and lists and names of any length."""
    metrics = draw(st.booleans())
    scaling = draw(st.sampled_from([None, "hpa", "keda"] if metrics else [None]))
    recreate = draw(st.booleans())
    return {
        "fullnameOverride": draw(st.one_of(st.just(""), words)),
        "commonLabels": draw(labels),
        "image": {
            "repository": draw(words),
            "tag": draw(words),
            "pullPolicy": draw(st.sampled_from(["Always", "Never"])),
        },
        "imagePullSecrets": [{"name": name} for name in draw(st.lists(words, max_size=2))],
        "model": {"version": draw(versions), "sha256": draw(st.one_of(st.just(""), digests))},
        "modelStore": draw(stores),
        "s3": {
            "endpoint": draw(st.sampled_from(["", "http://s3:9000", "https://s3.example.org/"])),
            "existingSecret": draw(st.one_of(st.just(""), words)),
            "allowedPrefixes": [f"s3://{name}x/in" for name in draw(st.lists(words, max_size=3, unique=True))],
        },
        "serviceAccount": {"create": draw(st.booleans()), "annotations": draw(labels)},
        "replicaCount": draw(st.integers(0, 100)),
        "strategy": {"type": "Recreate", "rollingUpdate": None} if recreate else {"type": "RollingUpdate"},
        "gpu": {"enabled": draw(st.booleans()), "runtimeClassName": draw(st.sampled_from(["", "nvidia"]))},
        "server": {
            "workers": draw(st.integers(1, 8)),
            "threads": draw(st.integers(0, 64)),
            "extraEnv": [{"name": "TZ", "value": draw(words)}],
        },
        "drain": {"delay": draw(st.integers(0, 60)), "timeout": draw(st.integers(1, 600))},
        "podLabels": draw(labels),
        "podAnnotations": draw(labels),
        "nodeSelector": draw(labels),
        "priorityClassName": draw(st.one_of(st.just(""), words)),
        "topologySpread": {"enabled": draw(st.booleans())},
        "service": {
            "type": draw(st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer"])),
            "port": draw(st.integers(1, 65535)),
        },
        "ingress": {
            "enabled": draw(st.booleans()),
            "hosts": [f"{name}.example.org" for name in draw(st.lists(words, min_size=1, max_size=3, unique=True))],
            "tlsSecret": draw(st.one_of(st.just(""), words)),
        },
        "autoscaling": {
            "enabled": scaling is not None,
            "engine": scaling or "hpa",
            "cpuPercent": draw(st.integers(0, 90)),
        },
        "podDisruptionBudget": {
            "enabled": draw(st.booleans()),
            "maxUnavailable": draw(st.one_of(st.integers(0, 5), st.sampled_from(["0%", "25%", "100%"]))),
        },
        "networkPolicy": {"enabled": draw(st.booleans()), "ingressFrom": draw(st.one_of(st.just([]), peers))},
        "metrics": {"enabled": metrics, "serviceMonitor": {"enabled": metrics and draw(st.booleans())}},
        "canary": {"enabled": draw(st.booleans()), "version": draw(versions)},
    }


RANDOM = settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@RANDOM
@given(values=valid_values())
def test_any_valid_values_give_valid_manifests(chart, values):
    objects = rendered(chart, values)
    check(objects, KUBERNETES[:1])
    services = [
        each for each in objects if each["kind"] == "Service" and not each["metadata"]["name"].endswith("-metrics")
    ]
    for deployment in (each for each in objects if each["kind"] == "Deployment"):
        assert deployment["spec"]["selector"]["matchLabels"].items() <= (
            deployment["spec"]["template"]["metadata"]["labels"].items()
        )
        assert any(selects(service, deployment) for service in services)


@RANDOM
@given(data=st.data())
def test_a_wrong_type_or_an_unknown_key_anywhere_is_refused_by_name(chart, data):
    values = copy.deepcopy(data.draw(valid_values()))
    place, path = values, []
    while True:
        name = data.draw(st.sampled_from(sorted(place)))
        path.append(name)
        deeper = isinstance(place[name], dict) and place[name] and strict_at(path)
        if not deeper or data.draw(st.booleans()):
            break
        place = place[name]
    if data.draw(st.booleans()):
        place["surprise"] = True
        expected = "additional properties 'surprise' not allowed"
    else:
        place[name] = 1.5
        expected = f"at '/{'/'.join(path)}"
    with pytest.raises(HelmError, match=expected):
        rendered(chart, values)


def strict_at(path: list[str]) -> bool:
    return strict(json.loads(SCHEMA.read_text()), tuple(path))


def test_the_packaged_chart_has_what_it_needs_and_no_more(tmp_path: Path):
    from helm_python import package

    again = Chart.load(package(str(CHART), destination=str(tmp_path)))
    assert {each["kind"] for each in rendered(again, STORE)} >= {"Deployment", "Service", "NetworkPolicy"}
