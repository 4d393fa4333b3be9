"""The inference graph: every clear date of an area becomes a product.

    plan_shards -> download -> cloud_shadow_filter -> super_resolve

Download and masks are a loop over shards of the patches, then the stage itself, which joins them. The report runs as
exit handler.
"""

from kfp import dsl
from kfp.dsl.graph_component import GraphComponent

from components.cloud_shadow_filter.component import cloud_shadow_filter
from components.download.component import download
from components.plan_shards.component import plan_shards
from components.report.component import report
from components.super_resolve.component import super_resolve
from pipelines.platform import Platform
from pipelines.sharded import Shards


def inference_graph(platform: Platform) -> GraphComponent:
    """The graph that makes products, every stage with what `platform` gives it."""
    place = platform.place

    @dsl.pipeline(name="subpixel-inference", description="Super-resolve every clear Sentinel-2 date of an area.")
    def inference(config: str, root: str):
        """Make products with the bundle that the configuration names, or the one trained below `root`.

        Args:
            config: the run's configuration as JSON text.
            root: where artifacts are: a folder or s3://bucket/prefix.
        """
        with dsl.ExitHandler(place(report(config=config, root=root), "report")):
            shards = Shards(platform, place(plan_shards(config=config), "plan_shards"), config, root)
            downloaded = shards.join("download", download)
            patches = downloaded.outputs["patches"]
            masks = shards.join("cloud_shadow_filter", cloud_shadow_filter, downloaded, patches=patches).outputs[
                "masks"
            ]
            place(super_resolve(config=config, root=root, patches=patches, masks=masks), "super_resolve")

    return inference
