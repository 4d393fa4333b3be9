"""`subpixel ablate`: every point of a grid is trained and evaluated once, below one folder.

    FOLDER/prepared/<stage>-<digest>/   one root for each distinct preparation, shared by all points it fits
    FOLDER/perceptual/                  the delineation network of the perceptual loss, where the grid asks for one
    FOLDER/points/<point>/              model/, test/evaluation/, log.txt and point.json, its record
    FOLDER/ablations.{json,parquet,md}  what the finished points say

A point's root links the prepared folders and runs train_hrn; `test/` below it links the reference's samples and
runs evaluate. Stages are kept as everywhere (`components/stage.py`): a point is finished when its evaluation has
the key that its configuration, code and files give it. Whoever works in a root holds its lock, so several commands,
on several machines with one file system, may share a folder: each waits for what another is doing and keeps it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import connection
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from components.stage import STAGES, Stage, code_digest, git_commit, run, stage_key, versions
from sr_core.config import Config
from sr_core.errors import ArtifactError, DataError, SubpixelError
from sr_core.progress import console, say, track
from sr_core.training.ablation import METRICS, Grid, Point, answer, override, scores_of, sweep_of

PREPARATION = ("download", "cloud_shadow_filter", "normalize", "quality_gate")
TRAIN, EVALUATE, DELINEATE = (STAGES[name] for name in ("train_hrn", "evaluate", "delineate"))
POINT = "point.json"
LOG = "log.txt"
ARM = "truth"
"""The delineation network that judges super-resolution has learned from the simulation's own 2.5 m images."""


