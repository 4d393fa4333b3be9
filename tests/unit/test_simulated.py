"""The simulated farmland: a function of seed, place and date whose truth is known."""

import datetime as dt
from types import SimpleNamespace

import numpy as np
import pytest
from eolearn.core import FeatureType
from rasterio.features import geometry_mask
from shapely.geometry import box
from skimage.registration import phase_cross_correlation

from sr_core.config import SimulatedSource
from sr_core.errors import DataError, SourceError
from sr_core.patches import Patch, make_patch
from sr_core.radiometry.resample import degrade
from sr_core.sources import simulated
from sr_core.sources.simulated import SimulatedFarmland
from sr_core.sources.simulated.landscape import Face, Landscape, landscape
from sr_core.sources.simulated.render import Raster, Scene, Sun
from sr_core.sources.simulated.sensors import (
    DETECTOR_MTF,
    S2_MTF,
    VHR_MTF,
    acquire_s2,
    acquire_vhr,
    s2_clouds,
    s2_days,
    s2_shift,
)

PERIOD = (dt.date(2020, 5, 10), dt.date(2020, 7, 15))
CELL = (500_000.0, 5_300_000.0, 500_480.0, 5_300_480.0)


def source(**changes: object) -> SimulatedSource:
    return SimulatedSource.model_validate({"kind": "simulated", **changes})


def patch(east: float = 0.0, north: float = 0.0, buffer_m: float = 40.0) -> Patch:
    west, south, right, top = CELL
    return make_patch("area", 32633, (west + east, south + north, right + east, top + north), buffer_m)


