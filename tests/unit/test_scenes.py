"""Training batches from whole series of fine images."""

import datetime as dt
from functools import cache

import numpy as np
import pytest
import torch

from sr_core.errors import DataError
from sr_core.models.alignment import align
from sr_core.models.normalization import Normalization
from sr_core.radiometry.resample import degrade
from sr_core.training.instrument import InstrumentRanges
from sr_core.training.scenes import FineSeries, SceneSampler, join_samples, weigh
from tests.sample_sets import scene

DATES = [dt.datetime(2022, 5, 1) + dt.timedelta(days=10 * index) for index in range(10)]
EXACT = InstrumentRanges(
    mtf=(0.3, 0.3),
    mtf_spread=0,
    noise=(0, 0),
    gain=0,
    offset=0,
    registration_error_px=(0, 0),
    on_latest_grid=0,
    unregistered=0,
)


@cache
def ground(seed: int, side: int, shift: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    """(4, side, side) drawn four times finer, so that it can be displaced by fractions of a pixel."""
    return degrade(scene(seed, side * 4), shift=shift)


def series(seed: int = 0, side: int = 128, shifts: np.ndarray | None = None, name: str = "here") -> FineSeries:
    """One landscape on ten dates, each displaced by `shifts` fine pixels; date 4 has a cloud, date 5 is overcast."""
    if shifts is None:
        images, shifts = np.repeat(ground(seed, side)[None], 10, axis=0), np.zeros((10, 2), np.float32)
    else:
        images = np.stack([ground(seed, side, tuple(shift)) for shift in shifts.tolist()])
        shifts = shifts.astype(np.float32)
    clear = np.ones((10, side, side), bool)
    clear[4, 30:60, 30:60] = False
    clear[5] = False
    place = Normalization((0.2,) * 4, (0.06,) * 4)
    return FineSeries(name, name, (images * 10_000).round().astype(np.uint16), clear, clear, DATES, shifts, place, 10.0)


def sampler(*found: FineSeries, ranges: InstrumentRanges = EXACT, **changes) -> SceneSampler:
    settings = {"batch_size": 6, "crop_px": 16, "frames": 4, "seed": 1, "gain": 0.0} | changes
    return SceneSampler(found, [1.0] * len(found), ranges, **settings)


def test_a_batch_is_a_function_of_seed_and_step():
    batches = sampler(series(), ranges=InstrumentRanges())
    again = sampler(series(), ranges=InstrumentRanges()).batch(3)
    for name, value in vars(batches.batch(3)).items():
        assert torch.equal(value, getattr(again, name)), name
    assert not torch.equal(batches.batch(4).lr, again.lr)
    assert not torch.equal(sampler(series(), ranges=InstrumentRanges(), seed=2).batch(3).lr, again.lr)


def test_a_batch_has_the_shapes_of_the_contract():
    batch = sampler(series(), ranges=InstrumentRanges()).batch(0)
    assert batch.lr.shape == (6, 4, 4, 16, 16) and batch.clear.shape == (6, 4, 16, 16)
    assert batch.shift.shape == (6, 4, 2) and batch.hr.shape == (6, 4, 64, 64) and batch.hr_clear.shape == (6, 64, 64)
    assert batch.mean.shape == batch.std.shape == (6, 4, 1, 1)
    tensors = (batch.lr, batch.clear, batch.shift, batch.hr, batch.hr_clear, batch.mean, batch.std)
    assert all(tensor.dtype == torch.float32 and tensor.is_contiguous() for tensor in tensors)


def test_the_told_displacements_bring_frames_onto_the_truth_in_every_orientation():
    """Instrument and dates displace the frames; aligned by what the network is told they show the degraded truth."""
    shifts = np.random.default_rng(0).uniform(-3, 3, (10, 2))
    batches = sampler(series(shifts=shifts), batch_size=24)
    batch = batches.batch(0)
    turns = {(draw.turns, draw.flip) for draw in (batches._draw(np.random.default_rng([1, n])) for n in range(40))}
    assert len(turns) == 8
    expected = torch.from_numpy(degrade(batch.hr.numpy(), mtf=0.3))
    inner = (..., slice(4, -4), slice(4, -4))

    def distance(frames: torch.Tensor) -> float:
        differences = (frames - expected[:, None])[inner].square().mean(dim=(2, 3, 4))
        return float(differences[batch.clear[..., 4:-4, 4:-4].all(dim=(2, 3))].mean().sqrt())

    aligned = distance(align(batch.lr, batch.clear, batch.shift))
    # what is left is what a sampled image does not hold; a wrong sign or axis would double the error
    assert aligned < 0.35 * distance(batch.lr)
    assert aligned < 0.35 * distance(align(batch.lr, batch.clear, -batch.shift))
    assert aligned < 0.35 * distance(align(batch.lr, batch.clear, batch.shift.flip(-1)))


def test_the_truth_is_the_latest_date_and_frames_go_back_from_there():
    one = series()
    for index in range(10):  # each date has a brightness of its own
        one.bands[index] = 1000 + 100 * index
    batches = sampler(one, batch_size=32)
    batch = batches.batch(0)
    assert torch.equal(batch.hr[:, 0, 0, 0], batch.lr[:, 0, 0, 0, 0])
    for frames, count in zip(batch.lr[:, :, 0, 0, 0], (batch.lr[:, :, 0, 0, 0] > 0).sum(dim=1), strict=True):
        assert (frames[: count - 1] > frames[1:count]).all()
        assert frames[0] - frames[count - 1] <= 0.1  # at most 100 days, a hundredth of reflectance each ten
        assert 0.15 not in frames.tolist()  # the overcast date
    names = batches.names(batch)
    assert all(name.startswith("here 2022-0") and "row" in name for name in names)
    for name, frames in zip(names, batch.lr[:, 0, 0, 0, 0], strict=True):
        date = DATES[round((float(frames) - 0.1) * 100)]
        assert f"{date:%Y-%m-%d}" in name


def test_clouds_are_masked_and_padded_frames_are_nowhere_clear():
    batch = sampler(series(), batch_size=64).batch(0)
    padded = batch.lr.flatten(2).sum(dim=-1) == 0
    assert padded.any() and not padded[:, 0].any()
    assert not batch.clear[padded].any() and not batch.shift[padded].any()
    partly = batch.clear[~padded].mean(dim=(1, 2))
    assert (partly < 1).any() and (partly >= 0.4).all()


def test_ground_under_a_cloud_is_learned_where_the_truth_knows_it():
    simulated = series()
    simulated = FineSeries(**{**vars(simulated), "known": np.ones_like(simulated.clear)})
    batch = sampler(simulated, batch_size=64).batch(0)
    latest_cloudy = batch.clear[:, 0].mean(dim=(1, 2)) < 1
    assert latest_cloudy.any()
    assert batch.hr_clear[latest_cloudy].all()


def test_samples_reach_the_edges_of_a_place_no_larger_than_they_are():
    small = series(side=64)
    batch = sampler(small, ranges=InstrumentRanges(), batch_size=4).batch(0)
    assert torch.isfinite(batch.lr).all() and (batch.lr[:, 0] > 0).all()


def test_half_of_the_samples_are_normalised_as_a_small_request_would_be():
    batch = sampler(series(), batch_size=64).batch(0)
    of_place = (batch.mean[:, 0, 0, 0] == np.float32(0.2)) & (batch.std[:, 0, 0, 0] == np.float32(0.06))
    assert 16 < of_place.sum() < 48
    assert len(batch.mean[~of_place, 0].unique()) > 8
    assert (batch.std > 0.01).all()


def test_gain_brightens_truth_and_frames_alike():
    plain, bright = sampler(series(), gain=0.0).batch(0), sampler(series(), gain=0.2).batch(0)
    ratio = bright.hr.mean(dim=(1, 2, 3)) / plain.hr.mean(dim=(1, 2, 3))
    assert ratio.std() > 0.02
    torch.testing.assert_close(bright.lr[:, 0].mean(dim=(1, 2, 3)) / plain.lr[:, 0].mean(dim=(1, 2, 3)), ratio)


def test_series_are_drawn_by_their_weights_and_share_them_by_area():
    found, weights = weigh([([series(0), series(1, side=64)], 1.0), ([series(2)], 3.0)])
    np.testing.assert_allclose(weights, [0.8, 0.2, 3.0])
    batches = SceneSampler(found, weights, EXACT, 200, 16, frames=1, seed=0)
    drawn = np.bincount([int(code) >> 46 for code in batches.batch(0).rows], minlength=3) / 200
    np.testing.assert_allclose(drawn, [0.2, 0.05, 0.75], atol=0.08)


def test_samples_to_judge_on_are_upright_with_the_place_s_statistics():
    samples = sampler(series(), augment=False, batch_size=5).sample_set(7, "here/nominal")
    assert len(samples) == 7 and set(samples.region) == {"here/nominal"} and len(set(samples.ids)) > 4
    assert samples.lr.dtype == samples.hr.dtype == torch.uint16
    assert torch.equal(samples.valid, samples.clear.flatten(2).any(dim=-1))
    one = series()
    date = next(index for index, date in enumerate(DATES) if samples.target_date[0] == date.date().isoformat())
    row, column = (int(word) for word in np.array(samples.ids[0].split())[[3, 5]])
    truth = one.bands[date, :, row : row + 64, column : column + 64]
    np.testing.assert_array_equal(samples.hr[0], truth)
    both = join_samples([samples, samples])
    assert len(both) == 14 and both.lr.shape[0] == 14 and both.ids[7] == samples.ids[0]


def test_what_cannot_be_sampled_is_named():
    with pytest.raises(DataError, match=r"crop_px: found 40, expected at most 32 for here"):
        sampler(series(), crop_px=40)
    dark = series()
    dark.clear[:] = False
    with pytest.raises(DataError, match="no date shows any of the ground"):
        sampler(dark)
    with pytest.raises(DataError, match="found 0 series"):
        sampler()


def test_of_some_samples_no_displacement_is_told_and_their_truth_lies_on_the_latest_frame():
    shifts = np.random.default_rng(0).uniform(-3, 3, (10, 2))
    batch = sampler(series(shifts=shifts), ranges=EXACT.model_copy(update={"unregistered": 1.0})).batch(0)
    assert not batch.shift.any()
    expected = torch.from_numpy(degrade(batch.hr.numpy(), mtf=0.3))
    inner = (..., slice(4, -4), slice(4, -4))
    difference = (batch.lr[:, 0] - expected)[inner].abs()
    assert difference.max() < 2e-4
