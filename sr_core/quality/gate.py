"""The quality gate: what a set of samples must be before anything is trained on it.

Great Expectations suites validate the candidates, the samples that are kept, the tiles they come from and the set as a
whole. An expectation is critical (it decides the verdict) or a warning (it is reported). `gate.json` holds the verdict
with every expectation, `unexpected.parquet` everything that breaks one, `gate.html` shows it to people, and
`data_docs/` is Great Expectations' own rendering.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import great_expectations as gx
import numpy as np
import pandas as pd

from sr_core import BANDS
from sr_core.config import QualityGate
from sr_core.quality.gate_page import Pair, page
from sr_core.quality.selection import Selection, Thresholds, to_json
from sr_core.samples.land import KINDS
from sr_core.samples.split import SPLITS, shared_ground
from sr_core.samples.store import COLUMNS, FLOATS

REPORT = "gate.json"
UNEXPECTED = "unexpected.parquet"
PAGE = "gate.html"
DATA_DOCS = "data_docs"

Severity = Literal["critical", "warning"]

_CANDIDATES, _KEPT, _TILES, _SET = "candidates", "kept_samples", "tiles", "sample_set"
_NAMES = {_CANDIDATES: "sample_id", _KEPT: "sample_id", _TILES: "tile"}
"""The column that names a row of each table; the set has one row and no name."""
_NAMED = 10
_TYPES = {
    "int64": ("row", "cluster", "n_frames", "lr_row", "lr_col"),
    "float64": FLOATS,
    "bool": ("kept",),
    "datetime64[us]": ("target_date", "latest_date"),
}
REASONS = ("", "cloud", "shadow", "nodata", "frames", "latest_age", "ssim", "psnr", "balance")

Expected = list[tuple[str, str, Any]]
"""Name for people, what is expected in words, and the expectation."""


@dataclass(frozen=True)
class Check:
    """One expectation and what became of it."""

    name: str
    """What it is about, for people."""
    expectation: str
    """Great Expectations' name of it."""
    expected: str
    found: str
    success: bool
    severity: Severity
    samples: tuple[str, ...]
    """Some of the samples, or tiles, that break it, at most ten; all of them are in `unexpected.parquet`."""


@dataclass(frozen=True)
class Verdict:
    """The gate's answer."""

    verdict: Literal["pass", "fail"]
    """ "fail" where a critical expectation is not met."""
    counts: Mapping[str, Any]
    """{"samples", "kept", "dropped": {reason: n}, "train", "val", "test"} (the last three: kept)."""
    checks: tuple[Check, ...]

    def to_json(self) -> dict[str, Any]:
        return {"verdict": self.verdict, "counts": dict(self.counts), "expectations": [asdict(c) for c in self.checks]}


def run_gate(
    selection: Selection,
    config: QualityGate,
    pairing: str,
    folder: Path,
    pairs: Mapping[str, Pair] | None = None,
    attribution: str = "",
) -> Verdict:
    """Validate the table of samples, and write `gate.json`, `unexpected.parquet`, `gate.html` and `data_docs/` into
    `folder`, each aside and renamed. `pairs` are pictures of the selection's examples for the page, by sample id,
    and `attribution` what has to be said of them."""
    table = selection.table
    counts = count(table)
    docs = folder / f".{DATA_DOCS}.{os.getpid()}"
    shutil.rmtree(docs, ignore_errors=True)
    checks, unexpected = _validate(
        {
            _CANDIDATES: (_plain(table), _of_candidates()),
            _KEPT: (_plain(table[table["kept"]]), _of_samples(config, selection.thresholds)),
            _TILES: (tiles(table), _of_tiles(config)),
            _SET: (_whole(table, counts), _of_set(config)),
        },
        docs,
    )
    failed = any(check.severity == "critical" and not check.success for check in checks)
    verdict = Verdict("fail" if failed else "pass", counts, tuple(checks))
    shutil.rmtree(folder / DATA_DOCS, ignore_errors=True)
    docs.rename(folder / DATA_DOCS)
    aside = folder / f".{UNEXPECTED}"
    unexpected.to_parquet(aside, index=False)
    aside.replace(folder / UNEXPECTED)
    report = {**verdict.to_json(), **to_json(selection)}
    _write(folder / PAGE, page(selection, report, config, pairing, pairs or {}, attribution))
    _write(folder / REPORT, json.dumps(report, indent=1))
    return verdict


def count(table: pd.DataFrame) -> dict[str, Any]:
    """Candidates, those kept (in all and a split), and those dropped by reason."""
    kept = table[table["kept"]]
    return {
        "samples": len(table),
        "kept": len(kept),
        "dropped": {str(k): int(v) for k, v in table.loc[~table["kept"], "reason"].value_counts().sort_index().items()},
        **{split: int((kept["split"] == split).sum()) for split in SPLITS},
    }