def overlap(one: Patch, other: Patch, gsd: float) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Rows and columns, in each of two patches, of the ground that both show."""
    west, south, east, north = box(*one.bounds).intersection(box(*other.bounds)).bounds

    def window(patch: Patch) -> tuple[slice, slice]:
        top, left = round((patch.bounds[3] - north) / gsd), round((west - patch.bounds[0]) / gsd)
        return slice(top, top + round((north - south) / gsd)), slice(left, left + round((east - west) / gsd))

    return window(one), window(other)


@pytest.mark.parametrize(("east", "north"), [(480, 0), (0, 480), (360, -120)])
def test_overlapping_patches_are_equal_pixel_for_pixel(east: float, north: float) -> None:
    farmland = SimulatedFarmland(source(cloudy_share=0.6, vhr_cloudy_share=1.0, vhr_dates=["2020-05-20", "2020-07-02"]))
    one, other = patch(buffer_m=120), patch(east, north, buffer_m=120)
    here, there = (
        {"s2": farmland.s2(place, PERIOD), "vhr": farmland.vhr(place, PERIOD), **farmland.truth(place, PERIOD)}
        for place in (one, other)
    )
    for part, feature, gsd in (
        ("s2", (FeatureType.DATA, "BANDS"), 10),
        ("vhr", (FeatureType.DATA, "BANDS"), 2.5),
        ("truth", (FeatureType.DATA, "S2_HR"), 2.5),
        ("truth", (FeatureType.MASK, "CLOUD"), 10),
        ("truth", (FeatureType.MASK, "SHADOW"), 10),
        ("truth_vhr", (FeatureType.MASK, "CLOUD"), 2.5),
        ("truth_vhr", (FeatureType.MASK, "SHADOW"), 2.5),
    ):
        (rows, columns), (other_rows, other_columns) = overlap(one, other, gsd)
        shared = here[part][feature][:, rows, columns]
        assert shared.size > 0
        np.testing.assert_array_equal(shared, there[part][feature][:, other_rows, other_columns], f"{part} {feature}")


def test_parcels_are_the_same_in_every_patch_that_shows_them() -> None:
    farmland = SimulatedFarmland(source())
    here, there = (
        farmland.reference(p).vector_timeless["PARCELS"].set_index("parcel_id") for p in (patch(), patch(480))
    )
    shared = here.index.intersection(there.index)
    assert len(shared) > 0
    assert here.index.is_unique
    assert (here.loc[shared].geometry == there.loc[shared].geometry).all()
    assert (here.loc[shared].crop == there.loc[shared].crop).all()
    assert here.intersects(box(*patch().bounds)).all()
    assert here.crs.to_epsg() == 32633


def test_the_same_seed_gives_the_same_land_and_another_seed_another() -> None:
    first = SimulatedFarmland(source()).s2(patch(), PERIOD).data["BANDS"]
    for cache in (simulated._scene, simulated._s2_series, landscape):
        cache.cache_clear()
    np.testing.assert_array_equal(first, SimulatedFarmland(source()).s2(patch(), PERIOD).data["BANDS"])
    other = SimulatedFarmland(source(seed=8)).truth(patch(), PERIOD)["truth"].data["S2_HR"]
    assert np.abs(other[0].astype(float) - first[0].repeat(4, 0).repeat(4, 1)).mean() > 100


def test_parcels_have_the_sizes_of_european_fields() -> None:
    x, y = CELL[:2]
    parcels = SimulatedFarmland(source()).reference(make_patch("area", 32633, (x, y, x + 3000, y + 3000), 0))
    fields = parcels.vector_timeless["PARCELS"]
    hectares = fields.area / 1e4
    assert fields.is_valid.all()
    assert hectares.min() >= 0.1
    assert hectares.max() <= 10
    assert 0.3 < hectares.median() < 3
    widths = fields.apply(lambda field: field.geometry.area / (field.geometry.length / 2), axis=1)
    assert 0.03 < (widths < 20).mean() < 0.5
    # some touch, and none lies on another
    joined = fields.sjoin(fields, predicate="intersects")
    pairs = joined[joined.index < joined.index_right]
    common = [
        fields.geometry[a].intersection(fields.geometry[b]) for a, b in zip(pairs.index, pairs.index_right, strict=True)
    ]
    assert sum(piece.length > 20 for piece in common) > 20
    assert sum(piece.area for piece in common) < 1e-4 * fields.area.sum()
    assert fields.crop.nunique() >= 8


def test_a_harvest_takes_the_green_away() -> None:
    farmland = SimulatedFarmland(source())
    place = patch(buffer_m=400)
    truth = farmland.truth(place, PERIOD)["truth"]
    fields = farmland.reference(place).vector_timeless["PARCELS"]
    barley = fields[(fields.crop == "winter barley") & fields.within(box(*place.bounds))]
    assert len(barley) > 0
    inside = geometry_mask(barley.geometry.buffer(-5), place.hr_shape, transform=place.transform(2.5), invert=True)
    red, nir = (truth.data["S2_HR"][..., band][:, inside].mean(axis=1, dtype=float) for band in (2, 3))
    ndvi = (nir - red) / (nir + red)
    assert ndvi[0] > 0.75
    assert ndvi[-1] < 0.4


def test_a_clear_frame_is_the_degraded_truth_seen_from_its_shifted_place() -> None:
    config = source(cloudy_share=0.0)
    farmland = SimulatedFarmland(config)
    frames = farmland.s2(patch(), PERIOD).data["BANDS"] / 1e4
    truth = farmland.truth(patch(), PERIOD)["truth"]
    inner = (slice(4, -4), slice(4, -4))
    for frame, image, shift in zip(frames, truth.data["S2_HR"], truth.meta_info["shifts_px"], strict=True):
        for band, mtf in enumerate(S2_MTF):
            seen = degrade(image[..., band] / np.float32(1e4), mtf=mtf, shift=tuple(shift))
            difference = (frame[..., band] - seen)[inner]
            assert abs(difference.mean()) < 2e-4
            assert difference.std() == pytest.approx(config.noise, rel=0.1)


def test_misregistration_has_the_rms_of_the_configuration() -> None:
    config = source(jitter_px=0.3)
    shifts = np.array([s2_shift(config, day) for day in s2_days(config, dt.date(2000, 1, 1), dt.date(2020, 1, 1))])
    assert np.sqrt((shifts**2).mean(axis=0)) == pytest.approx([0.3, 0.3], rel=0.08)
    assert np.abs(shifts.mean(axis=0)).max() < 0.03


@pytest.mark.parametrize("share", [0.0, 0.35, 1.0])
def test_the_share_of_cloudy_passes_holds(share: float) -> None:
    config = source(cloudy_share=share)
    days = s2_days(config, dt.date(2019, 1, 1), dt.date(2021, 12, 31))
    assert np.mean([s2_clouds(config, day) is not None for day in days]) == pytest.approx(share, abs=0.04)
    assert set(np.diff(days)) == {dt.timedelta(days=5)}


def test_clouds_are_bright_and_their_shadows_dark() -> None:
    farmland = SimulatedFarmland(source(cloudy_share=1.0, seed=3))
    place = patch(buffer_m=520)
    bands = farmland.s2(place, PERIOD).data["BANDS"]
    truth = farmland.truth(place, PERIOD)["truth"]
    land = truth.data["S2_HR"].reshape(len(bands), bands.shape[1], 4, bands.shape[2], 4, 4).mean((2, 4))
    cloud, shadow = truth.mask["CLOUD"][..., 0], truth.mask["SHADOW"][..., 0]
    assert not (cloud & shadow).any()
    assert 0.2 < cloud.mean() < 0.8
    assert shadow.mean() > 0.02
    brighter = bands[..., 0] - land[..., 0]
    assert np.mean(brighter[cloud] > 600) > 0.95
    assert np.median(brighter[~cloud & ~shadow]) < 100
    assert np.median((bands / land)[shadow][:, 3]) < 0.75


def test_vhr_clouds_pass_the_blue_threshold_and_land_does_not() -> None:
    days = ["2020-05-20", "2020-06-03", "2020-06-17", "2020-07-02"]
    farmland = SimulatedFarmland(source(vhr_cloudy_share=1.0, vhr_dates=days))
    place = patch(buffer_m=400)
    vhr = farmland.vhr(place, PERIOD)
    blue = vhr.data["BANDS"][..., 0] / vhr.meta_info["radiance_scale"]
    mask = farmland.truth(place, PERIOD)["truth_vhr"].mask
    cloud, shadow = mask["CLOUD"][..., 0], mask["SHADOW"][..., 0]
    assert cloud.any()
    assert np.mean(blue[cloud] > 100) > 0.85
    assert np.mean(blue[~cloud] > 100) < 0.02
    assert 25 < np.median(blue[~cloud & ~shadow]) < 80


def test_vhr_is_off_by_its_orthorectification_error() -> None:
    farmland = SimulatedFarmland(source(vhr_ortho_error_m=8.0, vhr_cloudy_share=0.0, vhr_dates=["2020-06-17"]))
    exact = SimulatedFarmland(source(vhr_ortho_error_m=0.0, vhr_cloudy_share=0.0, vhr_dates=["2020-06-17"]))
    moved, still = (each.vhr(patch(), PERIOD).data["BANDS"][0, ..., 3].astype(float) for each in (farmland, exact))
    # what registers the still image to the moved one is the way back
    found = -phase_cross_correlation(moved, still, upsample_factor=20)[0] * 2.5
    told = farmland.truth(patch(), PERIOD)["truth_vhr"].meta_info["shifts_m"][0]
    assert np.hypot(*told) > 2
    assert found == pytest.approx(told, abs=1.0)


def test_shadows_fall_away_from_the_sun_and_turn_until_vhr_comes() -> None:
    raster = Raster(0.0, 200.0, 2.5, (80, 80))
    turns = np.arange(24) / 24 * 2 * np.pi
    silo = Face("silo", "metal", 100.0 + 5.0 * np.stack([np.cos(turns), np.sin(turns)], axis=1), height=20.0)
    scene = Scene(1, Landscape((silo,), np.empty((0, 5))), raster)
    directions = []
    for hour in (10.5, 12.5):
        sun = Sun.at(dt.date(2020, 4, 20), hour)
        shadow = scene.shadow(sun)
        rows, columns = np.average(np.indices(shadow.shape).reshape(2, -1), axis=1, weights=shadow.ravel()) - 39.5
        direction = np.arctan2(columns, -rows) % (2 * np.pi)
        assert direction == pytest.approx((sun.azimuth + np.pi) % (2 * np.pi), abs=0.1)
        length, middle = 20.0 / np.tan(sun.elevation), np.hypot(rows, columns) * 2.5
        assert length / 2 < middle < length / 2 + 5.0
        directions.append(direction)
    assert np.degrees(abs(directions[1] - directions[0])) > 30


def test_both_instruments_have_their_mtf_at_nyquist() -> None:
    config = source(jitter_px=0.0, noise=0.0, cloudy_share=0.0, vhr_cloudy_share=0.0, vhr_ortho_error_m=0.0)
    raster = Raster(CELL[0] - 160, CELL[3] + 160, 2.5, (320, 320))
    level, swing = 0.4, 0.2

    def stripes(gsd: float) -> SimpleNamespace:
        wave = level + swing * np.cos(np.pi * (raster.x - gsd / 2) / gsd)
        image = np.broadcast_to(wave, (4, *raster.shape)).astype(np.float32)
        return SimpleNamespace(raster=raster, reflectance=lambda *_: image)

    day = dt.date(2020, 6, 17)
    bands = acquire_s2(config, stripes(10.0), patch(), day).bands / 1e4
    contrast = (bands.max((0, 1)) - bands.min((0, 1))) / (2 * swing)
    # what haze there is takes a little contrast
    assert contrast == pytest.approx(S2_MTF, rel=0.03)

    flat = SimpleNamespace(raster=raster, reflectance=lambda *_: np.full((4, *raster.shape), 0.6, np.float32))
    dark = SimpleNamespace(raster=raster, reflectance=lambda *_: np.full((4, *raster.shape), 0.2, np.float32))
    low, high = (acquire_vhr(config, scene, patch(), day).bands.mean((0, 1)) for scene in (dark, flat))
    bands = acquire_vhr(config, stripes(2.5), patch(), day).bands.astype(float)
    contrast = (bands.max((0, 1)) - bands.min((0, 1))) / (high - low)
    assert contrast * DETECTOR_MTF == pytest.approx([VHR_MTF] * 4, rel=0.03)


def test_parts_follow_the_contract() -> None:
    farmland = SimulatedFarmland(source(vhr_dates=["2020-05-20", "2020-09-01"]))
    s2, vhr = farmland.s2(patch(), PERIOD), farmland.vhr(patch(), PERIOD)
    count = len(s2.timestamps)
    assert s2.data["BANDS"].shape == (count, 56, 56, 4)
    assert s2.data["BANDS"].dtype == np.uint16
    assert s2.data["BANDS"].min() >= 1
    assert s2.mask["VALID"].all()
    assert "CLM" not in s2.mask
    assert s2.timestamps == sorted(s2.timestamps)
    assert s2.meta_info["processing_baselines"] == ["05.09"] * count
    assert s2.meta_info["product_ids"][0] == f"SIM_S2_{s2.timestamps[0]:%Y%m%d}"
    assert (s2.meta_info["level"], s2.meta_info["gsd_m"]) == ("L2A", 10)
    assert [moment.date() for moment in vhr.timestamps] == [dt.date(2020, 5, 20)]
    assert vhr.data["BANDS"].shape == (1, 224, 224, 4)
    assert vhr.meta_info["tile_ids"] == ["T50_530"]
    assert set(farmland.truth(patch(), PERIOD)) == {"truth", "truth_vhr"}
    assert SimulatedFarmland(source()).vhr(patch(), PERIOD) is None
    assert set(SimulatedFarmland(source()).truth(patch(), PERIOD)) == {"truth"}


def test_what_cannot_be_simulated_is_said() -> None:
    farmland = SimulatedFarmland(source(revisit_days=10))
    between = s2_days(farmland.config, *PERIOD)[0] + dt.timedelta(days=1)
    with pytest.raises(DataError, match="no Sentinel-2 pass between"):
        farmland.s2(patch(), (between, between))
    with pytest.raises(SourceError, match="found no period"):
        farmland.s2(patch(), None)
    with pytest.raises(SourceError, match="multiples of 10 m"):
        farmland.s2(patch(3.0), PERIOD)
