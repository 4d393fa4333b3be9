"""Kubeflow interface of the train_hrn stage; the program is main.py."""

from kfp import dsl

from components.interface import stage_container


@dsl.container_component
def train_hrn(
    config: str,
    root: str,
    samples: dsl.Input[dsl.Dataset],
    normalization: dsl.Input[dsl.Dataset],
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
):
    """Train HighRes-Net on the kept samples.

    Args:
        config: the run's configuration as JSON text.
        root: where artifacts are: a folder or s3://bucket/prefix.
        samples: samples of the quality_gate stage.
        normalization: statistics of the normalize stage.
        model: model bundle.
        metrics: scalars of this stage.
    """
    return stage_container("train_hrn")
