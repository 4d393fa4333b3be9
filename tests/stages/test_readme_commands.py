"""The README's commands for one's own field, exactly as they are written there, against servers of this machine."""

import datetime as dt
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
import yaml
from numpy.typing import NDArray

from components.download.main import STAGE as DOWNLOAD
from components.stage import run
from sr_core.config import load_config, parse_config
from sr_core.patches import Patch, load_part, part_path, plan_patches, read_index
from tests.conftest import REPOSITORY
from tests.servers.sentinel_hub import CLIENT_ID, CLIENT_SECRET, Item, Raster
from tests.servers.sentinel_hub import serve as serve_sentinel_hub
from tests.servers.stac import Fault, serve, write_catalogue, write_item
from tests.unit.geotiffs import BANDS, field, write_product

DAYS = [dt.date(2024, 5, 3) + dt.timedelta(days=10 * number) for number in range(8)]
CLOUDY = DAYS[3]


def commands(section: str, example: str) -> list[str]:
    """The code block of a section of the README that uses an example."""
    text = (
        (REPOSITORY / "README.md").read_text(encoding="utf-8").partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    )
    blocks = [block for block in re.findall(r"```\n(.*?)```", text, re.DOTALL) if example in block]
    assert len(blocks) == 1, f"README, {section}: found {len(blocks)} blocks with {example}"
    return [line for line in blocks[0].splitlines() if line]


