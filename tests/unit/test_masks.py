"""Clouds and shadows in Sentinel-2 and VHR, and the rule of neighbours."""

import datetime as dt
from pathlib import Path

import numpy as np
import pytest

from sr_core.config import FilesSource
from sr_core.coregistration import Registration
from sr_core.errors import ArtifactError
from sr_core.masks.acquisitions import Acquisition, read_acquisitions, write_acquisitions
from sr_core.masks.morphology import closing, dilate, erode, opening
from sr_core.masks.s2_clouds import cloud_mask
from sr_core.masks.shadows import shadowed_patches
from sr_core.masks.vhr_clouds import vhr_cloud_mask
from sr_core.patches import make_patch
from sr_core.sources.files import FileSeries
from tests.unit.geotiffs import field

SIDE = 64
CLOUD = np.s_[10:30, 10:34]
SHADOW = np.s_[30:50, 20:44]


def farmland(dates: int = 6) -> np.ndarray:
    """(T, 64, 64, 4) reflectance of unchanging fields, with noise of its own on each date."""
    rng = np.random.default_rng(1)
    ground = field(SIDE).transpose(1, 2, 0) / 10_000
    return (ground + rng.normal(0, 0.002, (dates, SIDE, SIDE, 4))).astype(np.float32)


def everywhere(series: np.ndarray) -> np.ndarray:
    return np.ones(series.shape[:3], bool)


def test_clear_fields_are_clear() -> None:
    series = farmland()
    assert not cloud_mask(series, everywhere(series)).any()


def test_a_cloud_and_its_shadow() -> None:
    series = farmland()
    series[2][CLOUD] = 0.5
    series[2][SHADOW] *= 0.45
    mask = cloud_mask(series, everywhere(series))
    assert mask[2][CLOUD].mean() > 0.97 and mask[2][SHADOW].mean() > 0.9
    assert mask[2].mean() < 0.3
    assert not np.delete(mask, 2, axis=0).any()


def test_harvest_and_growth_are_not_cloud() -> None:
    series = farmland(8)
    soil, green = np.array([0.09, 0.12, 0.17, 0.25]), np.array([0.03, 0.06, 0.03, 0.45])
    series[3:, :32] = soil
    series[3:, 32:] = green
    assert cloud_mask(series, everywhere(series)).mean() < 0.01


def test_bright_sand_is_not_cloud() -> None:
    series = farmland()
    series[:, 10:30, 10:30] = (0.30, 0.28, 0.27, 0.40)
    assert not cloud_mask(series, everywhere(series)).any()


def test_thin_haze_stays_clear() -> None:
    series = farmland()
    series[3] += np.array([0.008, 0.006, 0.005, 0.003], np.float32)
    assert not cloud_mask(series, everywhere(series)).any()


def test_a_hazed_frame_is_flagged_whole() -> None:
    series = farmland()
    series[3] = 0.5 * series[3] + np.array([0.06, 0.06, 0.06, 0.15], np.float32)
    mask = cloud_mask(series, everywhere(series))
    assert mask[3].all() and not np.delete(mask, 3, axis=0).any()


@pytest.mark.parametrize("dates", [1, 4])
def test_only_cloudy_dates(dates: int) -> None:
    series = farmland(dates) + np.float32(0.5)
    assert cloud_mask(series, everywhere(series)).all()


def test_pixels_without_data_are_not_judged() -> None:
    series, valid = farmland(), np.ones((6, SIDE, SIDE), bool)
    valid[:, :20], valid[4] = False, False
    series[~valid] = 0
    assert not cloud_mask(series, valid).any()


