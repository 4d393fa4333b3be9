"""The rule that chooses the frames of a target date."""

import datetime as dt

import numpy as np
import pytest

from sr_core.samples.frames import age_days, choose_frames

DAY = dt.timedelta(days=1)
TARGET = dt.datetime(2020, 7, 1, 10, 30)
EVERY_TEN_DAYS = [TARGET - n * 10 * DAY for n in range(9, -2, -1)]  # ascending; the last lies 10 days after
TARGET_INDEX = 9
RULE = {"frames": 8, "max_age_days": 60, "max_cloud": 0.05}


def choose(clear_fraction, timestamps=EVERY_TEN_DAYS, target=TARGET, **changes):
    return choose_frames(timestamps, np.asarray(clear_fraction), target, **{**RULE, **changes})


def test_latest_first_and_never_later_than_the_target():
    assert choose(np.ones(11), frames=3) == [9, 8, 7]


def test_cloudy_frames_are_passed_over_at_exactly_the_threshold():
    clear = np.ones(11)
    clear[9], clear[8] = 0.9499, 0.95
    assert choose(clear, frames=2) == [8, 7]


def test_frames_reach_back_max_age_days_whatever_the_minute_of_the_overpass():
    earlier_minute = [t.replace(minute=10) for t in EVERY_TEN_DAYS]
    later_minute = [t.replace(minute=30) for t in EVERY_TEN_DAYS]
    assert choose(np.ones(11), earlier_minute) == choose(np.ones(11), later_minute) == [9, 8, 7, 6, 5, 4, 3]


def test_order_of_the_timestamps_does_not_matter():
    shuffled = [EVERY_TEN_DAYS[i] for i in (9, 3, 8, 10)]
    assert choose(np.ones(4), shuffled) == [0, 2, 1]


def test_a_frame_of_the_same_day_after_the_target_is_later():
    frames = [TARGET, TARGET + dt.timedelta(hours=2)]
    assert choose([1.0, 1.0], frames) == [0]


def test_nothing_clear_is_an_empty_list():
    assert choose(np.zeros(11)) == []


def test_a_fraction_a_timestamp_is_needed():
    with pytest.raises(ValueError, match=r"found shape \(2,\), expected \(11,\)"):
        choose([1.0, 1.0])


def test_age_counts_calendar_days():
    assert age_days(dt.datetime(2020, 6, 30, 23, 59), dt.datetime(2020, 7, 1, 0, 1)) == 1
