"""The numbers of a run and the sentence that sums them up. Everything is computed from the artifacts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sr_core.evaluation.report.artifacts import Run

ARMS = {"bicubic": "Bicubic", "temporal_mean": "Temporal mean", "sr": "Super-resolved"}
"""What is compared, baselines first."""


@dataclass(frozen=True)
class Metric:
    """How a score is shown. `better` is +1 where more is better, -1 where less is."""

    label: str
    unit: str
    digits: int
    better: int
    text: str


SCORES = {
    "psnr": Metric(
        "PSNR",
        "dB",
        2,
        +1,
        "Peak signal-to-noise ratio of the reflectance, peak 1: 10 dB more is a tenth of the squared error.",
    ),
    "cpsnr": Metric(
        "cPSNR",
        "dB",
        2,
        +1,
        "PSNR after the best whole-pixel shift and without each band's mean difference:"
        " detail alone, forgiving a displacement or a tint.",
    ),
    "ssim": Metric(
        "SSIM",
        "−1 to 1",
        4,
        +1,
        "Structural similarity: agreement of local brightness, contrast and pattern; 1 is identical.",
    ),
    "mae": Metric(
        "MAE", "reflectance", 5, -1, "Mean absolute error: how far a pixel's reflectance is from the truth, on average."
    ),
}
"""Scores of `evaluation.test`, of an image against the truth."""

RASTER = {
    "extent_mcc": Metric(
        "Extent MCC",
        "−1 to 1",
        3,
        +1,
        "Matthews correlation of field and not-field pixels: 1 is perfect, 0 is chance; rare classes count in full.",
    ),
    "boundary_mcc": Metric(
        "Boundary MCC", "−1 to 1", 3, +1, "The same for pixels on the boundary between fields, the hardest to find."
    ),
    "distance_mcc": Metric(
        "Distance MCC",
        "−1 to 1",
        3,
        +1,
        "The same for the cores of fields: pixels at more than half of the largest distance from the field’s boundary.",
    ),
}
VECTOR = {
    "over_segmentation": Metric(
        "Over-segmentation",
        "0 to 1",
        3,
        -1,
        "Share of a reference field that its best matching polygon misses: fields cut up.",
    ),
    "under_segmentation": Metric(
        "Under-segmentation",
        "0 to 1",
        3,
        -1,
        "Share of the best matching polygon that lies outside the field: fields merged.",
    ),
    "border_error": Metric(
        "Border error", "0 to 1", 3, -1, "Share of the reference border without a border of the matching polygon on it."
    ),
}
"""Scores of `delineation.raster` and `delineation.vector`, of fields against the reference parcels."""

TOLERANT = {
    f"border_error_{key}": Metric(
        f"Border error within {text}", "0 to 1", 3, -1, f"The same where a border at most {text} away counts as found."
    )
    for key, text in (("2_5m", "2.5 m"), ("5m", "5 m"))
}
"""Further vector scores, shown on the page only."""


def metrics_json(run: Run) -> dict[str, Any]:
    """The content of the run's `metrics.json`. A stage that did not run, or was skipped, is absent.

    PSNR and cPSNR in dB on reflectance in [0, 1], MAE in reflectance, times in seconds; scores are means over
    samples. Values that are not finite are absent as well.
    """
    metrics: dict[str, Any] = {}
    if run.evaluation:
        test: dict[str, Any] = {"n_samples": int(run.evaluation["n_samples"])}
        test |= {score: _finite(run.evaluation.get(score), ARMS) for score in SCORES}
        win_rate = run.evaluation.get("win_rate_vs_bicubic")
        test |= _finite({"win_rate_vs_bicubic": win_rate}, ["win_rate_vs_bicubic"])
        metrics["evaluation"] = {"test": test}
    if run.delineation:
        metrics["delineation"] = {
            kind: {
                arm: _finite(scores, names)
                for arm, scores in run.delineation.get(kind, {}).items()
                if arm in ("bicubic", "sr")
            }
            for kind, names in (("raster", RASTER), ("vector", VECTOR))
        }
    if run.samples is not None:
        dropped = run.samples.loc[~run.samples["kept"].astype(bool), "reason"]
        metrics["gate"] = {
            "samples": len(run.samples),
            "kept": len(run.samples) - len(dropped),
            "dropped": {str(reason): int(count) for reason, count in dropped.value_counts().items()},
        }
    metrics["timings_s"] = {
        name: float(stage.record["seconds"]) for name, stage in run.stages.items() if stage.state == "done"
    }
    return metrics


def verdict(run: Run, metrics: Mapping[str, Any]) -> list[str]:
    """What the run showed, in sentences of plain text, the most important first."""
    if run.gate_failed:
        assert run.gate is not None
        expectations = [item for item in run.gate["expectations"] if item["severity"] == "critical"]
        missed = sum(not item["success"] for item in expectations)
        return [
            "The samples failed the quality gate, so no model was trained: "
            f"{missed} of {count(len(expectations), 'critical expectation')} not met."
        ]
    sentences = []
    if "evaluation" in metrics:
        sentences += _image_verdict(metrics["evaluation"]["test"])
    if "delineation" in metrics:
        sentences += _field_verdict(metrics["delineation"]["raster"])
    if sentences:
        return sentences
    if run.products:
        return [f"{count(len(run.products), 'date')} at 2.5 m; nothing was measured against a truth in this run."]
    unfinished = next((stage for stage in run.stages.values() if stage.state != "done"), None)
    return ["Nothing has been measured yet.", *([f"{unfinished.label} {unfinished.note}."] if unfinished else [])]


def _image_verdict(test: Mapping[str, Any]) -> list[str]:
    psnr, samples = test["psnr"], count(test["n_samples"], "held-out test sample")
    if not {"sr", "bicubic"} <= psnr.keys():
        return [f"On {samples} the PSNR could not be computed."]
    text = f"On {samples} the super-resolved image is {_compared(psnr['sr'] - psnr['bicubic'])} bicubic"
    if "win_rate_vs_bicubic" in test:
        rate = test["win_rate_vs_bicubic"]
        wins = {0: "none", 1: "all"}.get(rate, ("only " if rate < 0.5 else "") + percent(rate))
        text += f"{', and' if psnr['sr'] > psnr['bicubic'] else '; it is'} better on {wins} of them"
    sentences = [f"{text}."]
    if "temporal_mean" in psnr:
        compared = _compared(psnr["sr"] - psnr["temporal_mean"])
        sentences.append(f"It is {compared} the temporal mean of the same frames.")
    return sentences


def _field_verdict(raster: Mapping[str, Any]) -> list[str]:
    sr, bicubic = (raster.get(arm, {}).get("boundary_mcc") for arm in ("sr", "bicubic"))
    if sr is None or bicubic is None:
        return []
    how = "better than" if sr - bicubic >= 0.005 else "worse than" if bicubic - sr >= 0.005 else "as well as"
    return [
        f"Field boundaries drawn from it fit the reference parcels {how} those from bicubic"
        f" (boundary MCC {number(sr, 3)} against {number(bicubic, 3)})."
    ]


def _compared(gain: float) -> str:
    """A difference of PSNR in words: "2.1 dB closer to the truth than"."""
    if abs(gain) < 0.05:
        return f"as close to the truth ({signed(gain, 2)} dB) as"
    return f"{number(abs(gain), 1)} dB {'closer to' if gain > 0 else 'further from'} the truth than"


def _finite(values: Mapping[str, Any] | None, names: Sequence[str] | Mapping[str, Any]) -> dict[str, float]:
    found = {name: (values or {}).get(name) for name in names}
    return {name: float(value) for name, value in found.items() if value is not None and math.isfinite(value)}


def number(value: float, digits: int = 0) -> str:
    """A number with thin spaces between thousands and a true minus sign; zero has no sign."""
    return f"{round(value, digits) + 0.0:,.{digits}f}".replace(",", "\u202f").replace("-", "−")


def signed(value: float, digits: int) -> str:
    """A difference with its sign; none where it rounds to nothing."""
    return ("+" if round(value, digits) > 0 else "") + number(value, digits)


def percent(share: float) -> str:
    """A share in per cent; 100 % and 0 % only where they are exact."""
    shown = round(share * 100)
    if share not in (0, 1):
        shown = min(max(shown, 1), 99)
    return f"{shown} %"


def count(n: int, noun: str) -> str:
    """A number of things: "1 sample", "96 samples"."""
    return f"{number(n)} {noun}{'' if n == 1 else 's'}"


def duration(seconds: float) -> str:
    """Seconds as people say them: "0.4 s", "38 s", "4 min 05 s", "2 h 10 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
