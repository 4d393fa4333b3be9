"""The super_resolve stage on a few patches of simulated farmland."""

import json
import shutil
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
import rasterio
import torch
import yaml

from components.cloud_shadow_filter.main import STAGE as MASK
from components.download.main import STAGE as DOWNLOAD
from components.stage import run
from components.super_resolve.main import STAGE
from sr_core.config import Config, parse_config
from sr_core.errors import DataError
from sr_core.models.bundle import SHIPPED, load_bundle, save_bundle
from sr_core.models.highresnet import HighResNet
from sr_core.patches import load_part, part_path, read_index, save_part
from sr_core.series import load_s2
from tests.stages.tiny import TINY


def config(**super_resolve: Any) -> Config:
    raw = yaml.safe_load(TINY)
    raw["area"]["bbox"] = [682240, 6134400, 683520, 6135040]  # two cells
    del raw["source"]["vhr_dates"]
    raw["super_resolve"] = {"window_px": 40, "precision": "float32", **super_resolve}
    return parse_config(raw)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = HighResNet(channels=8, residual_blocks=1)
    torch.nn.init.normal_(network.project.weight, std=0.005)
    folder = tmp_path_factory.mktemp("bundle")
    lineage = {"key": "0123abcd", "gsd_m": 40.0}
    save_bundle(folder, network, {"frames": 4, "normalization": {}, "lineage": lineage, "scores": {}})
    return folder


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inputs")
    run(DOWNLOAD, config(), str(root))
    run(MASK, config(), str(root))
    return root


@pytest.fixture
def root(inputs: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(inputs, tmp_path / "run"))


def test_every_clear_date_becomes_a_product(root: Path, bundle: Path) -> None:
    record = run(STAGE, config(bundle=bundle), str(root))
    products = root / "products"
    index = json.loads((products / "products.json").read_text())
    assert record["counts"]["products"] == len(index["products"]) >= 3
    assert 0 < record["metrics"]["valid_share"] <= 1
    assert index["simulated"] is True
    assert index["model"]["trained_gsd_m"] == 40.0
    collection = pystac.Collection.from_file(str(products / "collection.json"))
    assert {item.id for item in collection.get_items()} == {entry["id"] for entry in index["products"]}

    patches = read_index(root / "patches")
    assert len(patches) == 2
    for entry in index["products"]:
        with rasterio.open(products / entry["path"] / "sr.tif") as sr:
            assert sr.bounds == (682240, 6134400, 683520, 6135040)
            assert "Simulated data" in sr.tags()["attribution"]
            assert "Copernicus" not in str(sr.tags())
            image = sr.read()
        assert np.mean(image[0] > 0) == pytest.approx(entry["valid_share"], abs=1e-3) or entry["patches"] == 1
    # where the latest frame is clear, the product is that frame, sharpened: their means over the cell agree
    entry = max(index["products"], key=lambda entry: entry["valid_share"])
    series = load_s2(root / "patches", root / "masks", patches[0])
    when = next(t for t in series.timestamps if f"{t:%Y%m%dT%H%M%S}" in entry["path"])
    latest = series.bands[series.timestamps.index(when)][patches[0].cell_window()]
    with rasterio.open(products / entry["path"] / "sr.tif") as sr:
        found = sr.read(window=rasterio.windows.from_bounds(*patches[0].cell, sr.transform)).astype(float)
    np.testing.assert_allclose(found.mean(axis=(1, 2)), latest.mean(axis=(0, 1)), rtol=0.1)


def test_it_goes_on_where_it_was_stopped(root: Path, bundle: Path) -> None:
    settings = config(bundle=bundle, max_dates=2)
    first = run(STAGE, settings, str(root))
    assert run(STAGE, settings, str(root)) == first

    products = root / "products"
    folders = sorted(path.parent for path in products.rglob("item.json"))
    assert len(folders) == 2
    before = {path: path.read_bytes() for folder in folders for path in folder.iterdir()}
    kept = (folders[0] / "sr.tif").stat().st_mtime_ns
    # as after a SIGKILL in the second date
    (products / "run.json").unlink()
    folders[1].rename(folders[1].with_name(f".{folders[1].name}"))

    record = run(STAGE, settings, str(root))
    assert record["counts"] == {**first["counts"], "of_them_kept": 1}
    assert (folders[0] / "sr.tif").stat().st_mtime_ns == kept
    assert {path: path.read_bytes() for folder in folders for path in folder.iterdir()} == before
    assert sorted(path.name for path in folders[1].parent.iterdir()) == [folder.name for folder in folders]


