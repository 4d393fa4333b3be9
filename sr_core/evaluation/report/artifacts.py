"""What the finished stages of a run left behind, as far as it belongs together."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import geopandas as gpd
import pandas as pd

from sr_core.config import Config
from sr_core.errors import ArtifactError
from sr_core.masks.acquisitions import TABLE, read_acquisitions
from sr_core.patches import Patch, read_index

STAGES = {
    "download": "Download",
    "cloud_shadow_filter": "Clouds and shadows",
    "normalize": "Normalisation",
    "quality_gate": "Samples and gate",
    "train_hrn": "Training",
    "evaluate": "Evaluation",
    "delineate": "Field delineation",
    "package": "Model archive",
    "publish": "Publication",
    "super_resolve": "Super-resolution",
}
"""Stages in the order of the graph, with the names the page gives them."""

BEHIND_THE_GATE = ("train_hrn", "evaluate", "delineate", "package", "publish")
BEHIND_THE_VERDICT = ("package", "publish")

State = Literal["done", "skipped", "outdated", "missing"]


@dataclass(frozen=True)
class StageRun:
    """How far a stage came: `done`, `skipped` by itself, `outdated` by later settings or inputs, or `missing`."""

    name: str
    state: State
    note: str
    """Why there is nothing to show, to be read after the stage's name; empty when done."""
    record: Mapping[str, Any]
    """Its `run.json`; empty when missing."""
    folder: Path | None
    """Its output; None unless done."""

    @property
    def label(self) -> str:
        return STAGES[self.name]


@dataclass(frozen=True)
class Run:
    """A configuration and the artifacts made with it. What is not there is None or empty."""

    config: Config
    stages: Mapping[str, StageRun]

    @cached_property
    def patches(self) -> list[Patch]:
        path = self._file("download", "patches.json")
        return read_index(path.parent) if path else []

    @cached_property
    def acquisitions(self) -> pd.DataFrame | None:
        path = self._file("cloud_shadow_filter", TABLE)
        return read_acquisitions(path.parent) if path else None

    @cached_property
    def samples(self) -> gpd.GeoDataFrame | None:
        """A row a candidate sample, geometry in the reference system that the file names."""
        path = self._file("quality_gate", "samples.parquet")
        if path is None:
            return None
        try:
            return gpd.read_parquet(path)
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{path}: expected a GeoParquet table of samples: {error}") from error

    @cached_property
    def gate(self) -> dict[str, Any] | None:
        """The gate's verdict ("pass" or "fail") and its expectations, of which critical ones decide it."""
        path = self._file("quality_gate", "gate.json")
        return read_json(path) if path else None

    @cached_property
    def gate_page(self) -> Path | None:
        return self._file("quality_gate", "gate.html")

    @cached_property
    def store_attributes(self) -> dict[str, Any]:
        """Attributes of the sample store: `scale`, `bands`, `gsd_m`, `pairing`."""
        path = self._file("quality_gate", "samples.zarr/zarr.json")
        return dict(read_json(path).get("attributes", {})) if path else {}

    @cached_property
    def history(self) -> pd.DataFrame | None:
        """A row a logged training step; of steps done twice, after a stop, the last."""
        path = self._file("train_hrn", "metrics.jsonl")
        if path is None:
            return None
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
            rows = [json.loads(line) for line in lines if line.strip()]
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{path}: expected a JSON object a line: {error}") from error
        if not rows:
            return None
        return pd.DataFrame(rows).drop_duplicates("step", keep="last").sort_values("step")

    @cached_property
    def evaluation(self) -> dict[str, Any] | None:
        """Scores of the test split: {"n_samples", "psnr": {arm: value}, ..., "win_rate_vs_bicubic"}."""
        path = self._file("evaluate", "metrics.json")
        test = read_json(path).get("test") if path else None
        return test or None

    @cached_property
    def per_sample(self) -> pd.DataFrame | None:
        """Scores of each test sample."""
        path = self._file("evaluate", "per_sample.parquet")
        if path is None:
            return None
        try:
            table = pd.read_parquet(path)
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{path}: expected a table of scores: {error}") from error
        return table[table["split"] == "test"]

    @cached_property
    def gallery(self) -> list[dict[str, Any]]:
        """Test samples to show: {"sample_id", "target_date", "region", "psnr": {arm: dB}, "files": {arm: path}}."""
        path = self._file("evaluate", "gallery/gallery.json")
        items = read_json(path) if path else []
        return [
            item | {"files": {arm: path.parent / name for arm, name in item["files"].items()}} for item in items if path
        ]

    @cached_property
    def delineation(self) -> dict[str, Any] | None:
        """Scores of the fields: {"raster": {arm: {score: value}}, "vector": {arm: {score: value}}}."""
        path = self._file("delineate", "metrics.json")
        return (read_json(path) or None) if path else None

    @cached_property
    def delineation_gallery(self) -> list[dict[str, Any]]:
        """Pictures to show: {"file": path, "arm", "region", "patch", "side_m", "legend": {what: colour}}, by patch."""
        path = self._file("delineate", "gallery/gallery.json")
        return [item | {"file": path.parent / item["file"]} for item in read_json(path)] if path else []

    @cached_property
    def products(self) -> list[dict[str, Any]]:
        """Entries of `products.json`: {"region", "datetime", "frames", "valid_share", "consistency_mae", ...}, with
        `path` as the folder of the product."""
        if self.product_index is None:
            return []
        path, index = self.product_index
        return [entry | {"path": path.parent / entry["path"]} for entry in index["products"]]

    @cached_property
    def product_index(self) -> tuple[Path, dict[str, Any]] | None:
        """`products.json` and its content."""
        path = self._file("super_resolve", "products.json")
        return (path, read_json(path)) if path else None

    @property
    def years(self) -> list[int]:
        """Years of the Sentinel-2 images: of the acquisitions, or of the period where there are none yet."""
        if self.acquisitions is not None:
            images = self.acquisitions[self.acquisitions["sensor"] == "s2"]
            if len(images):
                return sorted({stamp.year for stamp in images["timestamp"]})
        period = self.config.period
        return list(range(period.start.year, period.end.year + 1)) if period else []

    @property
    def dates(self) -> tuple[dt.date, dt.date] | None:
        """First and last day of the configuration, or else of the acquisitions."""
        if self.config.period:
            return self.config.period.start, self.config.period.end
        if self.acquisitions is None or not len(self.acquisitions):
            return None
        stamps = self.acquisitions["timestamp"]
        return stamps.min().date(), stamps.max().date()

    @property
    def gate_failed(self) -> bool:
        return self.gate is not None and self.gate["verdict"] != "pass"

    def _file(self, stage: str, name: str) -> Path | None:
        folder = self.stages[stage].folder
        return folder / name if folder and (folder / name).is_file() else None


