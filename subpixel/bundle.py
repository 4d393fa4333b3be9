"""`subpixel bundle`: from a recipe to a model bundle, with the scores that say what it may be used for.

    FOLDER/model.safetensors, model.json   the bundle
    FOLDER/scores.json                     trials on held-out ground, checks on real frames, noise of the real series
    FOLDER/runs/<name>/                    prepared ground, a root a run (download, cloud_shadow_filter, normalize)
    FOLDER/training/                       checkpoint.pt, from which a stopped training goes on, and metrics.jsonl

Prepared ground is kept as everywhere (`components/stage.py`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from components.stage import RECORD, STAGES, git_commit, run, versions
from sr_core import SCALE
from sr_core.config import Config, Evaluate, FilesSource, load_config
from sr_core.errors import ArtifactError, SourceError
from sr_core.evaluation import field
from sr_core.evaluation.evaluate import evaluate, summary
from sr_core.evaluation.model_card import SCORES
from sr_core.models.bundle import SuperResolver, load_bundle, save_bundle
from sr_core.models.normalization import Normalization, read_places
from sr_core.patches import S2_GSD, read_index
from sr_core.progress import say
from sr_core.samples.dataset import SampleSet
from sr_core.series import S2Series, load_s2
from sr_core.sources.netcdf import PATTERN
from sr_core.training.distributed import Workers
from sr_core.training.instrument import measure_noise
from sr_core.training.loop import train
from sr_core.training.recipe import Ground, Recipe
from sr_core.training.scenes import FineSeries, SceneSampler, join_samples, load_series, weigh, window_of

PREPARATION = ("download", "cloud_shadow_filter", "normalize")
MADE_BY = "recipe.json"
SAMPLE_DATA = "SR_SAMPLE_DATA"
ATTRIBUTION = "Contains modified Copernicus Sentinel data"


@dataclass(frozen=True)
class Place:
    """A real series on held-out ground, with all that the checks on real frames need."""

    series: S2Series
    normalization: Normalization
    folder: Path | None
    """Of NetCDF sites, where the 20 m bands are."""


@dataclass(frozen=True)
class Bundle:
    """A recipe and the folder that it is followed in."""

    recipe: Recipe
    folder: Path
    runs: Path
    """Where prepared ground is kept."""

    @cached_property
    def configs(self) -> dict[Path, Config]:
        """The configuration of each run. Raises `SourceError` where its files are not there."""
        found = {}
        for path in {ground.run: None for ground in self.recipe.ground}:
            config = load_config(path, os.environ)
            if isinstance(config.source, FilesSource) and not config.source.path.is_dir():
                raise SourceError(
                    f"{path}: {config.source.path} is missing; this recipe needs the real Sentinel-2 series:"
                    f" set {SAMPLE_DATA} to the folder that holds them"
                )
            found[path] = config
        return found

    def root(self, ground: Ground) -> Path:
        """Where a run's artifacts are."""
        return self.runs / self.configs[ground.run].name

    def prepare(self, reuse: bool = False) -> None:
        """Run the stages that prepare the ground; finished ones are kept. With `reuse`, also those that older code or
        another configuration finished."""
        for ground in {ground.run: ground for ground in self.recipe.ground}.values():
            root = self.root(ground)
            for stage in PREPARATION:
                if not (reuse and (root / STAGES[stage].folder / RECORD).is_file()):
                    run(STAGES[stage], self.configs[ground.run], str(root))

    def sampler(self, device: torch.device) -> SceneSampler:
        """The batches to train on."""
        settings = self.recipe.train_hrn
        assert settings.crop_px is not None
        parts = [ground for ground in self.recipe.ground if not ground.held_out]
        series, weights = weigh([(load_series(self.root(ground), ground.box), ground.weight) for ground in parts])
        return SceneSampler(
            series,
            weights,
            self.recipe.instrument,
            settings.batch_size,
            settings.crop_px,
            self.recipe.frames,
            settings.seed,
            settings.gain_augmentation,
            device=device,
        )

    def trials(self, choosing: bool = False) -> tuple[SampleSet, dict[str, Normalization]]:
        """Samples of every trial on every held-out ground, region `<region>/<trial>`, and their statistics; with
        `choosing` only on the ground whose trials choose the weights."""
        sets, statistics = [], {}
        assert self.recipe.train_hrn.crop_px is not None
        for ground in self.recipe.ground:
            if not ground.held_out or (choosing and not ground.chooses):
                continue
            for series in _by_region(load_series(self.root(ground), ground.box)):
                for trial in self.recipe.trials:
                    sampler = SceneSampler(
                        *weigh([(series, 1.0)]),
                        trial.instrument,
                        self.recipe.trial_samples,
                        self.recipe.train_hrn.crop_px,
                        self.recipe.frames,
                        gain=0.0,
                        augment=False,
                    )
                    region = f"{series[0].region}/{trial.name}"
                    sets.append(sampler.sample_set(self.recipe.trial_samples, region))
                    statistics[region] = series[0].place
        return join_samples(sets), statistics

    def places(self) -> list[Place]:
        """The real series of the held-out ground."""
        found = []
        for ground in self.recipe.ground:
            source = self.configs[ground.run].source
            if not ground.held_out or not isinstance(source, FilesSource):
                continue
            root = self.root(ground)
            places = read_places(root / "normalization")
            sites = source.path if any(source.path.glob(PATTERN)) else None
            for patch in read_index(root / "patches"):
                window = window_of(patch, ground.box)
                if window is not None:
                    series = load_s2(root / "patches", root / "masks", patch)
                    inside = replace(series, bands=series.bands[:, *window], clear=series.clear[:, *window])
                    found.append(Place(inside, places[patch.region], sites))
        return found

    def make(self) -> dict[str, Any]:
        """Train on ground that is prepared, save and judge. Returns the scores."""
        settings = self.recipe.train_hrn
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        training = self._training_folder()
        workers = Workers()
        sampler = self.sampler(workers.device)
        choosing, choosing_statistics = self.trials(choosing=True)
        samples, statistics = self.trials()
        say(f"{len(sampler.series)} series to train on; judged on {len(samples)} samples of {len(statistics)} trials")
        trained = train(settings, sampler, choosing, choosing_statistics, training, workers=workers)
        lineage = self._lineage(sampler, trained.best_step)
        places = {series.region: series.place.to_json() for series in sampler.series}
        meta = {"frames": self.recipe.frames, "normalization": places, "lineage": lineage}
        save_bundle(self.folder, trained.model, meta | {"scores": trained.scores})
        scores = self.judge(load_bundle(self.folder), samples, statistics)
        save_bundle(self.folder, trained.model, meta | {"scores": trained.scores | _headlines(scores)})
        _write(self.folder / SCORES, scores)
        return scores

    def judge(
        self, resolver: SuperResolver, samples: SampleSet, statistics: Mapping[str, Normalization]
    ) -> dict[str, Any]:
        """The trials' scores against bicubic, the checks on real frames, and the noise of the real series."""
        table = evaluate(resolver, samples, statistics, Evaluate(), "held out")
        trials = {str(region): summary(rows) for region, rows in table.groupby("region", sort=False)}
        dates = self.recipe.field_dates
        found: dict[str, Any] = {"trials": trials, "field": {}, "noise": {}}
        for place in self.places():
            region = place.series.patch.region
            say(f"{region}: real frames")
            checks = {
                "wald": field.wald(resolver, place.series, place.normalization, dates),
                "held_out_pass": field.held_out_pass(resolver, place.series, place.normalization, dates),
                "consistency": field.consistency(resolver, place.series, place.normalization, dates),
                "noise_gain": field.noise_gain(resolver, place.series, place.normalization, dates),
            }
            if place.folder is not None:
                b8a = field.read_20m(place.folder, place.series)
                checks["cross_band"] = field.cross_band(resolver, place.series, b8a, 3 * dates)
            found["field"][region] = checks
            noise = measure_noise(place.series.bands, place.series.clear)
            if noise is not None:
                found["noise"][region] = {
                    key: value.tolist() if isinstance(value, np.ndarray) else value
                    for key, value in noise._asdict().items()
                }
        return found

    def _training_folder(self) -> Path:
        """FOLDER/training. Raises `ArtifactError` when it was begun with another recipe."""
        training = self.folder / "training"
        training.mkdir(parents=True, exist_ok=True)
        made_by = training / MADE_BY
        if made_by.is_file() and json.loads(made_by.read_text(encoding="utf-8")) != self._described:
            raise ArtifactError(
                f"{training}: holds a training by another recipe; choose another --out, or delete it to begin again"
            )
        _write(made_by, self._described)
        return training

    @cached_property
    def _described(self) -> dict[str, Any]:
        """The recipe without the paths of this machine."""
        described: dict[str, Any] = json.loads(self.recipe.model_dump_json(exclude={"field_dates"}))
        for ground, raw in zip(self.recipe.ground, described["ground"], strict=True):
            raw["run"] = self.configs[ground.run].name
        network = self.recipe.train_hrn.perceptual_network
        described["train_hrn"]["perceptual_network"] = network and network.name
        return described

    def _lineage(self, sampler: SceneSampler, best_step: int) -> dict[str, Any]:
        recipe = self._described
        gsd = sorted({series.gsd_m * SCALE for series in sampler.series})
        real = [series for series in sampler.series if series.gsd_m == S2_GSD]
        years = sorted({date.year for series in real for date in series.dates})
        return {
            "key": hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:32],
            "recipe": self.recipe.name,
            "ground": [
                raw | {"source": self.configs[part.run].source.kind}
                for part, raw in zip(self.recipe.ground, recipe["ground"], strict=True)
            ],
            "series": len(sampler.series),
            # products say at which scale the network learned: 10 m, if that was among them
            "gsd_m": gsd[0],
            "trained_gsd_m": gsd,
            "instrument": recipe["instrument"],
            "train_hrn": recipe["train_hrn"],
            "best_step": best_step,
            "versions": versions(),
            "git_commit": git_commit(),
            "attribution": f"{ATTRIBUTION} {years[0]}-{years[-1]}" if years else "",
        }


def _headlines(scores: Mapping[str, Any]) -> dict[str, float]:
    """Means over all trials, for model.json."""
    trials = scores["trials"].values()
    return {
        f"{metric}_{arm}": float(np.mean([trial[metric][arm] for trial in trials]))
        for metric in ("psnr", "cpsnr", "ssim")
        for arm in ("sr", "bicubic")
    }


def _by_region(series: list[FineSeries]) -> list[list[FineSeries]]:
    regions = {one.region: None for one in series}
    return [[one for one in series if one.region == region] for region in regions]


def _write(path: Path, content: Any) -> None:
    aside = path.with_name(f".{path.name}")
    aside.write_text(json.dumps(content, indent=1), encoding="utf-8")
    aside.replace(path)
