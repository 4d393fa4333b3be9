"""What every stage has in common: its arguments, its inputs and outputs, its record, and starting again.

A stage is one program. It is called by hand, by `subpixel STAGE`, or by Kubeflow:

    python -m components.normalize --config run.yaml --root artifacts/run
    python -m components.normalize --executor-input '{...}'

Its output is one folder below the root. `run.json` is written there last: a folder with a `run.json` whose
key fits the present configuration, inputs and code is finished and kept; any other is continued or done
again.

A stage whose work is by patches can be shared out before that, over as many processes or machines as one likes:

    python -m components.normalize --config run.yaml --root artifacts/run --shard 2/8

writes what it makes of its patches and no `run.json`; the call without `--shard` does what is left, then what needs
all patches. Shards change when a result is there, never what it is. A single shard, `1/1`, returns at once: all of the
work is the stage's own.
"""

from __future__ import annotations

import argparse
import datetime as dt
import errno
import fcntl
import hashlib
import importlib
import json
import math
import os
import platform
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import IO, Any, NoReturn, TypeVar

import sr_core
from components.unfinished import Unfinished
from sr_core.config import Config, load_config, parse_config
from sr_core.errors import ArtifactError, ConfigError, StorageError, SubpixelError
from sr_core.progress import console
from sr_core.storage import Storage, is_remote, storage_for

T = TypeVar("T")
RECORD = "run.json"
SHARDS = ".shards"
"""Where shards leave their parts below an S3 root: `.shards/<folder>/<key>/<shard>/`."""
SHARD_DONE = "shard.json"
CLAIM_TIMEOUT_S = 60.0
"""For shards that start at the same time where another configuration's output has to be removed first."""
STORAGE_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR}
"""Faults of the place that is written to, not of the program: said without a traceback."""
TORCHRUN = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}
"""Variables by which torchrun numbers the processes that it starts."""
SOURCE_SUFFIXES = {".py", ".cpp", ".j2", ".css", ".js"}


@dataclass(frozen=True)
class Shown:
    """An output artifact, as Kubeflow's pages show it."""

    metadata: Mapping[str, Any] = field(default_factory=dict)
    """What JSON can hold; numbers that are not finite are left out."""
    place: str | None = None
    """Where it lies: relative to the root, or a URI; None is the stage's folder."""


@dataclass(frozen=True)
class Result:
    """What a stage says of its work."""

    counts: Mapping[str, Any] = field(default_factory=dict)
    """Numbers in and out, for `run.json`: {"patches": 12, "dropped": {"cloud": 3}}."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Flat scalars, shown by Kubeflow as Metrics."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Output parameters, such as the gate's `verdict`."""
    artifacts: Mapping[str, Shown] = field(default_factory=dict)
    """What Kubeflow shows of output artifacts, beside the stage's folder, its key and its counts."""
    skipped: str | None = None
    """Why the stage had nothing to do, or None."""


@dataclass(frozen=True)
class Context:
    """What a stage gets: the whole configuration, a folder for each input, and its own output folder."""

    config: Config
    inputs: Mapping[str, Path]
    output: Path
    key: str
    unfinished: Unfinished = field(default_factory=Unfinished)
    """Where it may keep finished parts of its work, in case it is killed."""


@dataclass(frozen=True)
class Shard:
    """Every `count`-th patch, beginning with the `number`-th, counted from 1."""

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """A shard from "2/8". Raises `ConfigError`."""
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        shard = cls(*map(int, found.groups())) if found else None
        if shard is None or not 1 <= shard.number <= shard.count:
            raise ConfigError(f"--shard: found {text!r}, expected I/N with I from 1 to N, such as 2/8")
        return shard

    def of(self, patches: Sequence[T]) -> Sequence[T]:
        """Those of all patches, in their fixed order, that are this shard's."""
        return patches[self.number - 1 :: self.count]

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


WHOLE = Shard()


@dataclass(frozen=True)
class Stage:
    """What is known of a stage before its program, with all that it imports, is loaded."""

    name: str
    folder: str
    """Its output, below the root."""
    sections: tuple[str, ...]
    """Configuration sections that its result depends on."""
    inputs: tuple[str, ...] = ()
    """Stages whose output folders it reads; a name with a trailing `?` may be missing."""
    depends_on_files: bool = False
    """Whether its program has a `fingerprint(config)` of files outside the root."""
    at_root: tuple[str, ...] = ()
    """Files that it writes at the root itself."""
    by_torchrun: bool = False
    """Whether torchrun may start several processes of it, which share the work; its program has then a
    `launch(config, root, key)`, which has several machines do it."""
    by_patch: bool = False
    """Whether its program has a `share(context, shard)`, which writes what is made of a shard's patches alone and
    returns how many there are."""

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(name.rstrip("?") for name in self.inputs)

    def program(self) -> Any:
        """The module `components.<name>.main` with its `work(context)`."""
        return importlib.import_module(f"components.{self.name}.main")


