"""Which passes become products, and from which earlier passes each is made."""

import datetime as dt

import numpy as np

from sr_core.inference.dates import PatchDates, Target, find_targets
from sr_core.patches import Patch, make_patch
from sr_core.samples.frames import choose_frames

DAYS = [dt.datetime(2017, 1, 1, 8, 30, 5) + dt.timedelta(days=10 * step) for step in range(12)]


def dates(column: int, clear: list[float], days: list[dt.datetime] = DAYS) -> PatchDates:
    return PatchDates(patch(column), tuple(days[: len(clear)]), np.array(clear))


def patch(column: int) -> Patch:
    west = 500_000.0 + 320 * column
    return make_patch("farm", 32634, (west, 6_000_000.0, west + 320, 6_000_320.0), 80)


def targets(*patches: PatchDates, frames: int = 8, max_age_days: int = 400) -> list[Target]:
    return find_targets(patches, frames=frames, max_age_days=max_age_days, max_cloud=0.1)


def days_of(target: Target) -> list[int]:
    return [(frame.timestamp.date() - DAYS[0].date()).days // 10 for frame in target.frames]


def test_over_one_patch_frames_are_those_of_training() -> None:
    clear = [1.0, 0.95, 0.2, 1.0, 0.89, 0.9, 1.0, 0.0, 1.0]
    found = targets(dates(0, clear), frames=4, max_age_days=60)
    assert [days_of(target)[0] for target in found] == [0, 1, 3, 5, 6, 8]
    for target in found:
        stack = choose_frames(DAYS[:9], np.array(clear), target.timestamp, frames=4, max_age_days=60, max_cloud=0.1)
        assert days_of(target) == stack


def test_all_patches_of_a_region_are_made_from_the_same_passes() -> None:
    """Else their common edge would be a seam."""
    found = targets(dates(0, [1, 0.5, 1, 1]), dates(1, [1, 1, 0.95, 1]), frames=3)
    assert days_of(found[-1]) == [3, 2, 0]  # the pass 1 is cloudy over one of them
    assert found[-1].patches == (patch(0).id, patch(1).id)


def test_under_broken_clouds_no_patch_is_left_without_earlier_frames() -> None:
    west = dates(0, [0, 1, 0, 0, 0, 0, 1])
    east = dates(1, [0, 0, 1, 1, 1, 1, 1])
    last = targets(west, east, frames=4)[-1]
    assert days_of(last) == [6, 5, 4, 1]  # and not 5, 4, 3, which the west did not see


def test_a_patch_that_the_pass_saw_through_clouds_is_not_made() -> None:
    found = targets(dates(0, [1, 0, 1]), dates(1, [1, 1, 0.3]))
    assert [(days_of(target)[0], target.patches) for target in found] == [
        (0, (patch(0).id, patch(1).id)),
        (1, (patch(1).id,)),
        (2, (patch(0).id,)),
    ]
    assert days_of(found[-1]) == [2, 0]  # pass 1 shows nothing of the ground that is made


def test_acquisitions_of_one_overflight_are_one_frame() -> None:
    """Tiles of an orbit differ by seconds; where two see a patch, the clearer comes first."""
    early = [DAYS[0], DAYS[0] + dt.timedelta(seconds=14), DAYS[1]]
    found = targets(dates(0, [0.6, 1.0, 1.0], early), dates(1, [1.0, 1.0]))
    assert [target.timestamp for target in found] == [DAYS[0], DAYS[1]]
    assert found[1].frames[1].acquisitions == {patch(0).id: (1, 0), patch(1).id: (0,)}


def test_an_old_frame_is_not_used() -> None:
    assert days_of(targets(dates(0, [1, 1, 1, 1]), max_age_days=20)[-1]) == [3, 2, 1]
