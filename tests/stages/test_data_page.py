"""docs/data.md: it names every key, and its example runs."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
from click.testing import CliRunner as ClickRunner
from rasterio.rio.main import main_group as rio
from typer.testing import CliRunner

from components.stage import STAGES
from sr_core.config import Config, FilesSource, Preparation, Section, SentinelHubSource, SimulatedSource, StacSource
from sr_core.masks.acquisitions import read_acquisitions
from sr_core.patches import load_part, part_path, read_index
from subpixel.cli import app
from tests.conftest import REPOSITORY
from tests.unit.geotiffs import NORTH_WEST, product, write_tiff
from tests.unit.safe_products import write_safe, zipped

PAGE = REPOSITORY / "docs" / "data.md"
STAGES_OF_PAGE = ("download", "cloud_shadow_filter", "normalize", "quality_gate")
SOURCES = (SimulatedSource, FilesSource, SentinelHubSource, StacSource)


def keys_of(section: type[Section]) -> set[str]:
    """Keys of a section and of those inside it."""
    found = set()
    for key, field in section.model_fields.items():
        parts = (field.annotation, *getattr(field.annotation, "__args__", ()))
        inner = [part for part in parts if isinstance(part, type) and issubclass(part, Section)]
        found |= {key}.union(*(keys_of(part) for part in inner))
    return found


def sections_of_page() -> list[type[Section]]:
    names = {section for stage in STAGES_OF_PAGE for section in STAGES[stage].sections} - {"source"}
    annotations = [Config.model_fields[name].annotation for name in sorted(names)]
    parts = [part for each in annotations for part in (each, *getattr(each, "__args__", ()))]
    return [*SOURCES, Preparation, *(part for part in parts if isinstance(part, type) and issubclass(part, Section))]


@pytest.mark.parametrize("section", sections_of_page(), ids=lambda section: section.__name__)
def test_every_key_has_its_reason(section: type[Section]) -> None:
    text = PAGE.read_text(encoding="utf-8")
    fenced = re.findall(r"^```\w*\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    inline = re.findall(r"`([^`]+)`", re.sub(r"^```\w*\n.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE))
    words = set(re.findall(r"[a-z][a-z0-9_]+", " ".join(fenced + inline)))
    assert keys_of(section) - words == set()


def test_its_links_lead_somewhere() -> None:
    text = PAGE.read_text(encoding="utf-8")
    anchors = {re.sub(r"[^a-z0-9 -]", "", line.lower()).replace(" ", "-")
               for line in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}  # fmt: skip
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        file, _, anchor = target.partition("#")
        assert (PAGE.parent / file).exists() if file else anchor in anchors, target


# --- the worked example --------------------------------------------------------------------------------------------


def example(language: str) -> list[str]:
    """Fenced blocks of the worked example."""
    text = PAGE.read_text(encoding="utf-8")
    section = text[text.index("### A worked example") : text.index("### When it does not work")]
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    return [block for name, block in blocks if name == language]


def acme(folder: Path) -> None:
    """What the vendor delivers: fields of 60 to 160 m at 1 m, and Sentinel-2 L1C of the same ground."""
    rng = np.random.default_rng(5)
    edges = [np.cumsum(rng.integers(60, 160, 20)) for _ in range(2)]
    plots = np.add.outer(np.searchsorted(edges[0], np.arange(1280)) * 31, np.searchsorted(edges[1], np.arange(1280)))
    colours = rng.uniform([0.05, 0.06, 0.05, 0.2], [0.10, 0.13, 0.16, 0.45], (int(plots.max()) + 1, 4))
    ground = np.moveaxis(colours[plots], -1, 0) * rng.normal(1, 0.02, (1, 1280, 1280))  # reflectance, B G R NIR
    at_10_m = np.rint(ground.reshape(4, 128, 10, 128, 10).mean(axis=(2, 4)) * 10_000)
    for day in ("20170321", "20170326", "20170401", "20170406", "20170411"):
        noisy = np.clip(at_10_m + rng.normal(0, 10, at_10_m.shape), 1, 65535).astype(np.uint16)
        bands = dict(zip(("B02", "B03", "B04", "B08"), noisy, strict=True))
        safe = write_safe(folder / "acme" / "s2", product(day), bands, NORTH_WEST)
        zipped(safe)
        shutil.rmtree(safe)
    irradiance, factor = np.array([1950, 1830, 1550, 1050]), np.array([0.16, 0.15, 0.13, 0.09])
    radiance = ground * (irradiance * np.sin(np.radians(50)) / np.pi)[:, None, None]
    counts = np.rint(radiance / factor[:, None, None]).astype(np.uint16)
    write_tiff(folder / "acme" / "vhr" / "ACME1_20170415T083000.tif", counts[[2, 1, 0, 3]], gsd=1.0)


def test_the_worked_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A newcomer's folder, the page's configuration and the page's commands, to samples that the gate passes."""
    monkeypatch.chdir(tmp_path)
    acme(tmp_path)
    (configuration,) = example("yaml")
    (tmp_path / "acme.yaml").write_text(configuration)
    listing, *commands = example("")
    for name in re.findall(r"^(acme/\S+)", listing, re.MULTILINE):
        assert (tmp_path / name).is_file()
    lines = [line for block in commands for line in block.splitlines()]
    assert len(lines) == 5
    for line in lines:
        program, *words = shlex.split(line)
        if program == ".venv/bin/rio":
            told = json.loads(ClickRunner().invoke(rio, words).stdout)
            assert (told["count"], told["dtype"], told["res"]) == (4, "uint16", [1.0, 1.0])
            assert told["descriptions"] == [None] * 4
            continue
        assert program == ".venv/bin/subpixel"
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output

    root = tmp_path / "artifacts" / "acme"
    table = read_acquisitions(root / "masks")
    vhr = table[table.sensor == "vhr"]
    assert len(vhr) == 4 and vhr.kept.all()
    assert vhr[["shift_rows_m", "shift_columns_m"]].abs().max().max() < 1.0
    statistics = json.loads((root / "normalization" / "normalization.json").read_text())["vhr"]
    assert 20 < statistics["ACME1_20170415T083000"]["blue"]["median"] < 100
    samples = json.loads((root / "samples" / "run.json").read_text())
    assert samples["outputs"]["verdict"] == "pass" and samples["counts"]["kept"] == 16

    (patch, *_) = read_index(root / "patches")
    blue = load_part(part_path(root / "patches", patch, "vhr")).data["BANDS"][0, ..., 0] / 100
    west, north = NORTH_WEST
    with rasterio.open(tmp_path / "acme" / "vhr" / "ACME1_20170415T083000.tif") as dataset:
        top, left = int(north - patch.bounds[3]), int(patch.bounds[0] - west)
        counts = dataset.read(3)[top : top + 640, left : left + 640] * 0.16
    by_hand = counts.repeat(2, 0).repeat(2, 1).reshape(256, 5, 256, 5).mean(axis=(1, 3))
    assert np.abs(blue - by_hand).max() < 0.006
