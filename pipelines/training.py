"""The training graph: from an area to a model that has been compared with its baselines.

    plan_shards -> download -> cloud_shadow_filter -> normalize -> quality_gate -+-> train_hrn -> evaluate -> delineate
                                                                                 +-> (gate fails: the run stops here)
    evaluate, delineate -+-> package -> publish
                         +-> (not better than the baselines: nothing is promoted)

The stages up to the gate are a loop over shards of the patches, then the stage itself, which joins them. The report
runs as exit handler: it describes whatever was reached.
"""

from kfp import dsl
from kfp.dsl.graph_component import GraphComponent

from components.cloud_shadow_filter.component import cloud_shadow_filter
from components.delineate.component import delineate
from components.download.component import download
from components.evaluate.component import evaluate
from components.normalize.component import normalize
from components.package.component import package
from components.plan_shards.component import plan_shards
from components.publish.component import publish
from components.quality_gate.component import quality_gate
from components.report.component import report
from components.train_hrn.component import train_hrn
from pipelines.platform import Platform
from pipelines.sharded import Shards


def training_graph(platform: Platform) -> GraphComponent:
    """The graph that trains, evaluates and promotes a model, every stage with what `platform` gives it."""
    place = platform.place

    @dsl.pipeline(
        name="subpixel-training", description="Train and evaluate multi-temporal super-resolution of Sentinel-2."
    )
    def training(config: str, root: str):
        """Train, evaluate, package and publish a model.

        Args:
            config: the run's configuration as JSON text (`subpixel compile` and `subpixel run` make it from YAML).
            root: where artifacts are: a folder or s3://bucket/prefix.
        """
        with dsl.ExitHandler(place(report(config=config, root=root), "report")):
            shards = Shards(platform, place(plan_shards(config=config), "plan_shards"), config, root)
            downloaded = shards.join("download", download)
            patches = downloaded.outputs["patches"]
            filtered = shards.join("cloud_shadow_filter", cloud_shadow_filter, downloaded, patches=patches)
            masks = filtered.outputs["masks"]
            normalized = shards.join("normalize", normalize, filtered, patches=patches, masks=masks)
            normalization = normalized.outputs["normalization"]
            gate = shards.join(
                "quality_gate", quality_gate, normalized, patches=patches, masks=masks, normalization=normalization
            )
            samples = gate.outputs["samples"]
            with dsl.If(gate.outputs["verdict"] == "pass", "gate-passed"):
                trained = place(
                    train_hrn(config=config, root=root, samples=samples, normalization=normalization), "train_hrn"
                )
                model = trained.outputs["model"]
                evaluated = place(
                    evaluate(config=config, root=root, samples=samples, normalization=normalization, model=model),
                    "evaluate",
                )
                compared = place(
                    delineate(config=config, root=root, patches=patches, masks=masks, samples=samples, model=model),
                    "delineate",
                ).after(evaluated)
                with dsl.If(evaluated.outputs["verdict"] == "better", "better-than-baselines"):
                    packaged = place(package(config=config, root=root, model=model), "package").after(compared)
                    place(
                        publish(
                            config=config,
                            root=root,
                            model=model,
                            archive=packaged.outputs["archive"],
                            evaluation=evaluated.outputs["evaluation"],
                        ),
                        "publish",
                    )

    return training
