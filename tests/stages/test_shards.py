"""Preparation shared out: the same files as in one piece, whoever works at the same time, and after a kill."""

import hashlib
import json
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import geopandas as gpd
import pytest

from components.stage import STAGES, Shard, claimed, fetch_share, main, run, run_shard
from sr_core.config import Config, parse_config
from sr_core.errors import ArtifactError, ConfigError
from sr_core.patches import part_path, read_index
from sr_core.storage import LocalStorage, storage_for
from tests.seaweed import BUCKET, seaweed

PREPARATION = ("download", "cloud_shadow_filter", "normalize", "quality_gate")
SHARDS = tuple(Shard(number, 3) for number in (1, 2, 3))


def farmland(bbox: Sequence[int] = (682240, 6134400, 684160, 6135680)) -> Config:
    """Six small patches, two VHR dates."""
    simulated = {"kind": "simulated", "seed": 7, "vhr_dates": ["2020-06-05", "2020-06-25"], "vhr_cloudy_share": 0.0}
    return parse_config(
        {
            "name": "shards",
            "area": {"region": "farmland", "crs": "EPSG:32634", "bbox": list(bbox)},
            "period": {"start": "2020-05-25", "end": "2020-06-30"},
            "source": simulated | {"truth": False},
            "grid": {"cell_m": 640, "buffer_m": 80},
            "preparation": {"workers": 1},
            "quality_gate": {
                "chip_px": 16,
                "stride_px": 16,
                "frames": 4,
                "min_samples": {"train": 4, "val": 1, "test": 1},
                "split": {"block_m": 640, "val": 0.17, "test": 0.17, "guard_m": 0},
            },
        }
    )


def share_out(stage: str, config: Config, root: str, shard: Shard) -> None:
    run_shard(STAGES[stage], config, root, shard)


@pytest.fixture(scope="module")
def workers() -> Iterator[ProcessPoolExecutor]:
    """Two processes for three shards: two at work at once, the third when one of them is done."""
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The preparation in one piece."""
    root = tmp_path_factory.mktemp("whole")
    for stage in PREPARATION:
        run(STAGES[stage], farmland(), str(root))
    return root


def contents(folder: Path) -> dict[str, str]:
    """Digest of every file but records, which hold times of day, and Data Docs, which do as well."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "run.json" and "data_docs" not in path.parts
    }


def same_results(one: Path, other: Path) -> None:
    """What the stages made, byte for byte; tables row for row."""
    for name in ("normalization", "samples"):
        found, expected = contents(other / name), contents(one / name)
        tables = {file for file in expected if file.endswith(".parquet")}
        assert {f: d for f, d in found.items() if f not in tables} == {
            f: d for f, d in expected.items() if f not in tables
        }
    tables = [gpd.read_parquet(root / "samples" / "samples.parquet") for root in (one, other)]
    assert tables[0].equals(tables[1]) and len(tables[0])
    assert not list(other.rglob("parts"))


def test_shards_in_two_processes_at_once_give_the_same_files(
    whole: Path, workers: ProcessPoolExecutor, tmp_path: Path
) -> None:
    for stage in PREPARATION:
        tasks = [workers.submit(share_out, stage, farmland(), str(tmp_path), shard) for shard in SHARDS]
        for task in tasks:
            task.result()
        assert not (tmp_path / STAGES[stage].folder / "run.json").exists()
        record = run(STAGES[stage], farmland(), str(tmp_path))
        assert record["counts"] == json.loads((whole / STAGES[stage].folder / "run.json").read_text())["counts"]
    same_results(whole, tmp_path)
    # a shard that comes late finds nothing to do
    before = contents(tmp_path / "samples")
    run_shard(STAGES["quality_gate"], farmland(), str(tmp_path), Shard(1, 3))
    assert contents(tmp_path / "samples") == before


def test_the_whole_does_what_shards_have_left(whole: Path, tmp_path: Path) -> None:
    run_shard(STAGES["download"], farmland(), str(tmp_path), Shard(2, 3))
    index = read_index(whole / "patches")
    there = [part_path(tmp_path / "patches", patch, "s2").is_dir() for patch in index]
    assert there == [False, True, False, False, True, False]
    kept = part_path(tmp_path / "patches", index[1], "s2").stat().st_ino
    for stage in PREPARATION:
        run(STAGES[stage], farmland(), str(tmp_path))
    assert part_path(tmp_path / "patches", index[1], "s2").stat().st_ino == kept
    same_results(whole, tmp_path)


def test_shards_that_start_together_remove_another_configurations_output_once(
    workers: ProcessPoolExecutor, tmp_path: Path
) -> None:
    old = tmp_path / "patches" / "elsewhere" / "34N_0_0" / "s2"
    old.mkdir(parents=True)
    (tmp_path / "patches" / ".key").write_text("another")
    (tmp_path / "patches" / "run.json").write_text('{"key": "another", "counts": {}}')
    tasks = [workers.submit(share_out, "download", farmland(), str(tmp_path), shard) for shard in SHARDS]
    for task in tasks:
        task.result()
    assert not old.exists() and not (tmp_path / "patches" / "run.json").exists()
    assert len(list((tmp_path / "patches" / "farmland").glob("*/s2"))) == 6


