"""Which of the scored candidates become samples: thresholds on SSIM and PSNR, clusters of the two, balance over land.

Thresholds are those of the configuration, or lie in the valley between the worst cluster of a Gaussian mixture and the
next. Everything here is decided on the table of all candidates, when all patches are cut: a decision does not depend on
how the patches were shared out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sr_core.config import QualityGate
from sr_core.quality.mixture import Mixture, fit
from sr_core.samples.store import COLUMNS

SCORES = ("ssim", "psnr")
CLUSTERS = 3
LEAST = 100
"""Scored candidates below which no mixture is fitted."""
VALLEY = 0.3
"""Two clusters are apart along a score where the mixture's density between them falls to this share of the lower of
their peaks."""
EXAMPLES = 6
"""Samples shown a cluster."""
SHOWN_WITHIN = 2.0
"""Examples are drawn from within this Mahalanobis distance of a cluster's middle: they show what is typical of it."""


@dataclass(frozen=True)
class Thresholds:
    """What a sample must reach."""

    min_ssim: float
    min_psnr: float
    """dB."""
    found: tuple[str, ...]
    """Which of "ssim" and "psnr" come from the mixture; the others are those of the configuration."""
    note: str
    """How they were found, or why not, in a sentence."""


@dataclass(frozen=True)
class Selection:
    """All candidates with what became of them."""

    table: gpd.GeoDataFrame
    """Columns `sr_core.samples.store.COLUMNS`."""
    thresholds: Thresholds
    mixture: Mixture | None
    """Over SSIM and PSNR of the scored candidates."""
    no_mixture: str
    """Why there is none; "" where there is one."""
    examples: tuple[tuple[str, ...], ...]
    """Ids of some typical samples of each cluster, kept or not."""


def select(candidates: gpd.GeoDataFrame, config: QualityGate) -> Selection:
    """Decide on all `candidates`, as `sr_core.samples.store.read_candidates` gives them.

    Adds `cluster`, sets `kept`, `reason` ("ssim", "psnr" or "balance" for those dropped here) and `row`.
    """
    table = candidates.copy()
    scores = table[list(SCORES)].to_numpy(np.float64)
    scored = np.isfinite(scores).all(axis=1)
    mixture, why_none = _mixture(scores[scored], config.seed)
    clusters = np.full(len(table), -1, np.int64)
    if mixture is not None:
        clusters[scored] = mixture.assign(scores[scored])
    thresholds = _thresholds(mixture, why_none, clusters[scored], config)
    reasons = table["reason"].to_numpy(object).copy()
    reasons[scored & (scores[:, 1] < thresholds.min_psnr)] = "psnr"
    reasons[scored & (scores[:, 0] < thresholds.min_ssim)] = "ssim"
    reasons[_beyond_balance(table, reasons == "", config)] = "balance"
    kept = reasons == ""
    table["reason"], table["kept"] = reasons, kept
    table["cluster"] = clusters
    table["row"] = np.where(kept, np.cumsum(kept) - 1, -1).astype(np.int64)
    return Selection(
        table[list(COLUMNS)], thresholds, mixture, why_none, _examples(table, scores, mixture, config.seed)
    )


def _mixture(scores: NDArray[np.float64], seed: int) -> tuple[Mixture | None, str]:
    if len(scores) < LEAST:
        return None, f"{len(scores)} scored candidates are too few for clusters ({LEAST} are needed)"
    if len(np.unique(scores, axis=0)) < CLUSTERS:
        return None, "all scores are the same"
    return fit(scores, CLUSTERS, seed), ""


def _thresholds(mixture: Mixture | None, why_none: str, clusters: NDArray[np.int64], config: QualityGate) -> Thresholds:
    fixed = {"ssim": config.min_ssim, "psnr": config.min_psnr}
    if config.thresholds == "fixed":
        return Thresholds(fixed["ssim"], fixed["psnr"], (), "from the configuration")
    if mixture is None:
        return Thresholds(fixed["ssim"], fixed["psnr"], (), f"from the configuration: {why_none}")
    worst = float((clusters == 0).mean())
    if worst > 0.5:
        note = f"from the configuration: the worst cluster holds {worst:.0%} of the samples, so it is not the exception"
        return Thresholds(fixed["ssim"], fixed["psnr"], (), note)
    valleys = {name: mixture.valley(axis) for axis, name in enumerate(SCORES)}
    found = tuple(name for name, (_, depth) in valleys.items() if depth <= VALLEY)
    values = {name: valleys[name][0] if name in found else fixed[name] for name in SCORES}
    depths = " and ".join(f"{depth:.0%} in {name.upper()}" for name, (_, depth) in valleys.items())
    fell = (
        f"between the worst cluster and the next the density falls to {depths} of the lower peak;"
        f" a valley is {VALLEY:.0%} or less"
    )
    if not found:
        return Thresholds(
            values["ssim"], values["psnr"], (), f"from the configuration: the clusters are not apart ({fell})"
        )
    named = " and ".join(name.upper() for name in found)
    rest = "" if len(found) == len(SCORES) else "; the other from the configuration"
    return Thresholds(values["ssim"], values["psnr"], found, f"{named} from the valley of the mixture{rest} ({fell})")


def _beyond_balance(table: pd.DataFrame, kept: NDArray[np.bool_], config: QualityGate) -> NDArray[np.bool_]:
    """Training samples of monotonous land beyond its share, drawn by the seed.

    Validation and test stay as the ground is, and varied land is never dropped.
    """
    training = kept & (table["split"] == "train").to_numpy()
    most = int(np.ceil(config.max_monotonous * training.sum()))
    beyond = np.zeros(len(table), bool)
    rng = np.random.default_rng(config.seed)
    land = table["land"].to_numpy(object)
    for kind in sorted(set(land[training]) - {"varied"}):
        drawn = rng.permutation(np.flatnonzero(training & (land == kind)))
        beyond[drawn[most:]] = True
    return beyond


def _examples(
    table: pd.DataFrame, scores: NDArray[np.float64], mixture: Mixture | None, seed: int
) -> tuple[tuple[str, ...], ...]:
    if mixture is None:
        return ()
    rng = np.random.default_rng(seed)
    clusters, names = table["cluster"].to_numpy(), table["sample_id"].to_numpy(object)
    found = []
    for cluster in range(CLUSTERS):
        mine = np.flatnonzero(clusters == cluster)
        typical = mine[mixture.distances(scores[mine], cluster) <= SHOWN_WITHIN]
        found.append(tuple(sorted(str(name) for name in names[rng.permutation(typical)[:EXAMPLES]])))
    return tuple(found)


def to_json(selection: Selection) -> dict[str, Any]:
    """Thresholds and clusters, for `gate.json`."""
    thresholds = selection.thresholds
    found: dict[str, Any] = {
        "min_ssim": thresholds.min_ssim,
        "min_psnr": thresholds.min_psnr,
        "found": list(thresholds.found),
        "note": thresholds.note,
    }
    mixture, clusters = selection.mixture, []
    if mixture is not None:
        label = selection.table["cluster"]
        clusters = [
            {
                "samples": int((label == index).sum()),
                "weight": float(mixture.weights[index]),
                "mean": dict(zip(SCORES, mixture.means[index].tolist(), strict=True)),
                "covariance": mixture.covariances[index].tolist(),
                "examples": list(selection.examples[index]),
            }
            for index in range(len(mixture.weights))
        ]
    return {"thresholds": found, "clusters": clusters}
