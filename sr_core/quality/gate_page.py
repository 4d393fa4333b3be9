"""The gate's page for people: one HTML file without anything fetched, in the look of the run's report."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from sr_core import BANDS, REFLECTANCE_SCALE
from sr_core.config import QualityGate
from sr_core.evaluation.report import charts
from sr_core.quality.mixture import Mixture
from sr_core.quality.scores import MAX_SHIFT
from sr_core.quality.selection import SCORES, Selection, Thresholds
from sr_core.radiometry.normalize import Statistics
from sr_core.radiometry.resample import bicubic_upsample
from sr_core.samples.split import SPLITS
from sr_core.samples.store import Samples

MEANING = {
    "": ("kept", "c-kept"),
    "cloud": ("cloud: the truth's ground is not clear", "c-cloud"),
    "shadow": ("shadow: the truth may lie in a cloud's shadow", "c-shadow"),
    "nodata": ("nodata: the truth was not measured, or has no statistics", "c-nodata"),
    "frames": ("frames: too few clear frames before the target", "c-k3"),
    "latest_age": ("latest age: the latest clear frame is too old", "c-k1"),
    "ssim": ("ssim: below the least SSIM", "c-k2"),
    "psnr": ("psnr: below the least PSNR", "c-k0"),
    "balance": ("balance: too much of one kind of land in training", "c-other"),
}
"""Reason to its words and colour, in the order of the checks."""

CLUSTERS = (("worst", "c-k0"), ("middle", "c-k1"), ("best", "c-kept"))
"""Words and colours of the clusters of the mixture."""
SHOWN_PX = 128
"""Side of an example, high-resolution pixels, from the chip's north-west corner."""
_SIGMAS = 2.0
_GREY = 128
_QUIET = {
    "expect_column_values_to_not_be_null": "Complete ",
    "expect_column_values_to_be_of_type": "Type of ",
}
_PAIRING = {
    "vhr": "The truth is VHR at 2.5 m, brought to Sentinel-2's radiometry; frames are at 10 m.",
    "wald": "Wald's protocol: frames are degraded to 40 m, the truth is the real 10 m frame of the target date.",
}


@dataclass(frozen=True)
class Pair:
    """Pictures of a sample for the page, as data URIs."""

    truth: str
    bicubic: str
    """The latest frame, upsampled."""
    label: str
    """Where and when."""


def picture_pair(sample: Samples, region: Statistics, label: str) -> Pair:
    """True-colour pictures of one sample, both stretched between the low and the high percentile (`p_low`, `p_high`)
    of its region's clear Sentinel-2 pixels; grey where the truth is masked."""
    side = slice(0, SHOWN_PX)
    truth = sample.hr[0][:, side, side].astype(np.float32) / REFLECTANCE_SCALE
    latest = bicubic_upsample(sample.lr[0, 0].astype(np.float32) / REFLECTANCE_SCALE)[:, side, side]
    everywhere = np.ones(latest.shape[1:], bool)
    return Pair(_picture(truth, sample.hr_clear[0][side, side], region), _picture(latest, everywhere, region), label)


