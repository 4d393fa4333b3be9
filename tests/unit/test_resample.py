"""Degradation and upsampling: known answers, and torch as the oracle."""

import numpy as np
import torch

from sr_core.radiometry.resample import bicubic_upsample, degrade, psf_sigma


def test_bicubic_equals_torch():
    image = np.random.default_rng(0).random((2, 3, 17, 23), dtype=np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(image), scale_factor=4, mode="bicubic", align_corners=False
    )
    np.testing.assert_allclose(bicubic_upsample(image), expected.numpy(), atol=2e-6)


def test_mtf_at_nyquist_is_the_one_asked_for():
    # a cosine at the coarse grid's Nyquist frequency keeps `mtf` of its amplitude
    x = np.arange(400)
    wave = np.cos(np.pi * (x + 0.5) / 4 - np.pi / 2).astype(np.float32)
    low = degrade(np.tile(wave, (16, 1)), mtf=0.3)
    assert np.isclose(np.abs(low[:, 10:-10]).mean(), 0.3, atol=0.005)
    assert np.isclose(psf_sigma(0.3), 1.976, atol=1e-3)


def test_degrading_keeps_constants_and_edges_aligned():
    ramp = np.tile(np.arange(64, dtype=np.float32), (64, 1))
    low = degrade(ramp)
    np.testing.assert_allclose(low[0, 4:-4], np.arange(4, 12) * 4 + 1.5, atol=1e-4)


def test_shift_moves_the_sampling_points():
    ramp = np.tile(np.arange(64, dtype=np.float32), (64, 1))
    moved = degrade(ramp, shift=(0.0, 0.25)) - degrade(ramp)
    np.testing.assert_allclose(moved[:, 4:-4], 1.0, atol=1e-4)
