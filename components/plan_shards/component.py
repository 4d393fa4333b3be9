"""Kubeflow interface of plan_shards; the program is main.py."""

from kfp import dsl

from components.interface import stage_container


@dsl.container_component
def plan_shards(
    config: str,
    shards: dsl.OutputPath(list),
):
    """Decide over how many containers the work by patches is shared out.

    Args:
        config: the run's configuration as JSON text.
        shards: a list of "I/N", what the stages take as their shard.
    """
    return stage_container("download", program="plan_shards")
