"""How a stage is called in a container: one command for all stages, so that each `component.py` stays an interface."""

from kfp import dsl

IMAGE_PREFIX = "subpixel"
IMAGE_TAG = "0.1.0"


def image_of(stage: str) -> str:
    """Name and tag of a stage's image."""
    return f"{IMAGE_PREFIX}-{stage.replace('_', '-')}:{IMAGE_TAG}"


def stage_container(stage: str) -> dsl.ContainerSpec:
    """The container of a stage: its image, and its program with Kubeflow's ExecutorInput as the only argument."""
    return dsl.ContainerSpec(
        image=image_of(stage),
        command=["python3", "-m", f"components.{stage}"],
        args=["--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER],
    )