@dataclass(frozen=True)
class Ablation:
    """A grid and the folder that it is worked off in."""

    grid: Grid
    folder: Path
    _keys: dict[str, dict[str, str]] = field(default_factory=dict)
    """Keys of the preparations seen so far, by root."""

    @property
    def network(self) -> Path:
        """Folder of the network that `${perceptual_from}` stands for."""
        return self.network_root / DELINEATE.folder / "networks" / ARM

    @property
    def network_root(self) -> Path:
        return self.folder / "perceptual"

    def points(self, only: str | None = None) -> list[Point]:
        return self.grid.points(self.network, only)

    def root(self, point: Point) -> Path:
        return self.folder / "points" / point.id

    def record(self, point: Point) -> dict[str, Any] | None:
        """`point.json`, or None where the point has come to no end."""
        try:
            found: dict[str, Any] = json.loads((self.root(point) / POINT).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found

    def finished(self, point: Point) -> bool:
        """Whether the point is done with the present configuration, code and files."""
        record = self.record(point)
        return record is not None and record["status"] == "done" and record["key"] == self.key(point)

    def key(self, point: Point) -> str:
        """The key that the point's evaluation gets."""
        own, tested = self.preparation_keys(point.config), self.preparation_keys(point.test)
        trained = stage_key(TRAIN, point.config, {name: own[name] for name in TRAIN.inputs})
        inputs = {name: trained if name == TRAIN.name else tested[name] for name in EVALUATE.inputs}
        return stage_key(EVALUATE, point.test, inputs)

    def preparation_keys(self, config: Config) -> dict[str, str]:
        """The keys that the preparatory stages get with this configuration."""
        last = str(self.prepared_root(STAGES[PREPARATION[-1]], config))
        if last not in self._keys:
            keys: dict[str, str] = {}
            for stage in (STAGES[name] for name in PREPARATION):
                keys[stage.name] = stage_key(stage, config, {name: keys[name] for name in stage.inputs})
            self._keys[last] = keys
        return self._keys[last]

    def prepared_root(self, stage: Stage, config: Config) -> Path:
        """The root of a preparatory stage: one for each distinct content of the sections that lead to it."""
        sections: dict[str, Any] = {}
        waiting = [stage]
        while waiting:
            found = waiting.pop()
            sections[found.name] = json.loads(config.model_dump_json(include=set(found.sections)))
            waiting += [STAGES[name] for name in found.inputs]
        digest = hashlib.sha256(json.dumps(sections, sort_keys=True).encode()).hexdigest()[:10]
        return self.folder / "prepared" / f"{stage.name}-{digest}"

    def prepare(self, config: Config) -> dict[str, Path]:
        """Run the preparatory stages. Returns the folder of each; raises `DataError` where the gate fails."""
        folders: dict[str, Path] = {}
        for stage in (STAGES[name] for name in PREPARATION):
            root = self.prepared_root(stage, config)
            with turn(root):
                link(root, {name: folders[name] for name in stage.inputs})
                record = run(stage, config, str(root))
            folders[stage.name] = root / stage.folder
        if record["outputs"]["verdict"] != "pass":
            gate = json.loads((folders["quality_gate"] / "gate.json").read_text(encoding="utf-8"))
            failed = [
                check for check in gate["expectations"] if check["severity"] == "critical" and not check["success"]
            ]
            why = "; ".join(
                f"{check['name']}: expected {check['expected']}, found {check['found']}" for check in failed
            )
            raise DataError(f"the quality gate failed ({why}); see {folders['quality_gate']}/gate.html")
        return folders

    def make_network(self) -> None:
        """Train the delineation network that `${perceptual_from}` stands for, on its base."""
        base = self.grid.file.perceptual_from
        assert base is not None
        settings = {"delineate.arms": [ARM], "delineate.gallery": 0}
        config = override(self.grid.references[base], settings, self.grid.path.parent, str(self.grid.path))
        root = self.network_root
        with turn(root):
            made = self.prepare(config)
            link(root, {name: made[name] for name in DELINEATE.input_names if name in made})
            record = run(DELINEATE, config, str(root))
        if record["skipped"]:
            raise DataError(f"perceptual_from: {base!r}: no network could be trained: {record['skipped']}")

    def run_point(self, point: Point) -> dict[str, Any]:
        """Train and evaluate a point unless it is done. Returns its record, which is written in either case.

        An error of the point is its result ("failed", with the sentence); being stopped is not.
        """
        root = self.root(point)
        with turn(root):
            if self.finished(point) and (record := self.record(point)):
                return record
            (root / POINT).unlink(missing_ok=True)
            record = {
                "id": point.id,
                "base": point.base,
                "seed": point.seed,
                "set": dict(point.changes),
                "commit": git_commit(),
                "code": code_digest(TRAIN.name)[:10],
                "versions": versions(),
            }
            try:
                record |= {"status": "done", "error": None, **self._train_and_evaluate(point, root)}
            except SubpixelError as error:
                record |= {"status": "failed", "error": str(error)}
            except Exception as error:
                traceback.print_exc()
                record |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
            write_json(root / POINT, record)
            return record

    def _train_and_evaluate(self, point: Point, root: Path) -> dict[str, Any]:
        prepared = tested = self.prepare(point.test)
        if self.preparation_keys(point.config) != self.preparation_keys(point.test):
            prepared = self.prepare(point.config)
        if point.needs_network:
            self.make_network()
        link(root, {name: prepared[name] for name in TRAIN.inputs})
        os.environ.setdefault("WANDB_RUN_GROUP", f"ablate-{self.grid.file.name}")
        trained = run(TRAIN, point.config, str(root))
        test = root / "test"
        link(test, {name: root / TRAIN.folder if name == TRAIN.name else tested[name] for name in EVALUATE.inputs})
        evaluated = run(EVALUATE, point.test, str(test))
        if evaluated["key"] != self.key(point):
            raise ArtifactError(f"point {point.id}: code or files changed while it ran; run it again")
        return measured(root, test, trained, evaluated)


def measured(root: Path, test: Path, trained: Mapping[str, Any], evaluated: Mapping[str, Any]) -> dict[str, Any]:
    """What a finished point has to say, from the artifacts of its two stages."""
    scores = json.loads((test / EVALUATE.folder / "metrics.json").read_text(encoding="utf-8"))["test"]
    lineage = json.loads((root / TRAIN.folder / "model.json").read_text(encoding="utf-8"))["lineage"]
    history = (root / TRAIN.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    samples = pd.read_parquet(
        test / STAGES["quality_gate"].folder / "samples.parquet", columns=["split", "kept", "n_frames"]
    )
    frames = samples[(samples["split"] == "test") & samples["kept"]]["n_frames"]
    return {
        "key": evaluated["key"],
        "samples": {**trained["counts"]["samples"], "test": scores["n_samples"]},
        "frames": [float(frames.min()), float(frames.median()), float(frames.max())],
        "gsd_m": lineage["gsd_m"],
        "pairing": lineage["pairing"],
        "parameters": trained["counts"]["parameters"],
        # of all attempts together, where a training was stopped and continued
        "training_seconds": json.loads(history[-1])["seconds"],
        "scores": scores_of(scores),
    }


def work_off(ablation: Ablation, jobs: int, only: str | None = None) -> int:
    """Run all points that are not finished, `jobs` at the same time. Returns how many have failed."""
    points = ablation.points(only)
    todo = [point for point in points if not ablation.finished(point)]
    say(f"{len(points)} points, {len(points) - len(todo)} of them finished; {jobs} at the same time")
    tasks: list[Task] = []
    for point in todo:
        for config in (point.test, point.config):
            name = ablation.prepared_root(STAGES[PREPARATION[-1]], config).name
            log = ablation.folder / "prepared" / f"{name}.txt"
            if all(task.name != name for task in tasks):
                tasks.append(Task(name, ablation.prepare, (config,), log))
    for task, status in track(in_processes(tasks, jobs), "preparing", len(tasks)):
        if status:
            say(f"{task.name} failed, see {task.log}; its points will say why")
    tasks = [Task(point.id, ablation.run_point, (point,), ablation.root(point) / LOG) for point in todo]
    if any(point.needs_network for point in todo):
        # begun first, needed last
        tasks.sort(key=lambda task: task.arguments[0].needs_network)
        tasks.insert(0, Task("perceptual_from", ablation.make_network, (), ablation.folder / "perceptual.txt"))
    failed = 0
    for task, status in track(in_processes(tasks, jobs), "points", len(tasks)):
        if not task.arguments:
            continue
        point = task.arguments[0]
        record = ablation.record(point)
        if record is None:
            reason = f"signal {-status} ended it (out of memory?)" if status < 0 else f"it ended with status {status}"
            record = {"status": "failed", "error": f"{reason}; see {task.log}", "id": point.id}
            write_json(ablation.root(point) / POINT, record)
        title = "; ".join(f"{question}: {label}" for question, label in point.roles[:2])
        title = f"{point.id} ({title}{', ...' if len(point.roles) > 2 else ''}; seed {point.seed})"
        if record["status"] == "done":
            gain = record["scores"]["psnr_sr"] - record["scores"]["psnr_bicubic"]
            say(f"{title}: {gain:+.2f} dB over bicubic, {record['training_seconds']:.0f} s")
        else:
            failed += 1
            say(f"{title}: failed: {record['error']}")
    return failed


def collect(ablation: Ablation, only: str | None = None) -> pd.DataFrame:
    """A row a point of the grid, in its order; `status` is "done", "failed" or "missing"."""
    rows = []
    for point in ablation.points(only):
        record = ablation.record(point) or {"status": "missing", "error": None}
        rows.append(
            {
                "id": point.id,
                "base": point.base,
                "questions": "; ".join(f"{question}: {label}" for question, label in point.roles),
                "seed": point.seed,
                "set": json.dumps(dict(point.changes), sort_keys=True),
                "status": record["status"],
                "error": record["error"],
                "parameters": record.get("parameters"),
                "training_seconds": record.get("training_seconds"),
                "commit": record.get("commit"),
                "code": record.get("code"),
                **{f"{metric}_{arm}": None for metric in METRICS for arm in ("sr", "bicubic", "temporal_mean")},
                **record.get("scores", {}),
            }
        )
    return pd.DataFrame(rows)


def report(ablation: Ablation, command: str, page: Path | None = None, only: str | None = None) -> None:
    """Write `ablations.{parquet,json,md}` of all that is finished, and to `page` the page of the question `only`."""
    from sr_core.training.ablation_page import write_page

    ablation.folder.mkdir(parents=True, exist_ok=True)
    for path, question in ((ablation.folder / "ablations.md", None), (page, only)):
        if path is None:
            continue
        results = collect(ablation, question)
        answers = answer(ablation.grid, results, ablation.network, question)
        facts = facts_of(ablation, results)
        if path != page:
            aside = ablation.folder / ".ablations.parquet"
            results.to_parquet(aside, index=False)
            aside.replace(ablation.folder / "ablations.parquet")
            write_json(ablation.folder / "ablations.json", {**answers, **facts, "command": command})
        path.parent.mkdir(parents=True, exist_ok=True)
        write_page(path, ablation.grid, answers, facts, command)


def write_sweep(ablation: Ablation, path: Path, command: Sequence[str], only: str | None = None) -> int:
    """Write the grid as a Weights & Biases sweep, whose agents run `command --point=ID`. Returns how many points."""
    points = ablation.points(only)
    text = yaml.safe_dump(sweep_of(ablation.grid, points, command), sort_keys=False, allow_unicode=True)
    write_text(path, text)
    return len(points)


def facts_of(ablation: Ablation, results: pd.DataFrame) -> dict[str, Any]:
    """What the page says of the points: their data, commits and failures."""
    bases = {}
    for base in ablation.grid.file.bases:
        for seed in ablation.grid.file.seeds:
            record = ablation.record(ablation.grid.reference_point(base, seed, ablation.network))
            if record and record["status"] == "done":
                psnr = {arm: record["scores"][f"psnr_{arm}"] for arm in ("bicubic", "temporal_mean")}
                bases[base] = {name: record[name] for name in ("pairing", "gsd_m", "samples", "frames")} | {
                    "psnr": psnr
                }
                break
    done, failed = results[results["status"] == "done"], results[results["status"] == "failed"]
    # pages are handed on: no paths of this machine
    errors = failed["error"].str.replace(f"{ablation.folder}/", "", regex=False)
    return {
        "bases": bases,
        "commits": sorted(done["commit"].dropna().unique().tolist()),
        "codes": sorted(done["code"].dropna().unique().tolist()),
        "failed": dict(zip(failed["id"], errors, strict=True)),
        "missing": int((results["status"] == "missing").sum()),
    }


@dataclass(frozen=True)
class Task:
    """Work for a process of its own; what it prints goes to `log`."""

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    log: Path


def in_processes(tasks: Sequence[Task], jobs: int) -> Iterator[tuple[Task, int]]:
    """Work tasks off, `jobs` at the same time, each in a process with its share of the cores.

    Yields each with its exit status as it ends; negative: the signal that ended it. When the caller stops, the
    processes are told to stop (SIGTERM) and waited for.
    """
    # a server that has imported torch forks each process: a clean one, without the seconds of importing
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["components.download.main", "components.train_hrn.main", "components.evaluate.main"]
    )
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    waiting = list(tasks)
    running: dict[Any, tuple[Task, Any]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                task = waiting.pop(0)
                process = context.Process(target=_process, args=(task, threads), name=task.name)
                process.start()
                running[process.sentinel] = (task, process)
            for sentinel in connection.wait(list(running)):
                task, process = running.pop(sentinel)
                process.join()
                yield task, process.exitcode or 0
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.join()


def _process(task: Task, threads: int) -> None:
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which then stops its processes
    task.log.parent.mkdir(parents=True, exist_ok=True)
    log = os.open(task.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(threads)
    try:
        task.function(*task.arguments)
    except SubpixelError as error:
        console.print(f"error: {error}", markup=False)
        sys.exit(1)


@contextmanager
def turn(root: Path) -> Iterator[None]:
    """Hold a root; wait while another process does."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".turn").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def link(root: Path, folders: Mapping[str, Path]) -> None:
    """Show the outputs of other stages below `root`, under the names that stages look for, by relative links."""
    root.mkdir(parents=True, exist_ok=True)
    for name, folder in folders.items():
        place = root / STAGES[name].folder
        target = os.path.relpath(folder, root)
        if place.is_symlink() and place.readlink() == Path(target):
            continue
        place.unlink(missing_ok=True)
        place.symlink_to(target, target_is_directory=True)


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=1, allow_nan=False))


def write_text(path: Path, text: str) -> None:
    """Write aside and rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)
