"""Jumps of a region's clear ground by the radiometric offset: found, and not taken for what seasons do."""

import datetime as dt
import re

import numpy as np
import pytest

from sr_core.config import FilesSource
from sr_core.errors import DataError
from sr_core.masks.s2_clouds import cloud_mask
from sr_core.patches import make_patch
from sr_core.radiometry.jumps import refuse_jumps, steps_between

DATES = [dt.datetime(2022, 1, 1, 10) + n * dt.timedelta(days=10) for n in range(8)]
CLEAR = np.ones((8, 40, 40), bool)
KEPT = list(range(8))


def land(seed=0):
    """Eight dates on which the near infrared rises by a quarter of its range, as in spring, and clouds drift by."""
    rng = np.random.default_rng(seed)
    ground = rng.integers(300, 3000, (40, 40, 4))
    spring = np.arange(8)[:, None, None, None] * np.array([-20, 10, -40, 250])
    return (ground + spring + rng.integers(-60, 60, (8, 40, 40, 4))).clip(1).astype(np.uint16)


def test_a_step_of_the_offset_is_refused_with_its_dates():
    bands = land()
    bands[5:] += 1000
    with pytest.raises(DataError, match=r"region farm: .* jumps by \+\d+ from 2022-02-10 to 2022-02-20"):
        refuse_jumps("farm", [steps_between(bands, CLEAR, KEPT, DATES)])


def test_one_date_that_lost_its_offset_twice_is_refused():
    bands = land() + np.uint16(1500)
    bands[3] -= 1000
    with pytest.raises(DataError) as refused:
        refuse_jumps("farm", [steps_between(bands, CLEAR, KEPT, DATES)])
    # every comparison that is named has that date on one side
    pairs = re.findall(r"from (\S+) to ([\d-]+)", str(refused.value))
    assert pairs and all("2022-01-31" in pair for pair in pairs)


def test_seasons_haze_snow_and_clouds_behind_the_mask_are_not_refused():
    bands, clear = land(), CLEAR.copy()
    bands[2] += np.array([1100, 800, 600, 200], np.uint16)  # haze, blue most
    bands[4] += np.array([5000, 5000, 4800, 3000], np.uint16)  # snow
    bands[6, :20] += 1000
    clear[6, :20] = False
    refuse_jumps("farm", [steps_between(bands, clear, KEPT, DATES)])


def test_a_patch_alone_does_not_speak_for_its_region():
    odd = land()
    odd[5:] += 1000
    patches = [steps_between(land(seed), CLEAR, KEPT, DATES) for seed in (1, 2)]
    refuse_jumps("farm", [*patches, steps_between(odd, CLEAR, KEPT, DATES)])


def test_dates_that_are_not_kept_or_have_nothing_in_common_say_nothing():
    bands = land()
    bands[5:] += 1000
    halves = CLEAR.copy()
    halves[:5, :20], halves[5:, 20:] = False, False
    refuse_jumps("farm", [steps_between(bands, halves, KEPT, DATES)])
    refuse_jumps("farm", [steps_between(bands, CLEAR, [0, 2, 4], DATES)])
    nothing = steps_between(bands[:0], CLEAR[:0], [], [])
    assert nothing["change"].shape == (0, 4)
    refuse_jumps("farm", [nothing])


@pytest.mark.realdata
@pytest.mark.parametrize(("folder", "place", "found"), [("okavango", 0, 14 / 14), ("belgium", 0, 40 / 44)])
def test_on_real_series_no_season_is_taken_for_a_jump_and_most_steps_are_found(sample_data, folder, place, found):
    from sr_core.sources.files import FileSeries

    source = FileSeries(FilesSource(kind="files", path=sample_data / folder, region=folder))
    region = source.regions()[place]
    images = source.s2(make_patch(region.name, region.epsg, region.bounds, 0), None)
    part = (slice(None), slice(0, 120), slice(0, 120))
    bands, valid = images.data["BANDS"][part], images.mask["VALID"][..., 0][part]
    timestamps = list(images.timestamps)
    cloud = cloud_mask(bands.astype(np.float32) / 1e4, valid)
    if "CLM" in images.mask:
        cloud |= images.mask["CLM"][..., 0].astype(bool)[part]
    clear = valid & ~cloud
    kept = [index for index in range(len(bands)) if clear[index].sum() >= 0.9 * valid[index].sum() > 0]
    as_it_is = steps_between(bands, clear, kept, timestamps)
    refuse_jumps(folder, [as_it_is])
    together = np.where((np.sign(as_it_is["change"]) == np.sign(as_it_is["change"][:, :1])).all(axis=1, keepdims=True),
                        np.abs(as_it_is["change"]), 0)  # fmt: skip
    assert together.min(axis=1).max() < 435
    moments = as_it_is["late"]
    caught = 0
    for step in kept[1:]:
        begins = np.datetime64(timestamps[step], "us").astype(np.int64)
        change = as_it_is["change"] + 1000.0 * ((moments >= begins) & (as_it_is["early"] < begins))[:, None]
        try:
            refuse_jumps(folder, [{**as_it_is, "change": change}])
        except DataError:
            caught += 1
    assert caught / len(kept[1:]) >= found - 1e-9