def test_a_killed_shard_goes_on_where_it_was(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "components.download", "--config", farmland().model_dump_json()]
    shard = subprocess.Popen([*command, "--root", str(tmp_path), "--shard", "1/2"], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (first := list(tmp_path.glob("patches/farmland/*/s2"))) and time.monotonic() < deadline:
        time.sleep(0.02)
    shard.kill()
    shard.wait()
    kept = {path: path.stat().st_ino for path in first}
    assert len(kept) == 1
    run_shard(STAGES["download"], farmland(), str(tmp_path), Shard(1, 2))
    assert {path: path.stat().st_ino for path in kept} == kept
    assert len(list(tmp_path.glob("patches/farmland/*/s2"))) == 3
    assert not list(tmp_path.glob("patches/farmland/*/.*"))


def test_nobody_works_in_a_folder_that_is_taken(tmp_path: Path) -> None:
    download, patches = STAGES["download"], tmp_path / "patches"
    with claimed(patches, download, "key", Shard(1, 2)):
        with claimed(patches, download, "key", Shard(2, 2)):
            pass
        with (
            pytest.raises(ArtifactError, match="shard 1/2 of download is at work already"),
            claimed(patches, download, "key", Shard(1, 2)),
        ):
            pass
        with (
            pytest.raises(ArtifactError, match="shards, or another run of download, are at work here"),
            claimed(patches, download, "key"),
        ):
            pass
    with claimed(patches, download, "key"):
        pass


def test_another_configuration_waits_for_shards_at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.stage.CLAIM_TIMEOUT_S", 0.5)
    patches = tmp_path / "patches"
    with claimed(patches, STAGES["download"], "key", Shard(1, 2)):
        (patches / "half").touch()
        with (
            pytest.raises(ArtifactError, match="or shards of another configuration, are at work here"),
            claimed(patches, STAGES["download"], "other", Shard(2, 2)),
        ):
            pass
        assert (patches / "half").exists()
    with claimed(patches, STAGES["download"], "other", Shard(2, 2)):
        assert not (patches / "half").exists()


@pytest.mark.parametrize("text", ["", "3", "0/3", "4/3", "1/0", "-1/3", "a/b", "1/3/5", "1.5/3"])
def test_wrong_shards_are_refused(text: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"--shard: found .*, expected I/N with I from 1 to N, such as 2/8"):
        Shard.parse(text)
    if text:
        arguments = ["--config", farmland().model_dump_json(), "--root", str(tmp_path), f"--shard={text}"]
        assert main(STAGES["download"], arguments) == 1
        assert f"download: error: --shard: found '{text}'" in capfd.readouterr().err
        assert not list(tmp_path.iterdir())


def test_stages_that_need_all_patches_take_no_shard(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(STAGES["train_hrn"], ["--config", "x.yaml", "--root", str(tmp_path), "--shard", "1/2"])
    assert "unrecognized arguments: --shard" in capfd.readouterr().err


def test_a_shard_comes_from_kubeflow_as_a_parameter(tmp_path: Path) -> None:
    parameters = {"config": farmland().model_dump_json(), "root": str(tmp_path), "shard": "1/6"}
    assert main(STAGES["download"], ["--executor-input", json.dumps({"inputs": {"parameterValues": parameters}})]) == 0
    assert len(list(tmp_path.glob("patches/farmland/*/s2"))) == 1


def test_how_patches_are_shared_out_is_no_part_of_a_key(whole: Path) -> None:
    for preparation in ({"workers": 2}, {"workers": 7, "executor": "ray"}):
        config = parse_config(json.loads(farmland().model_dump_json()) | {"preparation": preparation})
        for stage in PREPARATION:
            kept = json.loads((whole / STAGES[stage].folder / "run.json").read_text())
            assert run(STAGES[stage], config, str(whole)) == kept


def test_shards_of_an_s3_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with seaweed(tmp_path / "seaweed") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        root = f"s3://{BUCKET}/country"
        store = storage_for(root)
        config = farmland(bbox=[682240, 6134400, 683520, 6135040])  # two patches
        for stage in PREPARATION[:3]:
            folder = STAGES[stage].folder
            run_shard(STAGES[stage], config, root, Shard(1, 2))
            parts = list(store.names(f".shards/{folder}"))
            assert {name.split("/")[3] for name in parts} == {"1-of-2"} and store.read(f"{folder}/run.json") is None
            run_shard(STAGES[stage], config, root, Shard(1, 2))  # again: it is there
            assert list(store.names(f".shards/{folder}")) == parts
            run(STAGES[stage], config, root)
            assert list(store.names(".shards")) == []
            run(STAGES[stage], config, str(tmp_path / "whole"))
        assert (
            store.read("normalization/normalization.json")
            == (tmp_path / "whole" / "normalization" / "normalization.json").read_bytes()
        )


def test_a_shard_fetches_what_it_needs(whole: Path, tmp_path: Path) -> None:
    fetch_share(LocalStorage(whole), ["download", "cloud_shadow_filter"], tmp_path, Shard(2, 3))
    index = read_index(whole / "patches")
    for name in ("patches", "masks"):
        assert {path.name for path in (tmp_path / name / "farmland").iterdir()} == {index[1].id, index[4].id}
    assert read_index(tmp_path / "patches") == index
    assert (tmp_path / "masks" / "acquisitions.parquet").is_file()
