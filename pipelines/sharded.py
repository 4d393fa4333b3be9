"""A stage whose work is by patches, in a graph: its shards at the same time, then the stage, which joins them."""

from __future__ import annotations

from typing import Any

from kfp import dsl
from kfp.dsl import PipelineTask

from components.interface import shard_component
from components.stage import STAGES
from pipelines.platform import Platform

SHARD_COMPONENTS = {name: shard_component(name) for name, stage in STAGES.items() if stage.by_patch}


class Shards:
    """The shards of a run, as `plan_shards` counted them."""

    def __init__(self, platform: Platform, planned: PipelineTask, config: Any, root: Any) -> None:
        self.platform, self.planned, self.config, self.root = platform, planned, config, root

    def join(self, stage: str, component: Any, after: PipelineTask | None = None, **inputs: Any) -> PipelineTask:
        """A loop over the shards of `stage`, begun when `after` is done, and the task of the whole stage behind it."""
        with dsl.ParallelFor(
            self.planned.outputs["shards"],
            name=f"{stage.replace('_', '-')}-shards",
            parallelism=self.platform.parallelism,
        ) as shard:
            part = SHARD_COMPONENTS[stage](config=self.config, root=self.root, shard=shard)
            self.platform.place(part, stage)
            if after is not None:
                part.after(after)
        return self.platform.place(component(config=self.config, root=self.root, **inputs).after(part), stage)
