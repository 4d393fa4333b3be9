"""Kubeflow interface of the evaluate stage; the program is main.py."""

from kfp import dsl

from components.interface import stage_container


@dsl.container_component
def evaluate(
    config: str,
    root: str,
    samples: dsl.Input[dsl.Dataset],
    normalization: dsl.Input[dsl.Dataset],
    model: dsl.Input[dsl.Model],
    evaluation: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    verdict: dsl.OutputPath(str),
):
    """Compare the model with bicubic and the temporal mean on test samples.

    Args:
        config: the run's configuration as JSON text.
        root: where artifacts are: a folder or s3://bucket/prefix.
        samples: samples of the quality_gate stage.
        normalization: statistics of the normalize stage.
        model: bundle of the train_hrn stage.
        evaluation: metrics, per-sample table and gallery.
        metrics: scalars of this stage.
        verdict: "better" or "not_better".
    """
    return stage_container("evaluate")