STAGES = {
    stage.name: stage
    for stage in (
        Stage("download", "patches", ("area", "period", "source", "grid"), depends_on_files=True, by_patch=True),
        Stage("cloud_shadow_filter", "masks", ("cloud_shadow_filter",), ("download",), by_patch=True),
        Stage("normalize", "normalization", ("normalize",), ("download", "cloud_shadow_filter"), by_patch=True),
        Stage(
            "quality_gate",
            "samples",
            ("quality_gate",),
            ("download", "cloud_shadow_filter", "normalize"),
            by_patch=True,
        ),
        Stage(
            "train_hrn",
            "model",
            ("train_hrn",),
            ("quality_gate", "normalize"),
            depends_on_files=True,
            by_torchrun=True,
        ),
        Stage("evaluate", "evaluation", ("evaluate",), ("quality_gate", "normalize", "train_hrn")),
        Stage(
            "delineate",
            "delineation",
            ("delineate", "quality_gate"),
            ("download", "cloud_shadow_filter", "quality_gate", "train_hrn?"),
        ),
        Stage("package", "archive", ("package",), ("train_hrn",), depends_on_files=True),
        Stage("publish", "published", ("package",), ("train_hrn", "package", "evaluate?")),
        Stage(
            "super_resolve",
            "products",
            ("name", "super_resolve"),
            ("download", "cloud_shadow_filter", "train_hrn?"),
            depends_on_files=True,
        ),
    )
}
"""The graph: every stage, in the order in which a run takes them."""
STAGES["report"] = Stage(
    "report",
    "report",
    tuple(Config.model_fields),
    tuple(f"{name}?" for name in STAGES),
    at_root=("report.html", "metrics.json"),
)
FOLDERS = {name: stage.folder for name, stage in STAGES.items()}


@dataclass(frozen=True)
class Call:
    """How a program was called, by hand or by Kubeflow."""

    config: Config
    root: str
    shard: str | None
    message: Mapping[str, Any]
    """Kubeflow's ExecutorInput; empty by hand."""


def main(stage: Stage, argv: Sequence[str] | None = None) -> int:
    """Entry of a stage's program. Returns the exit status: 0, 1 after an error, 128 + signal when interrupted."""
    return program(stage.name, argv, partial(answer, stage, argv), by_patch=stage.by_patch)


def program(
    name: str,
    argv: Sequence[str] | None,
    work: Callable[[Call], None],
    *,
    by_patch: bool = False,
    needs_root: bool = True,
) -> int:
    """Read the arguments of the program `components.<name>`, do its work, and explain its errors.

    Returns the exit status: 0, 1 after an error, 128 + signal when interrupted.
    """
    parser = argparse.ArgumentParser(prog=f"python -m components.{name}")
    parser.add_argument("--config", help="configuration: a YAML file, or the JSON text of one")
    if needs_root:
        parser.add_argument("--root", help="where artifacts are: a folder or s3://bucket/prefix")
    parser.add_argument(
        "--executor-input", help="Kubeflow's ExecutorInput message (JSON); replaces the other arguments"
    )
    if by_patch:
        parser.add_argument("--shard", metavar="I/N", help="only the I-th of N shares of the patches, from 1")
    parser.add_argument(
        "--self-test", action="store_true", help="import all that the program can need, say the versions, and end"
    )
    arguments = parser.parse_args(argv)
    if arguments.self_test:
        from components.self_test import self_test

        return self_test(name)
    try:
        message = json.loads(arguments.executor_input) if arguments.executor_input else {}
        given = {key: value for key, value in vars(arguments).items() if value}
        given = {**message.get("inputs", {}).get("parameterValues", {}), **given}
        needed = ("config", "root") if needs_root else ("config",)
        if not all(given.get(key) for key in needed):
            flags = " and ".join(f"--{key}" for key in needed)
            parser.error(f"found no {flags}; give {flags}, or --executor-input that holds what they say")
        shard = given.get("shard") if by_patch else None
        work(Call(read_config(given["config"]), given.get("root", ""), shard, message))
    except KeyboardInterrupt as stop:
        console.print(f"{name}: stopped; run the same command again to continue", markup=False)
        return getattr(stop, "exit_status", 130)  # a stage that saves its state at SIGTERM says so
    except SubpixelError as error:
        console.print(f"{name}: error: {error}", markup=False)
        return 1
    except OSError as error:
        if error.errno not in STORAGE_FAULTS:
            traceback.print_exc()
        where = f"{error.filename}: " if error.filename else ""
        console.print(f"{name}: error: {where}{error.strerror or error}; finished work is kept", markup=False)
        return 1
    except Exception:
        traceback.print_exc()
        console.print(f"{name}: failed unexpectedly; finished work is kept", markup=False)
        return 1
    return 0