def tiles(table: pd.DataFrame) -> pd.DataFrame:
    """How far the truth of each tile lies from the Sentinel-2 frames it is paired with, over its kept samples:
    columns `tile`, `region`, `samples`, `bias_<band>` (reflectance, the median over samples), and `drift`, the largest
    of these in absolute value."""
    names = [f"bias_{band}" for band in BANDS]
    grouped = table[table["kept"]].groupby(["region", "tile"], sort=True)
    found = grouped[names].median().assign(samples=grouped.size()).reset_index()
    return found.assign(drift=found[names].abs().max(axis=1))


def _plain(table: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(table.drop(columns="geometry")).reset_index(drop=True)


def _whole(table: pd.DataFrame, counts: Mapping[str, Any]) -> pd.DataFrame:
    """What is true of the set, in one row."""
    kept = table[table["kept"]]
    chips = kept.drop_duplicates(["region", "patch", "lr_row", "lr_col", "split"])
    rows = kept["row"].to_numpy()
    whole = {
        **{f"{split}_samples": counts[split] for split in SPLITS},
        "dropped_share": 1.0 - counts["kept"] / max(counts["samples"], 1),
        "shared_footprints": len(shared_ground(list(chips["geometry"]), list(chips["split"]))),
        "rows_out_of_place": int((rows != np.arange(len(rows))).sum()),
    }
    return pd.DataFrame([whole])


def _of_candidates() -> Expected:
    """Of every candidate, kept or not."""
    e = gx.expectations
    return [
        ("Unique ids", "no id twice", e.ExpectColumnValuesToBeUnique(column="sample_id")),
        ("Reasons", "known ones", e.ExpectColumnValuesToBeInSet(column="reason", value_set=list(REASONS))),
    ]


def _of_samples(config: QualityGate, thresholds: Thresholds) -> Expected:
    """Of every kept sample."""
    columns = [name for name in COLUMNS if name != "geometry"]
    e = gx.expectations
    low = config.min_frames
    return [
        (
            "Columns",
            f"exactly {', '.join(columns)}",
            e.ExpectTableColumnsToMatchSet(column_set=columns, exact_match=True),
        ),
        *(
            (f"Type of {name}", kind, e.ExpectColumnValuesToBeOfType(column=name, type_=kind))
            for kind, names in _TYPES.items()
            for name in names
        ),
        *(
            (f"Complete {name}", "no null", e.ExpectColumnValuesToNotBeNull(column=name))
            for name in columns
            if name != "reason"
        ),
        ("Unique rows", "no row of the store twice", e.ExpectColumnValuesToBeUnique(column="row")),
        (
            "Splits",
            f"one of {', '.join(SPLITS)}",
            e.ExpectColumnValuesToBeInSet(column="split", value_set=list(SPLITS)),
        ),
        (
            "SSIM",
            f"{thresholds.min_ssim:.4g} to 1",
            e.ExpectColumnValuesToBeBetween(column="ssim", min_value=thresholds.min_ssim, max_value=1.0 + 1e-6),
        ),
        (
            "PSNR",
            f"at least {thresholds.min_psnr:.4g} dB",
            e.ExpectColumnValuesToBeBetween(column="psnr", min_value=thresholds.min_psnr),
        ),
        ("MSE", "0 to 1", e.ExpectColumnValuesToBeBetween(column="mse", min_value=0.0, max_value=1.0)),
        ("Land", f"one of {', '.join(KINDS)}", e.ExpectColumnValuesToBeInSet(column="land", value_set=list(KINDS))),
        (
            "Frames come first",
            "the latest frame is not later than the truth",
            e.ExpectColumnPairValuesAToBeGreaterThanB(
                column_A="target_date",
                column_B="latest_date",
                or_equal=True,
                ignore_row_if="either_value_is_missing",
            ),
        ),
        (
            "Frames a sample",
            f"{low} to {config.frames}",
            e.ExpectColumnValuesToBeBetween(column="n_frames", min_value=low, max_value=config.frames),
        ),
        (
            "Full stacks of frames",
            f"half of the samples have all {config.frames} frames",
            e.ExpectColumnValuesToBeBetween(column="n_frames", min_value=config.frames, mostly=0.5, severity="warning"),
        ),
    ]


def _of_tiles(config: QualityGate) -> Expected:
    """Of every tile (VHR tile or Sentinel-2 product) with kept samples."""
    return [
        (
            "Radiometry of tiles",
            f"medians within {config.max_drift:g} of Sentinel-2's, reflectance",
            gx.expectations.ExpectColumnValuesToBeBetween(
                column="drift", max_value=config.max_drift, severity="warning"
            ),
        )
    ]


def _of_set(config: QualityGate) -> Expected:
    """Of the set as a whole."""
    e = gx.expectations
    return [
        *(
            (
                f"Kept {split} samples",
                f"at least {least}",
                e.ExpectColumnValuesToBeBetween(column=f"{split}_samples", min_value=least),
            )
            for split, least in config.min_samples.items()
        ),
        (
            "Share dropped",
            f"at most {config.max_dropped:.0%}",
            e.ExpectColumnValuesToBeBetween(column="dropped_share", max_value=config.max_dropped),
        ),
        (
            "Ground shared between splits",
            "no footprint overlaps one of another split",
            e.ExpectColumnValuesToBeBetween(column="shared_footprints", max_value=0),
        ),
        (
            "Rows of the store",
            "0, 1, 2 ... without a gap",
            e.ExpectColumnValuesToBeBetween(column="rows_out_of_place", max_value=0),
        ),
    ]


def _validate(suites: Mapping[str, tuple[pd.DataFrame, Expected]], docs: Path) -> tuple[list[Check], pd.DataFrame]:
    """Run each suite on its table and render the Data Docs into `docs`.

    Returns the checks, and a row for everything that breaks one: columns `table`, `check`, `severity`, `name`.
    """
    # its notices are about its own set-up, which is fixed here
    logging.getLogger("great_expectations").setLevel(logging.ERROR)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    site = dict(context.config.data_docs_sites["local_site"])
    shutil.rmtree(site["store_backend"]["base_directory"], ignore_errors=True)
    site["store_backend"] = {**site["store_backend"], "base_directory": str(docs)}
    context.update_data_docs_site("local_site", {**site, "show_how_to_buttons": False})
    source = context.data_sources.add_pandas("samples")
    checks: list[Check] = []
    broken: list[dict[str, str]] = []
    for name, (table, expectations) in suites.items():
        batch = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("all")
        suite = gx.ExpectationSuite(name)
        for position, (_, _, expectation) in enumerate(expectations):
            expectation.meta = {"position": position}
            suite.add_expectation(expectation)
        definition = gx.ValidationDefinition(name=name, data=batch, suite=context.suites.add(suite))
        validation = context.validation_definitions.add(definition).run(
            batch_parameters={"dataframe": table}, result_format={"result_format": "COMPLETE"}
        )
        results = sorted(validation.results, key=lambda result: result.expectation_config.meta["position"])
        for (title, expected, _), result in zip(expectations, results, strict=True):
            named = _unexpected(result, table, _NAMES.get(name))
            checks.append(_check(title, expected, result, table, named, name))
            broken += [{"table": name, "check": title, "severity": checks[-1].severity, "name": one} for one in named]
    context.build_data_docs()
    return checks, pd.DataFrame(broken, columns=["table", "check", "severity", "name"], dtype=object)


def _unexpected(result: Any, table: pd.DataFrame, column: str | None) -> list[str]:
    """Names of all rows that break an expectation."""
    if column is None or column not in table:
        return []
    rows = (result.result or {}).get("unexpected_index_list") or []
    return [str(name) for name in table[column].iloc[rows]]


def _check(title: str, expected: str, result: Any, table: pd.DataFrame, named: list[str], of: str) -> Check:
    """A Great Expectations result in our words. One that could not be evaluated is not met."""
    settings, details = result.expectation_config, result.result or {}
    severity: Severity = "warning" if str(settings.severity).lower().endswith("warning") else "critical"
    column = settings.kwargs.get("column")
    what = "tiles" if of == _TILES else "candidates" if of == _CANDIDATES else "samples"
    if "unexpected_count" not in details:
        observed = details.get("observed_value")
        if result.success:
            found = "these" if column is None else str(observed or expected)
        elif column is not None and column not in table:
            found = "no such column"
        elif isinstance(observed, list):
            found = ", ".join(map(str, observed))
        else:
            found = str(observed or "an error")
    elif of == _SET:
        value = table[column].iloc[0]
        found = f"{value:.0%}" if column.endswith("_share") else f"{value}"
    else:
        number = details["unexpected_count"]
        found = f"{number} of {len(table)} {what} otherwise" if number else f"all {len(table)} {what}"
        found += "" if column is None else _range(table[column])
    return Check(title, settings.type, expected, found, bool(result.success), severity, tuple(named[:_NAMED]))


def _range(values: pd.Series[Any]) -> str:
    if not (pd.api.types.is_float_dtype(values) or pd.api.types.is_integer_dtype(values)) or values.isna().all():
        return ""
    low, high = values.min(), values.max()
    if pd.api.types.is_integer_dtype(values):
        return f", from {low} to {high}"
    return f", from {low:.4g} to {high:.4g}"


def _write(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)
