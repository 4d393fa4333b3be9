"""The split of the ground: no chip of one split comes near another's, and test ground is covered."""

import datetime as dt
from itertools import combinations

import numpy as np
import pytest
from shapely.geometry import box

from sr_core.config import Split
from sr_core.errors import DataError
from sr_core.patches import make_patch
from sr_core.samples.split import (
    SPLITS,
    TEST,
    TRAIN,
    VAL,
    ChipWindow,
    chip_windows,
    footprint,
    keep_apart,
    shared_ground,
    split_ground,
)

EPSG = 32634
WEST, SOUTH = 500_000.0, 7_000_000.0


def patches_of(rows, columns, cell=2000, buffer=200, region="farm", epsg=EPSG, west=WEST):
    return [
        make_patch(
            region,
            epsg,
            (west + i * cell, SOUTH + j * cell, west + (i + 1) * cell, SOUTH + (j + 1) * cell),
            buffer,
        )
        for j in range(rows)
        for i in range(columns)
    ]


def ground_of(patch, window, gsd, chip_px):
    west, north = patch.bounds[0] + window.column * gsd, patch.bounds[3] - window.row * gsd
    return box(west, north - chip_px * gsd, west + chip_px * gsd, north)


def cut(patches, config, *, seed=1, gsd=10.0, chip_px=32, stride_px=32):
    split = split_ground(patches, config, seed)
    return [
        (patch, window)
        for patch in patches
        for window in chip_windows(split, patch, gsd=gsd, chip_px=chip_px, stride_px=stride_px, guard_m=config.guard_m)
    ]


@pytest.mark.parametrize("block_m", [2000.0, 1000.0, 1300.0])
def test_chips_of_different_splits_are_a_guard_apart_and_inside_their_cells(block_m):
    config = Split(block_m=block_m, val=0.2, test=0.3, guard_m=80)
    chips = cut(patches_of(3, 3), config, chip_px=16, stride_px=8)
    grounds = [(window.split, ground_of(patch, window, 10.0, 16)) for patch, window in chips]
    assert {split for split, _ in grounds} == set(SPLITS)
    # one chip a split and place suffices for the distances: the farthest out of each are the extremes
    for (a, one), (b, other) in combinations(grounds[::3], 2):
        assert a == b or one.distance(other) >= 80 - 1e-6
    for patch, window in chips:
        assert box(*patch.cell).covers(ground_of(patch, window, 10.0, 16))


def test_test_boxes_are_covered_to_their_end():
    # 108 columns of 10 m at the eastern end of a 3 km scene, cut at 40 m: 27 pixels, chips of 16
    (patch,) = patches_of(1, 1, cell=3000, buffer=0)
    test_box = (WEST + 1920, SOUTH, WEST + 3000, SOUTH + 3000)
    config = Split(test_boxes=(test_box,), guard_m=80, test_from=dt.date(2020, 1, 1))
    chips = [window for _, window in cut([patch], config, gsd=40.0, chip_px=16, stride_px=8)]
    test = [window for window in chips if window.split == "test"]
    assert sorted({window.column for window in test}) == [48, 59]
    assert sorted({window.row for window in test}) == [0, 16, 32, 48, 59]
    covered = np.zeros((75, 75), int)
    for window in test:
        covered[window.row : window.row + 16, window.column : window.column + 16] += 1
    assert (covered[:, 48:] >= 1).all() and not covered[:, :48].any()
    # training stops 80 m, two pixels, before the box
    assert max(window.column for window in chips if window.split == "train") + 16 == 46


def test_a_box_concerns_the_ground_it_covers_whatever_the_region():
    near = patches_of(1, 1, region="near")
    far = patches_of(1, 1, region="far", west=WEST + 50_000)
    config = Split(test_boxes=((WEST, SOUTH, WEST + 2000, SOUTH + 2000),))
    chips = cut([*near, *far], config)
    assert {window.split for patch, window in chips if patch.region == "near"} == {"test"}
    assert {window.split for patch, window in chips if patch.region == "far"} == {"train"}


