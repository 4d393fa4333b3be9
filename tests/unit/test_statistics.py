"""Histogram statistics against numpy, and histogram matching."""

from pathlib import Path

import numpy as np
import pytest

from sr_core.radiometry.histogram import agreeing, match
from sr_core.radiometry.statistics import PixelStatistics

PERCENT = [0, 1, 33.3, 50, 99, 100]


@pytest.fixture
def pixels() -> np.ndarray:
    rng = np.random.default_rng(3)
    return rng.gamma(3, 900, (10_007, 4)).clip(0, 65535).astype(np.uint16)


def test_equal_to_numpy(pixels: np.ndarray) -> None:
    found = PixelStatistics(4).add(pixels)
    assert found.n_pixels == len(pixels)
    assert np.allclose(found.mean(), pixels.mean(axis=0), rtol=1e-12)
    assert np.allclose(found.std(), pixels.std(axis=0), rtol=1e-12)
    assert np.array_equal(found.median(), np.median(pixels, axis=0))
    assert np.allclose(found.percentile(PERCENT), np.percentile(pixels, PERCENT, axis=0).T, rtol=1e-12)


def test_merged_parts_are_the_whole(pixels: np.ndarray) -> None:
    whole = PixelStatistics(4).add(pixels)
    merged = PixelStatistics(4)
    for part in np.array_split(pixels, 7):
        merged.merge(PixelStatistics(4).add(part))
    assert np.array_equal(whole.counts, merged.counts)


def test_the_order_of_merging_changes_no_bit(pixels: np.ndarray) -> None:
    whole = PixelStatistics(4).add(pixels)
    parts = [PixelStatistics(4).add(part) for part in np.array_split(pixels, 7)]
    forwards, backwards, nested = PixelStatistics(4), PixelStatistics(4), PixelStatistics(4)
    for part in parts:
        forwards.merge(part)
    for part in reversed(parts):
        backwards.merge(part)
    for pair in (parts[:3], parts[3:]):
        half = PixelStatistics(4)
        for part in pair:
            half.merge(part)
        nested.merge(half)
    for merged in (forwards, backwards, nested):
        for name in ("mean", "std", "median"):
            assert getattr(merged, name)().tobytes() == getattr(whole, name)().tobytes()
        assert merged.percentile(PERCENT).tobytes() == whole.percentile(PERCENT).tobytes()


def test_the_ends_of_uint16() -> None:
    extremes = np.array([[0, 65535], [0, 0], [65535, 65535]], np.uint16)
    found = PixelStatistics(2).add(extremes)
    assert np.array_equal(found.mean(), extremes.astype(float).mean(axis=0))
    assert np.allclose(found.std(), extremes.astype(float).std(axis=0), rtol=1e-15)
    assert np.array_equal(found.percentile(PERCENT), np.percentile(extremes.astype(float), PERCENT, axis=0).T)


def test_a_part_on_disk_holds_occupied_bins_and_comes_back_bit_by_bit(pixels: np.ndarray, tmp_path: Path) -> None:
    counted = PixelStatistics(4).add(pixels).add(np.array([[0, 0, 65535, 65535]], np.uint16))
    np.savez(tmp_path / "part.npz", **counted.to_arrays())
    with np.load(tmp_path / "part.npz") as part:
        assert len(part["bins"]) == sum(len(np.unique(row)) for row in np.r_[pixels, [[0, 0, 65535, 65535]]].T)
        again = PixelStatistics.from_arrays(part)
    assert np.array_equal(again.counts, counted.counts) and again.counts.dtype == counted.counts.dtype
    empty = PixelStatistics.from_arrays(PixelStatistics(4).to_arrays())
    assert empty.n_pixels == 0 and empty.counts.shape == counted.counts.shape


@pytest.mark.parametrize(("name", "wrong"), [("bins", [3, 3]), ("bins", [0, 4 * 65536]), ("counts", [1, -1])])
def test_a_damaged_part_is_refused(name: str, wrong: list[int]) -> None:
    arrays = {"shape": np.array([4, 65536]), "bins": np.array([3, 9]), "counts": np.array([1, 1])}
    with pytest.raises(ValueError, match="not the occupied bins"):
        PixelStatistics.from_arrays({**arrays, name: np.array(wrong)})


