"""Kubeflow interface of the super_resolve stage; the program is main.py."""

from kfp import dsl

from components.interface import stage_container


@dsl.container_component
def super_resolve(
    config: str,
    root: str,
    patches: dsl.Input[dsl.Dataset],
    masks: dsl.Input[dsl.Dataset],
    products: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
):
    """Super-resolve every clear date of the area.

    Args:
        config: the run's configuration as JSON text.
        root: where artifacts are: a folder or s3://bucket/prefix.
        patches: patches of the download stage.
        masks: masks of the cloud_shadow_filter stage.
        products: cloud-optimised GeoTIFFs and STAC.
        metrics: scalars of this stage.
    """
    return stage_container("super_resolve")
