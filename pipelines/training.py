"""The training graph: from an area to a model that has been compared with its baselines.

    download -> cloud_shadow_filter -> normalize -> quality_gate -+-> train_hrn -> evaluate -> delineate -> package
                                                                  +-> (gate fails: the run stops here)

The report runs as exit handler: it describes whatever was reached.
"""

from kfp import dsl

from components.cloud_shadow_filter.component import cloud_shadow_filter
from components.delineate.component import delineate
from components.download.component import download
from components.evaluate.component import evaluate
from components.normalize.component import normalize
from components.package.component import package
from components.quality_gate.component import quality_gate
from components.report.component import report
from components.train_hrn.component import train_hrn


@dsl.pipeline(name="subpixel-training", description="Train and evaluate multi-temporal super-resolution of Sentinel-2.")
def training_pipeline(config: str, root: str):
    """Train, evaluate and package a model.

    Args:
        config: the run's configuration as JSON text (`subpixel compile` and `subpixel run` make it from YAML).
        root: where artifacts are: a folder or s3://bucket/prefix.
    """
    with dsl.ExitHandler(report(config=config, root=root)):
        patches = download(config=config, root=root).outputs["patches"]
        masks = cloud_shadow_filter(config=config, root=root, patches=patches).outputs["masks"]
        normalization = normalize(config=config, root=root, patches=patches, masks=masks).outputs["normalization"]
        gate = quality_gate(config=config, root=root, patches=patches, masks=masks, normalization=normalization)
        samples = gate.outputs["samples"]
        with dsl.If(gate.outputs["verdict"] == "pass", "gate-passed"):
            model = train_hrn(config=config, root=root, samples=samples, normalization=normalization).outputs["model"]
            evaluation = evaluate(config=config, root=root, samples=samples, normalization=normalization, model=model)
            comparison = delineate(
                config=config, root=root, patches=patches, masks=masks, samples=samples, model=model
            ).after(evaluation)
            package(config=config, root=root, model=model).after(comparison)