@pytest.mark.realdata
def test_okavango_against_the_known_dates(sample_data: Path) -> None:
    named = {"blue": "B04", "red": "B02"}  # by the files
    source = FileSeries(FilesSource(kind="files", path=sample_data / "okavango", s2_bands=named))
    (region,) = source.regions()
    eopatch = source.s2(make_patch("okavango", region.epsg, region.bounds, 0), None)
    mask = cloud_mask(eopatch.data["BANDS"].astype(np.float32) / 10_000, eopatch.mask["VALID"][..., 0])
    flagged = {f"{time:%m-%d}": share for time, share in zip(eopatch.get_timestamps(), mask.mean((1, 2)), strict=True)}
    clear = "04-01 04-11 04-21 05-01 05-11 05-21 05-31 06-10 06-20 06-30 07-10 07-20 08-09 08-19 08-29"
    assert {day for day, share in flagged.items() if share < 0.02} == set(clear.split())
    assert all(flagged[day] > 0.99 for day in ("12-12", "01-01", "01-11", "02-20"))
    assert flagged["02-10"] > 0.99 and flagged["07-30"] > 0.4  # haze; the cloud filter drops what has more than a tenth
    assert 0.06 < flagged["12-22"] < 0.3 and 0.25 < flagged["03-02"] < 0.9
    # thin cloud between thick ones, four fifths of the scene with their shadows: then all of it is flagged
    assert all(flagged[day] > 0.8 for day in ("03-12", "03-22"))


@pytest.mark.realdata
def test_belgium_against_scl(sample_data: Path) -> None:
    """Agreement, not equality: SCL itself calls several hazy dates clear."""
    source = FileSeries(FilesSource(kind="files", path=sample_data / "belgium"))
    for region in source.regions():
        eopatch = source.s2(make_patch(region.name, region.epsg, region.bounds, 0), None)
        mask = cloud_mask(eopatch.data["BANDS"].astype(np.float32) / 10_000, eopatch.mask["VALID"][..., 0])
        scl = eopatch.mask["CLM"][..., 0]
        assert (mask == scl).mean() > 0.83
        assert mask[scl].mean() > 0.88


def test_morphology() -> None:
    mask = np.zeros((40, 40), bool)
    mask[20, 20] = True
    assert dilate(mask, 2).sum() == 13 and not opening(mask, 1).any()
    assert not dilate(np.zeros((4, 4), bool), 3).any() and erode(np.ones((4, 4), bool), 3).all()
    mask[:, :18], mask[:, 21:] = True, True
    assert closing(mask, 2).all()


def test_vhr_clouds_are_larger_than_roofs() -> None:
    blue = np.full((1, 120, 120), 60, np.float32)
    blue[0, 20:60, 20:60] = 150
    blue[0, 90:98, 90:98] = 150  # a roof of 20 m
    valid = np.ones(blue.shape, bool)
    mask = vhr_cloud_mask(blue, valid, 100.0, 0)
    assert mask[0, 25:55, 25:55].all() and not mask[0, 80:, 80:].any()
    assert vhr_cloud_mask(blue, valid, 100.0, 8)[0, 14, 40]
    assert not vhr_cloud_mask(blue, valid, 200.0, 8).any()


def test_shadows_come_from_touching_patches_of_the_same_time() -> None:
    def patch(column: int, epsg: int = 32631):
        return make_patch("r", epsg, (column * 2000.0, 0.0, column * 2000.0 + 2000, 2000.0), 200)

    monday, tuesday = dt.datetime(2020, 6, 1, 10), dt.datetime(2020, 6, 2, 10)
    cover = {
        patch(0): {monday: 0.5},
        patch(1): {monday: 0.0, tuesday: 0.0},
        patch(2): {monday: 0.0},
        patch(1, 32632): {monday: 0.0},
    }
    assert shadowed_patches(cover, 0.1) == {(patch(1), monday)}
    assert shadowed_patches(cover, 0.6) == set()


def test_table_of_acquisitions(tmp_path: Path) -> None:
    place = ("vhr", dt.datetime(2020, 6, 1, 10), "t", 0.2, 1.0)
    row = Acquisition("r", "p", *place, False, False, "cloud").registered(Registration(1.5, -2.0, 0.8, 0.3))
    write_acquisitions(tmp_path, [row, Acquisition("r", "p", *place, False, True, "")])
    table = read_acquisitions(tmp_path)
    assert table.to_dict("records")[0] == vars(row)
    assert np.isnan(table.shift_rows_m[1]) and table.kept.tolist() == [False, True]
    with pytest.raises(ArtifactError, match="run cloud_shadow_filter first"):
        read_acquisitions(tmp_path / "elsewhere")
