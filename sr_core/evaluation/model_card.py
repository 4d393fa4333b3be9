"""The model card: what a bundle was made of, how well it did where it was never trained, and what it is not for.

All figures come from the bundle's `model.json` and `scores.json`.
Source of the form: Mitchell et al., Model cards for model reporting, 2019 (arXiv:1810.03993).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sr_core import BANDS
from sr_core.errors import ArtifactError
from sr_core.models.bundle import DESCRIPTION, WEIGHTS

SCORES = "scores.json"
SHOWN_MTF = ("0.25", "0.3")
"""Consistency is shown at these: the middle of what is specified, and what products are checked with."""

PURPOSE = """\
It makes one 2.5 m image of blue, green, red and near infrared from up to {frames} dates of Sentinel-2 at 10 m (B02,
B03, B04, B08; L1C or L2A). The image belongs to the latest date. Every place is normalised by its own mean and
standard deviation, so that a new place needs no training."""
NOT_FOR = """\
- **Not as a measurement.** Detail finer than 10 m is an estimate. Where the frames do not determine it, the network is
  meant to fall back on bicubic interpolation, and sometimes it does not. Nothing that is decided about one object of
  less than about 5 m (a tree, a roof, a boundary in a dispute) may rest on it.
- **Not for what moves.** Ships, vehicles, and anything else that is elsewhere on the next date.
- **Not for other sensors or bands.** Other bands, other satellites and already sharpened images are not what it knows.
- **Not blindly for ground unlike that in the tables below.** Snow, mountains, sea ice and cities are not among it: look
  at the consistency layer of each product there first.
- **Not through clouds.** It trusts the masks that it is given: a cloud that they miss is sharpened like ground."""
LIMITS = """\
- No very-high-resolution image of another sensor was among the data that it was trained or judged on. Trials are made
  by Wald's protocol: frames are degraded through instruments that are known there.
- The real series have fine images of 10 m, themselves blurred by the instrument; only a simulation has them at 2.5 m.
- Of the weights that training passed through, those were kept that did best on the held-out trials (but where the
  ground "chose nothing"): their figures are therefore a little kind. The checks on real frames chose nothing within a
  training, but settings were tried on them.
