"""Score the super-resolved test samples against bicubic interpolation and the cloud-aware temporal mean.

Writes `metrics.json` (means over the samples), `per_sample.parquet`, and `gallery/`: the latest frame, bicubic,
super-resolved and truth side by side, for samples from the largest to the smallest gain.
"""

import json

from components.stage import STAGES, Context, Result
from sr_core.evaluation.evaluate import evaluate, summary, write_gallery
from sr_core.models.bundle import load_bundle
from sr_core.models.normalization import read_places
from sr_core.samples.dataset import SampleSet


def work(context: Context) -> Result:
    """Score the model on the test samples."""
    settings = context.config.evaluate
    statistics = read_places(context.inputs["normalize"])
    samples = SampleSet.load(context.inputs["quality_gate"], "test")
    resolver = load_bundle(context.inputs["train_hrn"])
    table = evaluate(resolver, samples, statistics, settings)
    test = summary(table)
    real = context.config.source.kind != "simulated"
    write_gallery(context.output / "gallery", table, resolver, samples, statistics, settings.gallery, real)
    aside = context.output / ".per_sample.parquet"
    table.to_parquet(aside, index=False)
    aside.replace(context.output / "per_sample.parquet")
    aside = context.output / ".metrics.json"
    aside.write_text(json.dumps({"test": test}, indent=1), encoding="utf-8")
    aside.replace(context.output / "metrics.json")
    scores = {f"psnr_{arm}": value for arm, value in test["psnr"].items()}
    return Result(
        counts={"samples": test["n_samples"]},
        metrics=scores | {"win_rate_vs_bicubic": test["win_rate_vs_bicubic"]},
    )


STAGE = STAGES["evaluate"]