def answer(stage: Stage, argv: Sequence[str] | None, call: Call) -> None:
    """Do what a stage's program was called for: the whole stage, or a shard of it."""
    config, root = call.config, call.root
    if stage.by_patch and config.preparation.executor == "ray" and is_remote(root):
        raise ConfigError(
            f"preparation.executor: found 'ray' and the root {root}; expected a folder that all machines of the"
            " cluster mount, or 'processes' with one shard a machine"
        )
    if call.shard:
        shard = Shard.parse(call.shard)
        if shard == WHOLE:
            console.print(f"[bold]{stage.name}[/bold] {shard}: left to the stage")
        else:
            run_shard(stage, config, root, shard)
        return
    if stage.by_torchrun and torchrun_numbers()[1] == 1:
        section = getattr(config, stage.name)
        if section.nodes > 1:
            run_nodes(stage, config, root)
        elif section.processes > 1:
            start_torchrun(stage, section.processes, argv)
    record = run(stage, config, root)
    if call.message and record:
        write_executor_output(stage, call.message, root, record)


def read_config(text: str) -> Config:
    """A configuration from a path, or from the JSON text that the pipelines pass."""
    if text.lstrip().startswith("{"):
        return parse_config(json.loads(text))
    return load_config(Path(text), os.environ)


def run(stage: Stage, config: Config, root: str) -> dict[str, Any]:
    """Do a stage's work below `root` unless it is already done. Returns its record (`run.json`).

    Of several processes that torchrun started, the first keeps the record; it is empty in the others.
    """
    rank, world, _ = torchrun_numbers()
    if world > 1 and not stage.by_torchrun:
        raise ConfigError(f"{stage.name}: found {world} processes, started by torchrun, expected one")
    store = storage_for(root, config.storage)
    input_keys = gather_input_keys(stage, store)
    key = stage_key(stage, config, input_keys)
    kept = read_record(store, stage.folder)
    whole = all(store.read(name) is not None for name in stage.at_root)
    if kept is not None and kept["key"] == key and whole:
        console.print(f"[bold]{stage.name}[/bold]: kept {stage.folder}/ ({_short(kept['counts'])})")
        return kept
    with working_folder(store) as folder, ExitStack() as held:
        inputs = {name: fetch(store, FOLDERS[name], folder) for name in input_keys}
        output = folder / stage.folder
        if rank:
            stage.program().work(Context(config, inputs, output, key))
            return {}
        held.enter_context(claimed(output, stage, key))
        (output / RECORD).unlink(missing_ok=True)
        if store.local is None and stage.by_patch:
            fetch_parts(store, stage, key, output)
        unfinished = Unfinished() if store.local else Unfinished(store, output, stage.folder, key)
        unfinished.restore()
        console.print(f"[bold]{stage.name}[/bold]")
        started = time.time()
        result = stage.program().work(Context(config, inputs, output, key, unfinished))
        record = {
            "stage": stage.name,
            "key": key,
            "inputs": input_keys,
            "parameters": json.loads(config.model_dump_json(include=set(stage.sections))),
            "counts": dict(result.counts),
            "metrics": dict(result.metrics),
            "outputs": dict(result.parameters),
            "artifacts": {name: asdict(shown) for name, shown in result.artifacts.items()},
            "skipped": result.skipped,
            "started": dt.datetime.fromtimestamp(started, dt.UTC).isoformat(timespec="seconds"),
            "seconds": round(time.time() - started, 1),
            "versions": versions(),
            "git_commit": git_commit(),
        }
        aside = output / f".{RECORD}"
        aside.write_text(json.dumps(record, indent=1), encoding="utf-8")
        aside.replace(output / RECORD)
        if is_remote(root):
            for name in stage.at_root:
                store.send(folder / name, name)
            store.upload(output, stage.folder, last=RECORD)
            store.remove(f"{SHARDS}/{stage.folder}")
            unfinished.remove()
        summary = f"skipped: {result.skipped}" if result.skipped else _short(record["counts"])
        console.print(f"[bold]{stage.name}[/bold]: {summary} in {record['seconds']:.0f} s")
        return record


