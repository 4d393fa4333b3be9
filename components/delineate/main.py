"""Train field delineation on bicubic and on super-resolved images and compare them.

One network is trained for every kind of image (`arms`), with the same seed, tiles and steps. Ground is split as for
super-resolution: the arms learn on training ground and are measured on test ground. `metrics.json` has the scores of
pixels (Matthews' correlation, confusion, ROC) and of parcels (segmentation and border errors), `<arm>.parquet` the
polygons of test ground, `gallery/` pictures of them, `networks/<arm>/` the trained network, which can judge
super-resolution (`train_hrn.perceptual_network`). Without the arm `sr` no model is needed, so that such a network can
come first.
Skipped where the source has no reference parcels.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from components.stage import STAGES, Context, Result, Shown
from sr_core.delineation.experiment import WORK, ImageMaker, compare, find_places
from sr_core.errors import ArtifactError
from sr_core.models.bundle import load_bundle
from sr_core.patches import read_index
from sr_core.samples.split import split_ground

DRAWN = ("extent", "boundary")
"""Heads of the network whose pixels Kubeflow draws."""


def work(context: Context) -> Result:
    """Train field delineation on bicubic and on super-resolved images and compare them."""
    settings, gate = context.config.delineate, context.config.quality_gate
    patches, masks = context.inputs["download"], context.inputs["cloud_shadow_filter"]
    if settings.threads:
        torch.set_num_threads(settings.threads)
    index = read_index(patches)
    found = find_places(patches, masks, index, split_ground(index, gate.split, gate.seed), settings, gate)
    if found.without_parcels == len(index):
        return Result(skipped="no reference parcels in this source")
    grounds = {
        "training": [place.learns.any() for place in found.used],
        "test": [place.tests.any() for place in found.used],
    }
    for name, present in grounds.items():
        if not any(present):
            return Result(skipped=f"no patch on {name} ground has both reference parcels and enough clear dates")
    resolver = None
    if "sr" in settings.arms:
        if "train_hrn" not in context.inputs:
            raise ArtifactError(
                "delineate: found no model, which the arm `sr` of delineate.arms needs; run train_hrn first"
            )
        resolver = load_bundle(context.inputs["train_hrn"])
    maker = ImageMaker(patches, masks, context.output / WORK / "images", resolver, settings, gate)
    result = compare(found.used, maker, settings, context.output)
    aside = context.output / ".metrics.json"
    aside.write_text(json.dumps(result, indent=1), encoding="utf-8")
    aside.replace(context.output / "metrics.json")
    return Result(
        counts={
            "patches": len(found.used),
            "patches_without": {"parcels": found.without_parcels, "clear_dates": found.without_dates},
            "parcels_lost_at_2_5m": found.lost_parcels,
            "references": {arm: scores["n_references"] for arm, scores in result["vector"].items()},
        },
        metrics={
            f"{arm}_{name}": value
            for kind in ("raster", "vector")
            for arm, scores in result[kind].items()
            for name, value in scores.items()
        },
        artifacts={head: drawn(head, result["pixels"][shown_arm(settings.arms)][head]) for head in DRAWN},
    )


def shown_arm(arms: Sequence[str]) -> str:
    """The arm whose pixels Kubeflow draws: super-resolved images where they are compared, else the last arm."""
    return "sr" if "sr" in arms else arms[-1]


def drawn(head: str, pixels: Mapping[str, Any]) -> Shown:
    """The confusion matrix and the ROC curve of a head, in the form that Kubeflow draws ClassificationMetrics from."""
    categories = (head, f"no {head}")
    rows = ((pixels["tp"], pixels["fn"]), (pixels["fp"], pixels["tn"]))
    matrix = {
        "annotationSpecs": [{"displayName": category} for category in categories],
        "rows": [{"row": list(row)} for row in rows],
    }
    curve = [
        {
            "confidenceThreshold": point["threshold"],
            "recall": point["true_positive_rate"],
            "falsePositiveRate": point["false_positive_rate"],
        }
        for point in pixels["roc"]
    ]
    return Shown({"confusionMatrix": matrix, **({"confidenceMetrics": curve} if curve else {})})


STAGE = STAGES["delineate"]
