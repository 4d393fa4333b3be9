"""Clusters of scores, thresholds between them, balance over land: on clouds of points whose answer is known."""

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
from shapely.geometry import Point

from sr_core.config import QualityGate
from sr_core.quality.mixture import fit
from sr_core.quality.selection import select, to_json
from sr_core.samples.land import kind_of_land
from sr_core.samples.store import COLUMNS

CONFIG = QualityGate(thresholds="mixture", min_ssim=0.2, min_psnr=10, max_monotonous=1)
WORST, MIDDLE, BEST = (0.3, 14.0), (0.75, 27.0), (0.92, 34.0)


def cloud(middle, count, seed=0, ssim=0.03, psnr=1.0, tilt=0.5):
    """Scores about a middle; SSIM and PSNR go together, as they do."""
    covariance = [[ssim**2, tilt * ssim * psnr], [tilt * ssim * psnr, psnr**2]]
    return np.random.default_rng(seed).multivariate_normal(middle, covariance, count)


THREE = np.concatenate([cloud(WORST, 60), cloud(MIDDLE, 300), cloud(BEST, 500)])


def candidates(scores, land="varied", split="train", unscored=0):
    """Scored candidates, and some without images before, between and behind them."""
    rows = [
        {
            "sample_id": f"s{index:05d}",
            "ssim": ssim,
            "psnr": psnr,
            "split": split if isinstance(split, str) else split[index],
            "land": land if isinstance(land, str) else land[index],
            "kept": True,
            "reason": "",
        }
        for index, (ssim, psnr) in enumerate(scores)
    ]
    for n in range(unscored):
        nothing = {"ssim": np.nan, "psnr": np.nan, "split": "train", "land": "", "kept": False, "reason": "cloud"}
        rows.insert(n * 7, {"sample_id": f"x{n}", **nothing})
    table = pd.DataFrame(rows).reindex(columns=[name for name in COLUMNS if name not in ("row", "cluster")])
    return gpd.GeoDataFrame(table, geometry=[Point(0, 0)] * len(table), crs="EPSG:4326")


def reasons(selection):
    return selection.table["reason"].value_counts().to_dict()


def test_three_clusters_are_found_from_worst_to_best():
    mixture = fit(THREE, 3, seed=1)
    np.testing.assert_allclose(mixture.means, [WORST, MIDDLE, BEST], rtol=0.03)
    np.testing.assert_allclose(mixture.weights, np.array([60, 300, 500]) / 860, atol=0.01)
    np.testing.assert_allclose(np.sqrt(mixture.covariances[:, 1, 1]), 1.0, rtol=0.25)
    assert (mixture.covariances[:, 0, 1] > 0).all()
    labels = mixture.assign(THREE)
    assert (labels == np.repeat([0, 1, 2], [60, 300, 500])).mean() > 0.99


@pytest.mark.parametrize("order_seed", [0, 1])
def test_neither_order_nor_seed_nor_unit_moves_the_clusters(order_seed):
    mixture = fit(THREE, 3, seed=1)
    shuffled = fit(np.random.default_rng(order_seed).permutation(THREE), 3, seed=order_seed + 5)
    np.testing.assert_allclose(shuffled.means, mixture.means, rtol=1e-3)
    in_percent = fit(THREE * [100, 1], 3, seed=1)
    np.testing.assert_allclose(in_percent.means, mixture.means * [100, 1], rtol=1e-6)


def test_the_same_seed_gives_the_same_bits():
    assert fit(THREE, 3, 4).means.tobytes() == fit(THREE, 3, 4).means.tobytes()


def test_points_that_all_fall_on_a_few_places_do_not_break_the_fit():
    mixture = fit(np.repeat([(0.2, 12.0), (0.8, 30.0), (1.0, 100.0)], 40, axis=0), 3, seed=0)
    np.testing.assert_allclose(mixture.means[:, 1], [12, 30, 100], atol=0.01)
    with pytest.raises(ValueError, match="as many different points"):
        fit(np.repeat([(0.2, 12.0), (0.8, 30.0)], 40, axis=0), 3, seed=0)


def test_thresholds_lie_in_the_valley_and_drop_the_worst_cluster():
    selection = select(candidates(THREE, unscored=9), CONFIG)
    thresholds = selection.thresholds
    assert thresholds.found == ("ssim", "psnr")
    assert 0.4 < thresholds.min_ssim < 0.67 and 17 < thresholds.min_psnr < 24.5
    assert reasons(selection) == {"": 800, "ssim": 60, "cloud": 9}
    table = selection.table
    assert table["kept"].sum() == 800 and (table["kept"] == (table["reason"] == "")).all()
    assert (
        table.loc[table["kept"], "row"].tolist() == list(range(800)) and (table.loc[~table["kept"], "row"] == -1).all()
    )
    assert table["cluster"].value_counts().to_dict() == {2: 500, 1: 300, 0: 60, -1: 9}
    assert [len(names) for names in selection.examples] == [6, 6, 6]
    worst = table.set_index("sample_id").loc[list(selection.examples[0])]
    assert (worst["cluster"] == 0).all() and not worst["kept"].any()
    written = to_json(selection)
    assert [cluster["samples"] for cluster in written["clusters"]] == [60, 300, 500]