def _picture(image: NDArray[np.float32], clear: NDArray[np.bool_], region: Statistics) -> str:
    colours = []
    for name in ("red", "green", "blue"):
        low, high = region[name].p_low, region[name].p_high
        scaled = (image[BANDS.index(name)] - low) / max(high - low, 1e-4)
        colours.append(np.where(clear, scaled.clip(0, 1) * 255, _GREY))
    buffer = io.BytesIO()
    Image.fromarray(np.rint(np.stack(colours, axis=-1)).astype(np.uint8)).save(buffer, "WEBP", lossless=True, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def page(
    selection: Selection,
    verdict: Mapping[str, Any],
    config: QualityGate,
    pairing: str,
    pairs: Mapping[str, Pair],
    attribution: str,
) -> str:
    """HTML of a verdict (as in `gate.json`) on the candidates; `pairs` by sample id, with their `attribution`."""
    table = selection.table
    critical = [item for item in verdict["expectations"] if item["severity"] == "critical"]
    quiet = [item for item in verdict["expectations"] if item["expectation"] in _QUIET and item["success"]]
    shown = [item for item in verdict["expectations"] if item not in quiet]
    environment = Environment(
        loader=PackageLoader("sr_core.quality", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("gate.html.j2").render(
        passed=verdict["verdict"] == "pass",
        kept=verdict["counts"]["kept"],
        candidates=verdict["counts"]["samples"],
        critical=len(critical),
        missed=sum(not item["success"] for item in critical),
        expectations=sorted(shown, key=lambda item: bool(item["success"])),
        quiet={
            kind: [item["name"].removeprefix(prefix) for item in quiet if item["expectation"] == kind]
            for kind, prefix in _QUIET.items()
        },
        pairing=_PAIRING[pairing],
        max_shift=MAX_SHIFT,
        thresholds=selection.thresholds,
        scatter=_scatter(table, selection.thresholds),
        rows=_rows(table),
        splits=SPLITS,
        no_mixture=selection.no_mixture,
        clusters=_clusters(selection, pairs),
        cluster_scatter=_cluster_scatter(selection),
        attribution=attribution if pairs else "",
        land=_land(table),
        max_share=config.max_monotonous,
        style=Markup((files("sr_core.evaluation.report") / "report.css").read_text(encoding="utf-8")),
    )


def _scatter(table: pd.DataFrame, thresholds: Thresholds) -> Markup | None:
    scored = table[table["psnr"].notna()]
    if scored.empty:
        return None
    plot = _plot(
        [*scored["ssim"], thresholds.min_ssim],
        [*scored["psnr"], thresholds.min_psnr],
        f"{len(scored)} scored samples, {int(scored['kept'].sum())} of them kept",
    )
    for reason, (_, css) in MEANING.items():
        these = scored[scored["reason"] == reason]
        if len(these):
            plot.dots(these["ssim"], these["psnr"], f"{css} faint")
    return _rules(plot, thresholds)


def _cluster_scatter(selection: Selection) -> Markup | None:
    mixture, table = selection.mixture, selection.table
    if mixture is None:
        return None
    scored = table[table["psnr"].notna()]
    plot = _plot(scored["ssim"], scored["psnr"], "Scored samples by cluster, with its ellipse")
    for index, (_, css) in enumerate(CLUSTERS):
        these = table[table["cluster"] == index]
        plot.dots(these["ssim"], these["psnr"], f"{css} faint", 4)
    for index, (_, css) in enumerate(CLUSTERS):
        plot.line(*_ellipse(mixture, index), css)
    return _rules(plot, selection.thresholds)


def _plot(ssim: Iterable[float], psnr: Iterable[float], summary: str) -> charts.Plot:
    return charts.Plot(charts.Axis.over(ssim, "SSIM"), charts.Axis.over(psnr, "PSNR, dB"), summary, height=340)


def _rules(plot: charts.Plot, thresholds: Thresholds) -> Markup:
    plot.rule_x(thresholds.min_ssim, f"least SSIM {thresholds.min_ssim:.3g}")
    return plot.rule_y(thresholds.min_psnr, f"least PSNR {thresholds.min_psnr:.3g} dB").svg()


def _ellipse(mixture: Mixture, cluster: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Outline at `_SIGMAS` standard deviations."""
    turn = np.linspace(0, 2 * np.pi, 73)
    circle = _SIGMAS * np.stack([np.cos(turn), np.sin(turn)])
    xs, ys = mixture.means[cluster][:, None] + np.linalg.cholesky(mixture.covariances[cluster]) @ circle
    return xs, ys


def _clusters(selection: Selection, pairs: Mapping[str, Pair]) -> list[dict[str, Any]]:
    if selection.mixture is None:
        return []
    found = []
    scored = int((selection.table["cluster"] >= 0).sum())
    for index, (name, css) in enumerate(CLUSTERS):
        mine = selection.table[selection.table["cluster"] == index]
        found.append(
            {
                "name": name,
                "css": css,
                "samples": len(mine),
                "share": len(mine) / scored,
                "kept": int(mine["kept"].sum()),
                **{score: f"{mine[score].median():.3g}" if len(mine) else "" for score in SCORES},
                "pairs": [pairs[name] for name in selection.examples[index] if name in pairs],
            }
        )
    return found


def _land(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Kinds of land with their numbers of training samples, cut and kept."""
    training = table[(table["split"] == "train") & (table["land"] != "")]
    return [
        {"kind": kind, "scored": len(these), "kept": int(these["kept"].sum())}
        for kind, these in training.groupby("land", sort=True)
    ]


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    rows = []
    for reason, (label, css) in MEANING.items():
        these = table[table["reason"] == reason]
        if len(these) or not reason:
            numbers = [*((these["split"] == split).sum() for split in SPLITS), len(these)]
            rows.append({"label": label, "css": css, "numbers": numbers, "drawn": bool(these["psnr"].notna().any())})
    return rows
