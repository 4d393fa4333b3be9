"""Differences to the truth and to the latest frame, over clear pixels."""

import math

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from torch.nn import functional as F

from sr_core.radiometry.resample import degrade as degrade_array
from sr_core.training.losses import (
    SSIM_RANGE,
    degrade,
    laplace_likelihood,
    low_frequency_error,
    masked_error,
    mean_difference,
)

KINDS = ["l1", "mse", "ssim", "mixed", "cmse"]


def texture(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normalised units: mean 0, standard deviation about 1, neighbours alike."""
    noise = torch.randn(*shape[:-2], shape[-2] + 4, shape[-1] + 4, generator=torch.Generator().manual_seed(seed))
    return F.avg_pool2d(noise, 5, stride=1) * 5


@pytest.mark.parametrize(("kind", "expected"), [("l1", 0.2), ("mse", 0.04), ("cmse", 0.0)])
def test_only_clear_pixels_count(kind, expected):
    hr = torch.rand(2, 4, 8, 8)
    sr = hr + 0.2
    clear = torch.ones(2, 8, 8)
    clear[:, :3] = 0
    sr[:, :, :3] = torch.nan
    torch.testing.assert_close(masked_error(sr, hr, clear, kind), torch.full((2,), expected))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias_removed", [False, True])
def test_nothing_under_a_mask_reaches_values_or_gradients(kind, bias_removed):
    hr, clear = texture(2, 4, 16, 16), (torch.rand(2, 16, 16) > 0.3).float()
    sr = (hr + 0.3 * texture(2, 4, 16, 16, seed=1)).requires_grad_()
    seen = clear[:, None] > 0
    error = masked_error(sr, hr, clear, kind, bias_removed)
    (gradient,) = torch.autograd.grad(error.sum(), sr)
    for hidden in (torch.nan, torch.inf, 1e6):
        spoiled = torch.where(seen, sr.detach(), hidden).requires_grad_()
        again = masked_error(spoiled, torch.where(seen, hr, hidden), clear, kind, bias_removed)
        torch.testing.assert_close(again, error)
        torch.testing.assert_close(torch.autograd.grad(again.sum(), spoiled)[0], gradient)
    assert (gradient * (1 - clear[:, None])).abs().max() == 0 < gradient.abs().min(dim=1).values[clear > 0].min()


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_without_a_clear_pixel_costs_nothing(kind):
    assert masked_error(torch.rand(1, 4, 8, 8), torch.rand(1, 4, 8, 8), torch.zeros(1, 8, 8), kind).item() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_equal_images_cost_nothing_and_their_gradient_is_finite(kind):
    hr = texture(1, 4, 16, 16)
    sr = hr.clone().requires_grad_()
    error = masked_error(sr, hr, torch.ones(1, 16, 16), kind)
    error.sum().backward()
    assert error.item() == pytest.approx(0, abs=1e-6) and sr.grad.isfinite().all()


def test_bias_is_that_of_each_band():
    hr = torch.rand(1, 4, 8, 8)
    sr = hr + torch.tensor([0.1, -0.2, 0.3, 0.0])[None, :, None, None]
    assert masked_error(sr, hr, torch.ones(1, 8, 8), "l1", bias_removed=True).item() < 1e-6
    assert masked_error(sr, hr, torch.ones(1, 8, 8), "cmse").item() < 1e-12
    assert masked_error(sr, hr, torch.ones(1, 8, 8), "l1").item() == pytest.approx(0.15, abs=1e-6)


def test_ssim_is_the_published_one():
    """Without clouds: skimage's, with the data range that normalised units are given."""
    hr = texture(1, 4, 48, 40)
    sr = hr + 0.4 * texture(1, 4, 48, 40, seed=1)
    _, expected = structural_similarity(
        sr[0].numpy() + SSIM_RANGE / 2,
        hr[0].numpy() + SSIM_RANGE / 2,
        channel_axis=0,
        data_range=SSIM_RANGE,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    clear = torch.ones(1, 48, 40)
    # skimage mirrors at the edges, where here the window is cut
    whole = 1 - masked_error(sr, hr, clear, "ssim").item()
    assert whole == pytest.approx(expected.mean(), abs=0.01)
    mixed, mse = (masked_error(sr, hr, clear, kind).item() for kind in ("mixed", "mse"))
    assert mixed == pytest.approx(mse + 0.1 * (1 - whole), rel=1e-5)


def test_ssim_punishes_blur_more_than_an_offset_of_the_same_size():
    hr = texture(1, 4, 48, 48)
    blurred = F.avg_pool2d(F.pad(hr, [2] * 4, mode="replicate"), 5, stride=1)
    offset = (blurred - hr).square().mean().sqrt()
    clear = torch.ones(1, 48, 48)
    assert masked_error(blurred, hr, clear, "ssim") > 2 * masked_error(hr + offset, hr, clear, "ssim")


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_float32_under_autocast(kind):
    sr, hr, clear = texture(2, 4, 16, 16), texture(2, 4, 16, 16, seed=1), torch.ones(2, 16, 16)
    expected = masked_error(sr, hr, clear, kind)
    assert masked_error(sr.bfloat16(), hr, clear, kind).dtype == torch.float32
    torch.testing.assert_close(masked_error(sr.bfloat16(), hr, clear, kind), expected, rtol=0.02, atol=0.01)


def test_means_are_matched_where_the_latest_frame_is_clear():
    latest, clear = texture(2, 4, 8, 8), torch.ones(2, 8, 8)
    clear[:, :, 5:] = 0
    sr = latest.repeat_interleave(4, 2).repeat_interleave(4, 3)
    sr[..., 20:] = 77.0
    latest[..., 5:] = torch.nan
    sr.requires_grad_()
    assert mean_difference(sr, latest, clear).max() < 1e-6
    error = mean_difference(sr + torch.tensor([0.1, -0.3, 0.0, 0.2])[:, None, None], latest, clear)
    torch.testing.assert_close(error, torch.full((2,), 0.15))
    error.sum().backward()
    assert sr.grad.isfinite().all()
    assert sr.grad[..., 20:].abs().max() == 0 and sr.grad[:, (0, 1, 3), :, :20].abs().min() > 0


@pytest.mark.parametrize("shape", [(32, 48), (16, 8)])
@pytest.mark.parametrize("mtf", [0.2, 0.3])
def test_degrading_has_the_same_numbers_as_for_arrays(shape, mtf):
    image = texture(2, 4, *shape)
    expected = degrade_array(image.numpy(), mtf=mtf)
    np.testing.assert_allclose(degrade(image, mtf).numpy(), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        degrade(torch.full((1, 1, *shape), 0.3), mtf), torch.full((1, 1, *[n // 4 for n in shape]), 0.3)
    )


def test_what_degrades_to_the_latest_frame_meets_the_low_frequency_constraint():
    sr, clear = texture(2, 4, 64, 64), torch.ones(2, 16, 16)
    latest = degrade(sr)
    assert low_frequency_error(sr, latest, clear).max() < 1e-6
    torch.testing.assert_close(low_frequency_error(sr + 0.2, latest, clear), torch.full((2,), 0.2))


def test_clouds_and_edges_do_not_say_what_the_output_should_be():
    sr, clear = texture(1, 4, 64, 64).requires_grad_(), torch.ones(1, 16, 16)
    clear[:, 10] = 0
    latest = degrade(sr.detach())
    latest[:, :, 10] = torch.nan
    spoiled = sr + torch.zeros(1, 1, 64, 64).index_fill(2, torch.tensor([0, 40, 41, 42, 43]), 5.0)
    error = low_frequency_error(spoiled, latest + 0.1, clear)
    assert error.item() == pytest.approx(0.1, abs=0.02)
    error.backward()
    assert sr.grad.isfinite().all() and sr.grad.abs().max() > 0
    assert low_frequency_error(texture(1, 4, 16, 16), texture(1, 4, 4, 4), torch.ones(1, 4, 4)).item() == 0


def test_the_likelihood_is_best_at_the_true_scale():
    image, clear = torch.zeros(1, 4, 64, 64), torch.ones(1, 64, 64)
    distribution = torch.distributions.Laplace(0.0, 0.3)
    hr = distribution.sample((1, 4, 64, 64))
    by_scale = {
        scale: laplace_likelihood(image, torch.full_like(image, math.log(scale)), hr, clear).item()
        for scale in (0.1, 0.2, 0.3, 0.45, 1.0)
    }
    assert min(by_scale, key=by_scale.get) == 0.3
    assert by_scale[0.3] == pytest.approx(-distribution.log_prob(hr).mean().item(), abs=1e-5)


def test_the_likelihood_stays_finite_and_hides_what_is_not_clear():
    image, clear = torch.zeros(1, 4, 8, 8), torch.ones(1, 8, 8)
    hr = torch.ones_like(image)
    clear[:, :2] = 0
    hr[:, :, :2] = torch.nan
    for wild in (-1e4, 1e4):
        scale = torch.full_like(image, wild)
        scale[:, :, :2] = torch.nan
        scale.requires_grad_()
        value = laplace_likelihood(image, scale, hr, clear)
        value.sum().backward()
        assert value.isfinite().all() and scale.grad.isfinite().all()


def test_a_loss_can_be_trained_with_after_it_was_only_looked_at():
    sr, clear = texture(1, 4, 28, 28), torch.ones(1, 28, 28)
    with torch.inference_mode():
        masked_error(sr, sr, clear, "ssim"), low_frequency_error(sr, degrade(sr), clear[:, ::4, ::4])
    sr.requires_grad_()
    masked_error(sr, sr.detach() + 0.1, clear, "ssim").sum().backward()
    low_frequency_error(sr, degrade(sr.detach()), clear[:, ::4, ::4]).sum().backward()