def test_killed_again_and_again_it_makes_the_same_files(root: Path, bundle: Path, tmp_path: Path) -> None:
    settings = config(bundle=bundle, max_dates=1, window_px=16, threads=1)
    whole = Path(shutil.copytree(root, tmp_path / "whole"))
    products = root / "products"

    def windows() -> set[Path]:
        return set(products.glob("farmland/.*.windows/[0-9]*/tally.json"))

    def dates_begun() -> bool:
        return any(path.parent.name.startswith(".") for path in products.glob("farmland/.*/sr.tif"))

    processes = get_context("forkserver")
    processes.set_forkserver_preload(["components.super_resolve.main"])
    finished: set[Path] = set()
    for far_enough in (lambda: len(windows()) >= 3, lambda: len(windows()) >= 20, dates_begun):
        process = processes.Process(target=run, args=(STAGE, settings, str(root)))
        process.start()
        deadline = time.monotonic() + 60
        while process.is_alive() and not far_enough() and time.monotonic() < deadline:
            time.sleep(0.002)
        assert process.is_alive()
        process.kill()
        process.join()
        assert not (products / "run.json").exists()
        assert windows() > finished  # work goes on; nothing that was finished is lost
        unchanged = {path: path.stat().st_mtime_ns for path in finished}
        finished = windows()
    assert len(finished) == 4 * 8
    assert all(path.stat().st_mtime_ns == when for path, when in unchanged.items())  # nor done again

    run(STAGE, settings, str(root))
    run(STAGE, settings, str(whole))
    assert not [path for path in products.rglob(".*") if path.name != ".key"]
    assert contents(products) == contents(whole / "products")


def contents(products: Path) -> dict[str, bytes]:
    files = [path for path in products.rglob("*") if path.is_file() and path.name != "run.json"]
    return {path.relative_to(products).as_posix(): path.read_bytes() for path in files}


def test_the_run_s_own_model_is_used(root: Path, bundle: Path) -> None:
    shutil.copytree(bundle, root / "model")
    (root / "model" / "run.json").write_text(json.dumps({"key": "k", "counts": {}}))
    record = run(STAGE, config(max_dates=1), str(root))
    assert set(record["inputs"]) == {"download", "cloud_shadow_filter", "train_hrn"}
    assert record["counts"]["products"] == 1


def test_another_bundle_makes_other_products(root: Path, bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    first = run(STAGE, config(bundle=copy, max_dates=1), str(root))
    resolver = load_bundle(copy)
    torch.nn.init.normal_(resolver.model.project.weight, std=0.01)
    described = {name: resolver.description[name] for name in ("frames", "normalization", "scores")}
    save_bundle(copy, resolver.model, {**described, "lineage": {}})
    second = run(STAGE, config(bundle=copy, max_dates=1), str(root))
    assert first["key"] != second["key"]
    model = json.loads((root / "products" / "products.json").read_text())["model"]
    assert model["trained_gsd_m"] is None
    assert model["bundle_key"] != "0123abcd"


def test_without_a_model_of_the_run_the_shipped_bundle_is_used(root: Path) -> None:
    record = run(STAGE, config(max_dates=1), str(root))
    assert record["counts"]["products"] == 1
    model = json.loads((root / "products" / "products.json").read_text())["model"]
    assert model["bundle_key"] == load_bundle(SHIPPED).description["lineage"]["key"]
    assert model["trained_gsd_m"] == 10.0


def test_dates_that_are_not_clear_are_named(root: Path, bundle: Path) -> None:
    with pytest.raises(DataError, match=r"super_resolve\.dates: 2020-05-02: .*; clear dates are 2020-0"):
        run(STAGE, config(bundle=bundle, dates=["2020-05-02"]), str(root))
    cloud_everything(root)
    with pytest.raises(DataError, match=r"no date of any patch is clear"):
        run(STAGE, config(bundle=bundle), str(root))


def cloud_everything(root: Path) -> None:
    for patch in read_index(root / "patches"):
        path = part_path(root / "masks", patch, "s2")
        part = load_part(path)
        part.mask["CLEAR"] = np.zeros_like(part.mask["CLEAR"])
        save_part(part, path)
