"""Frames as instruments that vary would have delivered them."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from sr_core.radiometry.resample import degrade
from sr_core.training.instrument import Instrument, InstrumentRanges, correlated_noise, measure_noise
from tests.sample_sets import scene

FIXED = {"mtf_spread": 0, "noise": (0, 0), "gain": 0, "offset": 0}
STD = torch.full((3, 4), 0.05)


def draw(seed: int = 0, frames: int = 4, **ranges) -> Instrument:
    return Instrument.draw(InstrumentRanges(**ranges), frames, STD, np.random.default_rng(seed))


def fine(seed: int = 0, frames: int = 4) -> torch.Tensor:
    """Three samples of reflectance x 10000, the same at all dates."""
    images = np.stack([scene(seed + place, 64) for place in range(3)]) * 10_000
    return torch.from_numpy(images.round()).float()[:, None].expand(-1, frames, -1, -1, -1)


@pytest.mark.parametrize("mtf", [0.15, 0.35])
def test_without_variety_it_is_the_degradation_of_walds_protocol(mtf):
    instrument = draw(mtf=(mtf, mtf), displacement_px=(0.3, 0.3), **FIXED)
    frames = instrument.observe(fine(), 0, torch.Generator())
    for sample in range(3):
        for date in range(4):
            shift = tuple(instrument.displacement[sample, date].tolist())
            expected = degrade(fine()[sample, date].numpy() / 10_000, mtf=mtf, shift=shift)
            # half of a 10000th is lost in rounding to integers
            np.testing.assert_allclose(frames[sample, date], expected, atol=0.55e-4)


def test_a_margin_shows_the_edge_what_lies_beyond_it():
    instrument = draw(mtf=(0.2, 0.2), displacement_px=(0.4, 0.4), **FIXED)
    whole = instrument.observe(fine(), 0, torch.Generator())
    inner = instrument.observe(fine(), 4, torch.Generator())
    torch.testing.assert_close(inner, whole[..., 4:-4, 4:-4], atol=1.01e-4, rtol=0)


def test_instruments_lie_in_the_ranges_and_differ_by_sample_band_and_direction():
    ranges = InstrumentRanges()
    std = torch.full((400, 4), 0.05)
    drawn = Instrument.draw(ranges, 8, std, np.random.default_rng(1))
    level = drawn.mtf.mean(dim=(1, 2))
    assert 0.12 < level.min() < 0.18 and 0.32 < level.max() < 0.38
    assert 0.015 < drawn.mtf.std(dim=1).mean() < 0.03  # about mtf_spread
    rms = drawn.displacement[:, 1:].square().mean(dim=(1, 2)).sqrt()
    assert 0.05 < rms.min() < 0.2 and 0.35 < rms.max() < 0.75
    assert 0.02 < drawn.registration_error[:, 1:].std() < 0.05
    relative = drawn.noise / std
    assert relative.min() > 0.005 and relative.max() < 0.25
    assert 0.03 < relative.median() < 0.06
    assert len(drawn.correlation.unique()) > 390


def test_the_latest_frame_has_the_radiometry_of_the_truth_and_some_share_its_grid():
    drawn = Instrument.draw(
        InstrumentRanges(on_latest_grid=0.5, unregistered=0), 8, torch.ones(200, 4), np.random.default_rng(2)
    )
    assert (drawn.gain[:, 0] == 1).all() and (drawn.offset[:, 0] == 0).all()
    assert drawn.gain[:, 1:].std() > 0.01 and drawn.offset[:, 1:].std() > 0.02
    on_latest = (drawn.displacement[:, 0] == 0).all(dim=1)
    assert 70 < on_latest.sum() < 130
    assert (drawn.registration_error[on_latest, 0] == 0).all()


def test_a_draw_is_a_function_of_its_generator():
    for name, value in vars(draw(seed=5)).items():
        assert torch.equal(value, getattr(draw(seed=5), name))
        assert name in ("correlation", "registered") or not torch.equal(value, getattr(draw(seed=6), name))


def test_noise_has_the_asked_variance_and_correlation():
    asked = torch.tensor([0.0, 0.2, 0.4])
    noise = correlated_noise(torch.Size([3, 8, 4, 64, 64]), asked, torch.Generator().manual_seed(0))
    assert noise.square().mean(dim=(1, 2, 3, 4)).tolist() == pytest.approx([1, 1, 1], abs=0.02)
    across = (noise[..., 1:] * noise[..., :-1]).mean(dim=(1, 2, 3, 4))
    down = (noise[..., 1:, :] * noise[..., :-1, :]).mean(dim=(1, 2, 3, 4))
    torch.testing.assert_close(across, asked, atol=0.02, rtol=0)
    torch.testing.assert_close(down, asked, atol=0.02, rtol=0)


def test_frames_carry_the_noise_of_their_instrument():
    instrument = draw(mtf_spread=0, noise=(0.1, 0.1), noise_spread=0, gain=0, offset=0, displacement_px=(0, 0))
    flat = torch.full((3, 4, 4, 256, 256), 2000.0)
    frames = instrument.observe(flat, 4, torch.Generator().manual_seed(0))
    assert frames.std().item() == pytest.approx(0.1 * 0.05, rel=0.02)
    assert frames.mean().item() == pytest.approx(0.2, abs=1e-4)


def test_a_pixel_is_clear_where_hardly_any_of_its_light_comes_from_a_cloud():
    instrument = draw(displacement_px=(0, 0), **FIXED)
    clear = torch.ones(3, 4, 64, 64)
    clear[0, 1, 20:32, 24:40] = 0  # coarse rows 5-7, columns 6-9
    seen = instrument.observe_mask(clear, 0)
    assert seen[1:].all() and seen[0, 0].all()
    assert not seen[0, 1, 5:8, 6:10].any()
    assert seen[0, 1, :3].all() and seen[0, 1, :, 12:].all()


def test_noise_of_a_series_is_found_on_its_flat_ground():
    rng = np.random.default_rng(3)
    ground = np.zeros((96, 96, 4)) + 1500
    ground[48:] += rng.normal(0, 150, (48, 96, 4))  # the lower half is rough
    white = rng.normal(0, 1, (6, 98, 98, 4))
    noise = white[:, 1:-1, 1:-1] + 0.2 * (white[:, 2:, 1:-1] + white[:, :-2, 1:-1])
    sigma = np.array([8.0, 8.0, 8.0, 20.0])
    dates = ground + noise / noise.std() * sigma + rng.normal(0, 30, (6, 1, 1, 4))  # dates differ in brightness
    found = measure_noise(dates.round().astype(np.uint16), np.ones((6, 96, 96), bool), flattest=0.2)
    assert found is not None and found.dates == 6
    np.testing.assert_allclose(found.sigma, sigma / 10_000, rtol=0.08)
    np.testing.assert_allclose(found.relative, found.sigma / (dates.std(axis=(0, 1, 2)) / 10_000), rtol=0.01)
    assert 0.1 < found.correlation.mean() < 0.22  # 0.37 down, none across


def test_noise_needs_three_clear_dates():
    clear = np.zeros((5, 32, 32), bool)
    clear[:2] = True
    assert measure_noise(np.ones((5, 32, 32, 4), np.uint16), clear) is None


@pytest.mark.parametrize(
    ("key", "value"), [("mtf", (0.4, 0.2)), ("mtf", (0.0, 0.2)), ("noise_correlation", (0.1, 0.6))]
)
def test_an_impossible_range_is_named(key, value):
    with pytest.raises(ValidationError, match=key):
        InstrumentRanges(**{key: value})
