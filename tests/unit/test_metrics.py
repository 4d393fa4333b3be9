"""Metrics against independent oracles."""

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from sr_core.evaluation.metrics import cpsnr, mae, psnr, ssim


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    hr = rng.uniform(0, 0.6, (3, 4, 32, 40)).astype(np.float32)
    hr = (hr + np.roll(hr, 1, -1) + np.roll(hr, 1, -2)) / 3
    return torch.from_numpy(hr + rng.normal(0, 0.02, hr.shape).astype(np.float32)), torch.from_numpy(hr)


def everywhere(image: torch.Tensor) -> torch.Tensor:
    return torch.ones(image.shape[0], *image.shape[-2:])


def test_psnr_and_mae(pair):
    sr, hr = pair
    expected = [peak_signal_noise_ratio(y.numpy(), x.numpy(), data_range=1) for x, y in zip(sr, hr, strict=True)]
    np.testing.assert_allclose(psnr(sr, hr, everywhere(hr)).numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(mae(sr, hr, everywhere(hr)), (sr - hr).abs().mean(dim=(1, 2, 3)))


def test_ssim(pair):
    sr, hr = pair
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    settings |= {"data_range": 1.0, "channel_axis": 0}
    expected = [
        structural_similarity(x.double().numpy(), y.double().numpy(), **settings) for x, y in zip(sr, hr, strict=True)
    ]
    np.testing.assert_allclose(ssim(sr, hr, everywhere(hr)), expected, rtol=1e-5)


def test_masked_pixels_do_not_count(pair):
    sr, hr = pair
    clear = everywhere(hr)
    clear[:, :, 25:] = 0
    for metric in (psnr, mae, ssim, cpsnr):
        before = metric(sr, hr, clear)
        spoiled = sr.clone()
        spoiled[..., 25:] = torch.nan
        torch.testing.assert_close(metric(spoiled, hr, clear), before)
    torch.testing.assert_close(psnr(sr, hr, clear), psnr(sr[..., :25], hr[..., :25], clear[..., :25]))
    torch.testing.assert_close(ssim(sr, hr, clear), ssim(sr[..., :25], hr[..., :25], clear[..., :25]))


def test_without_a_clear_pixel_there_is_no_score(pair):
    sr, hr = pair
    for metric in (psnr, mae, ssim, cpsnr):
        assert metric(sr, hr, torch.zeros(3, 32, 40)).isnan().all()


def test_cpsnr_forgives_a_shift_and_each_band_s_bias(pair):
    _, hr = pair
    bias = torch.tensor([0.1, -0.05, 0.02, 0.0])[None, :, None, None]
    moved = torch.roll(hr, (2, -3), (-2, -1)) + bias
    assert cpsnr(moved, hr, everywhere(hr)).min() > 100
    assert cpsnr(moved, hr, everywhere(hr), max_shift=2).max() < 40


def test_cpsnr_equals_the_plain_search(pair):
    sr, hr = (part[:1].double() for part in pair)
    clear = (torch.rand(1, 32, 40, generator=torch.Generator().manual_seed(0)) > 0.2).double()
    inner = sr[..., 3:-3, 3:-3]
    found = []
    for u in range(7):
        for v in range(7):
            window, mask = hr[0, :, u : u + 26, v : v + 34], clear[0, u : u + 26, v : v + 34] > 0
            difference = (window - inner[0])[:, mask]
            found.append(-10 * torch.log10((difference - difference.mean(1, keepdim=True)).square().mean()))
    torch.testing.assert_close(cpsnr(sr, hr, clear)[0], max(found))
