"""Kubeflow interface of the download stage; the program is main.py."""

from kfp import dsl

from components.interface import stage_container


@dsl.container_component
def download(
    config: str,
    root: str,
    patches: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
):
    """Download patches of the area for the period from the configured source.

    Args:
        config: the run's configuration as JSON text.
        root: where artifacts are: a folder or s3://bucket/prefix.
        patches: EOPatches of Sentinel-2 and, for training, VHR.
        metrics: scalars of this stage.
    """
    return stage_container("download")
