"""Score the super-resolved test samples against bicubic interpolation and the cloud-aware temporal mean.

Writes `metrics.json` (means over the samples), `per_sample.parquet`, and `gallery/`: the latest frame, bicubic,
super-resolved and truth side by side, for samples from the largest to the smallest gain.

The output parameter `verdict` is "better" where the gain is at least `evaluate.min_gain_db`, else "not_better"; the
stage itself succeeds with either. The gain is the smallest of those in PSNR and in cPSNR over each baseline, so that
neither registration nor a forgiven bias alone makes a model better.
"""

import json

from components.stage import STAGES, Context, Result, Shown
from sr_core.evaluation.evaluate import METRICS, evaluate, smallest_gain, summary, write_gallery
from sr_core.models.bundle import load_bundle
from sr_core.models.normalization import read_places
from sr_core.progress import say
from sr_core.samples.dataset import SampleSet


def work(context: Context) -> Result:
    """Score the model on the test samples."""
    settings = context.config.evaluate
    statistics = read_places(context.inputs["normalize"])
    samples = SampleSet.load(context.inputs["quality_gate"], "test")
    resolver = load_bundle(context.inputs["train_hrn"])
    table = evaluate(resolver, samples, statistics, settings)
    test = summary(table)
    gain = smallest_gain(test)
    verdict = "better" if gain >= settings.min_gain_db else "not_better"
    real = context.config.source.kind != "simulated"
    write_gallery(context.output / "gallery", table, resolver, samples, statistics, settings.gallery, real)
    aside = context.output / ".per_sample.parquet"
    table.to_parquet(aside, index=False)
    aside.replace(context.output / "per_sample.parquet")
    aside = context.output / ".metrics.json"
    aside.write_text(json.dumps({"test": test, "gain_db": gain, "verdict": verdict}, indent=1), encoding="utf-8")
    aside.replace(context.output / "metrics.json")
    say(f"verdict: {verdict}, {gain:+.2f} dB over the best baseline (evaluate.min_gain_db: {settings.min_gain_db:g})")
    scores = {f"{metric}_{arm}": value for metric in METRICS for arm, value in test[metric].items()}
    return Result(
        counts={"samples": test["n_samples"]},
        metrics=scores | {"win_rate_vs_bicubic": test["win_rate_vs_bicubic"], "gain_db": gain},
        parameters={"verdict": verdict},
        artifacts={"evaluation": Shown({"verdict": verdict, "gain_db": gain, "min_gain_db": settings.min_gain_db})},
    )


STAGE = STAGES["evaluate"]
