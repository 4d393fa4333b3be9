"""download, cloud_shadow_filter and normalize on a small folder of GeoTIFFs."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from components.cloud_shadow_filter.main import STAGE as MASKS
from components.download.main import STAGE as DOWNLOAD
from components.normalize.main import STAGE as NORMALIZE
from components.stage import run
from sr_core.config import Config, parse_config
from sr_core.errors import AreaError, DataError, SourceError
from sr_core.masks.acquisitions import read_acquisitions
from sr_core.patches import load_part, part_path, read_index
from sr_core.radiometry.normalize import read_normalization
from sr_core.series import load_s2, load_vhr
from tests.unit.geotiffs import NORTH_WEST, field, product, write_product, write_tiff

DAYS = ("20170401", "20170411", "20170421", "20170501")
WEST, NORTH = NORTH_WEST


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Four dates of 640 m, the second cloudy, and VHR of two days, cloudy in one corner of the first."""
    for day in DAYS:
        write_product(tmp_path / "s2", product(day), field(cloudy=day == DAYS[1]))
    for day, west in (("20170415", 0), ("20170428", 320)):
        vhr = (field(256) / 30).astype(np.uint16)
        vhr[:, :60, west // 10 : west // 10 + 60] = 200
        write_tiff(tmp_path / "vhr" / f"tile_{day}.tif", vhr, gsd=2.5)
    return configured(tmp_path)


def configured(folder: Path, **sections: object) -> Config:
    source = {"kind": "files", "path": str(folder / "s2"), "region": "plain"}
    if (folder / "vhr").is_dir():
        source["vhr_path"] = str(folder / "vhr")
        source["vhr_radiance_per_dn"] = 1
    raw = {"name": "small", "source": source, "grid": {"cell_m": 320, "buffer_m": 0}, "preparation": {"workers": 1}}
    raw["cloud_shadow_filter"] = {"shadows": "neighbours"}  # its clouds cast none that could be seen
    return parse_config(raw | sections)


def test_the_three_stages(config: Config, tmp_path: Path) -> None:
    root = tmp_path / "out"
    counts = [run(stage, config, str(root))["counts"] for stage in (DOWNLOAD, MASKS, NORMALIZE)]
    assert counts[0]["patches"] == 4 and counts[0]["s2_acquisitions"] == 16 and counts[0]["vhr_acquisitions"] == 8
    assert counts[1]["s2"] == {"acquisitions": 16, "kept": 12, "cloud": 4}
    assert counts[1]["vhr"]["cloud"] >= 1 and counts[1]["vhr"]["shadow"] >= 1

    patches = read_index(root / "patches")
    assert [patch.region for patch in patches] == ["plain"] * 4
    series = load_s2(root / "patches", root / "masks", patches[0])
    assert series.bands.shape == (4, 32, 32, 4) and [day.all() for day in series.clear] == [True, False, True, True]
    assert np.array_equal(series.bands[0], field().transpose(1, 2, 0)[:32, :32])
    vhr = load_vhr(root / "patches", root / "masks", patches[0])
    assert vhr is not None and vhr.tile_ids == ["tile_20170415", "tile_20170428"] and not vhr.clear[0].all()

    table = read_acquisitions(root / "masks")
    assert len(table) == 24 and set(table.sensor) == {"s2", "vhr"}
    assert set(table[table.shadowed].reason) <= {"cloud", "shadow"}
    blue = read_normalization(root / "normalization").s2["plain"]["blue"]
    assert blue.median == pytest.approx(np.median(field()[0]) / 10_000)
    assert blue.n_pixels == 3 * 64 * 64


def test_finished_stages_are_kept(config: Config, tmp_path: Path) -> None:
    first = [run(stage, config, str(tmp_path / "out")) for stage in (DOWNLOAD, MASKS, NORMALIZE)]
    assert [run(stage, config, str(tmp_path / "out")) for stage in (DOWNLOAD, MASKS, NORMALIZE)] == first
    write_product(tmp_path / "s2", product("20170511"), field())
    assert run(DOWNLOAD, config, str(tmp_path / "out"))["counts"]["s2_acquisitions"] == 20


def test_more_workers_give_the_same(config: Config, tmp_path: Path) -> None:
    for workers in (1, 2):
        done = config.model_copy(update={"preparation": config.preparation.model_copy(update={"workers": workers})})
        run(DOWNLOAD, done, str(tmp_path / str(workers)))
    one, two = (read_index(tmp_path / name / "patches") for name in ("1", "2"))
    assert one == two
    for patch in one:
        first, second = (load_part(part_path(tmp_path / n / "patches", patch, "s2")) for n in ("1", "2"))
        assert first == second


def test_a_killed_patch_is_done_again(config: Config, tmp_path: Path) -> None:
    run(DOWNLOAD, config, str(tmp_path / "out"))
    images = tmp_path / "out" / "patches"
    first, second = read_index(images)[:2]
    whole = sorted(path.relative_to(images) for path in images.rglob("*.npy*"))
    kept = (images / "plain" / first.id / "s2").stat().st_ino
    (images / "run.json").unlink()
    (images / "patches.json").unlink()
    folder = images / "plain" / second.id
    shutil.move(folder / "s2", folder / ".s2.4711")  # killed while writing
    run(DOWNLOAD, config, str(tmp_path / "out"))
    assert sorted(path.relative_to(images) for path in images.rglob("*.npy*")) == whole
    assert (images / "plain" / first.id / "s2").stat().st_ino == kept


def test_an_error_leaves_no_finished_artifact(config: Config, tmp_path: Path) -> None:
    path = next((tmp_path / "s2").rglob("*20170421*_b04.tif"))
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 3000)
    for workers in (1, 2):
        failing = config.model_copy(update={"preparation": config.preparation.model_copy(update={"workers": workers})})
        with pytest.raises(SourceError, match=r"_b04\.tif.*truncated"):
            run(DOWNLOAD, failing, str(tmp_path / "out"))
        assert not (tmp_path / "out" / "patches" / "run.json").exists()
        assert not (tmp_path / "out" / "patches" / "patches.json").exists()


