"""The bundle that ships with the project, on a landscape it has never seen and on real frames."""

import datetime as dt
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from rasterio.features import rasterize
from rasterio.transform import from_bounds

from sr_core import SCALE
from sr_core.config import FilesSource, SimulatedSource
from sr_core.models.bundle import SHIPPED, WEIGHTS, SuperResolver, load_bundle
from sr_core.models.normalization import Normalization
from sr_core.patches import make_patch
from sr_core.radiometry.resample import bicubic_upsample, degrade
from sr_core.sources.files import FileSeries
from sr_core.sources.simulated import SimulatedFarmland

PERIOD = (dt.date(2021, 6, 1), dt.date(2021, 8, 31))
BORDER = 16
NIR = 3


@cache
def shipped() -> SuperResolver:
    return load_bundle(SHIPPED)


@cache
def farmland():
    """A square kilometre of another landscape, without clouds: frames, their displacements, what is really there at
    2.5 m, and the parcels of at least a hectare as masks."""
    source = SimulatedFarmland(SimulatedSource(kind="simulated", seed=99, cloudy_share=0.0))
    patch = make_patch("elsewhere", 32633, (500_000, 5_300_000, 501_000, 5_301_000), 0)
    bands = np.moveaxis(source.s2(patch, PERIOD).data["BANDS"], -1, 1)
    truth = source.truth(patch, PERIOD)["truth"]
    fine = np.moveaxis(truth.data["S2_HR"], -1, 1).astype(np.float32) / 10_000
    shifts = np.asarray(truth.meta_info["shifts_px"], np.float32)
    size = fine.shape[-2:]
    transform = from_bounds(*patch.bounds, size[1], size[0])
    fields = [
        rasterize([field.buffer(-15)], size, transform=transform, dtype="uint8").astype(bool)
        for field in source.reference(patch).vector_timeless["PARCELS"].geometry
        if not field.buffer(-15).is_empty
    ]
    return bands, shifts, fine, [field for field in fields if field.sum() > 1600]


def resolve(date: int) -> tuple[np.ndarray, np.ndarray]:
    """The image of a date from it and the seven passes before, and its uncertainty."""
    bands, shifts, _, _ = farmland()
    stack = slice(date, date - 8 if date >= 8 else None, -1)
    frames = bands[stack]
    clear = np.ones((len(frames), *frames.shape[2:]), bool)
    place = Normalization.from_series(bands, np.ones((len(bands), *frames.shape[2:]), bool))
    return shipped().predict_with_scale(frames, clear, place, "float32", shifts[stack])


def test_it_is_small_and_says_where_it_comes_from():
    assert (SHIPPED / WEIGHTS).stat().st_size < 6e6
    lineage = shipped().description["lineage"]
    assert lineage["gsd_m"] == 10 and "Copernicus Sentinel data" in lineage["attribution"]
    assert {part["run"] for part in lineage["ground"] if not part["held_out"]} >= {"okavango", "belgium"}


def test_it_beats_bicubic_by_two_decibels_on_a_landscape_it_has_never_seen():
    """Against what a 2.5 m instrument would see of the truth, frames co-registered in both arms."""
    bands, _, fine, _ = farmland()
    gains = []
    for date in (9, 13, 17):
        image, _ = resolve(date)
        latest = bands[date].astype(np.float32) / 10_000
        bicubic = bicubic_upsample(latest)
        truth = fine[date]
        inner = (slice(None), slice(BORDER, -BORDER), slice(BORDER, -BORDER))
        errors = [np.square(arm - truth)[inner].mean() for arm in (bicubic, image)]
        gains.append(10 * np.log10(errors[0] / errors[1]))
    print("gains over bicubic, dB:", np.round(gains, 2))
    assert np.mean(gains) > 2.0


def test_a_harvested_parcel_looks_as_in_the_latest_frame_not_as_before():
    bands, _, fine, fields = farmland()
    harvested = [
        (date, field)
        for date in range(8, len(bands))
        for field in fields
        if np.abs(fine[date, NIR, field].mean() - fine[date - 4 : date, NIR][:, field].mean(axis=1)).min() > 0.06
    ]
    assert len(harvested) >= 3, "the season has no harvest in this landscape"
    for date, field in harvested[:: max(1, len(harvested) // 6)]:
        image, _ = resolve(date)
        inside = field.reshape(field.shape[0] // SCALE, SCALE, -1, SCALE).all(axis=(1, 3))
        latest = bands[date][:, inside].mean(axis=1) / 10_000
        before = bands[date - 1][:, inside].mean(axis=1) / 10_000
        mean = image[:, field].mean(axis=1)
        assert np.abs(mean - latest).max() < 0.02
        assert abs(mean[NIR] - latest[NIR]) < 0.3 * abs(mean[NIR] - before[NIR])


def test_its_intervals_hold_about_what_they_promise():
    _, _, fine, _ = farmland()
    image, scale = resolve(13)
    error = np.abs(image - fine[13])[:, BORDER:-BORDER, BORDER:-BORDER]
    within = (error < np.log(10) * scale[:, BORDER:-BORDER, BORDER:-BORDER]).mean()
    assert 0.7 < within < 0.99
    # and it knows where it is wrong: the surer half of the pixels has the smaller errors
    sure = scale[:, BORDER:-BORDER, BORDER:-BORDER] < np.median(scale)
    assert error[sure].mean() < 0.5 * error[~sure].mean()


@pytest.mark.realdata
def test_degraded_back_it_gives_the_sentinel_2_frame(sample_data: Path):
    """Okavango, the latest clear date: within 0.003 mean absolute reflectance at any plausible MTF."""
    named = {"blue": "B04", "red": "B02"}  # by the files
    source = FileSeries(FilesSource(kind="files", path=sample_data / "okavango", region="okavango", s2_bands=named))
    patch = make_patch("okavango", 32734, (699_960, 7_897_000, 702_960, 7_900_000), 0)
    series = source.s2(patch, (dt.date(2017, 6, 1), dt.date(2017, 8, 29)))
    bands = np.moveaxis(series.data["BANDS"], -1, 1)[::-1][:8, :, :128, :128]
    clear = np.ones((len(bands), 128, 128), bool)
    image = shipped().predict(np.ascontiguousarray(bands), clear, Normalization.from_series(bands, clear))
    latest = bands[0].astype(np.float32) / 10_000
    for mtf in (0.2, 0.25, 0.3):
        assert np.abs(degrade(image, SCALE, mtf) - latest).mean() < 0.003
    detail = [np.abs(np.diff(arm, axis=-1)).mean() for arm in (bicubic_upsample(latest), image)]
    assert detail[1] > 1.1 * detail[0], "not sharper than bicubic"
