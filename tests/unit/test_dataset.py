"""Sample sets and the batches drawn from them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sr_core.config import TrainHRN
from sr_core.errors import DataError
from sr_core.samples.dataset import ORIENTATIONS, Ahead, BatchSampler, choose_frames, orient_shift, to_reflectance
from tests.sample_sets import PLACES, sample_set


def sampler(samples, batch_size, gain=0.0, dropout=0.0, **settings) -> BatchSampler:
    chances = {"gain_augmentation": gain, "frame_dropout": dropout}
    return BatchSampler(samples, PLACES, TrainHRN(batch_size=batch_size, **chances, **settings))


def test_a_batch_is_a_function_of_seed_and_step():
    samples = sample_set(side=12)
    one, same, other = (sampler(samples, 4, seed=seed, crop_px=8, gain=0.1, dropout=0.5) for seed in (1, 1, 2))
    for step in (0, 3, 100):
        assert torch.equal(one.batch(step).lr, same.batch(step).lr)
        assert torch.equal(one.batch(step).rows, same.batch(step).rows)
    assert not torch.equal(one.batch(0).lr, other.batch(0).lr)
    assert not torch.equal(one.batch(0).lr, one.batch(1).lr)


def test_every_sample_is_drawn_once_an_epoch():
    drawer = sampler(sample_set(count=6), 4)
    drawn = torch.cat([drawer.batch(step).rows for step in range(3)]).tolist()
    assert sorted(drawn[:6]) == sorted(drawn[6:]) == list(range(6))


def test_crops_and_orientations_keep_frames_and_truth_together():
    # each truth pixel is the latest frame's, so the pair must stay equal whatever is done to it
    samples = sample_set(count=1, side=12)
    samples.hr.copy_(samples.lr[:, 0].repeat_interleave(4, -1).repeat_interleave(4, -2))
    samples.hr_clear.copy_(samples.clear[:, 0].repeat_interleave(4, -1).repeat_interleave(4, -2))
    drawer = sampler(samples, 1, crop_px=8, gain=0.1)
    batches = [drawer.batch(step) for step in range(40)]
    for batch in batches:
        assert batch.lr.shape == (1, 3, 4, 8, 8) and batch.hr.shape == (1, 4, 32, 32)
        enlarged = batch.lr[:, 0].repeat_interleave(4, -1).repeat_interleave(4, -2)
        torch.testing.assert_close(enlarged, batch.hr)


def test_all_eight_orientations_occur():
    samples = sample_set(count=1)
    drawer = sampler(samples, 1)
    seen = {drawer.batch(step).lr.numpy().tobytes() for step in range(80)}
    assert len(seen) == 8


def test_gain_brightens_frames_and_truth_alike():
    samples = sample_set(count=1)
    drawer = sampler(samples, 1, gain=0.2)
    gains = [float(drawer.batch(step).lr.mean() / to_reflectance(samples.lr).mean()) for step in range(30)]
    truths = [float(drawer.batch(step).hr.mean() / to_reflectance(samples.hr).mean()) for step in range(30)]
    assert gains == pytest.approx(truths, abs=1e-4)
    assert 0.8 <= min(gains) < 0.9 and 1.1 < max(gains) <= 1.2


def test_dropout_hides_earlier_frames_never_the_latest():
    drawer = sampler(sample_set(count=1, frames=5), 1, dropout=0.4)
    shown = torch.cat([drawer.batch(step).clear.mean(dim=(2, 3)) for step in range(100)])
    assert (shown[:, 0] == 1).all()
    assert 0.5 < shown[:, 1:].mean() < 0.7


def test_a_subset_keeps_rows_together():
    samples = sample_set()
    few = samples.subset([4, 1])
    assert few.ids == ["chip-4", "chip-1"] and len(few) == 2
    assert torch.equal(few.hr[0], samples.hr[4])


def test_what_cannot_be_drawn_is_said():
    with pytest.raises(DataError, match="none of split train"):
        sampler(sample_set().subset([]), 4)
    with pytest.raises(DataError, match=r"crop_px: found 9, expected at most the samples' 8 pixels"):
        sampler(sample_set(), 4, crop_px=9)
    with pytest.raises(DataError, match=r"train_hrn\.frames: found 4, expected at most the samples' 3; raise"):
        sampler(sample_set(frames=3), 4, frames=4)


def test_a_batch_at_once_is_what_its_samples_are_one_by_one():
    """Crop, turn, flip and brighten by hand, with the numbers that the sampler draws."""
    samples = replace(sample_set(count=5, frames=3, side=12), shift=torch.rand(5, 3, 2))
    samples.clear[:] = torch.rand(samples.clear.shape) > 0.2
    samples.hr_clear[:] = torch.rand(samples.hr_clear.shape) > 0.2
    batch = sampler(samples, 4, crop_px=8, gain=0.1, seed=3).batch(7)
    random = np.random.default_rng([3, 7])
    corner, codes = random.integers(0, 5, size=(4, 2)), random.integers(8, size=4)
    gains = 1 + random.uniform(-0.1, 0.1, size=4)
    for place, row in enumerate(batch.rows.tolist()):
        (top, left), (turns, flip) = corner[place], ORIENTATIONS[codes[place]]

        def oriented(image, scale, top=top, left=left, turns=turns, flip=flip):
            rows, columns = (slice(scale * first, scale * (first + 8)) for first in (top, left))
            turned = torch.rot90(image[..., rows, columns], turns, (-2, -1))
            return turned.flip(-1) if flip else turned

        gain = float(gains[place])
        torch.testing.assert_close(batch.lr[place], oriented(to_reflectance(samples.lr[row]), 1) * gain)
        torch.testing.assert_close(batch.hr[place], oriented(to_reflectance(samples.hr[row]), 4) * gain)
        assert torch.equal(batch.clear[place], oriented(samples.clear[row], 1).float())
        assert torch.equal(batch.hr_clear[place], oriented(samples.hr_clear[row], 4).float())
        assert torch.equal(batch.shift[place], orient_shift(samples.shift[row], turns, flip))


def test_reflectance_beyond_int16_survives():
    samples = sample_set(count=1)
    samples.lr[0, 0, 0, 0, 0] = 65535
    assert sampler(samples, 1).batch(0).lr.max() == pytest.approx(6.5535)


CLEAR_OR_NOT = torch.tensor([[1.0, 1.0, 0.9, 1.0, 0.0, 0.0]])
REAL = torch.tensor([[True, True, True, True, True, False]])
AGES = torch.tensor([[0, 3, 5, 8, 20, -1]], dtype=torch.int16)


def choices(count, draws=400, **settings):
    """Frames chosen in many draws from five, the third a little cloudy, the fifth not clear at all, and padding."""
    random = np.random.default_rng(0)
    luck, gumbel = (torch.from_numpy(part) for part in (random.random((draws, 6)), random.gumbel(size=(draws, 6))))
    inputs = (part.expand(draws, -1) for part in (CLEAR_OR_NOT, REAL, AGES))
    return choose_frames(*inputs, count, TrainHRN(**settings), luck, gumbel)


def test_the_latest_frames_are_those_next_to_the_latest():
    chosen, usable = choices(3)
    assert (chosen == torch.tensor([0, 1, 2])).all() and usable.all()
    chosen, usable = choices(6)
    assert (chosen == torch.arange(6)).all() and (usable == REAL).all()


def test_random_frames_keep_the_latest_and_their_order_and_are_clear_ones_more_often():
    chosen, usable = choices(3, frame_choice="random")
    assert (chosen[:, 0] == 0).all() and usable.all() and (chosen.diff(dim=1) > 0).all()
    share = [float((chosen == frame).any(dim=1).float().mean()) for frame in range(6)]
    assert share[1] == pytest.approx(share[3], abs=0.02) and share[1] > 0.98  # e^5 times as likely as the third
    assert 0 < share[2] < 0.05 and share[4] == share[5] == 0
    chosen, usable = choices(6, frame_choice="random")
    assert (chosen == torch.arange(6)).all() and (usable == REAL).all()


def test_a_young_frame_may_count_as_the_latest_and_later_ones_are_dropped():
    chosen, usable = choices(3, max_latest_age_days=5)
    starts = {(0, 1, 2), (1, 2, 3), (2, 3, 4)}
    assert set(map(tuple, chosen.tolist())) == starts and usable.all()
    chosen, usable = choices(6, max_latest_age_days=5)
    for frames, real in zip(chosen.tolist(), usable.tolist(), strict=True):
        assert [frame for frame, there in zip(frames, real, strict=True) if there] == list(range(frames[0], 5))
        assert real == sorted(real, reverse=True)
    assert (choices(3, max_latest_age_days=0)[0][:, 0] == 0).all()


def test_what_fills_the_shape_is_as_empty_as_padding():
    samples = replace(sample_set(count=1, frames=3), age=torch.tensor([[0, 3, 5]], dtype=torch.int16))
    drawer = sampler(samples, 1, max_latest_age_days=5)
    seen = [drawer.batch(step) for step in range(30)]
    shown = {int((batch.clear[0].amax(dim=(1, 2)) > 0).sum()) for batch in seen}
    assert shown == {1, 2, 3}
    for batch in seen:
        empty = batch.clear[0].amax(dim=(1, 2)) == 0
        assert not batch.lr[0, empty].any()


def test_the_network_may_see_fewer_frames_than_samples_hold():
    samples = sample_set(count=2, frames=5)
    assert sampler(samples, 2, frames=2).batch(0).lr.shape[1] == 2


def test_parts_of_a_batch_make_it_up():
    batch = sampler(sample_set(), 4).batch(0)
    parts = [batch.part(index, 2) for index in range(2)]
    for name, values in vars(batch).items():
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), values), name


def test_batches_made_ahead_are_the_same_and_their_errors_are_heard():
    drawer = sampler(sample_set(), 4)
    ahead = Ahead(drawer, torch.device("cpu"))
    for step in (0, 1, 2, 7):
        assert torch.equal(ahead.batch(step).lr, drawer.batch(step).lr)
        assert ahead.names(ahead.batch(step)) == drawer.names(drawer.batch(step))

    class BrokenError(Exception):
        pass

    class Broken(BatchSampler):
        def batch(self, step):
            raise BrokenError

    with pytest.raises(BrokenError):
        Ahead(Broken(sample_set(), PLACES, TrainHRN()), torch.device("cpu")).batch(0)


def test_samples_that_would_fill_an_accelerator_stay_where_they_are(monkeypatch):
    samples = sample_set()
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10_000, 80_000))
    assert samples.near(torch.device("cuda")) is samples
    assert torch.equal(samples.to(torch.device("cpu")).lr, samples.lr)