def test_only_cloudy_dates(tmp_path: Path) -> None:
    for day in DAYS:
        write_product(tmp_path / "s2", product(day), field(cloudy=True))
    run(DOWNLOAD, configured(tmp_path), str(tmp_path / "out"))
    with pytest.raises(DataError, match=r"only cloudy dates: none of 16 .* acquisitions"):
        run(MASKS, configured(tmp_path), str(tmp_path / "out"))
    assert not (tmp_path / "out" / "masks" / "run.json").exists()


def test_all_nodata(tmp_path: Path) -> None:
    write_product(tmp_path / "s2", product(DAYS[0]), field() * 0)
    with pytest.raises(DataError, match="all pixels of all dates of all 4 patches are nodata"):
        run(DOWNLOAD, configured(tmp_path), str(tmp_path / "out"))


def test_patches_without_data_are_left_out(tmp_path: Path) -> None:
    image = field()
    image[:, :32, :32] = 0
    write_product(tmp_path / "s2", product(DAYS[0]), image)
    counts = run(DOWNLOAD, configured(tmp_path), str(tmp_path / "out"))["counts"]
    assert counts["patches"] == 3 and counts["left_out"]["nodata"] == 1


def test_area_elsewhere(config: Config, tmp_path: Path) -> None:
    area = {"bbox": [WEST + 50_000, NORTH, WEST + 50_300, NORTH + 300], "crs": "EPSG:32631"}
    with pytest.raises(AreaError, match="lies on the ground that the source covers"):
        run(DOWNLOAD, configured(tmp_path, area=area), str(tmp_path / "out"))


def test_area_inside(config: Config, tmp_path: Path) -> None:
    area = {"bbox": [WEST + 10, NORTH - 300, WEST + 300, NORTH - 10], "crs": "EPSG:32631", "region": "corner"}
    grid = {"cell_m": 320, "buffer_m": 0, "anchor": "source"}
    run(DOWNLOAD, configured(tmp_path, area=area, grid=grid), str(tmp_path / "out"))
    (patch,) = read_index(tmp_path / "out" / "patches")
    assert patch.bounds == (WEST, NORTH - 320, WEST + 320, NORTH) and patch.region == "corner"


def test_too_few_clear_pixels(config: Config, tmp_path: Path) -> None:
    strict = configured(tmp_path, normalize={"min_pixels": 10**6})
    for stage in (DOWNLOAD, MASKS):
        run(stage, strict, str(tmp_path / "out"))
    with pytest.raises(DataError, match=r"found at most 12288 clear Sentinel-2 pixels"):
        run(NORMALIZE, strict, str(tmp_path / "out"))


def test_record_tells_the_source_apart(config: Config, tmp_path: Path) -> None:
    run(DOWNLOAD, config, str(tmp_path / "out"))
    record = json.loads((tmp_path / "out" / "patches" / "run.json").read_text())
    assert set(record["parameters"]) == {"area", "period", "source", "grid"}
