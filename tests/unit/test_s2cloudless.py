"""Clouds by the s2cloudless classifier itself, and which mask a Sentinel-2 series gets."""

import datetime as dt

import numpy as np
import pytest
from eolearn.core import EOPatch
from s2cloudless.utils import MODEL_BAND_IDS

from components.cloud_shadow_filter.main import mask_s2
from sr_core.config import CloudShadowFilter
from sr_core.errors import DataError
from sr_core.masks.s2cloudless import S2CLOUDLESS_BANDS, s2cloudless_mask
from sr_core.patches import make_patch

PATCH = make_patch("r", 32634, (500_000, 6_000_000, 500_940, 6_000_940), 0)
DAYS = [dt.datetime(2020, 6, day, 10) for day in (1, 6, 11, 16)]
SHAPE = (94, 94)
IN_CLOUD = np.s_[18:36, 18:36]
IN_SHADOW = np.s_[14:40, 60:78]
# top-of-atmosphere reflectance in the order of S2CLOUDLESS_BANDS
GREEN = np.array([0.13, 0.10, 0.06, 0.11, 0.35, 0.37, 0.12, 0.002, 0.20, 0.10])
SOIL = np.array([0.15, 0.14, 0.19, 0.22, 0.28, 0.30, 0.10, 0.003, 0.35, 0.28])
CLOUD = np.array([0.55, 0.53, 0.53, 0.55, 0.60, 0.60, 0.35, 0.030, 0.45, 0.38])


def cells(dates: int = 4) -> np.ndarray:
    """(T, 16, 16, 10) at 60 m: crops in the north, soil in the south; a cloud on the third date."""
    bands = np.tile(GREEN, (dates, 16, 16, 1))
    bands[:, 10:] = SOIL
    bands[2, 2:7, 2:7] = CLOUD
    noise = np.random.default_rng(0).normal(0, 20, bands.shape)
    return (bands * 10_000 + noise).clip(1).astype(np.uint16)


def series(**masks: np.ndarray) -> EOPatch:
    """Four dates of the same ground at 10 m, with the shadow of the cloud beside it."""
    eopatch = EOPatch(bbox=PATCH.bbox, timestamps=DAYS)
    bands = cells()[..., [1, 1, 2, 4]].repeat(6, axis=1).repeat(6, axis=2)[:, :94, :94]
    bands[2, 12:42, 58:80] = (0.4 * bands[2, 12:42, 58:80]).astype(np.uint16)
    eopatch.data["BANDS"], eopatch.data["CLOUD_BANDS"] = bands, cells()
    eopatch.mask["VALID"] = np.ones((*bands.shape[:3], 1), bool)
    for name, value in {"product_ids": list("abcd"), "level": "L1C", "patch_id": PATCH.id}.items():
        eopatch.meta_info[name] = value
    for name, mask in masks.items():
        eopatch.mask[name] = mask[..., None]
    return eopatch


def clear_of(eopatch: EOPatch) -> np.ndarray:
    return eopatch.mask["CLEAR"][..., 0]


def test_a_cloud_is_found_where_it_is() -> None:
    clouds, judged = s2cloudless_mask(cells(), SHAPE)
    assert clouds.shape == (4, *SHAPE) and judged.all()
    assert clouds[2][IN_CLOUD].all() and not clouds[2, 60:].any() and not clouds[2, :, 60:].any()
    assert not clouds[[0, 1, 3]].any()


def test_cells_without_data_are_judged_by_the_nearest() -> None:
    bands = cells()
    bands[2, 4:6, 4:6], bands[3] = 0, 0
    clouds, judged = s2cloudless_mask(bands, SHAPE)
    assert clouds[2][IN_CLOUD].all() and not clouds[3].any()
    assert judged.tolist() == [True, True, True, False]


def test_the_bands_are_those_that_the_classifier_reads() -> None:
    all_bands = [f"B{number:02d}" for number in range(1, 9)] + ["B8A", "B09", "B10", "B11", "B12"]
    assert tuple(all_bands[index] for index in MODEL_BAND_IDS) == S2CLOUDLESS_BANDS


def test_auto_takes_the_best_there_is() -> None:
    part = mask_s2(CloudShadowFilter(dilate_px=0), series())
    assert part.meta_info["mask_source"] == "s2cloudless"
    assert not clear_of(part)[2][IN_CLOUD].any(), "the cloud"
    assert clear_of(part)[2][IN_SHADOW].mean() < 0.05, "its shadow, which s2cloudless does not know"
    assert clear_of(part)[[0, 1, 3]].all()

    without = series(CLM=np.zeros((4, *SHAPE), bool))
    del without.data["CLOUD_BANDS"]
    without.meta_info["mask_kind"] = "scl"
    part = mask_s2(CloudShadowFilter(), without)
    assert part.meta_info["mask_source"] == "scl" and clear_of(part).all()
    del without.mask["CLM"]
    assert mask_s2(CloudShadowFilter(), without).meta_info["mask_source"] == "4-band"


def test_a_mask_that_is_named_is_taken() -> None:
    clm = np.zeros((4, *SHAPE), bool)
    clm[1, :10] = True
    eopatch = series(CLM=clm)
    eopatch.meta_info["mask_kind"] = "clm"
    part = mask_s2(CloudShadowFilter(s2_mask="source", dilate_px=0), eopatch)
    assert part.meta_info["mask_source"] == "clm" and not clear_of(part)[1, :10].any()
    assert mask_s2(CloudShadowFilter(s2_mask="4-band"), eopatch).meta_info["mask_source"] == "4-band"
    assert mask_s2(CloudShadowFilter(s2_mask="s2cloudless"), eopatch).meta_info["mask_source"] == "s2cloudless"


def test_dates_without_its_bands_are_judged_by_four() -> None:
    eopatch = series()
    eopatch.data["CLOUD_BANDS"][2] = 0
    part = mask_s2(CloudShadowFilter(dilate_px=0), eopatch)
    assert clear_of(part)[2][IN_CLOUD].mean() < 0.1 and clear_of(part)[[0, 1, 3]].all()


@pytest.mark.parametrize("name, expected", [("s2cloudless", "B01, B02"), ("source", "neither SCL nor CLM")])
def test_a_mask_that_cannot_be_had(name: str, expected: str) -> None:
    eopatch = series()
    del eopatch.data["CLOUD_BANDS"]
    with pytest.raises(DataError, match=f"{PATCH.id}.*s2_mask is '{name}'.*{expected}"):
        mask_s2(CloudShadowFilter(s2_mask=name), eopatch)
