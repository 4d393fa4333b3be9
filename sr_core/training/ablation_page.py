"""Ablations as a page: a table and a plot a question, with verdicts as `sr_core.training.ablation` computed them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sr_core import SCALE
from sr_core.training.ablation import Grid

Answer = Mapping[str, Any]
COLOURS = {"better": "#0072B2", "worse": "#D55E00"}
"""Of verdicts, told apart with any colour vision (Okabe and Ito, Color universal design, 2008)."""
GREY = "#6e6e6e"
MARKS = {"better": "^", "worse": "v"}
LEAST_RANGE_DB = 0.05
"""An axis reaches at least this far to both sides of the reference."""
RULE = (
    "Every cell is an average over the seeds. **Gain** is the PSNR of the super-resolved test samples over that of the"
    " bicubic latest frame, ± its standard deviation over the seeds. **ΔPSNR** and **ΔcPSNR** are differences to the"
    " reference (in *italics*), paired by seed, ± the half-width of the 95 % interval of Student's t. The verdict"
    " follows from that interval alone: *better* or *worse* where it leaves out zero, *no difference* where it holds"
    " zero, *no claim* with fewer than three seeds. PSNR is plain; cPSNR searches shifts and removes each band's bias"
    " first. Time is that of a training."
)
LIMITS = (
    "A seed changes the first weights, the batches and the augmentation, not the ground: the intervals say how far"
    " training varies, not how far another place would. All variants of a base are tested on the same samples, those of"
    " the reference."
)


def write_page(
    path: Path, grid: Grid, answers: Mapping[str, Any], facts: Mapping[str, Mapping[str, Any]], command: str
) -> None:
    """Write the page and, in the folder of its name beside it, a plot (SVG) a question.

    `answers` as `ablation.answer` gives them; `facts` describes the finished points: `bases` ({name: {pairing, gsd_m,
    samples, frames, psnr}}), `commits`, `codes`, `failed` ({point: error}), `missing` (a number). The same results
    give the same bytes.
    """
    pictures = path.with_suffix("")
    pictures.mkdir(parents=True, exist_ok=True)
    names = {f"{question['name']}.svg" for question in answers["questions"]}
    for question in answers["questions"]:
        draw(question, pictures / f"{question['name']}.svg")
    for old in pictures.glob("*.svg"):
        if old.name not in names:
            old.unlink()
    aside = path.with_name(f".{path.name}")
    aside.write_text(page(grid, answers, facts, command, pictures.name), encoding="utf-8")
    aside.replace(path)


def page(
    grid: Grid, answers: Mapping[str, Any], facts: Mapping[str, Any], command: str, pictures: str = "ablations"
) -> str:
    """The page's Markdown; plots are looked for in the folder `pictures` beside it."""
    lines = [
        f"# Ablations: {answers['name']}",
        "",
        "Made by a command; do not edit. To make it again:",
        "",
        "```",
        command,
        "```",
        "",
        *_setting(grid, answers, facts),
        RULE,
        "",
        LIMITS,
        *_chance(answers),
        "",
        *_trouble(facts),
    ]
    for question in answers["questions"]:
        lines += [f"## {question['asks']}", "", *_found(question), ""]
        lines += [f"![differences to {question['reference']}]({pictures}/{question['name']}.svg)", ""]
        lines += [*_table(question), ""]
    return "\n".join(lines)


