"""Real Sentinel-2 from files to browsable products in S3, in one command: the whole Okavango scene, all clear dates."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import rasterio
from rio_cogeo.cogeo import cog_validate

from sr_core.storage import storage_for
from tests.seaweed import BUCKET, seaweed

pytestmark = [pytest.mark.e2e, pytest.mark.realdata, pytest.mark.timeout(1800)]
CONFIG = """
name: okavango
source: {{kind: files, path: {folder}, region: okavango, s2_bands: {{blue: B04, red: B02}}}}
grid: {{cell_m: 3000, buffer_m: 0, anchor: source}}
super_resolve: {{max_age_days: 100}}
"""
AT_MOST_S = 300
"""On two cores that nobody else uses."""


def test_a_folder_of_files_becomes_a_site_in_s3(
    sample_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "s3").mkdir()
    with seaweed(tmp_path / "s3") as s3:
        for name, value in s3.environment.items():
            monkeypatch.setenv(name, value)
        site = f"s3://{BUCKET}/site"
        program = [sys.executable, "-c", "from subpixel.cli import main_program; main_program()", "super-resolve"]
        config = tmp_path / "okavango.yaml"
        config.write_text(CONFIG.format(folder=sample_data / "okavango"), encoding="utf-8")
        options = [config, "--out", tmp_path / "okavango", "--publish", site, "--yes"]
        started = time.monotonic()
        done = subprocess.run([*program, *map(str, options)], env=dict(os.environ), capture_output=True, text=True)
        seconds = time.monotonic() - started
        assert done.returncode == 0, done.stderr
        print(done.stderr, f"{seconds:.0f} s from files to a site")

        storage_for(site).download("", tmp_path / "site")
        (run,) = json.loads((tmp_path / "site" / "catalog.json").read_text())["runs"]
        assert run["simulated"] is False and run["products"] >= 15
        assert all(line.startswith("Contains modified Copernicus Sentinel data 201") for line in run["attribution"])
        products = tmp_path / "site" / run["path"] / "products"
        index = json.loads((products / "products.json").read_text())
        assert len(index["products"]) == run["products"]
        for entry in index["products"]:
            for layer in entry["layers"]:
                valid, problems, _ = cog_validate(products / entry["path"] / f"{layer}.tif")
                assert valid, problems
            with rasterio.open(products / entry["path"] / "sr.tif") as image:
                assert (image.res, image.shape) == ((2.5, 2.5), (1200, 1200))
        assert seconds <= AT_MOST_S
