"""Kubeflow interface of the normalize stage; the program is main.py."""

from kfp import dsl

from components.interface import stage_container


@dsl.container_component
def normalize(
    config: str,
    root: str,
    patches: dsl.Input[dsl.Dataset],
    masks: dsl.Input[dsl.Dataset],
    normalization: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
):
    """Cloud-free statistics of Sentinel-2 by region and of VHR by tile.

    Args:
        config: the run's configuration as JSON text.
        root: where artifacts are: a folder or s3://bucket/prefix.
        patches: patches of the download stage.
        masks: masks of the cloud_shadow_filter stage.
        normalization: normalization.json.
        metrics: scalars of this stage.
    """
    return stage_container("normalize")