def _setting(grid: Grid, answers: Answer, facts: Answer) -> list[str]:
    seeds = ", ".join(str(seed) for seed in answers["seeds"])
    commits = ", ".join(f"`{commit[:10]}`" for commit in facts["commits"]) or "none (outside a checkout)"
    lines = [
        f"Seeds {seeds}. Commit {commits}. Baseline: {_settings(grid.file.baseline) or 'the bases as they are'}.",
        "",
        "| base | pairs | training | test | clear frames a test sample | steps | bicubic | temporal mean |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, found in facts["bases"].items():
        base, gsd = grid.file.bases[name], found["gsd_m"]
        own = f"; {_settings(base.changes)}" if base.changes else ""
        pairs = {"vhr": "VHR", "wald": "Wald's protocol"}[found["pairing"]]
        lowest, median, highest = found["frames"]
        cells = [
            f"{name} (`{base.config.name}`{own})",
            f"{pairs}, {gsd:g} m → {gsd / SCALE:g} m",
            f"{found['samples']['train']} samples",
            f"{found['samples']['test']} samples",
            f"median {median:g} ({lowest:g}-{highest:g})",
            str(grid.references[name].train_hrn.steps),
            *(f"{found['psnr'][arm]:.2f} dB" for arm in ("bicubic", "temporal_mean")),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def _chance(answers: Answer) -> list[str]:
    judged = sum(
        found["difference"]["psnr"]["verdict"] in ("better", "worse", "no difference")
        for question in answers["questions"]
        for variant in question["variants"]
        for found in variant["bases"].values()
        if found["difference"]
    )
    if not judged:
        return ["", "**No claim is made on this page**: that takes three seeds."]
    return [
        "",
        f"{judged} differences in PSNR are judged on this page, each at 95 %: about {judged * 0.05:.1f} would be called"
        " better or worse if no variant differed at all.",
    ]


def _trouble(facts: Answer) -> list[str]:
    lines = []
    if len(facts["codes"]) > 1:
        lines += [
            f"**These points were made by {len(facts['codes'])} versions of the code**; run the command again to redo"
            " those of older versions.",
            "",
        ]
    if facts["missing"]:
        lines += [f"{facts['missing']} points have not been run; they are left out.", ""]
    if facts["failed"]:
        lines += ["Points that failed; they are left out:", ""]
        lines += [f"- `{point}`: {_plain(error)}" for point, error in facts["failed"].items()]
        lines += [""]
    return lines


def _found(question: Answer) -> list[str]:
    """A line a base: who is better, who worse, who neither, in PSNR."""
    lines = []
    for base in _bases(question):
        groups: dict[str, list[str]] = {}
        for variant in question["variants"]:
            found = variant["bases"].get(base)
            if variant["label"] == question["reference"] or found is None:
                continue
            difference = found["difference"].get("psnr")
            verdict = difference["verdict"] if difference else "not finished"
            value = f" ({_signed(difference['mean'], 3)} dB)" if verdict in ("better", "worse") else ""
            groups.setdefault(verdict, []).append(f"{variant['label']}{value}")
        order = ("better", "worse", "no difference", "no claim", "same configuration", "not finished")
        said = "; ".join(f"{verdict}: {', '.join(groups[verdict])}" for verdict in order if verdict in groups)
        lines.append(f"- **{base}**, against {question['reference']}: {said}.")
    return lines


def _table(question: Answer) -> list[str]:
    bases = _bases(question)
    head = ["variant", "parameters"]
    for base in bases:
        head += [f"{base}: gain, dB", "ΔPSNR, dB", "ΔcPSNR, dB", "time"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for variant in question["variants"]:
        reference = variant["label"] == question["reference"]
        parameters = next((f["parameters"] for f in variant["bases"].values() if "parameters" in f), None)
        cells = [f"*{variant['label']}*" if reference else variant["label"], f"{parameters:,}" if parameters else "–"]
        for base in bases:
            found = variant["bases"].get(base)
            if found is None or not found["gain"]:
                cells += ["failed" if found and found["failed"] else "–", "–", "–", "–"]
                continue
            gain = found["gain"]["psnr"]
            seeds, asked = len(found["seeds"]), len(found["points"])
            few = f" ({seeds} of {asked} seeds)" if seeds < asked else ""
            cells.append(_signed(gain["mean"]) + (f" ± {gain['std']:.2f}" if gain["std"] is not None else "") + few)
            for metric in ("psnr", "cpsnr"):
                cells.append("–" if reference else _difference_cell(found["difference"][metric]))
            cells.append(f"{found['training_seconds']:.0f} s")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _difference_cell(difference: Answer) -> str:
    verdict: str = difference["verdict"]
    if verdict == "same configuration" or difference["mean"] is None:
        return verdict
    half = f" ± {difference['half_width']:.3f}" if difference["half_width"] is not None else ""
    text = f"{_signed(difference['mean'], 3)}{half}, {verdict}"
    return f"**{text}**" if verdict in ("better", "worse") else text


def draw(question: Answer, path: Path) -> None:
    """Draw the differences in PSNR to the reference: a dot a seed, the mean with its 95 % interval; a panel a base.

    SVG or PNG by the name of `path`; the same results give the same bytes.
    """
    bases, variants = _bases(question), question["variants"]
    figure = Figure(figsize=(2.1 + 3.4 * len(bases), 1.15 + 0.36 * len(variants)), layout="constrained")
    panels = figure.subplots(1, len(bases), sharey=True, squeeze=False)[0]
    for axes, base in zip(panels, bases, strict=True):
        _panel(axes, question, base)
    panels[0].set_yticks(range(len(variants)), [variant["label"] for variant in variants])
    panels[0].invert_yaxis()
    figure.supxlabel("difference in PSNR to the reference, dB", fontsize=9)
    handles = [
        Line2D([], [], marker="D", markersize=5, linestyle="none", color="black", label="reference"),
        Line2D([], [], marker="^", color=COLOURS["better"], label="better"),
        Line2D([], [], marker="v", color=COLOURS["worse"], label="worse"),
        Line2D([], [], marker="o", color=GREY, label="neither"),
        Line2D(
            [], [], marker="o", markersize=3.5, markerfacecolor="none", linestyle="none", color=GREY, label="a seed"
        ),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=5, frameon=False, fontsize=8)
    aside = path.with_name(f".{path.name}")
    kind = path.suffix.removeprefix(".")
    metadata = {"Date": None} if kind == "svg" else None
    with matplotlib.rc_context({"svg.hashsalt": question["name"]}):
        figure.savefig(aside, format=kind, dpi=150, metadata=metadata)
    aside.replace(path)


def _panel(axes: Axes, question: Answer, base: str) -> None:
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_title(base, fontsize=10)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(labelsize=9)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    for row, variant in enumerate(question["variants"]):
        found = variant["bases"].get(base)
        difference = found["difference"].get("psnr") if found else None
        if difference is None or not difference["values"]:
            axes.text(0, row, " failed" if found and found["failed"] else " –", va="center", fontsize=8, color=GREY)
            continue
        gain = found["gain"]["psnr"]["mean"]
        axes.annotate(
            _signed(gain),
            (1.0, row),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            annotation_clip=False,
        )
        verdict, mean, values = difference["verdict"], difference["mean"], difference["values"]
        if verdict == "same configuration":
            filled = "black" if variant["label"] == question["reference"] else "white"
            axes.plot(0, row, marker="D", markersize=5, color="black", markerfacecolor=filled)
            continue
        colour = COLOURS.get(verdict, GREY)
        if difference["half_width"] is not None:
            axes.errorbar(mean, row, xerr=difference["half_width"], color=colour, linewidth=1.6, capsize=3)
        axes.plot(mean, row, marker=MARKS.get(verdict, "o"), markersize=6.5, color=colour)
        rows = row + 0.26 * np.linspace(-1, 1, len(values)) if len(values) > 1 else [row]
        axes.plot(values, rows, "o", markersize=3.5, markerfacecolor="white", color=colour)
    # differences of hundredths are not to look like large ones
    axes.update_datalim([(-LEAST_RANGE_DB, 0), (LEAST_RANGE_DB, 0)])
    axes.autoscale_view()
    axes.margins(x=0.1)
    axes.set_ylim(-0.6, len(question["variants"]) - 0.4)
    axes.text(1.0, 1.0, "gain, dB", transform=axes.transAxes, fontsize=8, ha="left", va="bottom", color=GREY)


def _bases(question: Answer) -> Sequence[str]:
    return list(dict.fromkeys(base for variant in question["variants"] for base in variant["bases"]))


def _signed(value: float, digits: int = 2) -> str:
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−")


def _settings(changes: Mapping[str, Any]) -> str:
    return "; ".join(f"`{key}: {_plain(value)}`" for key, value in changes.items())


def _plain(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return " ".join(text.replace("|", "\\|").split())