def test_only_integers_are_counted() -> None:
    with pytest.raises(ValueError, match="expected uint16 pixels"):
        PixelStatistics(4).add(np.zeros((3, 4), np.float32))


def test_matching_undoes_a_monotone_change() -> None:
    rng = np.random.default_rng(0)
    reference = rng.gamma(3, 0.05, (80, 80, 2)).astype(np.float32)
    source = (3 * np.sqrt(reference) + 1).astype(np.float32)
    clear = np.ones((80, 80), bool)
    matched = match(source, reference, clear, clear)
    assert np.abs(matched - reference).mean() < 0.002
    assert np.abs(np.median(matched - reference)) < 1e-3


def test_matching_ignores_clouds_and_is_monotone() -> None:
    rng = np.random.default_rng(0)
    reference = rng.gamma(3, 0.05, (80, 80, 1)).astype(np.float32)
    source, clear = 2 * reference, np.ones((80, 80), bool)
    source[:20], clear[:20] = 9.0, False
    matched = match(source, reference, clear, np.ones((80, 80), bool))
    assert np.abs(matched[20:] - reference[20:]).mean() < 0.01
    order = np.argsort(source[..., 0], axis=None)
    assert (np.diff(matched[..., 0].ravel()[order]) >= -1e-6).all()


@pytest.mark.parametrize("where", ["source", "reference", "both"])
@pytest.mark.parametrize("value", [0.6, 1.5, 6.5])
def test_one_percent_of_bright_objects_does_not_bend_the_mapping(where: str, value: float) -> None:
    """Roofs, or clouds that no mask caught, from bright to saturated: the land is mapped as it is without them."""
    rng = np.random.default_rng(0)
    land = rng.gamma(3, 0.05, (120, 120, 1)).astype(np.float32)
    source, reference, clear = 3 * np.sqrt(land) + 1, land.copy(), np.ones((120, 120), bool)
    ordinary = match(source, reference, clear, clear)
    bright = rng.random((120, 120)) < 0.01
    if where != "reference":
        source[bright] = 3 * np.sqrt(value) + 1
    if where != "source":
        reference[bright] = value
    matched = match(source, reference, clear, clear)
    change = np.abs(matched - ordinary)[~bright]
    typical = land[..., 0] < np.percentile(land, 95)
    assert change[typical[~bright]].max() < 0.035 and change.mean() < 0.006
    same = agreeing(source[clear], reference[clear])
    better = match(source, reference, clear & same.reshape(clear.shape), clear & same.reshape(clear.shape))
    if where != "both":  # what both show alike may stay
        assert not same[bright.ravel()].any() and same[~bright.ravel()].mean() > 0.95
    apart = np.abs(better - ordinary)[~bright]
    assert apart[typical[~bright]].max() < 0.015 and apart.mean() < 0.002


def test_land_that_changed_does_not_make_the_histogram() -> None:
    rng = np.random.default_rng(1)
    reference = rng.gamma(3, 0.05, (80 * 80, 4)).astype(np.float32)
    source = 2 * reference + np.float32(0.1) + rng.normal(0, 0.004, reference.shape).astype(np.float32)
    source[:1200, 3] += 0.5  # a fifth of the land has greened since
    same = agreeing(source, reference)
    assert same[:1200].mean() < 0.05 and same[1200:].mean() > 0.9


def test_matching_a_flat_image_or_none() -> None:
    reference = np.random.default_rng(0).random((9, 9, 1)).astype(np.float32)
    clear = np.ones((9, 9), bool)
    flat = match(np.full((9, 9, 1), 5, np.float32), reference, clear, clear)
    assert np.allclose(flat, flat[0, 0]) and abs(float(flat[0, 0, 0]) - float(reference.mean())) < 0.05
    with pytest.raises(ValueError, match="expected clear pixels"):
        match(reference, reference, ~clear, clear)
