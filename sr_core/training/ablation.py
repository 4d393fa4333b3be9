"""Ablations: one question at a time, each variant against one reference, over several seeds.

A grid file names *bases* (run configurations), a *baseline* (settings common to all of them), *seeds*, and
*questions*. A question has variants; the one that sets nothing is its reference: the base with the baseline.
The seed is that of the weights, the batches and the augmentation. All variants of a base are tested on the test
samples of its reference, so that a difference is one of the model, never one of the test.

Differences are paired by seed, and a verdict is given by a rule: the two-sided 95 % interval of Student's t of the
paired differences either leaves out zero or holds it (Student, The probable error of a mean, Biometrika 1908).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import BeforeValidator, Field, model_validator
from scipy.stats import t as student

from sr_core.config import Config, Section, load_config, parse_config, read_yaml, resolve_paths, validated
from sr_core.errors import ConfigError

NETWORK = "${perceptual_from}"
"""Stands, in a grid, for the folder of the delineation network that is trained on the base `perceptual_from`."""
METRICS = ("psnr", "cpsnr", "ssim", "mae")
ARMS = ("sr", "bicubic", "temporal_mean")
LOWER_IS_BETTER = {"mae"}
MIN_PAIRS = 3
"""Fewer seeds than this make no claim."""
CONFIDENCE = 0.95

FIXED = ("name", "area", "grid", "evaluate", "quality_gate.split", "quality_gate.seed", "train_hrn.seed")
"""What a variant may not set: the ground of the test and the way it is measured are the base's."""
UNREAD = ("name", "download", "delineate", "package", "super_resolve")
"""Sections that neither a training nor its evaluation depends on."""

Verdict = Literal["better", "worse", "no difference", "same configuration", "no claim"]
Slug = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$")]


class Base(Section):
    """One run configuration, and what to set in it before the baseline."""

    config: Path = Field(description="run configuration, relative to the grid file")
    changes: dict[str, Any] = Field(default_factory=dict, alias="set", description="dotted keys and their values")


class Variant(Section):
    label: str = Field(min_length=1, description="as in tables and plots")
    changes: dict[str, Any] = Field(
        default_factory=dict, alias="set", description="dotted keys and their values; none: the reference"
    )


