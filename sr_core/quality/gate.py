"""The quality gate: what a set of samples must be before anything is trained on it.

A Great Expectations suite validates the table of samples. An expectation is critical (it decides the verdict)
or a warning (it is reported). `gate.json` holds the verdict with every expectation, `gate.html` shows it to
people, and `data_docs/` is Great Expectations' own rendering.
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
import pandas as pd

from sr_core.config import QualityGate
from sr_core.quality.gate_page import page
from sr_core.samples.split import SPLITS, shared_ground
from sr_core.samples.store import COLUMNS

REPORT = "gate.json"
PAGE = "gate.html"
DATA_DOCS = "data_docs"

Severity = Literal["critical", "warning"]

_KEPT = "kept_samples"
_SET = "sample_set"
_NAMED = 10


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
    """Some of the samples that break it, at most ten."""


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


def run_gate(table: pd.DataFrame, config: QualityGate, pairing: str, folder: Path) -> Verdict:
    """Validate the table of samples (`sr_core.samples.store.COLUMNS`), and write `gate.json`, `gate.html` and
    `data_docs/` into `folder`, each aside and renamed."""
    counts = count(table)
    kept, whole = _frames(table, counts)
    docs = folder / f".{DATA_DOCS}.{os.getpid()}"
    shutil.rmtree(docs, ignore_errors=True)
    checks = _validate({_KEPT: (kept, _of_samples(config)), _SET: (whole, _of_set(config))}, docs)
    failed = any(check.severity == "critical" and not check.success for check in checks)
    verdict = Verdict("fail" if failed else "pass", counts, tuple(checks))
    shutil.rmtree(folder / DATA_DOCS, ignore_errors=True)
    docs.rename(folder / DATA_DOCS)
    _write(folder / PAGE, page(table, verdict.to_json(), config, pairing))
    _write(folder / REPORT, json.dumps(verdict.to_json(), indent=1))
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


def _frames(table: pd.DataFrame, counts: Mapping[str, Any]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The kept samples, a row each, and what is true of the set, in one row."""
    kept = table[table["kept"]]
    chips = kept.drop_duplicates(["region", "patch", "lr_row", "lr_col", "split"])
    overlaps = shared_ground(list(chips["geometry"]), list(chips["split"]))
    whole = {
        **{f"{split}_samples": counts[split] for split in SPLITS},
        "dropped_share": 1.0 - counts["kept"] / max(counts["samples"], 1),
        "shared_footprints": len(overlaps),
    }
    return pd.DataFrame(kept.drop(columns="geometry")).reset_index(drop=True), pd.DataFrame([whole])


def _of_samples(config: QualityGate) -> list[tuple[str, str, Any]]:
    """Name, what is expected and expectation of every kept sample."""
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
            (f"Complete {name}", "no null", e.ExpectColumnValuesToNotBeNull(column=name))
            for name in columns
            if name != "reason"
        ),
        ("Unique ids", "no id twice", e.ExpectColumnValuesToBeUnique(column="sample_id")),
        ("Unique rows", "no row of the store twice", e.ExpectColumnValuesToBeUnique(column="row")),
        (
            "Splits",
            f"one of {', '.join(SPLITS)}",
            e.ExpectColumnValuesToBeInSet(column="split", value_set=list(SPLITS)),
        ),
        (
            "SSIM",
            f"{config.min_ssim:g} to 1",
            e.ExpectColumnValuesToBeBetween(column="ssim", min_value=config.min_ssim, max_value=1.0 + 1e-6),
        ),
        (
            "PSNR",
            f"at least {config.min_psnr:g} dB",
            e.ExpectColumnValuesToBeBetween(column="psnr", min_value=config.min_psnr),
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


def _of_set(config: QualityGate) -> list[tuple[str, str, Any]]:
    """Name, what is expected and expectation of the set as a whole."""
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
    ]


def _validate(suites: Mapping[str, tuple[pd.DataFrame, list[tuple[str, str, Any]]]], docs: Path) -> list[Check]:
    """Run each suite on its table and render the Data Docs into `docs`."""
    # its notices are about its own set-up, which is fixed here
    logging.getLogger("great_expectations").setLevel(logging.ERROR)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    site = dict(context.config.data_docs_sites["local_site"])
    shutil.rmtree(site["store_backend"]["base_directory"], ignore_errors=True)
    site["store_backend"] = {**site["store_backend"], "base_directory": str(docs)}
    context.update_data_docs_site("local_site", {**site, "show_how_to_buttons": False})
    source = context.data_sources.add_pandas("samples")
    checks = []
    for name, (table, expectations) in suites.items():
        batch = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("all")
        suite = gx.ExpectationSuite(name)
        for position, (_, _, expectation) in enumerate(expectations):
            expectation.meta = {"position": position}
            suite.add_expectation(expectation)
        definition = gx.ValidationDefinition(name=name, data=batch, suite=context.suites.add(suite))
        identity = {"unexpected_index_column_names": ["sample_id"]} if "sample_id" in table else {}
        validation = context.validation_definitions.add(definition).run(
            batch_parameters={"dataframe": table}, result_format={"result_format": "COMPLETE", **identity}
        )
        results = sorted(validation.results, key=lambda result: result.expectation_config.meta["position"])
        for (title, expected, _), result in zip(expectations, results, strict=True):
            checks.append(_check(title, expected, result, table))
    context.build_data_docs()
    return checks


def _check(title: str, expected: str, result: Any, table: pd.DataFrame) -> Check:
    """A Great Expectations result in our words. One that could not be evaluated is not met."""
    settings, details = result.expectation_config, result.result or {}
    severity: Severity = "warning" if str(settings.severity).lower().endswith("warning") else "critical"
    column = settings.kwargs.get("column")
    if column is None:
        found = "these" if result.success else ", ".join(map(str, details.get("observed_value", ())))
    elif "unexpected_count" not in details:
        found = "an error" if column in table else "no such column"
    elif "sample_id" not in table:
        value = table[column].iloc[0]
        found = f"{value:.0%}" if column.endswith("_share") else f"{value}"
    elif details["unexpected_count"]:
        found = f"{details['unexpected_count']} of {len(table)} samples otherwise" + _range(table[column])
    else:
        found = f"all {len(table)} samples" + _range(table[column])
    broken = (details.get("unexpected_index_list") or [])[:_NAMED] if "sample_id" in table else []
    names = tuple(str(row["sample_id"]) for row in broken)
    return Check(title, settings.type, expected, found, bool(result.success), severity, names)


def _range(values: pd.Series[Any]) -> str:
    if not (pd.api.types.is_float_dtype(values) or pd.api.types.is_integer_dtype(values)) or values.isna().all():
        return ""
    return f", from {values.min():.4g} to {values.max():.4g}"


def _write(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)
