"""The page: what a run left behind, section by section, in one HTML file that refers to nothing outside it."""

from __future__ import annotations

import datetime as dt
import hashlib
import itertools
import json
import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from shapely.geometry import box
from shapely.geometry.base import BaseGeometry
from shapely.ops import unary_union

from sr_core import SCALE
from sr_core.config import Area, Source
from sr_core.evaluation.report import charts
from sr_core.evaluation.report.artifacts import STAGES, Run
from sr_core.evaluation.report.pictures import Picture, embed
from sr_core.evaluation.report.summary import (
    ARMS,
    RASTER,
    SCORES,
    TOLERANT,
    VECTOR,
    Metric,
    count,
    duration,
    metrics_json,
    number,
    percent,
    signed,
    verdict,
)

GALLERY_BYTES, FIELDS_BYTES, PRODUCTS_BYTES = 3_200_000, 1_600_000, 1_600_000
"""Shares of the page, which stays below 8 MB."""
MAX_QUICKLOOKS = 24
SENSORS = {"s2": "Sentinel-2", "vhr": "VHR"}
SPLITS = {"train": "Training", "val": "Validation", "test": "Test"}
IMAGES = {"latest": "Latest Sentinel-2", "bicubic": "Bicubic", "sr": "Super-resolved", "truth": "Truth"}
REASONS = {
    "cloud": ("cloud", "c-cloud"),
    "shadow": ("cloud shadow nearby", "c-shadow"),
    "nodata": ("no data", "c-nodata"),
    "frames": ("too few clear frames", "c-k3"),
    "latest_age": ("latest frame too old", "c-k1"),
    "ssim": ("SSIM too low", "c-k2"),
    "balance": ("too much of one kind of land", "c-other"),
    "psnr": ("PSNR too low", "c-k0"),
}
"""Why an acquisition or a sample is dropped: words and colour; other reasons are shown by name."""


