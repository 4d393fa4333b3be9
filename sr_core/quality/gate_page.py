"""The gate's page for people: one HTML file without anything fetched, in the look of the run's report."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sr_core.config import QualityGate
from sr_core.evaluation.report import charts
from sr_core.quality.scores import MAX_SHIFT
from sr_core.samples.split import SPLITS

MEANING = {
    "": ("kept", "c-kept"),
    "cloud": ("cloud: the truth's ground is not clear", "c-cloud"),
    "shadow": ("shadow: the truth may lie in a neighbour's cloud shadow", "c-shadow"),
    "nodata": ("nodata: the truth was not measured, or has no statistics", "c-nodata"),
    "frames": ("frames: too few clear frames before the target", "c-k3"),
    "latest_age": ("latest age: the latest clear frame is too old", "c-k1"),
    "ssim": ("ssim: below the least SSIM", "c-k2"),
    "psnr": ("psnr: below the least PSNR", "c-k0"),
}
"""Reason to its words and colour, in the order of the checks."""

_NOT_NULL = "expect_column_values_to_not_be_null"
_PAIRING = {
    "vhr": "The truth is VHR at 2.5 m, brought to Sentinel-2's radiometry; frames are at 10 m.",
    "wald": "Wald's protocol: frames are degraded to 40 m, the truth is the real 10 m frame of the target date.",
}


def page(table: pd.DataFrame, verdict: Mapping[str, Any], config: QualityGate, pairing: str) -> str:
    """HTML of a verdict (as in `gate.json`) on the table of samples."""
    critical = [item for item in verdict["expectations"] if item["severity"] == "critical"]
    complete = [item for item in verdict["expectations"] if item["expectation"] == _NOT_NULL and item["success"]]
    shown = [item for item in verdict["expectations"] if item not in complete]
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
        complete=[item["name"].removeprefix("Complete ") for item in complete],
        pairing=_PAIRING[pairing],
        max_shift=MAX_SHIFT,
        scatter=_scatter(table, config),
        rows=_rows(table),
        splits=SPLITS,
        style=Markup((files("sr_core.evaluation.report") / "report.css").read_text(encoding="utf-8")),
    )


def _scatter(table: pd.DataFrame, config: QualityGate) -> Markup | None:
    scored = table[table["psnr"].notna()]
    if scored.empty:
        return None
    plot = charts.Plot(
        charts.Axis.over([*scored["ssim"], config.min_ssim], "SSIM"),
        charts.Axis.over([*scored["psnr"], config.min_psnr], "PSNR, dB"),
        f"{len(scored)} scored samples by SSIM and PSNR, {int(scored['kept'].sum())} of them kept",
        height=340,
    )
    for reason, (_, css) in MEANING.items():
        these = scored[scored["reason"] == reason]
        plot.dots(these["ssim"], these["psnr"], f"{css} faint")
    plot.rule_x(config.min_ssim, f"least SSIM {config.min_ssim:g}")
    return plot.rule_y(config.min_psnr, f"least PSNR {config.min_psnr:g} dB").svg()


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    rows = []
    for reason, (label, css) in MEANING.items():
        these = table[table["reason"] == reason]
        if len(these) or not reason:
            numbers = [*((these["split"] == split).sum() for split in SPLITS), len(these)]
            rows.append({"label": label, "css": css, "numbers": numbers, "drawn": bool(these["psnr"].notna().any())})
    return rows
