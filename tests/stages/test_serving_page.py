"""docs/serving.md: its curl commands, as they are written, against `subpixel serve` and an S3 server."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio

from serving.local import find_java
from tests.conftest import REPOSITORY
from tests.seaweed import BUCKET, seaweed
from tests.served import serving, write_archive, write_bundle

PAGE = REPOSITORY / "docs" / "serving.md"
SAMPLES = REPOSITORY / "examples" / "requests"
ADDRESS = "http://127.0.0.1:8080"


def curl_commands() -> list[str]:
    """The page's shell block, command by command."""
    (block,) = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert f"SERVER={ADDRESS}\n" in block
    return [part for part in block.split("\n\n") if "curl" in part]


def test_the_curl_commands_work_as_written(tmp_path: Path) -> None:
    if find_java() is None:
        pytest.skip("java not found: TorchServe cannot run")
    (tmp_path / "examples").symlink_to(REPOSITORY / "examples")
    archive = write_archive(write_bundle(tmp_path / "bundle"), tmp_path / "archive", name="subpixel")
    with seaweed(tmp_path / "weed") as s3:
        for path in SAMPLES.glob("*.tif"):
            s3.client().upload_file(str(path), BUCKET, f"frames/{path.name}")
        with serving(archive, "--allow", f"s3://{BUCKET}", **s3.environment) as server:
            said = [run(command, server.url, tmp_path) for command in curl_commands()]
        bodies = {
            name: s3.client().get_object(Bucket=BUCKET, Key=f"made/sample/{name}.tif")["Body"].read()
            for name in ("sr", "consistency")
        }

    latest = SAMPLES / "20240714.tif"
    with rasterio.open(tmp_path / "sr.tif") as made, rasterio.open(latest) as frame:
        image, whole = made.read(), frame.bounds
        assert made.res == (2.5, 2.5) and np.allclose(made.bounds, whole)
    with np.load(tmp_path / "answer.npz") as answer:
        np.testing.assert_array_equal(answer["sr"], image)
        assert answer["uncertainty"].shape == image.shape and answer["consistency"].shape == (4, 48, 48)
    answer = json.loads(said[-1])
    assert answer["keys"]["sr"] == f"s3://{BUCKET}/made/sample/sr.tif"
    with rasterio.MemoryFile(bodies["sr"]) as memory, memory.open() as stored:
        assert stored.shape == (128, 160)
        west, north = whole.left + 80, whole.top - 80
        assert np.allclose(stored.bounds, (west, north - 320, west + 400, north))
        assert "Contains modified Copernicus Sentinel data 2024" in str(stored.tags())


def run(command: str, server: str, folder: Path) -> str:
    lines = f"SERVER={ADDRESS}\n{command}" if "SERVER=" not in command else command
    done = subprocess.run(
        ["bash", "-e", "-c", lines.replace(ADDRESS, server)],
        cwd=folder,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, command + done.stdout + done.stderr
    return done.stdout


def test_the_page_names_what_is_there() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert "://" in link or (PAGE.parent / link).exists(), link
    for module in re.findall(r"`((?:serving|tests|examples)/[\w/.-]+)`", text):
        assert (REPOSITORY / module).exists(), module
    for limit in re.findall(r"`(max_request_size)`", text):
        assert limit in (REPOSITORY / "serving" / "config.properties").read_text()
