"""The inference graph: every clear date of an area becomes a product.

download -> cloud_shadow_filter -> super_resolve
"""

from kfp import dsl

from components.cloud_shadow_filter.component import cloud_shadow_filter
from components.download.component import download
from components.report.component import report
from components.super_resolve.component import super_resolve


@dsl.pipeline(name="subpixel-inference", description="Super-resolve every clear Sentinel-2 date of an area.")
def inference_pipeline(config: str, root: str):
    """Make products with the bundle that the configuration names, or the one trained below `root`.

    Args:
        config: the run's configuration as JSON text.
        root: where artifacts are: a folder or s3://bucket/prefix.
    """
    with dsl.ExitHandler(report(config=config, root=root)):
        patches = download(config=config, root=root).outputs["patches"]
        masks = cloud_shadow_filter(config=config, root=root, patches=patches).outputs["masks"]
        super_resolve(config=config, root=root, patches=patches, masks=masks)