- The held-out ground is small: its figures say how the model compares with bicubic interpolation there, not how it
  would do on average over the world."""


def write_model_card(bundle: Path, page: Path, command: str) -> None:
    """Write the card of the bundle in the folder `bundle`, which `command` made. Raises `ArtifactError` for a bundle
    without lineage or scores."""
    description, scores = (_read(bundle / name) for name in (DESCRIPTION, SCORES))
    card = model_card(description, scores, (bundle / WEIGHTS).stat().st_size, command)
    page.parent.mkdir(parents=True, exist_ok=True)
    aside = page.with_name(f".{page.name}")
    aside.write_text(card, encoding="utf-8")
    aside.replace(page)


def model_card(description: Mapping[str, Any], scores: Mapping[str, Any], size: int, command: str) -> str:
    """The card in Markdown, of `model.json`, `scores.json` and the size of the weights in bytes."""
    lineage, architecture = description["lineage"], description["architecture"]
    training = lineage["train_hrn"]
    parts = [
        f"# Model card: {lineage['recipe']}",
        f"Made by `{command}`; every figure below was written by that command.",
        PURPOSE.format(frames=description["frames"]),
        "## What it may not be used for",
        NOT_FOR,
        "## What it is",
        _table(
            ("", ""),
            [
                ("network", f"{architecture['name']} version {architecture['version']}: {_network(architecture)}"),
                ("weights", f"{size / 1e6:.1f} MB, float32, safetensors"),
                (
                    "training",
                    f"{training['steps']} steps of {training['batch_size']} samples, best at {lineage['best_step']}",
                ),
                ("key, commit", f"`{lineage['key'][:12]}`, `{(lineage['git_commit'] or 'none')[:12]}`"),
            ],
        ),
        "## What it was trained on",
        _table(
            ("run", "source", "part of the samples", "ground"),
            [
                (part["run"], part["source"], f"{share:.0%}" if share else _held_out(part), _box(part["box"]))
                for part, share in zip(lineage["ground"], _shares(lineage["ground"]), strict=True)
            ],
        ),
        lineage["attribution"] + "." if lineage["attribution"] else "",
        "Each sample was seen through an instrument of its own, drawn from these ranges:",
        _table(
            ("of the instrument", "value"),
            [(f"`{key}`", _number(value)) for key, value in lineage["instrument"].items()],
        ),
    ]
    if scores["noise"]:
        parts += [
            "Noise of the real series on their flattest ground, which the range of `noise` has to hold:",
            _noise(scores["noise"]),
        ]
    parts += ["## How well it does on ground held out of training", _trials(scores["trials"])]
    if scores["field"]:
        parts += ["## What real frames say", _field(scores["field"])]
    parts += ["## Limits of these figures", LIMITS]
    return "\n\n".join(part for part in parts if part) + "\n"


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error}); expected what `subpixel bundle` writes") from error
    return content


def _network(architecture: Mapping[str, Any]) -> str:
    shown = ("channels", "residual_blocks", "fused_blocks", "fusion", "reference", "residual", "decoder", "uncertainty")
    return ", ".join(f"{key} {architecture[key]}" for key in shown if key in architecture)


def _shares(ground: Sequence[Mapping[str, Any]]) -> list[float]:
    total = sum(part["weight"] for part in ground if not part["held_out"])
    return [0.0 if part["held_out"] else part["weight"] / total for part in ground]


def _held_out(part: Mapping[str, Any]) -> str:
    return "held out" if part.get("chooses", True) else "held out, chose nothing"


def _box(box: Sequence[float] | None) -> str:
    return "all" if box is None else "UTM " + " ".join(f"{value:.0f}" for value in box)


def _number(value: Any) -> str:
    return " to ".join(f"{part:g}" for part in value) if isinstance(value, list) else f"{value:g}"


def _noise(noise: Mapping[str, Any]) -> str:
    rows = []
    for region, found in noise.items():
        cells = zip(found["sigma"], found["relative"], found["correlation"], strict=True)
        rows.append((region, *(f"{sigma:.4f} ({relative:.3f}), {rho:.2f}" for sigma, relative, rho in cells)))
    return _table(("reflectance (of the place's standard deviation), correlation of neighbours", *BANDS), rows)


def _trials(trials: Mapping[str, Any]) -> str:
    header = (
        "place / instrument",
        "samples",
        "PSNR bicubic",
        "mean of dates",
        "**model**",
        "cPSNR bicubic",
        "**model**",
    )
    rows = []
    for name, found in trials.items():
        psnr, cpsnr = found["psnr"], found["cpsnr"]
        values = (psnr["bicubic"], psnr["temporal_mean"], psnr["sr"], cpsnr["bicubic"], cpsnr["sr"])
        better = f"{found['win_rate_vs_bicubic']:.0%}"
        rows.append((name, str(found["n_samples"]), *(f"{value:.2f}" for value in values), better))
    note = "dB on reflectance. Bicubic is the latest frame as delivered; the model knows the displacements as well."
    return f"{note}\n\n{_table((*header, 'better on'), rows)}"


def _field(checks: Mapping[str, Any]) -> str:
    rows: list[tuple[str, ...]] = []
    for region, found in checks.items():
        if found["wald"]["dates"]:
            psnr = found["wald"]["psnr"]
            values = (f"{psnr['bicubic']:.2f}", f"{psnr['sr']:.2f}")
            what = "Wald's protocol, 40 m to 10 m, MTF 0.3, whole place, PSNR in dB"
            rows.append((region, what, *values, f"{found['wald']['dates']} dates"))
        held_out, band = found["held_out_pass"], found.get("cross_band", {"dates": 0})
        kept, gain = found["consistency"], found["noise_gain"]
        if held_out["pairs"]:
            psnr = held_out["psnr"]
            values = (f"{max(psnr['interpolated'], psnr['bicubic']):.2f}", f"{psnr['sr']:.2f}")
            rows.append((region, "next pass predicted, PSNR in dB", *values, f"{held_out['pairs']} pairs"))
        if band["dates"]:
            for what, key, digits in (("PSNR in dB", "psnr", 2), ("correlation", "correlation", 4)):
                values = (f"{band[key]['bicubic']:.{digits}f}", f"{band[key]['sr']:.{digits}f}")
                rows.append((region, f"B8A, 20 m to 10 m, against B08: {what}", *values, f"{band['dates']} dates"))
        if kept["dates"]:
            for mtf in SHOWN_MTF:
                values = (f"{kept['mae']['bicubic'][mtf]:.5f}", f"{kept['mae']['sr'][mtf]:.5f}")
                what = f"degraded back (MTF {mtf}) against the frame, mean absolute difference"
                rows.append((region, what, *values, f"{kept['dates']} dates"))
        if gain["dates"]:
            ratio = " ".join(f"{gain['ratio'][band]:.2f}" for band in BANDS)
            what = f"fine detail on the flattest ground ({' '.join(BANDS)}), of bicubic's"
            rows.append((region, what, "1", ratio, f"{gain['dates']} dates"))
    return _table(("place", "check", "interpolation", "**model**", "of"), rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
