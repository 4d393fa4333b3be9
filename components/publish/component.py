"""Kubeflow interface of the publish stage; the program is main.py."""

from kfp import dsl

from components.interface import stage_container


@dsl.container_component
def publish(
    config: str,
    root: str,
    model: dsl.Input[dsl.Model],
    archive: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Dataset],
    published: dsl.Output[dsl.Model],
):
    """Publish the model and its archive where `package.publish_to` says.

    Args:
        config: the run's configuration as JSON text.
        root: where artifacts are: a folder or s3://bucket/prefix.
        model: bundle of the train_hrn stage.
        archive: archive of the package stage.
        evaluation: scores of the evaluate stage.
        published: the published version.
    """
    return stage_container("publish")
