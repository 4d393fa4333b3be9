"""Kubeflow interface of the report stage; the program is main.py."""

from kfp import dsl

from components.interface import stage_container


@dsl.container_component
def report(
    config: str,
    root: str,
    page: dsl.Output[dsl.HTML],
):
    """Write report.html and metrics.json of whatever stages have finished below the root.

    Args:
        config: the run's configuration as JSON text.
        root: where artifacts are: a folder or s3://bucket/prefix.
        page: the report.
    """
    return stage_container("report")