def read_run(config: Config, folders: Mapping[str, Path]) -> Run:
    """The run whose finished stages wrote `folders` (stage name to its output, with a `run.json`).

    A stage whose record does not fit the configuration, or the inputs that are there now, belongs to an earlier
    run: it is `outdated`, with all that was made from it, and none of its numbers is shown.
    """
    records = {name: read_json(folders[name] / "run.json") for name in STAGES if name in folders}
    present = json.loads(config.model_dump_json())
    stages: dict[str, StageRun] = {}
    for name in STAGES:
        record = records.get(name)
        if record is None:
            stages[name] = StageRun(name, "missing", _why_missing(name, stages, folders), {}, None)
            continue
        note = _why_outdated(record, records, stages, present)
        if note:
            stages[name] = StageRun(name, "outdated", note, record, None)
        elif record["skipped"]:
            stages[name] = StageRun(name, "skipped", f"was skipped: {record['skipped']}", record, None)
        else:
            stages[name] = StageRun(name, "done", "", record, folders[name])
    return Run(config, stages)


def read_json(path: Path) -> Any:
    """Content of a JSON file. Raises `ArtifactError` when it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: expected JSON that a finished stage wrote: {error}") from error


def _why_missing(name: str, stages: Mapping[str, StageRun], folders: Mapping[str, Path]) -> str:
    gate = stages.get("quality_gate")
    if name in BEHIND_THE_GATE and gate and gate.state == "done" and gate.folder:
        path = gate.folder / "gate.json"
        if path.is_file() and read_json(path)["verdict"] != "pass":
            return "did not run: the samples failed the quality gate"
    evaluation = stages.get("evaluate")
    if name in BEHIND_THE_VERDICT and evaluation and evaluation.state == "done" and evaluation.folder:
        found = read_json(evaluation.folder / "metrics.json")
        if found.get("verdict") == "not_better":
            return f"did not run: the model was not promoted, its gain of {found['gain_db']:+.2f} dB is too small"
    return "did not run"


def _why_outdated(
    record: Mapping[str, Any],
    records: Mapping[str, Mapping[str, Any]],
    stages: Mapping[str, StageRun],
    present: Mapping[str, Any],
) -> str:
    changed = [key for key, value in record["parameters"].items() if present.get(key) != value]
    if changed:
        return f"is not shown: an earlier run made it with other settings ({', '.join(changed)})"
    for source, key in record["inputs"].items():
        if source not in records:
            return f"is not shown: an earlier run made it, and {STAGES[source]} has not finished since"
        if records[source]["key"] != key or stages[source].state == "outdated":
            return f"is not shown: an earlier run made it, and {STAGES[source]} has changed since"
    return ""