class Question(Section):
    name: Slug
    asks: str = Field(min_length=1, description="the question, a sentence")
    bases: tuple[str, ...] = Field((), description="bases on which it can be asked; none: all")
    variants: tuple[Variant, ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _one_reference(self) -> Question:
        labels = [variant.label for variant in self.variants]
        if len(set(labels)) < len(labels):
            raise ValueError(f"labels of variants must differ; found {labels}")
        references = [variant.label for variant in self.variants if not variant.changes]
        if len(references) != 1:
            raise ValueError(f"exactly one variant, the reference, sets nothing; found {references or 'none'}")
        return self

    @property
    def reference(self) -> str:
        """Label of the variant that sets nothing."""
        return next(variant.label for variant in self.variants if not variant.changes)


def _path_alone(value: Any) -> Any:
    return {"config": value} if isinstance(value, str) else value


class GridFile(Section):
    """A grid as it is written down."""

    name: Slug
    bases: dict[Slug, Annotated[Base, BeforeValidator(_path_alone)]] = Field(min_length=1)
    perceptual_from: str | None = Field(
        None, description=f"base on which the network that `{NETWORK}` stands for is trained, from its 2.5 m truth"
    )
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)
    baseline: dict[str, Any] = Field(default_factory=dict, description="dotted keys and their values, for all bases")
    questions: tuple[Question, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> GridFile:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must differ; found {list(self.seeds)}")
        names = [question.name for question in self.questions]
        if len(set(names)) < len(names):
            raise ValueError(f"names of questions must differ; found {names}")
        named = [*(base for question in self.questions for base in question.bases)]
        if self.perceptual_from is not None:
            named.append(self.perceptual_from)
        if NETWORK in [*self.baseline.values(), *(v for base in self.bases.values() for v in base.changes.values())]:
            raise ValueError(f"{NETWORK}: its network needs the reference, so only variants can use it")
        for base in named:
            if base not in self.bases:
                raise ValueError(f"base {base!r}: unknown; known here: {', '.join(self.bases)}")
        for question in self.questions:
            for variant in question.variants:
                for key in variant.changes:
                    fixed = next((name for name in FIXED if _within(key, name) or _within(name, key)), None)
                    if fixed is not None:
                        raise ValueError(
                            f"question {question.name!r}, variant {variant.label!r}: `{key}` would change `{fixed}`,"
                            " which all variants of a base share; set it in `baseline`, or make another base"
                        )
                if NETWORK in variant.changes.values() and self.perceptual_from is None:
                    raise ValueError(
                        f"question {question.name!r}, variant {variant.label!r}: {NETWORK} needs `perceptual_from`,"
                        " the base on which that network is trained"
                    )
        return self


@dataclass(frozen=True)
class Point:
    """One training and its evaluation."""

    id: str
    """The base and a digest of all settings that the result depends on: the same on every machine."""
    base: str
    seed: int
    config: Config
    """What it trains with."""
    test: Config
    """The reference of its base, whose test samples and evaluation settings it is judged with."""
    changes: Mapping[str, Any]
    """What it sets beyond the reference."""
    roles: tuple[tuple[str, str], ...]
    """(question, label) of every variant that it is."""
    needs_network: bool


@dataclass(frozen=True)
class Grid:
    """A grid file with its bases read: `references` holds each base with the baseline."""

    path: Path
    file: GridFile
    references: Mapping[str, Config]

    def questions(self, only: str | None = None) -> tuple[Question, ...]:
        """All questions, or the one named `only`. Raises `ConfigError` where there is none of that name."""
        found = tuple(question for question in self.file.questions if only in (None, question.name))
        if not found:
            known = ", ".join(question.name for question in self.file.questions)
            raise ConfigError(f"{self.path}: question {only!r} is unknown; known here: {known}")
        return found

    def bases_of(self, question: Question) -> tuple[str, ...]:
        """The bases on which a question is asked, in the order of the file."""
        return tuple(base for base in self.file.bases if not question.bases or base in question.bases)

    def points(self, network: Path, only: str | None = None) -> list[Point]:
        """All points, those of the first seed first; variants that resolve to the same settings are one point.

        `network` is the folder that `${perceptual_from}` stands for. Raises `ConfigError` for a setting that is
        unknown or out of range, naming the variant.
        """
        found: dict[str, Point] = {}
        for seed in self.file.seeds:
            for question in self.questions(only):
                for variant in question.variants:
                    for base in self.bases_of(question):
                        point = self._point(base, variant, seed, network, question.name)
                        known = found.get(point.id)
                        if known is None:
                            found[point.id] = point
                        elif point.roles[0] not in known.roles:
                            found[point.id] = _with_role(known, point.roles[0])
        return list(found.values())

    def reference_point(self, base: str, seed: int, network: Path) -> Point:
        """The base with nothing but the baseline."""
        return self._point(base, Variant(label="reference"), seed, network, "")

    def _point(self, base: str, variant: Variant, seed: int, network: Path, question: str) -> Point:
        test = self.references[base]
        changes = {key: str(network) if value == NETWORK else value for key, value in variant.changes.items()}
        origin = f"{self.path}: question {question!r}, variant {variant.label!r} on {base!r}"
        title = re.sub(r"[^a-z0-9]+", "-", f"{base} {question} {variant.label} seed{seed}".lower())
        titled = {"name": title, "train_hrn.seed": seed}
        config = override(test, {**changes, **titled}, self.path.parent, origin)
        needs_network = config.train_hrn.perceptual_network == network
        text = json.dumps([self._portable(config, network), self._portable(test, network)], sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:10]
        return Point(
            f"{base}-{digest}", base, seed, config, test, variant.changes, ((question, variant.label),), needs_network
        )

    def _portable(self, config: Config, network: Path) -> Any:
        """All that a result depends on, with paths as seen from the grid file."""

        def plain(value: Any) -> str:
            if value == network:
                assert self.file.perceptual_from is not None
                source = self.references[self.file.perceptual_from]
                return NETWORK + json.dumps(
                    [self._portable(source, network), source.delineate.model_dump()], default=str
                )
            return os.path.relpath(value, self.path.parent) if isinstance(value, Path) else str(value)

        return json.loads(json.dumps(config.model_dump(exclude=set(UNREAD)), default=plain, sort_keys=True))


def read_grid(path: Path, environment: Mapping[str, str] | None = None) -> Grid:
    """Read a grid file and its bases. Raises `ConfigError` with every problem found."""
    path = path.resolve()
    file = validated(GridFile, read_yaml(path, "grid"), f"grid {path}")
    references = {}
    for name, base in file.bases.items():
        config = load_config(path.parent / base.config, environment)
        references[name] = override(
            config, {**file.baseline, **base.changes}, path.parent, f"{path}: baseline on {name!r}"
        )
    return Grid(path, file, references)


def override(config: Config, changes: Mapping[str, Any], folder: Path, origin: str) -> Config:
    """A configuration with dotted keys set (`train_hrn.channels`: 32). Relative paths are seen from `folder`.

    Raises `ConfigError` that begins with `origin` where a key is unknown or its value is not allowed.
    """
    raw: dict[str, Any] = json.loads(config.model_dump_json())
    for key, value in changes.items():
        *sections, last = key.split(".")
        place: Any = raw
        for section in sections:
            if place.get(section) is None:
                place[section] = {}
            place = place[section]
            if not isinstance(place, dict):
                raise ConfigError(f"{origin}: `{key}`: `{section}` is a value and holds no keys")
        place[last] = value
    return resolve_paths(parse_config(raw, origin), folder)


@dataclass(frozen=True)
class Difference:
    """Paired differences of a variant to its reference: variant minus reference, seed by seed."""

    values: tuple[float, ...]
    verdict: Verdict

    @property
    def mean(self) -> float:
        return float(np.mean(self.values)) if self.values else math.nan

    @property
    def std(self) -> float:
        """Standard deviation of the differences (n - 1)."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else math.nan

    @property
    def half_width(self) -> float:
        """Of the 95 % interval of the mean: Student's t with n - 1 degrees of freedom."""
        n = len(self.values)
        return float(student.ppf((1 + CONFIDENCE) / 2, n - 1)) * self.std / math.sqrt(n) if n > 1 else math.nan


def paired_difference(
    variant: Mapping[int, float], reference: Mapping[int, float], lower_is_better: bool = False
) -> Difference:
    """Compare scores by seed; seeds that only one of the two has finished are left out.

    "better" and "worse" where the 95 % interval of the mean difference leaves out zero, "no difference" where it
    holds zero, "no claim" for fewer than 3 pairs.
    """
    values = tuple(variant[seed] - reference[seed] for seed in sorted(variant.keys() & reference.keys()))
    found = Difference(values, "no claim")
    if len(values) < MIN_PAIRS:
        return found
    if abs(found.mean) <= found.half_width or found.mean == 0:
        return Difference(values, "no difference")
    return Difference(values, "better" if (found.mean > 0) != lower_is_better else "worse")


def answer(grid: Grid, results: pd.DataFrame, network: Path, only: str | None = None) -> dict[str, Any]:
    """What the finished points say to each question, ready for JSON.

    `results` has a row a point, with `id`, `status` ("done", "failed" or "missing"), `error`, `parameters`,
    `training_seconds`, and `<metric>_<arm>` for each of METRICS and ARMS. Only points that are done count.
    """
    rows = {row["id"]: row for row in results.to_dict("records")}
    ids = {(role, point.base, point.seed): point.id for point in grid.points(network, only) for role in point.roles}
    answers = []
    for question in grid.questions(only):
        variants = []
        for variant in question.variants:
            bases = {}
            for base in grid.bases_of(question):
                mine, theirs = (
                    {seed: rows[ids[((question.name, label), base, seed)]] for seed in grid.file.seeds}
                    for label in (variant.label, question.reference)
                )
                bases[base] = _compare(mine, theirs)
            variants.append({"label": variant.label, "set": variant.changes, "bases": bases})
        answers.append(
            {"name": question.name, "asks": question.asks, "reference": question.reference, "variants": variants}
        )
    return {"name": grid.file.name, "seeds": list(grid.file.seeds), "questions": answers}


def _compare(mine: Mapping[int, Any], theirs: Mapping[int, Any]) -> dict[str, Any]:
    done = {seed: row for seed, row in mine.items() if row["status"] == "done"}
    other = {seed: row for seed, row in theirs.items() if row["status"] == "done"}
    same = all(mine[seed]["id"] == theirs[seed]["id"] for seed in mine)
    found: dict[str, Any] = {
        "points": [row["id"] for row in mine.values()],
        "seeds": sorted(done),
        "failed": {str(seed): row["error"] for seed, row in mine.items() if row["status"] == "failed"},
        "gain": {},
        "difference": {},
    }
    if not done:
        return found
    found["parameters"] = int(next(iter(done.values()))["parameters"])
    found["training_seconds"] = _round(float(np.mean([row["training_seconds"] for row in done.values()])), 1)
    ratios = [done[seed]["training_seconds"] / other[seed]["training_seconds"] for seed in done.keys() & other.keys()]
    found["time_ratio"] = _round(float(np.mean(ratios)), 3) if ratios else None
    for metric in METRICS:
        scores, references = ({s: float(row[f"{metric}_sr"]) for s, row in rows.items()} for rows in (done, other))
        gains = [row[f"{metric}_sr"] - row[f"{metric}_bicubic"] for row in done.values()]
        spread = float(np.std(gains, ddof=1)) if len(gains) > 1 else None
        found["gain"][metric] = {"mean": _round(float(np.mean(gains))), "std": _round(spread)}
        difference = paired_difference(scores, references, metric in LOWER_IS_BETTER)
        found["difference"][metric] = {
            "verdict": "same configuration" if same else difference.verdict,
            "values": [_round(value) for value in difference.values],
            "mean": _round(difference.mean),
            "std": _round(difference.std),
            "half_width": _round(difference.half_width),
        }
    return found


def _round(value: float | None, digits: int = 6) -> float | None:
    return None if value is None or not math.isfinite(value) else round(float(value), digits)


def _within(key: str, place: str) -> bool:
    return key == place or key.startswith(f"{place}.")


def _with_role(point: Point, role: tuple[str, str]) -> Point:
    return replace(point, roles=(*point.roles, role))


def scores_of(metrics: Mapping[str, Any]) -> dict[str, float]:
    """`{"psnr_sr": ..., ...}` from the entry of a split in the evaluation's metrics.json."""
    return {f"{metric}_{arm}": float(metrics[metric][arm]) for metric in METRICS for arm in ARMS}


def sweep_of(grid: Grid, points: Sequence[Point], command: Sequence[str]) -> dict[str, Any]:
    """The grid as a Weights & Biases sweep: one parameter, `point`, that names each point.

    Agents run `command` with `--point ID`, see https://docs.wandb.ai/models/sweeps/define-sweep-configuration.
    """
    return {
        "name": f"ablate-{grid.file.name}",
        "project": next(iter(grid.references.values())).train_hrn.wandb_project,
        "program": command[0],
        "method": "grid",
        "metric": {"name": "val_psnr", "goal": "maximize"},
        "parameters": {"point": {"values": [point.id for point in points]}},
        "command": ["${env}", "${program}", *command[1:], "${args}"],
    }
