"""How many shards the patches of an area are shared out over.

The output parameter `shards` is a list of "I/N", one a container that Kubeflow starts for each stage whose work is by
patches. N is the number of patches divided by `preparation.patches_per_shard`, at most `preparation.max_shards`. One
shard, "1/1", has nothing to do and returns at once: the stage does the work itself. So it is on Ray, which shares out
patches by itself.

Reads no artifact and writes none. It runs in the image of download, whose plan of patches it asks for.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from components.download.main import plan, secrets
from components.stage import Call, Shard, program, say_to_kubeflow
from sr_core.config import Config
from sr_core.progress import console
from sr_core.sources import open_source

SECTIONS = ("preparation", "area", "source", "grid")
"""Configuration sections that the number depends on."""


def plan_shards(config: Config) -> list[str]:
    """The shards of a run: ["1/3", "2/3", "3/3"]. Raises `AreaError` when the source covers none of the area."""
    settings = config.preparation
    if settings.executor == "ray":
        return [str(Shard())]
    patches = len(plan(config, open_source(config, secrets()))[0])
    count = max(1, min(math.ceil(patches / settings.patches_per_shard), settings.max_shards))
    console.print(f"[bold]plan_shards[/bold]: {patches} patches, {count} shards")
    return [str(Shard(number, count)) for number in range(1, count + 1)]


def answer(call: Call) -> None:
    """Tell Kubeflow the shards; by hand, print them as JSON."""
    shards = plan_shards(call.config)
    if call.message:
        say_to_kubeflow(call.message, {"shards": shards})
    else:
        print(json.dumps(shards))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of the program. Returns the exit status."""
    return program("plan_shards", argv, answer, needs_root=False)
