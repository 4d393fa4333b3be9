"""What a cluster gives each stage: the platform file, such as examples/kubeflow/platform.yaml, in the graphs.

The graphs say what depends on what; a `Platform` says where it runs. Secrets are named here, never held: a stage sees
the keys of a Kubernetes Secret as environment variables, and runs without where there is no such Secret.
"""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

from kfp import kubernetes
from kfp.dsl import PipelineTask
from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from components.interface import IMAGE_TAG
from sr_core.config import Section, read_yaml, validated

SUFFIXES = {"": 1, "m": Decimal("0.001")} | {
    f"{letter}{binary}": (1024 if binary else 1000) ** power
    for power, letter in enumerate("KMGTP", start=1)
    for binary in ("", "i")
}
"""Of Kubernetes quantities that kfp's backend reads."""
NETWORK = frozenset({"plan_shards", "download", "publish"})
"""Stages that talk to servers other than the run's own storage: they are tried again."""


def amount(quantity: str) -> Decimal:
    """The value of a Kubernetes quantity: cores, or bytes. Raises `ValueError`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([A-Za-z]*)", quantity)
    if found is None or found[2] not in SUFFIXES:
        raise ValueError("a Kubernetes quantity, such as 500m, 2, 512Mi or 16Gi")
    return Decimal(found[1]) * SUFFIXES[found[2]]


def _quantity(quantity: str) -> str:
    amount(quantity)
    return quantity


Quantity = Annotated[str, AfterValidator(_quantity), Field(coerce_numbers_to_str=True)]


class Toleration(Section):
    """A taint of nodes that pods of a stage accept."""

    key: str
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] = "NoSchedule"

    @model_validator(mode="after")
    def _value_belongs_to_equal(self) -> Toleration:
        if (self.operator == "Equal") != (self.value is not None):
            raise ValueError("`value` belongs to `operator: Equal`, and only there")
        return self


class Accelerator(Section):
    """GPUs of a stage, as the device plug-in calls them."""

    type: str = Field("nvidia.com/gpu", description="resource name")
    count: int = Field(1, ge=1, le=64)


class Needs(Section):
    """What a pod of a stage asks for, and may take at most."""

    cpu_request: Quantity = "500m"
    cpu_limit: Quantity = "2"
    memory_request: Quantity = "1Gi"
    memory_limit: Quantity = "4Gi"
    time_limit_s: int = Field(6 * 3600, ge=60, description="a pod that runs longer is stopped, seconds")
    shm: Quantity | None = Field(None, description="size of /dev/shm, which counts as memory; None: 64 MB of the node")
    accelerator: Accelerator | None = None
    tolerations: tuple[Toleration, ...] = ()
    node_selector: dict[str, str] = Field(default_factory=dict, description="labels that a node must have")
    tag: str | None = Field(None, description="image tag of this stage, such as that of a CUDA build")

    @model_validator(mode="after")
    def _requests_within_limits(self) -> Needs:
        for kind in ("cpu", "memory"):
            request, limit = getattr(self, f"{kind}_request"), getattr(self, f"{kind}_limit")
            if amount(request) > amount(limit):
                raise ValueError(f"{kind}_request {request} is more than {kind}_limit {limit}")
        if self.shm is not None and amount(self.shm) >= amount(self.memory_limit):
            raise ValueError(f"shm {self.shm} counts as memory; expected less than memory_limit {self.memory_limit}")
        return self


class Secret(Section):
    """A Kubernetes Secret that stages see as environment variables, where it exists."""

    name: str
    environment: dict[str, str] = Field(description="key of the Secret: environment variable")
    stages: tuple[str, ...] = Field((), description="who sees it; none named: every stage")


class Volume(Section):
    """A volume that every stage sees: series or bundles that are not in S3."""

    claim: str = Field(description="PersistentVolumeClaim in the run's namespace")
    mount: Path = Field(description="where stages see it")

    @field_validator("mount")
    @classmethod
    def _absolute(cls, mount: Path) -> Path:
        if not mount.is_absolute():
            raise ValueError("an absolute path")
        return mount


class Retry(Section):
    """Of stages that meet the network: waits of backoff_s, backoff_s x factor, ... seconds, at most max_backoff_s."""

    attempts: int = Field(3, ge=0, le=20, description="further attempts after the first")
    backoff_s: int = Field(30, ge=0)
    factor: float = Field(2.0, ge=1)
    max_backoff_s: int = Field(600, ge=0)


NEEDS: dict[str, dict[str, Any]] = {
    "plan_shards": {"memory_request": "512Mi", "memory_limit": "2Gi", "time_limit_s": 1800},
    "download": {},
    "cloud_shadow_filter": {"cpu_request": "2", "cpu_limit": "4", "memory_request": "4Gi", "memory_limit": "8Gi"},
    "normalize": {"memory_request": "2Gi"},
    "quality_gate": {"cpu_request": "2", "cpu_limit": "4", "memory_request": "4Gi", "memory_limit": "8Gi"},
    "train_hrn": {
        "cpu_request": "4",
        "cpu_limit": "8",
        "memory_request": "8Gi",
        "memory_limit": "16Gi",
        "shm": "2Gi",
        "time_limit_s": 48 * 3600,
    },
    "evaluate": {"cpu_request": "2", "cpu_limit": "4", "memory_request": "4Gi", "memory_limit": "8Gi"},
    "delineate": {
        "cpu_request": "2",
        "cpu_limit": "8",
        "memory_request": "4Gi",
        "memory_limit": "8Gi",
        "time_limit_s": 12 * 3600,
    },
    "package": {"time_limit_s": 1800},
    "publish": {"cpu_limit": "1", "memory_request": "512Mi", "memory_limit": "2Gi", "time_limit_s": 3600},
    "super_resolve": {"cpu_request": "2", "cpu_limit": "8", "memory_request": "4Gi", "memory_limit": "8Gi"},
    "report": {"cpu_limit": "1", "memory_limit": "2Gi", "time_limit_s": 1800},
}
"""Of each stage, where a platform file does not say otherwise."""

SECRETS = (
    Secret(
        name="subpixel-s3",
        environment={
            name: name for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_ENDPOINT_URL")
        },
    ),
    Secret(
        name="subpixel-sentinel-hub",
        environment={name: name for name in ("SH_CLIENT_ID", "SH_CLIENT_SECRET")},
        stages=("plan_shards", "download"),
    ),
    Secret(name="subpixel-wandb", environment={"WANDB_API_KEY": "WANDB_API_KEY"}, stages=("train_hrn",)),
)


class Platform(Section):
    """Where the stages' images are, and what each stage gets."""

    registry: str = Field("", description="before the images' names, such as registry.example.org/team")
    tag: str = Field(IMAGE_TAG, description="of all images, unless a stage has its own")
    pull_policy: Literal["IfNotPresent", "Always", "Never"] = "IfNotPresent"
    pull_secrets: tuple[str, ...] = Field((), description="Secrets with the registry's credentials")
    service_account: str | None = Field(None, description="of the pods; None: that of Kubeflow Pipelines")
    parallelism: int = Field(4, ge=1, le=1000, description="shards of a stage that run at the same time")
    retry: Retry = Retry()
    secrets: tuple[Secret, ...] = SECRETS
    volumes: tuple[Volume, ...] = ()
    stages: dict[str, Needs] = Field(default_factory=dict, validate_default=True, description="by stage")

    @field_validator("stages", mode="before")
    @classmethod
    def _over_defaults(cls, given: Any, info: ValidationInfo) -> Any:
        """Every stage has its needs; a file changes those keys that it names."""
        if not isinstance(given, dict):
            return given
        if unknown := [name for name in given if name not in NEEDS]:
            raise ValueError(f"unknown stage {', '.join(unknown)}; stages are {', '.join(NEEDS)}")
        return {
            name: NEEDS[name] | found if isinstance(found := given.get(name) or {}, dict) else found for name in NEEDS
        }

    @field_validator("secrets")
    @classmethod
    def _of_known_stages(cls, secrets: tuple[Secret, ...]) -> tuple[Secret, ...]:
        for secret in secrets:
            if unknown := [name for name in secret.stages if name not in NEEDS]:
                raise ValueError(f"secret {secret.name}: unknown stage {', '.join(unknown)}")
        return secrets

    def image(self, stage: str, image: str) -> str:
        """Where a stage's image, known by its local name, is pulled from."""
        name = image.rpartition(":")[0]
        return f"{self.registry.rstrip('/') + '/' if self.registry else ''}{name}:{self.stages[stage].tag or self.tag}"

    def place(self, task: PipelineTask, stage: str) -> PipelineTask:
        """Give a task of the graph what its stage needs. Returns the task."""
        needs = self.stages[stage]
        assert task.container_spec is not None
        task.set_container_image(self.image(stage, task.container_spec.image))
        # a stage keeps its finished work by a key of its own; see docs/architecture.md
        task.set_caching_options(False)
        task.set_cpu_request(needs.cpu_request).set_cpu_limit(needs.cpu_limit)
        task.set_memory_request(needs.memory_request).set_memory_limit(needs.memory_limit)
        if stage in NETWORK and self.retry.attempts:
            task.set_retry(
                self.retry.attempts,
                f"{self.retry.backoff_s}s",
                self.retry.factor,
                f"{self.retry.max_backoff_s}s",
            )
        if needs.accelerator:
            task.set_accelerator_type(needs.accelerator.type).set_accelerator_limit(needs.accelerator.count)
        for toleration in needs.tolerations:
            kubernetes.add_toleration(task, **toleration.model_dump(exclude_none=True))
        for label, value in needs.node_selector.items():
            kubernetes.add_node_selector(task, label, value)
        if needs.shm:
            kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit=needs.shm)
        for secret in self.secrets:
            if not secret.stages or stage in secret.stages:
                kubernetes.use_secret_as_env(task, secret.name, secret.environment, optional=True)
        for volume in self.volumes:
            kubernetes.mount_pvc(task, volume.claim, str(volume.mount))
        if self.pull_secrets:
            kubernetes.set_image_pull_secrets(task, list(self.pull_secrets))
        kubernetes.set_image_pull_policy(task, self.pull_policy)
        kubernetes.set_security_context(task, run_as_non_root=True)
        kubernetes.set_timeout(task, needs.time_limit_s)
        return task


LOCAL = Platform(retry=Retry(attempts=0))
"""This machine: who runs it sees the error at once, and the same command continues."""


def load_platform(path: Path | None) -> Platform:
    """A platform from its file, or the default one. Raises `ConfigError` with every problem found."""
    if path is None:
        return Platform()
    return validated(Platform, read_yaml(path, "platform") or {}, f"platform {path}")