def test_test_goes_before_validation_where_boxes_overlap():
    (patch,) = patches_of(1, 1)
    half = (WEST, SOUTH, WEST + 1000, SOUTH + 2000)
    config = Split(val_boxes=((WEST, SOUTH, WEST + 1500, SOUTH + 2000),), test_boxes=(half,))
    split = split_ground([patch], config, 0)
    x = np.array([WEST + 10, WEST + 1200, WEST + 1600])
    assert split.split_of(patch, x, np.full(3, SOUTH + 10)).tolist() == [TEST, VAL, TRAIN]
    val = [w for w in chip_windows(split, patch, gsd=10.0, chip_px=32, stride_px=32, guard_m=80) if w.split == "val"]
    # 500 m of validation ground less 80 m of guard holds one column of 320 m and its end-aligned twin
    assert {patch.bounds[0] + w.column * 10 - WEST for w in val} == {1080.0, 1180.0}


def test_the_draw_depends_on_the_seed_and_not_on_the_order_of_patches():
    patches = patches_of(4, 4)
    config = Split()
    assert split_ground(patches, config, 5) == split_ground(patches[::-1], config, 5)
    assert any(split_ground(patches, config, 5) != split_ground(patches, config, seed) for seed in (6, 7))


@pytest.mark.parametrize(("columns", "expected"), [(16, (2, 3)), (4, (1, 1)), (3, (1, 1)), (2, (0, 0)), (1, (0, 0))])
def test_shares_are_rounded_but_three_blocks_give_one_to_each(columns, expected):
    patches = patches_of(1, columns)
    ground = split_ground(patches, Split(val=0.15, test=0.2), 0).ground(patches[0])
    assert (len(ground.val), len(ground.test)) == expected


def test_mask_and_chips_agree():
    patches = patches_of(3, 3)
    split = split_ground(patches, Split(), 3)
    for patch in patches:
        mask = split.split_mask(patch, 10.0)
        assert mask.shape == patch.shape
        for window in chip_windows(split, patch, gsd=10.0, chip_px=32, stride_px=32, guard_m=80):
            codes = mask[window.row : window.row + 32, window.column : window.column + 32]
            assert np.unique(codes).tolist() == [SPLITS.index(window.split)]


def test_neighbouring_patches_agree_on_the_ground_they_share():
    west, east = patches_of(1, 2)
    split = split_ground([west, east], Split(block_m=500), 3)
    assert np.array_equal(split.split_mask(west, 10.0)[:, -40:], split.split_mask(east, 10.0)[:, :40])


def test_a_patch_that_is_not_whole_pixels_is_refused():
    (patch,) = patches_of(1, 1, cell=2000, buffer=210)
    with pytest.raises(DataError, match=r"34N_500000_7000000: found 2420 x 2420 m, expected a multiple of 40 m"):
        cut([patch], Split(), gsd=40.0)


def test_overlapping_regions_do_not_leak():
    one, other = patches_of(1, 1, region="one"), patches_of(1, 1, region="other", west=WEST + 600)
    chips = [
        (one[0], ChipWindow(20, 20, "test")),
        (other[0], ChipWindow(20, 20, "train")),
        (one[0], ChipWindow(100, 100, "train")),
    ]
    touching = [(one[0], ChipWindow(20, 100, "test")), (other[0], ChipWindow(20, 72, "train"))]
    near_ground = [footprint(p, w, 10.0, 32) for p, w in [chips[0], (other[0], ChipWindow(20, -20, "train"))]]
    assert len(shared_ground(near_ground, ["test", "train"])) == 1
    assert len(shared_ground([footprint(p, w, 10.0, 32) for p, w in touching], ["test", "train"])) == 0
    chips[1] = (other[0], ChipWindow(20, -20, "train"))
    assert keep_apart(chips, 10.0, 32) == [chips[0], chips[2]]