def test_fixed_thresholds_stay_and_the_clusters_are_found_all_the_same():
    fixed = CONFIG.model_copy(update={"thresholds": "fixed", "min_psnr": 26.0})
    selection = select(candidates(THREE), fixed)
    assert (selection.thresholds.min_ssim, selection.thresholds.min_psnr, selection.thresholds.found) == (0.2, 26.0, ())
    below = (THREE[:, 1] < 26) & (THREE[:, 0] >= 0.2)
    assert reasons(selection) == {"": 860 - below.sum(), "psnr": below.sum()}
    assert selection.mixture is not None


def test_where_only_one_score_parts_the_clusters_the_other_threshold_is_fixed():
    same_psnr = np.concatenate([cloud((0.3, 30.0), 60), cloud((0.8, 30.2), 300), cloud((0.93, 30.4), 500)])
    thresholds = select(candidates(same_psnr), CONFIG).thresholds
    assert thresholds.found == ("ssim",) and thresholds.min_psnr == 10.0
    assert 0.4 < thresholds.min_ssim < 0.72
    assert "SSIM from the valley of the mixture; the other from the configuration" in thresholds.note


RNG = np.random.default_rng(2)


@pytest.mark.parametrize(
    ("scores", "why"),
    [
        (THREE[::20], "43 scored candidates are too few"),
        (np.full((200, 2), (0.9, 30.0)), "all scores are the same"),
        (cloud(BEST, 800), "are not apart"),
        (RNG.uniform((0.3, 20), (0.9, 40), (800, 2)), "are not apart"),
        (np.stack([1 - RNG.gamma(2, 0.05, 800), 40 - RNG.gamma(2, 3, 800)], axis=1), "are not apart"),
        (np.concatenate([cloud(WORST, 700), cloud(MIDDLE, 90), cloud(BEST, 60)]), "is not the exception"),
    ],
    ids=["few", "equal", "one cloud", "uniform", "long tail", "mostly bad"],
)
def test_without_a_valley_the_fixed_thresholds_stay_and_it_is_said_why(scores, why):
    thresholds = select(candidates(scores), CONFIG).thresholds
    assert (thresholds.min_ssim, thresholds.min_psnr, thresholds.found) == (0.2, 10.0, ())
    assert thresholds.note.startswith("from the configuration: ") and why in thresholds.note


def test_monotonous_land_does_not_fill_the_training_set_and_the_draw_is_seeded():
    land = ["water"] * 70 + ["dense"] * 20 + ["varied"] * 10 + ["water"] * 30
    split = ["train"] * 100 + ["test"] * 30
    table = candidates(cloud(BEST, 130), land, split)
    half = CONFIG.model_copy(update={"thresholds": "fixed", "max_monotonous": 0.5})
    first, again, other = (select(table, config).table for config in (half, half, half.model_copy(update={"seed": 9})))
    dropped = first[first["reason"] == "balance"]
    assert len(dropped) == 20 and set(dropped["land"]) == {"water"} and set(dropped["split"]) == {"train"}
    assert first["reason"].equals(again["reason"]) and not first["reason"].equals(other["reason"])
    varied = candidates(cloud(BEST, 130), "varied", split)
    assert select(varied, half).table["kept"].all()


def test_land_with_contrast_is_varied():
    speckled = np.full((4, 20, 20), 1500, np.uint16) + np.arange(4, dtype=np.uint16)[:, None, None] * 100
    assert kind_of_land(speckled, np.ones((20, 20), bool)) == "bare"
    speckled[3, ::4] += 600
    assert kind_of_land(speckled, np.ones((20, 20), bool)) == "varied"


@pytest.mark.parametrize(
    ("pixels", "kind"),
    [
        ([(800, 600, 400, 200)], "water"),
        ([(800, 1000, 1400, 1800)], "bare"),
        ([(400, 700, 700, 2000)], "sparse"),
        ([(300, 500, 300, 4000)], "dense"),
        ([(300, 500, 300, 4000)] * 3 + [(800, 1000, 1400, 1800)] * 2, "varied"),
        ([(300, 500, 300, 2000)] * 9 + [(800, 1000, 1400, 1800)], "dense"),
        ([(300, 500, 300, 2000)] * 7 + [(800, 1000, 1400, 1800)] * 3, "varied"),
    ],
)
def test_kinds_of_land(pixels, kind):
    frame = np.array(pixels, np.uint16).T[:, :, None].repeat(4, axis=2)
    clear = np.ones(frame.shape[1:], bool)
    assert kind_of_land(frame, clear) == kind
    # what is not clear does not count
    clouded = np.concatenate([frame, np.full((4, 90, 4), 9000, np.uint16)], axis=1)
    assert kind_of_land(clouded, np.concatenate([clear, np.zeros((90, 4), bool)])) == kind