def run_nodes(stage: Stage, config: Config, root: str) -> None:
    """Have the machines of a cluster do a stage's work below `root`, unless it is already done.

    Raises `ArtifactError` where they are done and the record is not there.
    """
    store = storage_for(root, config.storage)
    key = stage_key(stage, config, gather_input_keys(stage, store))
    if (read_record(store, stage.folder) or {}).get("key") == key:
        return
    stage.program().launch(config, root, key)
    found = (read_record(store, stage.folder) or {}).get("key")
    if found != key:
        raise ArtifactError(
            f"{store.uri}/{stage.folder}: the nodes are done, and left the key {found}, expected {key};"
            " their image must hold the same code as this program"
        )


def run_shard(stage: Stage, config: Config, root: str, shard: Shard) -> None:
    """Do the work of a shard's patches below `root`, unless the stage or the shard is done. Writes no record."""
    store = storage_for(root, config.storage)
    key = stage_key(stage, config, input_keys := gather_input_keys(stage, store))
    parts = f"{SHARDS}/{stage.folder}/{key}/{shard.number}-of-{shard.count}"
    record = read_record(store, stage.folder)
    if (record is not None and record["key"] == key) or store.read(f"{parts}/{SHARD_DONE}") is not None:
        console.print(f"[bold]{stage.name}[/bold] {shard}: finished")
        return
    with working_folder(store) as folder, claimed(folder / stage.folder, stage, key, shard) as output:
        if (output / RECORD).exists():
            console.print(f"[bold]{stage.name}[/bold] {shard}: finished by another process")
            return
        if store.local is None:
            fetch_share(store, list(input_keys), folder, shard)
        console.print(f"[bold]{stage.name}[/bold] {shard}")
        started = time.time()
        inputs = {name: folder / FOLDERS[name] for name in input_keys}
        patches = stage.program().share(Context(config, inputs, output, key), shard)
        seconds = time.time() - started
        if store.local is None:
            (output / SHARD_DONE).write_text(json.dumps({"patches": patches, "seconds": round(seconds, 1)}))
            store.upload(output, parts, last=SHARD_DONE)
        console.print(f"[bold]{stage.name}[/bold] {shard}: {patches} patches in {seconds:.0f} s")


@contextmanager
def claimed(output: Path, stage: Stage, key: str, shard: Shard | None = None) -> Iterator[Path]:
    """A stage's output folder, without what another configuration left, held until the block ends.

    A stage whose work is by patches holds its folder alone; shards hold it together, each of them once.
    Raises `ArtifactError` where others are at work in it.
    """
    with ExitStack() as held:
        lock = held.enter_context((output.parent / f".{output.name}.lock").open("w"))
        if shard is None:
            if stage.by_patch and not _locked(lock, fcntl.LOCK_EX):
                raise ArtifactError(
                    f"{output}: shards, or another run of {stage.name}, are at work here; wait for them"
                )
            _take_over(output, key)
        else:
            mine = output.parent / f".{output.name}.{shard.number}-of-{shard.count}.lock"
            if not _locked(held.enter_context(mine.open("w")), fcntl.LOCK_EX):
                raise ArtifactError(f"{output}: shard {shard} of {stage.name} is at work already; wait for it")
            _join(lock, output, stage, key)
        yield output


def _join(lock: IO[str], output: Path, stage: Stage, key: str) -> None:
    """Hold `lock` together with the other shards of the same key, once the output is begun under it."""
    deadline = time.monotonic() + CLAIM_TIMEOUT_S
    while time.monotonic() < deadline:
        if _locked(lock, fcntl.LOCK_SH):
            if working_key(output) == key:
                return
            if _locked(lock, fcntl.LOCK_EX):
                _take_over(output, key)
                continue
        fcntl.flock(lock, fcntl.LOCK_UN)  # several that wait for each other
        time.sleep(random.uniform(0.05, 0.2))
    raise ArtifactError(
        f"{output}: a whole run of {stage.name}, or shards of another configuration, are at work here; wait for them"
    )


