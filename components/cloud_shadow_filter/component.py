"""Kubeflow interface of the cloud_shadow_filter stage; the program is main.py."""

from kfp import dsl

from components.interface import stage_container


@dsl.container_component
def cloud_shadow_filter(
    config: str,
    root: str,
    patches: dsl.Input[dsl.Dataset],
    masks: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
):
    """Mask clouds and shadows and decide which acquisitions are kept.

    Args:
        config: the run's configuration as JSON text.
        root: where artifacts are: a folder or s3://bucket/prefix.
        patches: patches of the download stage.
        masks: masks and coverage of each acquisition.
        metrics: scalars of this stage.
    """
    return stage_container("cloud_shadow_filter")
