"""The delineate stage on three small patches of a Voronoi landscape, the last of them test ground."""

import datetime as dt
import json
import shutil

import geopandas as gpd
import numpy as np
import pytest
import torch

from components.delineate.main import STAGE
from components.stage import run
from sr_core.config import parse_config
from sr_core.delineation.network import load_delineator
from sr_core.errors import ArtifactError
from sr_core.models.bundle import save_bundle
from sr_core.models.highresnet import HighResNet
from sr_core.patches import EOPatch, make_patch, part_path, save_part, write_index
from tests import landscape

CELL, BUFFER = 640.0, 80.0
WEST, NORTH = landscape.WEST, landscape.NORTH
TEST_BOX = (WEST + 2 * CELL + BUFFER, NORTH - BUFFER - CELL, WEST + 3 * CELL + BUFFER, NORTH - BUFFER)
CONFIG = {
    "name": "fields",
    "source": {"kind": "files", "path": "."},
    "quality_gate": {"frames": 3, "min_frames": 1, "split": {"test_boxes": [TEST_BOX]}},
    "delineate": {"channels": 4, "steps": 6, "batch_size": 2, "tile_px": 64, "dates": 2, "threads": 1},
}


def make_inputs(root, with_parcels=True):
    """What the stages before have left: patches, masks, samples and a model that has learned nothing."""
    side = 3 * CELL + 2 * BUFFER
    fields = landscape.parcels(side, 450, seed=1)
    days = [dt.datetime(2020, 5, day, 10) for day in (1, 11, 21)]
    frames = [landscape.sentinel2(landscape.render(fields, side, seed=day.day), seed=day.day) for day in days]
    series = np.stack([np.moveaxis(np.rint(frame * 1e4).astype(np.uint16), 0, -1) for frame in frames])
    patches = []
    for column in range(3):
        west, north = WEST + column * CELL + BUFFER, NORTH - BUFFER
        patch = make_patch("farmland", landscape.EPSG, (west, north - CELL, west + CELL, north), BUFFER)
        window = (slice(0, 80), slice(column * 64, column * 64 + 80))
        clear = np.ones((3, 80, 80, 1), bool)
        clear[1, :40] = False
        s2 = EOPatch(bbox=patch.bbox, timestamps=days)
        s2.data["BANDS"] = series[:, *window]
        s2.meta_info["product_ids"] = [f"S2_{day:%Y%m%d}" for day in days]
        save_part(s2, part_path(root / "patches", patch, "s2"))
        masks = EOPatch(bbox=patch.bbox, timestamps=days)
        masks.mask["CLEAR"] = clear
        save_part(masks, part_path(root / "masks", patch, "s2"))
        if with_parcels:
            reference = EOPatch(bbox=patch.bbox)
            reference.vector_timeless["PARCELS"] = fields[fields.intersects(patch.bbox.geometry)].reset_index(drop=True)
            save_part(reference, part_path(root / "patches", patch, "reference"))
        patches.append(patch)
    write_index(root / "patches", patches)
    torch.manual_seed(0)
    statistics = {band: {"mean": 0.1, "std": 0.05} for band in ("blue", "green", "red", "nir")}
    meta = {"frames": 3, "normalization": {"farmland": statistics}, "lineage": {}, "scores": {}}
    save_bundle(root / "model", HighResNet(channels=8, residual_blocks=1), meta)
    for folder in ("patches", "masks", "samples", "model"):
        (root / folder).mkdir(exist_ok=True)
        (root / folder / "run.json").write_text(json.dumps({"key": folder}))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("delineate")
    make_inputs(root)
    record = run(STAGE, parse_config(CONFIG), str(root))
    return root / "delineation", record