def _locked(file: IO[str], kind: int) -> bool:
    """Lock an open file, unless others hold it."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _take_over(output: Path, key: str) -> None:
    """An output folder that is begun under `key`: what another configuration left would mix with this one's."""
    if output.exists() and working_key(output) != key:
        (output / RECORD).unlink(missing_ok=True)
        shutil.rmtree(output)
    output.mkdir(parents=True, exist_ok=True)
    (output / ".key").write_text(key)


@contextmanager
def working_folder(store: Storage) -> Iterator[Path]:
    """The local folder that a stage works in: the root itself, or a temporary one beside S3."""
    if store.local is not None:
        store.local.mkdir(parents=True, exist_ok=True)
        yield store.local.resolve()  # Great Expectations knows no relative paths
        return
    with tempfile.TemporaryDirectory(prefix="subpixel-") as folder:
        yield Path(folder)


def start_torchrun(stage: Stage, processes: int, argv: Sequence[str] | None) -> NoReturn:
    """Become torchrun, which starts the stage's program in several processes of this machine."""
    console.print(f"[bold]{stage.name}[/bold]: {processes} processes")
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    program = ["-m", f"components.{stage.name}", *(sys.argv[1:] if argv is None else argv)]
    os.execv(sys.executable, [sys.executable, "-m", *launcher, *program])


def torchrun_numbers() -> tuple[int, int, int]:
    """Which of how many processes this is, and which on this machine; (0, 1, 0) without torchrun."""
    rank, world, local = (int(os.environ.get(name, default)) for name, default in TORCHRUN.items())
    return rank, world, local


def gather_input_keys(stage: Stage, store: Storage) -> dict[str, str]:
    """Keys of the runs that made the inputs. Raises `ArtifactError` where one is missing or unfinished."""
    keys: dict[str, str] = {}
    for declared in stage.inputs:
        name, optional = declared.rstrip("?"), declared.endswith("?")
        record = read_record(store, FOLDERS[name])
        if record is not None:
            keys[name] = record["key"]
        elif not optional:
            raise ArtifactError(f"{stage.name}: {store.uri}/{FOLDERS[name]} is missing or unfinished; run {name} first")
    return keys


def fetch(store: Storage, name: str, folder: Path) -> Path:
    """The local folder of an input, copied from S3 where the root is there."""
    if store.local is None:
        store.download(name, folder / name)
    return folder / name


def fetch_share(store: Storage, names: Sequence[str], folder: Path, shard: Shard) -> None:
    """Copy from S3 what a shard reads: the files that each input has for all patches, and its own patches' folders."""
    from sr_core.patches import read_index

    for name in names:
        for file in store.names(FOLDERS[name], deep=False):
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_bytes(store.read(file) or b"")
    if "download" in names:
        for patch in shard.of(read_index(folder / FOLDERS["download"])):
            for name in names:
                place = f"{FOLDERS[name]}/{patch.region}/{patch.id}"
                store.download(place, folder / place)


def fetch_parts(store: Storage, stage: Stage, key: str, output: Path) -> None:
    """Copy from S3 what finished shards of this key have made."""
    place = f"{SHARDS}/{stage.folder}/{key}"
    for name in [name for name in store.names(place) if name.endswith(f"/{SHARD_DONE}")]:
        store.download(name.removesuffix(f"/{SHARD_DONE}"), output)
        (output / SHARD_DONE).unlink()


def read_record(store: Storage, name: str) -> dict[str, Any] | None:
    """The record of the finished stage whose output is the folder `name`, or None."""
    text = store.read(f"{name}/{RECORD}")
    try:
        record: dict[str, Any] | None = None if text is None else json.loads(text)
    except ValueError:
        return None
    return record


def working_key(output: Path) -> str | None:
    """The key under which an unfinished output was begun."""
    try:
        return (output / ".key").read_text()
    except OSError:
        return None


