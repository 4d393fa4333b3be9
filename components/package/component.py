"""Kubeflow interface of the package stage; the program is main.py."""

from kfp import dsl

from components.interface import stage_container


@dsl.container_component
def package(
    config: str,
    root: str,
    model: dsl.Input[dsl.Model],
    archive: dsl.Output[dsl.Model],
):
    """Build the TorchServe archive of the model bundle.

    Args:
        config: the run's configuration as JSON text.
        root: where artifacts are: a folder or s3://bucket/prefix.
        model: bundle of the train_hrn stage.
        archive: model archive (.mar).
    """
    return stage_container("package")
