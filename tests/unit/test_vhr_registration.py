"""VHR against Sentinel-2: displacements found, judged and removed."""

import datetime as dt

import numpy as np
import pytest
from scipy.ndimage import shift as move

from sr_core.config import SimulatedSource
from sr_core.coregistration import UNKNOWN, Registration, pair_shifts, solve
from sr_core.patches import make_patch
from sr_core.samples.align import align_vhr
from sr_core.series import S2Series, VHRSeries
from sr_core.sources.simulated import SimulatedFarmland
from sr_core.vhr_registration import register_vhr
from tests.landscape import parcels, render, sentinel2

SIDE_M = 640.0
PATCH = make_patch("plain", 32634, (500_000, 5_999_360, 500_640, 6_000_000), 0)
DAYS = [dt.datetime(2020, 6, day, 10, 30) for day in (1, 6, 11)]
AT = dt.datetime(2020, 6, 9, 12, 30)


@pytest.fixture(scope="module")
def land() -> np.ndarray:
    """(4, 256, 256) reflectance at 2.5 m."""
    return render(parcels(SIDE_M, 30, 3), SIDE_M, 4)


def frames_of(land: np.ndarray, clear: np.ndarray | None = None) -> S2Series:
    bands = np.stack([np.moveaxis(sentinel2(land, seed), 0, -1) * 10_000 for seed in range(3)]).astype(np.uint16)
    clear = np.ones(bands.shape[:3], bool) if clear is None else clear
    return S2Series(PATCH, bands, clear, DAYS, ["p"] * 3, np.zeros((3, 2), np.float32))


def vhr_of(land: np.ndarray, rows_m: float, columns_m: float) -> np.ndarray:
    """(1, 256, 256, 4) radiance x 100, whose pixel at p shows the ground at p + shift."""
    moved = np.stack([move(band, (-rows_m / 2.5, -columns_m / 2.5), order=3, mode="nearest") for band in land], -1)
    return (moved[None] * 30_000 + 2_000).astype(np.uint16)


def everywhere(images: np.ndarray) -> np.ndarray:
    return np.ones(images.shape[:3], bool)


@pytest.mark.parametrize("shift", [(0.0, 0.0), (3.0, -6.0), (-14.0, 9.0)])
def test_a_known_displacement_is_found(land: np.ndarray, shift: tuple[float, float]) -> None:
    images = vhr_of(land, *shift)
    (found,) = register_vhr(images, everywhere(images), [AT], frames_of(land))
    assert (found.rows_m, found.columns_m) == pytest.approx(shift, abs=0.3)
    assert found.known and found.rigid and found.confidence > 0.8 and found.spread_m < 0.5


def test_clouds_in_either_do_not_count(land: np.ndarray) -> None:
    images, clear = vhr_of(land, 5.0, 2.5), np.ones((1, 256, 256), bool)
    images[0, :120, :120], clear[0, :120, :120] = 30_000, False
    frames = frames_of(land)
    frames.bands[1, 40:, 40:], frames.clear[1, 40:, 40:] = 8_000, False
    (found,) = register_vhr(images, clear, [AT], frames)
    assert (found.rows_m, found.columns_m) == pytest.approx((5.0, 2.5), abs=0.4) and found.known


def test_other_ground_is_not_believed(land: np.ndarray) -> None:
    images = vhr_of(render(parcels(SIDE_M, 30, 8), SIDE_M, 9), 0, 0)
    (found,) = register_vhr(images, everywhere(images), [AT], frames_of(land))
    assert not found.known and found.confidence < 0.2


def test_parts_that_disagree_are_not_rigid(land: np.ndarray) -> None:
    images = vhr_of(land, 0, 0)
    images[:, :, 128:] = vhr_of(land, 0, 12.5)[:, :, 128:]
    (found,) = register_vhr(images, everywhere(images), [AT], frames_of(land))
    assert found.known and not found.rigid and found.spread_m > 2.5


def test_nothing_in_common_is_unknown(land: np.ndarray) -> None:
    images, frames = vhr_of(land, 5, 5), frames_of(land)
    nothing, much_later = np.zeros(images.shape[:3], bool), dt.datetime(2021, 6, 1)
    assert not register_vhr(images, nothing, [AT], frames)[0].known
    assert not register_vhr(images, everywhere(images), [much_later], frames)[0].known
    assert np.isnan(register_vhr(images, nothing, [AT], frames)[0].rows_m)


