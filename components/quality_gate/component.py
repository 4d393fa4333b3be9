"""Kubeflow interface of the quality_gate stage; the program is main.py."""

from kfp import dsl

from components.interface import stage_container


@dsl.container_component
def quality_gate(
    config: str,
    root: str,
    patches: dsl.Input[dsl.Dataset],
    masks: dsl.Input[dsl.Dataset],
    normalization: dsl.Input[dsl.Dataset],
    samples: dsl.Output[dsl.Dataset],
    page: dsl.Output[dsl.HTML],
    metrics: dsl.Output[dsl.Metrics],
    verdict: dsl.OutputPath(str),
):
    """Cut samples, score and filter them, and validate the set.

    Args:
        config: the run's configuration as JSON text.
        root: where artifacts are: a folder or s3://bucket/prefix.
        patches: patches of the download stage.
        masks: masks of the cloud_shadow_filter stage.
        normalization: statistics of the normalize stage.
        samples: sample store and table, with the gate's report.
        page: what was kept, what was dropped and why, with the gate's expectations.
        metrics: scalars of this stage.
        verdict: "pass" or "fail".
    """
    return stage_container("quality_gate")
