"""Matthews' correlation and the geometry of parcels, against published values and by hand."""

import math

import numpy as np
import pytest
from skimage.measure import label

from sr_core.delineation.metrics import Confusion, RasterScores, parcel_scores, summarize


def scores_of(truth, predicted, ground=None, **options):
    """Scores of two binary rasters, whose connected pieces are parcels."""
    ground = np.ones(truth.shape, bool) if ground is None else ground
    return parcel_scores(label(truth).astype(np.int32), label(predicted).astype(np.int32), ground, **options)


def squares(*windows, shape=(200, 200)):
    raster = np.zeros(shape, bool)
    for top, bottom, left, right in windows:
        raster[top:bottom, left:right] = True
    return raster


def test_mcc_of_known_counts():
    confusion = Confusion()
    confusion.add(np.array([1, 0, 1, 1], bool), np.array([1, 1, 1, 0], bool))
    assert (confusion.tp, confusion.fp, confusion.fn, confusion.tn) == (2, 1, 1, 0)
    assert confusion.mcc() == pytest.approx(-1 / 3)


def test_mcc_equals_the_correlation_of_random_masks():
    rng = np.random.default_rng(0)
    truth = rng.random((50, 60)) < 0.3
    predicted = truth ^ (rng.random(truth.shape) < 0.2)
    confusion = Confusion()
    for half in (slice(0, 20), slice(20, 50)):
        confusion.add(predicted[half], truth[half])
    assert confusion.mcc() == pytest.approx(np.corrcoef(truth.ravel(), predicted.ravel())[0, 1])


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"tp": 5, "tn": 5}, 1.0),
        ({"fp": 5, "fn": 5}, -1.0),
        ({"tp": 10}, 0.0),
        ({"tn": 10}, 0.0),
        ({"tn": 5, "fp": 5}, 0.0),
        ({"tp": 10**9, "tn": 10**9, "fp": 10**9, "fn": 10**9}, 0.0),
        ({"tp": 3 * 10**12, "tn": 3 * 10**12, "fp": 10**12, "fn": 10**12}, 0.5),
    ],
)
def test_mcc_where_it_degenerates_or_overflows(counts, expected):
    assert Confusion(**counts).mcc() == pytest.approx(expected)


def test_mcc_of_nothing_is_not_a_number():
    assert math.isnan(Confusion().mcc())


def test_raster_scores_count_valid_pixels_only():
    truth = np.zeros((3, 4, 4), np.float32)
    truth[:, :2] = 1
    wrong = truth.copy()
    wrong[:, :, 3] = 1 - wrong[:, :, 3]
    valid = np.ones((4, 4), bool)
    valid[:, 3] = False
    scores = RasterScores()
    scores.add(wrong, truth, valid)
    assert scores.summary() == {"extent_mcc": 1.0, "boundary_mcc": 1.0, "distance_mcc": 1.0}


def test_equal_parcels_have_no_error():
    parcels = squares((10, 20, 10, 20), (0, 10, 30, 40), (15, 20, 50, 60))
    for score in scores_of(parcels, parcels):
        assert (score.over_segmentation, score.under_segmentation, score.border_error) == (0, 0, 0)


def test_a_quarter_overlap_as_published():
    (score,) = scores_of(squares((0, 100, 0, 100)), squares((50, 150, 50, 150)))
    assert (score.over_segmentation, score.under_segmentation) == (0.75, 0.75)
    assert score.border_error == pytest.approx(0.9949494949494949)


def test_three_strips_against_two_as_published():
    truth = squares((10, 20, 20, 120), (30, 40, 20, 120), (50, 60, 20, 120))
    summary = summarize(scores_of(truth, squares((15, 33, 20, 120), (36, 65, 20, 120))))
    assert summary["over_segmentation"] == pytest.approx(0.3666666666666667)
    assert summary["under_segmentation"] == pytest.approx(0.7464878671775222)
    assert summary["border_error"] == pytest.approx(0.9413580246913581)
    assert summary["n_references"] == 3


def test_a_shift_of_a_pixel_ruins_the_strict_border_but_not_the_tolerant_one():
    (score,) = scores_of(squares((50, 90, 50, 90)), squares((51, 91, 51, 91)), tolerances_px=(1.0, 2.0))
    assert score.border_error > 0.9
    assert score.tolerant_border_error == (pytest.approx(1 / 156), 0.0), (
        "of 156 edge pixels one corner is a diagonal away"
    )


def test_an_unmatched_parcel_is_all_error():
    (score,) = scores_of(squares((10, 30, 10, 30)), squares((100, 120, 100, 120)))
    assert (score.over_segmentation, score.under_segmentation, score.border_error) == (1, 1, 1)
    assert score.tolerant_border_error == (1, 1)


def test_merging_reads_as_under_and_splitting_as_over_segmentation():
    two = np.zeros((40, 80), np.int32)
    two[5:35, 5:40], two[5:35, 40:75] = 1, 2
    one = (two > 0).astype(np.int32)
    everywhere = np.ones(two.shape, bool)
    assert [s.under_segmentation for s in parcel_scores(two, one, everywhere)] == [0.5, 0.5]
    (split,) = parcel_scores(one, two, everywhere)
    assert (split.over_segmentation, split.under_segmentation) == (0.5, 0.0)


def test_parcels_mostly_outside_the_ground_are_left_out_and_cuts_are_no_border():
    ground = np.zeros((200, 200), bool)
    ground[:, :100] = True
    parcels = squares((10, 30, 80, 110), (50, 70, 90, 120), (90, 110, 10, 40))
    scores = scores_of(parcels, parcels, ground)
    assert [score.label for score in scores] == [1, 3], "the second has a third of its pixels on the ground"
    assert all(score.border_error == 0 and score.under_segmentation == 0 for score in scores)


def test_no_references_make_no_means():
    assert summarize([]) == {"n_references": 0}
