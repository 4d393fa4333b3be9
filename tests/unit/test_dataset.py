"""Sample sets and the batches drawn from them."""

import pytest
import torch

from sr_core.errors import DataError
from sr_core.samples.dataset import BatchSampler, to_reflectance
from tests.sample_sets import PLACES, sample_set


def test_a_batch_is_a_function_of_seed_and_step():
    samples = sample_set()
    one, same, other = (BatchSampler(samples, PLACES, 4, seed, 6, 0.1, 0.5) for seed in (1, 1, 2))
    for step in (0, 3, 100):
        assert torch.equal(one.batch(step).lr, same.batch(step).lr)
        assert torch.equal(one.batch(step).rows, same.batch(step).rows)
    assert not torch.equal(one.batch(0).lr, other.batch(0).lr)
    assert not torch.equal(one.batch(0).lr, one.batch(1).lr)


def test_every_sample_is_drawn_once_an_epoch():
    sampler = BatchSampler(sample_set(count=6), PLACES, batch_size=4, seed=0)
    drawn = torch.cat([sampler.batch(step).rows for step in range(3)]).tolist()
    assert sorted(drawn[:6]) == sorted(drawn[6:]) == list(range(6))


def test_crops_and_orientations_keep_frames_and_truth_together():
    # each truth pixel is the latest frame's, so the pair must stay equal whatever is done to it
    samples = sample_set(count=1)
    samples.hr.copy_(samples.lr[:, 0].repeat_interleave(4, -1).repeat_interleave(4, -2))
    samples.hr_clear.copy_(samples.clear[:, 0].repeat_interleave(4, -1).repeat_interleave(4, -2))
    sampler = BatchSampler(samples, PLACES, 1, seed=0, crop_px=5, gain=0.1)
    batches = [sampler.batch(step) for step in range(40)]
    for batch in batches:
        assert batch.lr.shape == (1, 3, 4, 5, 5) and batch.hr.shape == (1, 4, 20, 20)
        enlarged = batch.lr[:, 0].repeat_interleave(4, -1).repeat_interleave(4, -2)
        torch.testing.assert_close(enlarged, batch.hr)


def test_all_eight_orientations_occur():
    samples = sample_set(count=1)
    sampler = BatchSampler(samples, PLACES, 1, seed=0)
    seen = {sampler.batch(step).lr.numpy().tobytes() for step in range(80)}
    assert len(seen) == 8


def test_gain_brightens_frames_and_truth_alike():
    samples = sample_set(count=1)
    sampler = BatchSampler(samples, PLACES, 1, seed=0, gain=0.2)
    gains = [float(sampler.batch(step).lr.mean() / to_reflectance(samples.lr).mean()) for step in range(30)]
    truths = [float(sampler.batch(step).hr.mean() / to_reflectance(samples.hr).mean()) for step in range(30)]
    assert gains == pytest.approx(truths, abs=1e-4)
    assert 0.8 <= min(gains) < 0.9 and 1.1 < max(gains) <= 1.2


def test_dropout_hides_earlier_frames_never_the_latest():
    sampler = BatchSampler(sample_set(count=1, frames=5), PLACES, 1, seed=0, frame_dropout=0.4)
    shown = torch.cat([sampler.batch(step).clear.mean(dim=(2, 3)) for step in range(100)])
    assert (shown[:, 0] == 1).all()
    assert 0.5 < shown[:, 1:].mean() < 0.7


def test_a_subset_keeps_rows_together():
    samples = sample_set()
    few = samples.subset([4, 1])
    assert few.ids == ["chip-4", "chip-1"] and len(few) == 2
    assert torch.equal(few.hr[0], samples.hr[4])


def test_what_cannot_be_drawn_is_said():
    with pytest.raises(DataError, match="none of split train"):
        BatchSampler(sample_set().subset([]), PLACES, 4, seed=0)
    with pytest.raises(DataError, match=r"crop_px: found 9, expected at most the samples' 8 pixels"):
        BatchSampler(sample_set(), PLACES, 4, seed=0, crop_px=9)
