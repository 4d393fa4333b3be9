"""`subpixel super-resolve AREA`: from an area, a period and a source to products, and to a site in S3."""

import datetime as dt
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
import yaml
from typer.testing import CliRunner

from sr_core.config import Config
from sr_core.errors import AreaError, ConfigError, DataError
from sr_core.models.bundle import save_bundle
from sr_core.models.highresnet import HighResNet
from sr_core.patches import area_outline, plan_patches
from sr_core.storage import storage_for
from subpixel.area import Request, configure, look_ahead, tile_area
from subpixel.cli import app
from tests.seaweed import BUCKET, S3Server, seaweed
from tests.stages.tiny import TINY

BOX = "22.0,50.0,22.1,50.1"
MAY, JUNE = dt.date(2024, 5, 1), dt.date(2024, 6, 30)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with seaweed(tmp_path_factory.mktemp("seaweed")) as running:
        yield running


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network, which is quick and not trained."""
    torch.manual_seed(0)
    network = HighResNet(channels=8, residual_blocks=1)
    torch.nn.init.normal_(network.project.weight, std=0.005)
    folder = tmp_path_factory.mktemp("bundle")
    save_bundle(folder, network, {"frames": 4, "normalization": {}, "lineage": {"key": "01"}, "scores": {}})
    return folder


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """Two cells of simulated ground; its period is that of the images."""
    raw = yaml.safe_load(TINY)
    raw["area"]["bbox"] = [682240, 6134400, 683520, 6135040]
    raw["period"] = {"start": "2020-06-10", "end": "2020-06-30"}
    raw["source"] = {"kind": "simulated", "seed": 7, "truth": False}
    raw["super_resolve"] = {"window_px": 48, "precision": "float32", "max_age_days": 20, "max_dates": 2}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def asked(**options: object) -> Config:
    request: dict[str, object] = {"bbox": BOX, "start": MAY, "end": JUNE, **options}
    return configure(Request(**request), {})  # type: ignore[arg-type]


# what is asked for


def test_options_become_a_configuration_with_room_for_earlier_frames() -> None:
    config = asked()
    assert config.areas[0].bbox == (22.0, 50.0, 22.1, 50.1)
    assert config.period is not None
    assert (config.period.start, config.period.end) == (MAY - dt.timedelta(days=60), JUNE)
    assert config.super_resolve.since == MAY
    assert (config.source.kind, config.name) == ("stac", "area")


def test_single_days_need_the_frames_before_the_first() -> None:
    days = (dt.date(2024, 6, 20), dt.date(2024, 6, 5))
    config = asked(start=None, end=None, dates=days)
    assert config.super_resolve.dates == tuple(sorted(days)) and config.super_resolve.since is None
    assert config.period is not None
    assert (config.period.start, config.period.end) == (dt.date(2024, 4, 6), dt.date(2024, 6, 20))


def test_options_replace_what_a_configuration_says(tiny: Path, bundle: Path) -> None:
    config = configure(Request(config=tiny, bbox=BOX, start=dt.date(2020, 6, 20), bundle=bundle), {})
    assert config.name == "tiny" and config.source.kind == "simulated" and config.grid.cell_m == 640
    assert config.areas[0].bbox == (22.0, 50.0, 22.1, 50.1)
    assert config.super_resolve.since == dt.date(2020, 6, 20)
    assert config.period is not None and config.period.start == dt.date(2020, 5, 31)  # 20 days, as it says
    assert config.super_resolve.bundle == bundle and config.super_resolve.window_px == 48


@pytest.mark.parametrize(
    ("name", "epsg", "west", "north"),
    [
        # the corner where the Okavango files of the sample data begin, which are cut from this tile
        ("34kgd", 32734, 699960, 7900000),
        ("T31UES", 32631, 499980, 5700000),
        ("32TNS", 32632, 499980, 5200020),
    ],
)
def test_a_tile_is_the_ground_of_its_products(name: str, epsg: int, west: float, north: float) -> None:
    area = tile_area(name)
    assert area["crs"] == f"EPSG:{epsg}"
    assert area["bbox"] == [west, north - 109_800, west + 109_800, north]


def test_patches_cover_a_tile() -> None:
    config = asked(bbox=None, tile="T31UES")
    assert config.name == config.areas[0].region == "t31ues"
    cells = np.array([patch.cell for patch in plan_patches(config.areas[0], config.grid)])
    assert cells[:, 0].min() <= 499980 and cells[:, 3].max() >= 5700000 and len(cells) == 56 * 55


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tile": "32TNR"}, r"found --bbox, --tile; expected one of them"),
        ({"bbox": "22,50,23"}, r"--bbox: found '22,50,23'; expected W,S,E,N in degrees"),
        ({"bbox": "23,50,22,51"}, r"west, south, east, north; found \[23\.0, 50\.0, 22\.0, 51\.0\], which is empty"),
        ({"bbox": None, "tile": "32TIR"}, r"--tile: found '32TIR'; expected a Sentinel-2 tile.*such as 32TNR"),
        ({"bbox": None, "tile": "32TNZ"}, r"--tile: found '32TNZ'"),
        ({"bbox": None}, r"the area: missing; give --area, --bbox or --tile"),
        ({"end": None}, r"the period: give --start and --end, or each day by --date"),
        ({"dates": (MAY,)}, r"--date: found with --start or --end"),
        ({"start": JUNE, "end": MAY}, r"start 2024-06-30 lies after end 2024-05-01"),
        ({"source": "nowhere"}, r"--source: found 'nowhere'; expected earth-search, cdse, .* or a folder"),
        ({"bbox": None, "places": ("x",)}, r"--place: found the source stac, expected a folder"),
    ],
)
def test_what_cannot_be_meant_is_said(options: dict[str, object], said: str) -> None:
    with pytest.raises((ConfigError, AreaError), match=said):
        asked(**options)


def test_sources_by_name_address_or_folder(tmp_path: Path) -> None:
    copernicus = asked(source="cdse").source
    assert copernicus.kind == "stac" and copernicus.catalog == "copernicus"
    assert copernicus.collection == "sentinel-2-l2a"
    assert asked(source="https://stac.example.org/v1").source.catalog == "https://stac.example.org/v1"
    assert asked(source="sentinelhub").source.kind == "sentinelhub"
    folder = asked(source=str(tmp_path)).source
    assert folder.kind == "files" and folder.path == tmp_path


def polygon(west: float, south: float) -> dict[str, object]:
    corners = [(west, south), (west + 0.01, south), (west + 0.01, south + 0.01), (west, south)]
    return {"type": "Polygon", "coordinates": [corners]}


def test_all_polygons_of_a_file_are_the_area(tmp_path: Path) -> None:
    path = tmp_path / "My Fields.geojson"
    features = [{"type": "Feature", "properties": {}, "geometry": polygon(west, 50.0)} for west in (22.0, 22.5)]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    config = asked(bbox=None, area=path)
    assert config.name == config.areas[0].region == "my-fields"
    assert area_outline(config.areas[0]).bounds == pytest.approx((22.0, 50.0, 22.51, 50.01))
    path.write_text(json.dumps(polygon(22.0, 50.0)))
    assert area_outline(config.areas[0]).bounds == pytest.approx((22.0, 50.0, 22.01, 50.01))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"type": "FeatureCollection", "features": []}, "found no feature; expected polygons"),
        ({"type": "Point", "coordinates": [22, 50]}, "found Point; expected polygons"),
        ({"type": "Polygon", "coordinates": []}, "found an empty polygon; expected polygons"),
        ({"name": "x"}, "expected a polygon as GeoJSON"),
        ([1], "expected a polygon as GeoJSON"),
    ],
)
def test_a_file_without_ground_is_refused(content: object, said: str, tmp_path: Path) -> None:
    path = tmp_path / "area.geojson"
    path.write_text(json.dumps(content))
    with pytest.raises(AreaError, match=rf"area\.geojson: {said}"):
        look_ahead(asked(bbox=None, area=path, source="simulated"))


# what is made


def images(products: Path) -> dict[str, np.ndarray]:
    """Pixels by region and date."""
    found = {}
    for path in sorted(products.glob("*/*/sr.tif")):
        with rasterio.open(path) as dataset:
            found[path.parent.relative_to(products).as_posix()] = dataset.read()
    return found


def test_one_command_from_an_area_to_a_site_in_s3(
    tiny: Path, bundle: Path, server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    run, site = f"s3://{BUCKET}/runs/tiny", f"s3://{BUCKET}/site"
    command = ["super-resolve", str(tiny), "--bundle", str(bundle), "--out", run, "--publish", site, "--yes"]
    said = CliRunner().invoke(app, command)
    assert said.exit_code == 0, said.output

    storage_for(run).download("products", tmp_path / "products")
    storage_for(site).download("", tmp_path / "site")
    made = images(tmp_path / "products")
    assert made and all(key.split("/")[1][:8] >= "20200610" for key in made)
    published = images(tmp_path / "site" / "runs" / "tiny" / "products")
    assert list(published) == list(made)
    assert all(np.array_equal(published[key], made[key]) for key in made)
    assert (tmp_path / "site" / "index.html").is_file()
    (entry,) = json.loads((tmp_path / "site" / "catalog.json").read_text())["runs"]
    assert (entry["name"], entry["products"], entry["report"]) == ("tiny", len(made), "report.html")
    # the first image has frames from before the period
    first = json.loads((tmp_path / "products" / min(made) / "item.json").read_text())
    assert first["properties"]["subpixel:frames"] > 1

    again = CliRunner().invoke(app, command)
    assert again.exit_code == 0 and all(f"{stage}: kept" in again.output for stage in ("download", "super_resolve"))


@pytest.mark.e2e
def test_a_killed_run_goes_on_and_leaves_the_same_files(tiny: Path, bundle: Path, tmp_path: Path) -> None:
    def command(out: Path) -> list[str]:
        program = "from subpixel.cli import main_program; main_program()"
        options = ["super-resolve", str(tiny), "--bundle", str(bundle), "--out", str(out), "--yes"]
        return [sys.executable, "-c", program, *options]

    quiet = {**os.environ, "OMP_NUM_THREADS": "1"}
    for awaited in ("patches/*/*/s2", "products/*/*/item.json"):
        process = subprocess.Popen(command(tmp_path / "killed"), env=quiet, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not any((tmp_path / "killed").glob(awaited)):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "killed" / "products" / "products.json").exists()
    for out in ("killed", "whole"):
        subprocess.run(command(tmp_path / out), env=quiet, check=True, capture_output=True)

    def files(root: Path) -> dict[str, bytes]:
        return {
            path.relative_to(root).as_posix(): path.read_bytes()
            for path in (root / "products").rglob("*")
            if path.is_file() and path.name != "run.json" and not path.name.startswith(".")
        }

    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_a_period_without_a_clear_date_is_said(tiny: Path, bundle: Path, tmp_path: Path) -> None:
    # passes are on 24 and 29 June
    days = ["--start", "2020-06-26", "--end", "2020-06-27"]
    options = ["super-resolve", str(tiny), *days, "--bundle", str(bundle), "--out", str(tmp_path / "run"), "--yes"]
    done = CliRunner().invoke(app, options)
    assert isinstance(done.exception, DataError)
    assert "no date of any patch since 2020-06-26 is clear" in str(done.exception)


@pytest.mark.parametrize(
    "options", [["--root", "x"], ["tiny.yaml", "--root", "x", "--bbox", BOX], ["--bbox", BOX, "--start", "yesterday"]]
)
def test_options_that_do_not_go_together_are_refused(options: list[str]) -> None:
    assert CliRunner().invoke(app, ["super-resolve", *options]).exit_code == 2


# a folder of real Sentinel-2


@pytest.mark.realdata
def test_the_scene_of_a_folder_is_one_patch_on_its_own_grid(sample_data: Path) -> None:
    config = configure(Request(source=str(sample_data / "okavango")), {})
    assert (config.name, config.period, config.grid.cell_m, config.grid.buffer_m) == ("okavango", None, 3000, 0)
    found = look_ahead(config)
    assert (found.patches, found.outside, found.km2) == (1, 0, 9.0)
    assert found.a_date.megapixels == pytest.approx(1.44)
    named = configure(Request(source=str(sample_data / "okavango"), places=("okavango",)), {})
    assert named.areas[0].crs == "EPSG:32734" and look_ahead(named).patches == 1
    with pytest.raises(AreaError, match="--place: found delta; the source has okavango"):
        configure(Request(source=str(sample_data / "okavango"), places=("delta",)), {})


@pytest.mark.realdata
def test_ground_outside_the_source_is_left_out_and_counted(sample_data: Path) -> None:
    folder = str(sample_data / "okavango")
    with rasterio.open(next((sample_data / "okavango").rglob("*.tif"))) as dataset:
        west, south, east, north = rasterio.warp.transform_bounds(dataset.crs, "EPSG:4326", *dataset.bounds)
    half = f"{(west + east) / 2},{south},{east + (east - west) / 2},{north}"
    found = look_ahead(configure(Request(source=folder, bbox=half), {}))
    assert found.patches > 0 and found.outside > 0
    with pytest.raises(AreaError, match=r"none of its \d+ patches .* lies on the ground that the source covers"):
        look_ahead(configure(Request(source=folder, bbox="22.0,-10.0,22.1,-9.9"), {}))