def write_report(run: Run, root: Path) -> dict[str, Any]:
    """Write `report.html` and `metrics.json` into the run's root, aside first and then renamed.

    Returns the content of `metrics.json`. Raises `ArtifactError` for an artifact that cannot be read.
    """
    metrics = metrics_json(run)
    environment = Environment(
        loader=PackageLoader("sr_core.evaluation", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def link(path: Path) -> str:
        return quote(path.relative_to(root).as_posix())

    page = environment.get_template("report.html.j2").render(**_content(run, metrics), link=link)
    _write(root / "report.html", page)
    _write(root / "metrics.json", json.dumps(metrics, indent=1, allow_nan=False) + "\n")
    return metrics


def _write(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def _content(run: Run, metrics: Mapping[str, Any]) -> dict[str, Any]:
    package = resources.files(__package__)
    return {
        "css": Markup((package / "report.css").read_text(encoding="utf-8")),
        "script": Markup((package / "report.js").read_text(encoding="utf-8")),
        "name": run.config.name,
        "verdict": verdict(run, metrics),
        "tiles": _tiles(run, metrics),
        "facts": _facts(run),
        "stages": [_stage(run, name) for name in STAGES],
        "absent": {name: f"{stage.label} {stage.note}." for name, stage in run.stages.items() if stage.note},
        "total": duration(sum(metrics["timings_s"].values())),
        "gate": _gate(run),
        "gallery": _gallery(run),
        "images": _image_labels(run),
        "scores": _scores(run, metrics),
        "training": _training(run),
        "samples": _samples(run, metrics),
        "maps": _maps(run),
        "acquisitions": _acquisitions(run),
        "fields": _fields(run),
        "products": _products(run),
        "provenance": _provenance(run),
        "attribution": attribution(run),
    }


def attribution(run: Run) -> str:
    """What has to stand wherever a picture of the run is shown."""
    if run.config.source.kind == "simulated":
        return "Simulated farmland; no satellite data"
    years = run.years
    if not years:
        return "Contains modified Copernicus Sentinel data"
    span = str(years[0]) if len(years) == 1 else f"{years[0]}–{years[-1]}"
    return f"Contains modified Copernicus Sentinel data {span}"


def _tiles(run: Run, metrics: Mapping[str, Any]) -> list[dict[str, str]]:
    tiles = []
    test = metrics.get("evaluation", {}).get("test", {})
    psnr = test.get("psnr", {})
    if {"sr", "bicubic"} <= psnr.keys():
        tiles.append(
            {
                "label": "PSNR against bicubic",
                "value": f"{signed(psnr['sr'] - psnr['bicubic'], 2)} dB",
                "detail": f"{number(psnr['sr'], 2)} against {number(psnr['bicubic'], 2)} dB",
            }
        )
    if "win_rate_vs_bicubic" in test:
        tiles.append(
            {
                "label": "Better than bicubic",
                "value": percent(test["win_rate_vs_bicubic"]),
                "detail": f"of {count(test['n_samples'], 'test sample')}",
            }
        )
    raster = metrics.get("delineation", {}).get("raster", {})
    boundary = [raster.get(arm, {}).get("boundary_mcc") for arm in ("bicubic", "sr")]
    if None not in boundary:
        tiles.append(
            {
                "label": "Field boundaries, MCC",
                "value": number(boundary[1], 3),
                "detail": f"{number(boundary[0], 3)} on bicubic",
            }
        )
    if "gate" in metrics:
        gate = metrics["gate"]
        tiles.append(
            {
                "label": "Samples kept",
                "value": number(gate["kept"]),
                "detail": f"of {count(gate['samples'], 'candidate')}",
            }
        )
    if run.products:
        tiles.append(
            {
                "label": "Products",
                "value": number(len(run.products)),
                "detail": f"{'date' if len(run.products) == 1 else 'dates'} at 2.5 m",
            }
        )
    return tiles


def _facts(run: Run) -> list[tuple[str, str]]:
    config, source = run.config, run.config.source
    facts = [("Source", _pixels_from(source))]
    if run.dates:
        facts.append(("Period", f"{run.dates[0]} to {run.dates[1]}"))
    if run.patches:
        zones = sorted({f"{patch.epsg % 100}{'N' if patch.epsg // 100 == 326 else 'S'}" for patch in run.patches})
        regions = sorted({patch.region for patch in run.patches})
        square = sum((p.cell[2] - p.cell[0]) * (p.cell[3] - p.cell[1]) for p in run.patches) / 1e6
        number_of = f"{number(len(run.patches))} patch{'' if len(run.patches) == 1 else 'es'}"
        facts.append(("Area", f"{', '.join(regions)}: {number_of}, {number(square, 1)} km², UTM {', '.join(zones)}"))
    elif config.areas:
        facts.append(("Area", "; ".join(map(_outline, config.areas))))
    pairing, gsd = run.store_attributes.get("pairing"), float(run.store_attributes.get("gsd_m", 0))
    if pairing == "wald":
        facts.append(
            ("Truth", f"Wald’s protocol: frames degraded to {gsd:g} m, the real {gsd / SCALE:g} m frame as truth")
        )
    elif pairing == "vhr":
        facts.append(("Truth", f"VHR at {gsd / SCALE:g} m, matched to Sentinel-2’s radiometry"))
    return facts


def _pixels_from(source: Source) -> str:
    match source.kind:
        case "simulated":
            return f"Simulated farmland, seed {source.seed}"
        case "files":
            vhr = f"VHR from {source.vhr_path.name}" if source.vhr_path else "no VHR"
            return f"Sentinel-2 series {source.path.name}, {vhr}"
        case "sentinelhub":
            vhr = f"VHR from collection {source.byoc_collection}" if source.byoc_collection else "no VHR"
            return f"Sentinel-2 {source.level} from Sentinel Hub, {vhr}"
        case "stac":
            return f"Sentinel-2 from the STAC catalogue {source.catalog}, collection {source.collection}"


def _outline(area: Area) -> str:
    if area.geojson is not None:
        return area.geojson.name
    return f"{', '.join(f'{v:g}' for v in area.bbox or ())} ({area.crs})"


def _stage(run: Run, name: str) -> dict[str, Any]:
    """A row of the timings. Bars compare stages, so the longest fills its cell."""
    stage = run.stages[name]
    seconds = [float(s.record["seconds"]) for s in run.stages.values() if s.state == "done"]
    failed = name == "quality_gate" and run.gate_failed
    done = stage.state == "done"
    return {
        "label": stage.label,
        "state": "failed" if failed else stage.state,
        "note": "the samples failed the gate" if failed else stage.note,
        "time": duration(stage.record["seconds"]) if done else "",
        "share": f"{100 * stage.record['seconds'] / max(seconds) if done and max(seconds) else 0:.1f}%",
        "counts": ", ".join(_flat(stage.record["counts"])) if done else "",
    }


def _flat(counts: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in counts.items():
        if value == 0:
            continue
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            found += _flat(value, f"{name} ")
        else:
            found.append(f"{f'{value:,}'.replace(',', ' ') if isinstance(value, int | float) else value} {name}")
    return found


def _gate(run: Run) -> dict[str, Any] | None:
    if run.gate is None:
        return None
    expectations = run.gate["expectations"]
    unmet = [item for item in expectations if not item["success"]]
    return {
        "failed": run.gate_failed,
        "missed": [item for item in unmet if item["severity"] == "critical"],
        "warnings": [item for item in unmet if item["severity"] != "critical"],
        "met": [item for item in expectations if item["success"]],
        "page": run.gate_page,
    }


def _image_labels(run: Run) -> dict[str, str]:
    gsd = run.store_attributes.get("gsd_m")
    if gsd is None:
        return dict(IMAGES)
    return {arm: f"{label}, {gsd if arm == 'latest' else gsd / SCALE:g}\u00a0m" for arm, label in IMAGES.items()}


def _gallery(run: Run) -> list[dict[str, Any]]:
    arms = [[arm for arm in IMAGES if arm in item["files"]] for item in run.gallery]
    paths = [item["files"][arm] for item, shown in zip(run.gallery, arms, strict=True) for arm in shown]
    pictures = iter(embed(paths, GALLERY_BYTES, 512))
    gsd = run.store_attributes.get("gsd_m")
    found = []
    for item, shown in zip(run.gallery, arms, strict=True):
        images: dict[str, Picture] = {arm: next(pictures) for arm in shown}
        side = images["truth"].width * gsd / SCALE if gsd and "truth" in images else None
        psnr = {arm: value for arm, value in item["psnr"].items() if value is not None and np.isfinite(value)}
        found.append(
            {
                "title": f"{item['region']}, {item['target_date']}",
                "id": item["sample_id"],
                "side": f"{number(side)} m across" if side else "",
                "images": images,
                "psnr": [
                    {
                        "arm": arm,
                        "label": label,
                        "text": f"{number(psnr[arm], 2)} dB",
                        "best": psnr[arm] == max(psnr.values()),
                    }
                    for arm, label in ARMS.items()
                    if arm in psnr
                ],
                "gain": f"{signed(psnr['sr'] - psnr['bicubic'], 2)} dB" if {"sr", "bicubic"} <= psnr.keys() else "",
            }
        )
    return found


def score_table(
    metrics: Mapping[str, Metric], scores: Mapping[str, Mapping[str, float]], n: int | None = None
) -> dict[str, Any] | None:
    """Rows of a table of `scores` (metric to arm to value): values, the best marked, and `sr` minus each baseline."""
    arms = [arm for arm in ARMS if any(arm in values for values in scores.values())]
    baselines = [arm for arm in arms if arm != "sr"] if "sr" in arms else []
    rows = []
    for name, metric in metrics.items():
        values = scores.get(name, {})
        if not values:
            continue
        # compared as shown: two arms that read the same are both best
        shown = {arm: round(value, metric.digits) * metric.better for arm, value in values.items()}
        differences = []
        for arm in baselines:
            known = {arm, "sr"} <= values.keys()
            gain = round(values["sr"] - values[arm], metric.digits) * metric.better if known else 0.0
            differences.append(
                {
                    "text": signed(values["sr"] - values[arm], metric.digits) if known else "",
                    "css": "good" if gain > 0 else "bad" if gain < 0 else "",
                }
            )
        rows.append(
            {
                "metric": metric,
                "cells": [
                    {
                        "text": number(values[arm], metric.digits) if arm in values else "",
                        "best": arm in values and shown[arm] == max(shown.values()),
                    }
                    for arm in arms
                ],
                "differences": differences,
            }
        )
    if not rows:
        return None
    return {"arms": [ARMS[arm] for arm in arms], "baselines": [ARMS[arm] for arm in baselines], "rows": rows, "n": n}


def _scores(run: Run, metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    if "evaluation" not in metrics:
        return None
    test = metrics["evaluation"]["test"]
    found: dict[str, Any] = {
        "table": score_table(SCORES, {name: test[name] for name in SCORES}, test["n_samples"]),
        "border": run.config.evaluate.border_px,
        "gain": None,
        "by_date": None,
        "text": "",
    }
    table = run.per_sample
    if table is None or not {"psnr_sr", "psnr_bicubic"} <= set(table.columns):
        return found
    table = table.assign(gain=table["psnr_sr"] - table["psnr_bicubic"])
    table = table[np.isfinite(table["gain"])]
    if not len(table):
        return found
    gain = table["gain"].to_numpy(float)
    low, middle, high = np.percentile(gain, [10, 50, 90])
    found["text"] = (
        f"Median {signed(middle, 2)} dB; eight of ten samples lie between {signed(low, 2)} and {signed(high, 2)} dB;"
        f" worst {signed(gain.min(), 2)} dB, best {signed(gain.max(), 2)} dB."
    )
    found["gain"] = charts.histogram(gain, "PSNR of super-resolved minus bicubic, dB", "Histogram: " + found["text"])
    days = pd.to_datetime(table["target_date"])
    if days.min() < days.max():
        plot = charts.Plot(
            charts.Axis.dates(days),
            charts.Axis.over([*gain, 0.0], "PSNR gain, dB"),
            "Gain of each test sample by target date",
            height=280,
        )
        plot.rule_y(0.0, "bicubic", "strong")
        numbers = days.map(charts.day_number)
        plot.dots(numbers, gain, "c-sr faint", 6)
        means = table.groupby(numbers)["gain"].mean()
        plot.dots(means.index, means, "c-ink", 8)
        found["by_date"] = plot.svg()
    return found


def _training(run: Run) -> dict[str, Any] | None:
    table = run.history
    if table is None:
        return None
    steps = charts.Axis.from_zero(table["step"], "optimiser step", whole=True)
    found: dict[str, Any] = {"loss": None, "psnr": None, "steps": number(table["step"].max()), "text": ""}
    if "loss" in table:
        loss = table.dropna(subset=["loss"])
        # at most 240 points: a step is too noisy to read, its neighbourhood is not
        bins = np.arange(len(loss)) * min(240, len(loss)) // max(len(loss), 1)
        smooth = loss.groupby(bins)[["step", "loss"]].mean()
        # a likelihood may be negative
        axis = charts.Axis.from_zero if smooth["loss"].min() >= 0 else charts.Axis.over
        found["loss"] = (
            charts.Plot(
                steps,
                axis(smooth["loss"], f"training loss ({run.config.train_hrn.loss})"),
                "Training loss by optimiser step",
                height=280,
            )
            .line(smooth["step"], smooth["loss"], "c-sr")
            .svg()
        )
    if "val_psnr" in table and table["val_psnr"].notna().any():
        val = table.dropna(subset=["val_psnr"])
        has_baseline = "val_psnr_bicubic" in val
        baseline = val["val_psnr_bicubic"] if has_baseline else pd.Series(dtype=float)
        plot = charts.Plot(
            steps,
            charts.Axis.over([*val["val_psnr"], *baseline], "validation PSNR, dB"),
            "Validation PSNR by optimiser step",
            height=280,
        )
        if has_baseline:
            plot.line(val["step"], baseline, "c-bicubic dashed")
        plot.line(val["step"], val["val_psnr"], "c-sr").dots(val["step"], val["val_psnr"], "c-sr", 6)
        best = val.iloc[int(val["val_psnr"].argmax())]
        found["text"] = f"Best validation PSNR {number(best['val_psnr'], 2)} dB, at step {number(best['step'])}"
        if has_baseline and np.isfinite(best["val_psnr_bicubic"]):
            found["text"] += f"; bicubic has {number(best['val_psnr_bicubic'], 2)} dB on the same samples"
        found["text"] += "."
        found["psnr"] = plot.svg()
    return found


def _samples(run: Run, metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    table = run.samples
    if table is None or not len(table):
        return None
    kept = table["kept"].astype(bool)
    reason = table["reason"].fillna("").astype(str).where(~kept, "")
    styles = _reason_styles(reason)
    fixed = run.config.quality_gate
    # those that held, which the gate may have found; a verdict of an earlier version does not tell
    held = (run.gate or {}).get("thresholds", {"min_ssim": fixed.min_ssim, "min_psnr": fixed.min_psnr})
    min_ssim, min_psnr = held["min_ssim"], held["min_psnr"]
    plot = charts.Plot(
        charts.Axis.over(_with_limit(table["ssim"], min_ssim), "SSIM of truth against bicubic"),
        charts.Axis.over(_with_limit(table["psnr"], min_psnr), "PSNR of truth against bicubic, dB"),
        f"{len(table)} candidate samples by SSIM and PSNR, {int(kept.sum())} of them kept",
        height=340,
    )
    for name, style in styles.items():
        rows = table[reason == name]
        plot.dots(rows["ssim"], rows["psnr"], style["css"] + (" faint" if len(table) > 400 else ""), 5)
    plot.rule_x(min_ssim, f"least SSIM {min_ssim:.3g}").rule_y(min_psnr, f"least PSNR {min_psnr:.3g} dB")
    splits = table["split"].fillna("").astype(str)
    columns = [name for name in SPLITS if (splits == name).any()]
    others = ~splits.isin(columns)
    rows = []
    for name, style in styles.items():
        these = reason == name
        numbers = [int((these & (splits == split)).sum()) for split in columns]
        if others.any():
            numbers.append(int((these & others).sum()))
        rows.append(style | {"numbers": [number(n) for n in [*numbers, int(these.sum())]]})
    return {
        "scatter": plot.svg(),
        "rows": rows,
        "columns": [SPLITS[name] for name in columns] + (["No split"] if others.any() else []) + ["All"],
        "limits": f"A sample needs an SSIM of {min_ssim:.3g} and a PSNR of {min_psnr:.3g} dB at least.",
        "kept": number(metrics["gate"]["kept"]),
        "candidates": count(metrics["gate"]["samples"], "candidate sample"),
    }


def _with_limit(scores: pd.Series[float], limit: float) -> list[float]:
    """What an axis has to show: the scores, and their limit unless it would squeeze them into a corner."""
    found = [float(score) for score in scores if np.isfinite(score)]
    far = found and not min(found) - limit < 0.5 * (max(found) - min(found))
    return found if far else [*found, limit]


def _reason_styles(reasons: pd.Series[str]) -> dict[str, dict[str, Any]]:
    """Reason to its label, colour and share; kept ones first, then the most frequent."""
    counts = reasons.value_counts()
    order = sorted(counts.index, key=lambda name: (name != "", -counts[name], name))
    styles = {}
    for name in order:
        label, css = REASONS.get(name, (name.replace("_", " "), "c-other")) if name else ("kept", "c-kept")
        styles[name] = {
            "css": css,
            "label": label,
            "count": number(int(counts[name])),
            "share": f"{100 * counts[name] / len(reasons):.2f}%",
        }
    return styles


def _maps(run: Run) -> list[dict[str, Any]]:
    samples = run.samples
    kept = samples[samples["kept"].astype(bool)] if samples is not None else None
    found = []
    for region, epsg in sorted({(patch.region, patch.epsg) for patch in run.patches}):
        patches = [patch for patch in run.patches if (patch.region, patch.epsg) == (region, epsg)]
        footprints: dict[str, list[charts.Box]] = {}
        legend: list[dict[str, str]] = []
        ground: dict[str, BaseGeometry] = {}
        if kept is not None and len(kept):
            mine = kept[(kept["region"] == region) & kept["patch"].isin([patch.id for patch in patches])]
            mine = mine.to_crs(epsg) if len(mine) and mine.crs is not None and mine.crs.to_epsg() != epsg else mine
            for split, label in SPLITS.items():
                rows = mine[mine["split"] == split]
                if not len(rows):
                    continue
                boxes = rows.geometry.bounds.round(1).to_numpy(float)
                footprints[f"c-{split}"] = [(b[0], b[1], b[2], b[3]) for b in boxes.tolist()]
                ground[label] = unary_union([box(*square) for square in dict.fromkeys(footprints[f"c-{split}"])])
                area = number(ground[label].area / 1e6, 2)
                legend.append(
                    {"css": f"c-{split}", "label": label, "count": f"{count(len(rows), 'sample')}, {area} km²"}
                )
        zone = f"UTM zone {epsg % 100}{'N' if epsg // 100 == 326 else 'S'} (EPSG:{epsg})"
        patch_count = f"{number(len(patches))} patch{'' if len(patches) == 1 else 'es'}"
        found.append(
            {
                "title": region,
                "legend": legend,
                "apart": _apart(ground),
                "caption": f"{zone}, metres, north up. {patch_count}; cells are drawn without the overlap of patches.",
                "svg": charts.ground_map(
                    [patch.cell for patch in patches], footprints, f"Map of {patch_count} and the samples in {region}"
                ),
            }
        )
    return found


def _apart(ground: Mapping[str, BaseGeometry]) -> str:
    """Whether the ground (metres) of the splits is really separate, as measured on the samples' footprints."""
    pairs = list(itertools.combinations(ground.items(), 2))
    if not pairs:
        return ""
    shared = [(a, b, one.intersection(other).area / 1e6) for (a, one), (b, other) in pairs]
    common = [f"{a.lower()} and {b.lower()} share {number(km2, 3)} km²" for a, b, km2 in shared if km2 > 1e-6]
    if common:
        return f"Splits are not separate: {', '.join(common)} of ground."
    gap = min(one.distance(other) for (_, one), (_, other) in pairs)
    where = f"the nearest are {number(gap)} m apart" if gap >= 0.5 else "some of them touch"
    return f"Samples of different splits share no ground; {where}."


def _acquisitions(run: Run) -> dict[str, Any] | None:
    table = run.acquisitions
    if table is None or not len(table):
        return None
    reason = table["reason"].fillna("").astype(str).where(~table["kept"].astype(bool), "")
    styles = _reason_styles(reason)
    axis = charts.Axis.dates(table["timestamp"])
    limit = run.config.cloud_shadow_filter.max_cloud_cover
    plots, rows = [], []
    for sensor in [*SENSORS, *sorted(set(table["sensor"]) - set(SENSORS))]:
        mine = table[table["sensor"] == sensor]
        if not len(mine):
            continue
        label = SENSORS.get(sensor, str(sensor))
        days = mine["timestamp"].dt.normalize().nunique()
        plot = charts.Plot(
            axis,
            charts.Axis(-3, 103, "cloud cover, %", [(v, str(v)) for v in (0, 25, 50, 75, 100)]),
            f"{label}: cloud cover of {len(mine)} acquisitions by date",
            width=1120,
            height=210 if sensor == "s2" else 160,
        )
        plot.rule_y(100 * limit, f"limit {100 * limit:g} %")
        for name, style in styles.items():
            these = mine[reason[mine.index] == name]
            plot.dots(these["timestamp"].map(charts.day_number), 100 * these["cloud_cover"], style["css"], 6)
        plots.append(
            {
                "label": label,
                "svg": plot.svg(),
                "text": f"{count(days, 'date')}, {count(len(mine), 'image')} of patches",
            }
        )
        numbers = [int((reason[mine.index] == name).sum()) for name in styles]
        rows.append({"label": label, "numbers": [number(n) for n in [*numbers, len(mine)]]})
    return {"plots": plots, "rows": rows, "legend": list(styles.values())}


def _fields(run: Run) -> dict[str, Any] | None:
    if run.delineation is None:
        return None

    def by_metric(kind: str, metrics: Mapping[str, Metric]) -> dict[str, dict[str, float]]:
        arms = (run.delineation or {}).get(kind, {})
        found = {
            name: {arm: scores[name] for arm, scores in arms.items() if arm in ARMS and scores.get(name) is not None}
            for name in metrics
        }
        return {name: {a: v for a, v in values.items() if np.isfinite(v)} for name, values in found.items()}

    pictures = iter(embed([item["file"] for item in run.delineation_gallery], FIELDS_BYTES, 900))
    groups = []
    for (region, patch), items in itertools.groupby(
        run.delineation_gallery, lambda item: (item["region"], item["patch"])
    ):
        shown = list(items)
        groups.append(
            {
                "title": f"{region}, patch {patch}",
                "side": f"{number(shown[0]['side_m'])} m across",
                "legend": shown[0]["legend"],
                "pictures": [(ARMS.get(item["arm"], item["arm"]), next(pictures)) for item in shown],
            }
        )
    references = {scores.get("n_references") for scores in run.delineation.get("vector", {}).values()} - {None}
    vector = VECTOR | TOLERANT
    return {
        "raster": score_table(RASTER, by_metric("raster", RASTER)),
        "vector": score_table(vector, by_metric("vector", vector), max(references) if references else None),
        "groups": groups,
    }


def _products(run: Run) -> dict[str, Any] | None:
    if not run.products:
        return None
    shown = run.products[-MAX_QUICKLOOKS:]
    pictures = embed([entry["path"] / "quicklook.png" for entry in shown], PRODUCTS_BYTES, 900)
    items = []
    for entry, picture in zip(shown, pictures, strict=True):
        facts = [count(entry["frames"], "frame"), f"{percent(entry['valid_share'])} of the ground"]
        if entry["consistency_mae"] is not None:
            facts.append(f"differs from Sentinel-2 by {number(entry['consistency_mae'], 5)} reflectance")
        title = f"{entry['region']}, {entry['datetime'][:10]}"
        items.append({"title": title, "facts": ", ".join(facts), "folder": entry["path"], "picture": picture})
    text = f"{count(len(run.products), 'date')} at 2.5 m."
    if len(shown) < len(run.products):
        text += f" The last {len(shown)} are shown."
    assert run.product_index is not None
    return {"shown": items, "text": text, "transfer": run.product_index[1]["model"]["transfer"]}


def _provenance(run: Run) -> dict[str, Any]:
    text = run.config.model_dump_json()
    records = {name: stage.record for name, stage in run.stages.items() if stage.state in ("done", "skipped")}
    versions: dict[str, set[str]] = {}
    for record in records.values():
        for package, version in record["versions"].items():
            versions.setdefault(package, set()).add(version)
    ends = [
        dt.datetime.fromisoformat(record["started"]) + dt.timedelta(seconds=record["seconds"])
        for record in records.values()
    ]
    return {
        "digest": hashlib.sha256(text.encode()).hexdigest()[:16],
        "commits": sorted({record["git_commit"] for record in records.values() if record["git_commit"]}),
        "versions": {package: ", ".join(sorted(found)) for package, found in versions.items()},
        "finished": max(ends).astimezone(dt.UTC).strftime("%Y-%m-%d %H:%M UTC") if ends else "",
        "records": [
            {
                "label": STAGES[name],
                "started": dt.datetime.fromisoformat(record["started"]).strftime("%Y-%m-%d %H:%M"),
                "key": record["key"][:12],
            }
            for name, record in records.items()
        ],
        "sections": {
            key: json.dumps(value, indent=2, ensure_ascii=False)
            for key, value in json.loads(text).items()
            if isinstance(value, dict)
        },
    }
