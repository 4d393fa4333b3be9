"""How a stage is called in a container: one command for all stages, so that each `component.py` stays an interface."""

from kfp import dsl
from kfp.dsl.container_component_class import ContainerComponent

IMAGE_PREFIX = "subpixel"
IMAGE_TAG = "0.1.0"


def image_of(stage: str) -> str:
    """Name and tag of a stage's image."""
    return f"{IMAGE_PREFIX}-{stage.replace('_', '-')}:{IMAGE_TAG}"


def stage_container(stage: str, program: str | None = None) -> dsl.ContainerSpec:
    """The container of a stage: its image, and its program with Kubeflow's ExecutorInput as the only argument.

    `program` names another one that the image holds.
    """
    return dsl.ContainerSpec(
        image=image_of(stage),
        command=["python3", "-m", f"components.{program or stage}"],
        args=["--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER],
    )


def shard_component(stage: str) -> ContainerComponent:
    """The component `<stage>_shard(config, root, shard)`: a stage's program on a share of the patches, "I/N".

    It declares no artifacts: what it makes is the stage's, which tells Kubeflow of the whole.
    """

    def shard_of(config: str, root: str, shard: str):
        return stage_container(stage)

    shard_of.__name__ = f"{stage}_shard"
    return dsl.container_component(shard_of)