def checkout(folder: Path) -> Path:
    """A folder that looks like a checkout in which `make` has set up the environment."""
    (folder / ".venv").mkdir()
    (folder / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    (folder / "examples").symlink_to(REPOSITORY / "examples")
    return folder


def run_as_written(lines: list[str], folder: Path, **environment: str) -> str:
    """Run lines in one shell. Returns what they said."""
    quiet = {"OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    done = subprocess.run(
        ["bash", "-e", "-c", "\n".join(lines)],
        cwd=folder,
        env={**os.environ, **quiet, **environment},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def field_patches() -> list[Patch]:
    config = load_config(REPOSITORY / "examples" / "my-field.yaml", {})
    return plan_patches(config.areas[0], config.grid)


def place() -> tuple[tuple[float, float], int]:
    """North-west corner (metres) and side (10 m pixels) of ground that holds all patches of the example."""
    bounds = np.array([patch.bounds for patch in field_patches()])
    west, north = bounds[:, 0].min() - 40, bounds[:, 3].max() + 40
    side = max(bounds[:, 2].max() - west, north - bounds[:, 1].min())
    return (west, north), int(-(-side // 160) * 16)


def scene(day: dt.date, side: int) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """Bands (4, side, side) without any offset, and SCL at 20 m."""
    image = field(side, seed=1) + np.random.default_rng(day.toordinal()).integers(0, 30, (4, side, side))
    image += 5000 * (day == CLOUDY)
    return image.astype(np.uint16), np.full((side // 2, side // 2), 9 if day == CLOUDY else 4, np.uint8)


@pytest.fixture(scope="module")
def products(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Eight dates over the example's field, one of them clouded: GeoTIFFs, and a catalogue whose pixels keep the offset
    of 1000 on the first five dates, but which says so of the first six."""
    files, stac = tmp_path_factory.mktemp("files"), tmp_path_factory.mktemp("stac")
    (west, north), side = place()
    epsg = field_patches()[0].epsg
    items = []
    for number, day in enumerate(DAYS):
        image, scl = scene(day, side)
        name = f"S2B_MSIL2A_{day:%Y%m%d}T104619_N0510_R051_T31UES_{day:%Y%m%d}T120000"
        # the files have lost the offset, and a name without a baseline does not contradict that
        write_product(files, name.replace("_N0510", ""), image, epsg=epsg, origin=(west, north))
        kept = 1000 if number < 5 else 0
        items.append(
            write_item(
                stac,
                f"S2B_T31UES_{day:%Y%m%d}_L2A",
                (image + kept).astype(np.uint16),
                scl,
                epsg,
                (west, north),
                when=dt.datetime(day.year, day.month, day.day, 10, 50, tzinfo=dt.UTC),
                properties={
                    "s2:processing_baseline": "05.10",
                    "s2:product_uri": f"{name}.SAFE",
                    "earthsearch:boa_offset_applied": number > 5,
                },
                raster={"offset": -0.1},
            )
        )
    write_catalogue(stac, items)
    return files, stac


def test_the_download_stage_brings_the_pixels_of_the_files(products: tuple[Path, Path], tmp_path: Path) -> None:
    files, stac = products
    example = yaml.safe_load((REPOSITORY / "examples" / "my-field.yaml").read_text())
    example["area"]["geojson"] = str(REPOSITORY / "examples" / "my-field.geojson")
    with serve(stac) as server:
        server.faults += [Fault("500", "blue.tif", 3), Fault("truncate", "nir.tif", 3), Fault("429", "/api/search", 1)]
        for name, source in (
            ("files", {"kind": "files", "path": str(files)}),
            ("stac", {"kind": "stac", "catalog": server.api}),
        ):
            run(DOWNLOAD, parse_config({**example, "source": source}), str(tmp_path / name))
        assert not [fault for fault in server.faults if fault.times], "a fault has not happened"
    patches = read_index(tmp_path / "stac" / "patches")
    assert patches == read_index(tmp_path / "files" / "patches") == field_patches()
    for patch in patches:
        found, expected = (load_part(part_path(tmp_path / name / "patches", patch, "s2")) for name in ("stac", "files"))
        assert found.get_timestamps() == expected.get_timestamps()
        np.testing.assert_array_equal(found.data["BANDS"], expected.data["BANDS"])
        np.testing.assert_array_equal(found.mask["VALID"], expected.mask["VALID"])
        assert found.mask["CLM"].all(axis=(1, 2, 3)).tolist() == [day == CLOUDY for day in DAYS]


def test_ones_own_field_without_an_account(products: tuple[Path, Path], tmp_path: Path) -> None:
    with serve(products[1]) as server:
        said = run_as_written(
            commands("Your own field", "examples/my-field.yaml"), checkout(tmp_path), SUBPIXEL_STAC=server.api
        )
    assert "the pixels are believed" in said
    assert_products(tmp_path / "artifacts" / "my-field" / "products")


def test_ones_own_field_from_sentinel_hub(tmp_path: Path) -> None:
    (west, north), side = place()
    items = []
    for day in DAYS[-4:]:
        image, scl = scene(day, side)
        rasters = {band: Raster(layer, 10.0, (west, north)) for band, layer in zip(BANDS, image, strict=True)}
        rasters["SCL"] = Raster(scl, 20.0, (west, north))
        name = f"S2B_MSIL2A_{day:%Y%m%d}T104619_N0300_R051_T31UES_{day:%Y%m%d}T120000"
        items.append(
            Item(name, dt.datetime(day.year, day.month, day.day, 10, 50), field_patches()[0].epsg, rasters, 5.0)
        )
    export, *lines = commands("Your own field", "examples/sentinel-hub.yaml")
    assert export.startswith("export SH_CLIENT_ID=")
    with serve_sentinel_hub({"sentinel-2-l2a": items}) as server:
        said = run_as_written(
            lines,
            checkout(tmp_path),
            SH_CLIENT_ID=CLIENT_ID,
            SH_CLIENT_SECRET=CLIENT_SECRET,
            SUBPIXEL_SENTINEL_HUB_URL=server.url,
            SUBPIXEL_SENTINEL_HUB_TOKEN_URL=server.token_url,
        )
    assert "processing units" in said
    assert CLIENT_SECRET not in said
    assert_products(tmp_path / "artifacts" / "sentinel-hub" / "products")


def assert_products(made: Path) -> None:
    """The latest three dates at 2.5 m, each with its attribution."""
    index = json.loads((made / "products.json").read_text())
    assert [entry["datetime"][:10] for entry in index["products"]] == [str(day) for day in DAYS[-3:]]
    for image in made.glob("*/*/sr.tif"):
        with rasterio.open(image) as dataset:
            assert dataset.res == (2.5, 2.5)
            assert "Contains modified Copernicus Sentinel data 2024" in str(dataset.tags())