def test_metrics_hold_every_score_of_every_arm(finished):
    output, record = finished
    found = json.loads((output / "metrics.json").read_text())
    assert set(found) == {"raster", "vector", "pixels"}
    for arm in ("bicubic", "sr"):
        assert set(found["raster"][arm]) == {"extent_mcc", "boundary_mcc", "distance_mcc"}
        assert set(found["vector"][arm]) == {
            "over_segmentation",
            "under_segmentation",
            "border_error",
            "border_error_2_5m",
            "border_error_5m",
            "n_references",
        }
        assert 25 < found["vector"][arm]["n_references"] < 75
    assert record["metrics"]["sr_boundary_mcc"] == found["raster"]["sr"]["boundary_mcc"]


def test_polygons_lie_on_test_ground_in_utm(finished):
    output, _ = finished
    west, south, east, north = TEST_BOX
    for arm in ("bicubic", "sr"):
        parcels = gpd.read_parquet(output / f"{arm}.parquet")
        assert parcels.crs.to_epsg() == landscape.EPSG
        assert {"area_m2", "perimeter_m", "confidence"} <= set(parcels.columns)
        assert parcels.geometry.centroid.x.between(west, east).all()
        assert parcels.geometry.centroid.y.between(south, north).all()


def test_gallery_lists_pictures_that_exist(finished):
    output, _ = finished
    shown = json.loads((output / "gallery" / "gallery.json").read_text())
    assert [item["arm"] for item in shown] == ["bicubic", "sr"]
    assert all((output / "gallery" / item["file"]).stat().st_size > 1000 for item in shown)


def test_each_arm_leaves_its_network(finished):
    output, _ = finished
    assert sorted(path.name for path in (output / "networks").iterdir()) == ["bicubic", "sr"]
    network = load_delineator(output / "networks" / "bicubic")
    assert network.upscale == 1 and network.std.min() > 0.001
    assert json.loads((output / "networks" / "sr" / "network.json").read_text())["lineage"]["arm"] == "sr"


def test_without_the_arm_sr_no_model_is_needed(tmp_path):
    make_inputs(tmp_path)
    shutil.rmtree(tmp_path / "model")
    only = CONFIG | {"delineate": CONFIG["delineate"] | {"arms": ["bicubic"], "steps": 2}}
    run(STAGE, parse_config(only), str(tmp_path))
    load_delineator(tmp_path / "delineation" / "networks" / "bicubic")
    with pytest.raises(ArtifactError, match=r"the arm `sr` of delineate\.arms needs; run train_hrn first"):
        run(STAGE, parse_config(CONFIG), str(tmp_path))


def test_nothing_of_the_work_stays(finished):
    output, _ = finished
    assert sorted(path.name for path in output.iterdir() if path.name != ".key") == [
        "bicubic.parquet",
        "gallery",
        "metrics.json",
        "networks",
        "run.json",
        "sr.parquet",
    ]


def test_stopped_between_arms_it_continues_to_the_same_metrics(finished, tmp_path, monkeypatch):
    output, _ = finished
    make_inputs(tmp_path)
    from sr_core.delineation import experiment

    trained = experiment.train

    def stop_at_second_arm(network, scenes, settings, checkpoint, label):
        if label.endswith("sr"):
            raise KeyboardInterrupt
        return trained(network, scenes, settings, checkpoint, label)

    monkeypatch.setattr(experiment, "train", stop_at_second_arm)
    with pytest.raises(KeyboardInterrupt):
        run(STAGE, parse_config(CONFIG), str(tmp_path))
    assert not (tmp_path / "delineation" / "metrics.json").exists()
    monkeypatch.setattr(experiment, "train", trained)
    run(STAGE, parse_config(CONFIG), str(tmp_path))
    assert (tmp_path / "delineation" / "metrics.json").read_text() == (output / "metrics.json").read_text()


def test_without_reference_parcels_it_says_so_and_writes_no_metrics(tmp_path):
    make_inputs(tmp_path, with_parcels=False)
    record = run(STAGE, parse_config(CONFIG), str(tmp_path))
    assert record["skipped"] == "no reference parcels in this source"
    assert not (tmp_path / "delineation" / "metrics.json").exists()