def stage_key(stage: Stage, config: Config, input_keys: Mapping[str, str]) -> str:
    """Digest of all that a stage's result depends on: configuration, inputs, code and outside files."""
    sections = json.loads(config.model_dump_json(include=set(stage.sections)))
    outside = stage.program().fingerprint(config) if stage.depends_on_files else None
    text = json.dumps([stage.name, sections, dict(input_keys), outside, code_digest(stage.name)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@cache
def code_digest(stage: str) -> str:
    """Digest of the sources that a stage runs: sr_core and its own folder."""
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for folder in (Path(sr_core.__file__).parent, here / stage):
        for path in sorted(found for found in folder.rglob("*") if found.suffix in SOURCE_SUFFIXES):
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


@cache
def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {"python": platform.python_version()}
    for name in (
        "subpixel",
        "numpy",
        "torch",
        "rasterio",
        "eo-learn",
        "sentinelhub",
        "zarr",
        "great-expectations",
    ):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@cache
def git_commit() -> str | None:
    """Commit of the checkout the program runs from, or that its image was built from; None where it is not known."""
    if (revision := os.environ.get("SUBPIXEL_REVISION", "unknown")) != "unknown":
        return revision
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def write_executor_output(stage: Stage, message: Mapping[str, Any], root: str, record: Mapping[str, Any]) -> None:
    """Tell Kubeflow where the output is and what it measures.

    Kubeflow's launcher uploads each artifact to a URI of its own and brings it to every pod that takes it as input; it
    fails where an artifact names another URI. So what it gets is small: a page, or a file that says where the stage's
    folder is, as the metadata do (`place`). The stages themselves find it below the root.
    """
    artifacts = {}
    store = storage_for(root)
    for name, listed in message.get("outputs", {}).get("artifacts", {}).items():
        artifact = dict(listed["artifacts"][0])
        shown = record["artifacts"].get(name, {"metadata": {}, "place": None})
        if name == "metrics":
            # what a stage that measures nothing has to say is how much it kept
            artifact["metadata"] = _finite(record["metrics"] or _flat(record["counts"]))
        else:
            place = shown["place"] or stage.folder
            absolute = is_remote(place) or Path(place).is_absolute()
            uri = place if absolute else f"{root.rstrip('/')}/{place}"
            about = {"place": uri, "key": record["key"], "git_commit": record["git_commit"], **_flat(record["counts"])}
            # Kubeflow draws a ClassificationMetrics from all that is in it, and keeps no file of it
            kind = json.dumps(artifact.get("type", {}))
            classified = "ClassificationMetrics" in kind
            artifact["metadata"] = _finite(shown["metadata"] if classified else {**about, **shown["metadata"]})
            if not classified:
                page = store.read(place) if "system.HTML" in kind else None
                _write(mounted(artifact["uri"]), json.dumps({"place": uri}) if page is None else page.decode())
        artifacts[name] = {
            "artifacts": [{k: artifact[k] for k in ("name", "uri", "metadata", "type") if k in artifact}]
        }
    say_to_kubeflow(message, record["outputs"], artifacts)


def mounted(uri: str) -> Path:
    """Where Kubeflow's launcher expects the content of an artifact: s3://bucket/key is /s3/bucket/key in a pod."""
    return Path(re.sub(r"^(s3|minio|gs)://", lambda scheme: f"/{'gcs' if scheme[1] == 'gs' else scheme[1]}/", uri))


def say_to_kubeflow(
    message: Mapping[str, Any], parameters: Mapping[str, Any], artifacts: Mapping[str, Any] | None = None
) -> None:
    """Write the output parameters, each into the file that the message names, and the ExecutorOutput."""
    outputs = message.get("outputs", {})
    for name, place in outputs.get("parameters", {}).items():
        value = parameters[name]
        _write(Path(place["outputFile"]), value if isinstance(value, str) else json.dumps(value))
    _write(Path(outputs["outputFile"]), json.dumps({"artifacts": artifacts or {}, "parameterValues": dict(parameters)}))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)  # kfp's local runners do not
    path.write_text(text, encoding="utf-8")


@contextmanager
def only_run(root: str) -> Iterator[None]:
    """Hold the root for this process, so that two runs do not write into each other."""
    if is_remote(root):
        yield
        return
    try:
        Path(root).mkdir(parents=True, exist_ok=True)
        held = (Path(root) / ".lock").open("w")
    except OSError as error:
        raise StorageError(f"{root}: cannot be written to: {error.strerror}; choose another --out") from None
    with held as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ArtifactError(f"{root}: another run is writing here; wait for it, or choose another --out") from None
        yield


def _flat(counts: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in counts.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}_")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without None and without numbers that JSON has no words for: Kubeflow refuses the whole message otherwise."""
    return {
        name: value
        for name, value in values.items()
        if value is not None and not (isinstance(value, float) and not math.isfinite(value))
    }


def _short(counts: Mapping[str, Any]) -> str:
    return ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in _flat(counts).items()) or "done"


if __name__ == "__main__":
    sys.exit("components.stage is not a stage; run one of: " + ", ".join(FOLDERS))
