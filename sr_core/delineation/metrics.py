"""How good a delineation is: pixels by Matthews' correlation, parcels by their geometry.

Segmentation and border errors follow Persello and Bruzzone, A novel protocol for accuracy assessment in
classification of very high resolution images, 2010 (doi 10.1109/TGRS.2009.2029570): each reference parcel is
compared with the predicted one that covers most of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from sr_core.delineation import HEADS
from sr_core.delineation.targets import Labels

Mask = NDArray[np.bool_]
MIN_INSIDE = 0.5


@dataclass
class Confusion:
    """Counts of a binary decision, as Python integers: their products exceed 64 bits over large areas."""

    tp: int = 0
    tn: int = 0
    fp: int = 0
    fn: int = 0

    def add(self, predicted: Mask, truth: Mask) -> None:
        """Count pixels of two masks of one shape."""
        both = int(np.count_nonzero(predicted & truth))
        claimed, true = int(np.count_nonzero(predicted)), int(np.count_nonzero(truth))
        self.tp += both
        self.fp += claimed - both
        self.fn += true - both
        self.tn += truth.size - claimed - true + both

    def mcc(self) -> float:
        """Matthews' correlation coefficient, -1 to 1; 0 where it is undefined (truth or prediction is all one
        class), NaN without any pixel."""
        if not (self.tp or self.tn or self.fp or self.fn):
            return math.nan
        product = (self.tp + self.fp) * (self.tp + self.fn) * (self.tn + self.fp) * (self.tn + self.fn)
        if product == 0:
            return 0.0
        return (self.tp * self.tn - self.fp * self.fn) / math.sqrt(product)


ROC_STEPS = 20
"""Thresholds of the receiver operating characteristic: 0, 0.05, ..., 0.95."""


class RasterScores:
    """Confusion of each head over all pixels given: probability above 0.5 against truth above 0.5; and how the
    probabilities are distributed, from which its receiver operating characteristic follows."""

    def __init__(self) -> None:
        self.heads = {head: Confusion() for head in HEADS}
        self._histograms = {head: np.zeros((2, ROC_STEPS), np.int64) for head in HEADS}
        """Pixels by truth and by probability."""

    def add(self, probabilities: NDArray[np.float32], truth: NDArray[np.float32], valid: Mask) -> None:
        """Count the valid pixels of (3, H, W) probabilities against (3, H, W) targets; `valid` is (H, W)."""
        for number, head in enumerate(HEADS):
            found, true = probabilities[number][valid], truth[number][valid] > 0.5
            self.heads[head].add(found > 0.5, true)
            step = np.minimum((found * ROC_STEPS).astype(np.int64), ROC_STEPS - 1)
            self._histograms[head] += np.bincount(step + ROC_STEPS * true, minlength=2 * ROC_STEPS).reshape(2, -1)

    def summary(self) -> dict[str, float]:
        return {f"{head}_mcc": confusion.mcc() for head, confusion in self.heads.items()}

    def roc(self, head: str) -> list[dict[str, float]]:
        """`threshold`, `false_positive_rate` and `true_positive_rate` of pixels whose probability is at least the
        threshold, from 0 up; empty where all pixels are of one class."""
        above = self._histograms[head][:, ::-1].cumsum(axis=1)[:, ::-1]
        if not above[:, 0].all():
            return []
        rates = above / above[:, :1]
        return [
            {
                "threshold": step / ROC_STEPS,
                "false_positive_rate": float(rates[0, step]),
                "true_positive_rate": float(rates[1, step]),
            }
            for step in range(ROC_STEPS)
        ]


@dataclass(frozen=True)
class ParcelScore:
    """Errors of one reference parcel R against its match M, each 0 (perfect) to 1."""

    label: int
    over_segmentation: float
    """1 - |R and M| / |R|"""
    under_segmentation: float
    """1 - |R and M| / |M|"""
    border_error: float
    """Share of R's edge pixels that are no edge pixels of M: exact coincidence, so that a shift of one pixel
    on both axes already reads as about 0.95."""
    tolerant_border_error: tuple[float, ...]
    """The same with edge pixels of M at most so many pixels away, one value a tolerance."""


def parcel_scores(
    reference: Labels, predicted: Labels, ground: Mask, tolerances_px: tuple[float, ...] = (1.0, 2.0)
) -> list[ParcelScore]:
    """Scores of the reference parcels of one window, (H, W) instance rasters with 0 as background.

    Only pixels of `ground` count. Parcels with less than half of their pixels on it are left out, and edges are
    found before cutting, so that the outline of the ground is nobody's border. A parcel without any predicted
    parcel on it scores 1 throughout. Ties in overlap go to the lowest label.
    """
    reference_edges, predicted_edges = sobel_edges(reference) & ground, sobel_edges(predicted) & ground
    predicted_area = np.bincount(predicted[ground])
    reach = math.ceil(max(tolerances_px, default=0.0)) + 1
    scores = []
    for label, window in enumerate(ndimage.find_objects(reference), start=1):
        if window is None:
            continue
        whole = reference[window] == label
        parcel = whole & ground[window]
        area = int(np.count_nonzero(parcel))
        if area == 0 or area < MIN_INSIDE * np.count_nonzero(whole):
            continue
        overlap = np.bincount(predicted[window][parcel])
        overlap[0] = 0
        match = int(overlap.argmax())
        if overlap[match] == 0:
            scores.append(ParcelScore(label, 1.0, 1.0, 1.0, (1.0,) * len(tolerances_px)))
            continue
        wide = tuple(
            slice(max(side.start - reach, 0), min(side.stop + reach, size))
            for side, size in zip(window, reference.shape, strict=True)
        )
        edge = reference_edges[wide] & (reference[wide] == label)
        matched_edge = predicted_edges[wide] & (predicted[wide] == match)
        errors = _border_errors(edge, matched_edge, (0.0, *tolerances_px))
        scores.append(
            ParcelScore(
                label,
                1.0 - int(overlap[match]) / area,
                1.0 - int(overlap[match]) / int(predicted_area[match]),
                errors[0],
                errors[1:],
            )
        )
    return scores


def sobel_edges(labels: Labels) -> Mask:
    """Pixels (H, W) where the Sobel gradient of an instance raster is not zero; beyond its edge there is nothing."""
    values = labels.astype(np.int64)
    down = ndimage.sobel(values, axis=0, mode="constant")
    across = ndimage.sobel(values, axis=1, mode="constant")
    edges: Mask = (down != 0) | (across != 0)
    return edges


def summarize(scores: Sequence[ParcelScore], tolerance_names: tuple[str, ...] = ("2_5m", "5m")) -> dict[str, float]:
    """Means over reference parcels and their number `n_references`; without any, only the number."""
    if not scores:
        return {"n_references": 0}
    rows = [
        (score.over_segmentation, score.under_segmentation, score.border_error, *score.tolerant_border_error)
        for score in scores
    ]
    names = ["over_segmentation", "under_segmentation", "border_error"]
    names += [f"border_error_{tolerance}" for tolerance in tolerance_names]
    means = np.mean(rows, axis=0)
    return {
        **{name: float(value) for name, value in zip(names, means, strict=True)},
        "n_references": len(rows),
    }


def _border_errors(edge: Mask, matched: Mask, tolerances: tuple[float, ...]) -> tuple[float, ...]:
    """Share of edge pixels further than each tolerance (pixels, Euclidean) from any matched one; 1 without edge."""
    if not edge.any() or not matched.any():
        return (1.0,) * len(tolerances)
    away = ndimage.distance_transform_edt(~matched)[edge]
    return tuple(float(np.mean(away > tolerance + 1e-6)) for tolerance in tolerances)
