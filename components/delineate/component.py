"""Kubeflow interface of the delineate stage; the program is main.py."""

from kfp import dsl

from components.interface import stage_container


@dsl.container_component
def delineate(
    config: str,
    root: str,
    patches: dsl.Input[dsl.Dataset],
    masks: dsl.Input[dsl.Dataset],
    samples: dsl.Input[dsl.Dataset],
    model: dsl.Input[dsl.Model],
    delineation: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    extent: dsl.Output[dsl.ClassificationMetrics],
    boundary: dsl.Output[dsl.ClassificationMetrics],
):
    """Train field delineation on bicubic and on super-resolved images and compare them.

    Args:
        config: the run's configuration as JSON text.
        root: where artifacts are: a folder or s3://bucket/prefix.
        patches: patches of the download stage.
        masks: masks of the cloud_shadow_filter stage.
        samples: samples of the quality_gate stage.
        model: bundle of the train_hrn stage.
        delineation: metrics, polygons and gallery.
        metrics: scalars of this stage.
        extent: pixels of fields on super-resolved images against the reference, confusion and ROC.
        boundary: pixels of field borders, the same.
    """
    return stage_container("delineate")