def test_a_registration_is_what_was_written() -> None:
    found = Registration(1.5, -2.0, 0.8, 0.25)
    assert Registration.from_json(found.to_json()) == found and found.distance_m == 2.5
    assert UNKNOWN.rigid and not UNKNOWN.known


def series_of(images: np.ndarray, clear: np.ndarray, shift: tuple[float, float]) -> VHRSeries:
    shadow = np.zeros(images.shape[:3], bool)
    shadow[:, 200:220, 200:220] = True
    return VHRSeries(PATCH, images, clear, shadow, [AT], ["t"], 100.0, np.array([shift], np.float32))


def test_aligned_vhr_lies_on_the_frames(land: np.ndarray) -> None:
    images = vhr_of(land, 6.2, -3.4)
    aligned = align_vhr(series_of(images, everywhere(images), (6.2, -3.4)))
    still = vhr_of(land, 0, 0)[0].astype(float)
    inside = (slice(8, -8), slice(8, -8))
    before, after = (np.abs(image[inside] - still[inside]).mean() for image in (images[0], aligned.bands[0]))
    assert after < 0.3 * before
    (found,) = register_vhr(aligned.bands, aligned.clear, [AT], frames_of(land))
    assert found.distance_m < 0.3 and (aligned.shifts_m == 0).all()


def test_masks_give_way_when_they_are_moved(land: np.ndarray) -> None:
    images = vhr_of(land, 0, 0)
    clear = everywhere(images)
    clear[0, 100:110, 60:70] = False
    images[0, 30:40, 30:40] = 0
    aligned = align_vhr(series_of(images, clear, (5.0, -2.5)))  # two rows down, one column left
    assert not aligned.clear[0, 100:114, 57:71].any() and aligned.clear[0, 114, 60] and aligned.clear[0, 110, 71]
    assert aligned.shadow[0, 200:224, 197:221].all() and not aligned.shadow[0, :199].any()
    assert not aligned.bands[0, 30:44, 27:41].any() and aligned.bands[0, 44, 30].all()
    assert not aligned.clear[0, :2].any() and not aligned.bands[0, :, -1:].any()  # from outside the patch


def test_an_unknown_displacement_moves_nothing(land: np.ndarray) -> None:
    images = vhr_of(land, 5, 5)
    series = series_of(images, everywhere(images), (np.nan, np.nan))
    aligned = align_vhr(series)
    assert np.array_equal(aligned.bands, images) and aligned.clear.all() and np.isnan(aligned.shifts_m).all()


def test_simulated_farmland_against_its_truth() -> None:
    """Fields that change between dates, shadows of another hour, an error that varies inside the tile."""
    source = SimulatedFarmland(
        SimulatedSource(kind="simulated", vhr_dates=(dt.date(2020, 6, 8), dt.date(2020, 6, 22)), vhr_cloudy_share=0)
    )
    patch = make_patch("farmland", 32634, (682240, 6134400, 683200, 6135360), 0)
    period = (dt.date(2020, 5, 15), dt.date(2020, 7, 10))
    images, vhr, truth = source.s2(patch, period), source.vhr(patch, period), source.truth(patch, period)
    clear = ~(truth["truth"].mask["CLOUD"] | truth["truth"].mask["SHADOW"])[..., 0]
    times, known = images.get_timestamps(), np.array(truth["truth"].meta_info["shifts_px"])
    solved = solve(pair_shifts(images.data["BANDS"], clear, times))
    shifts = np.array([solved.get(time, (0, 0)) for time in times], np.float32)
    s2 = S2Series(patch, images.data["BANDS"], clear, times, ["p"] * len(times), shifts)
    found = register_vhr(vhr.data["BANDS"], np.ones((2, *patch.hr_shape), bool), vhr.get_timestamps(), s2)
    grid = 10 * np.mean([known[times.index(time)] for time in solved], axis=0)
    expected = np.array(truth["truth_vhr"].meta_info["shifts_m"]) - grid
    error = np.array([(one.rows_m, one.columns_m) for one in found]) - expected
    assert np.sqrt((error**2).mean()) < 0.6 < np.sqrt((expected**2).mean())
    assert all(one.known and one.rigid for one in found)
