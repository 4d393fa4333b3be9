"""Masked differences."""

import pytest
import torch

from sr_core.training.losses import masked_error


@pytest.mark.parametrize(("kind", "expected"), [("l1", 0.2), ("mse", 0.04)])
def test_only_clear_pixels_count(kind, expected):
    hr = torch.rand(2, 4, 8, 8)
    sr = hr + 0.2
    clear = torch.ones(2, 8, 8)
    clear[:, :3] = 0
    sr[:, :, :3] = torch.nan
    torch.testing.assert_close(masked_error(sr, hr, clear, kind), torch.full((2,), expected))


def test_nothing_under_a_mask_reaches_the_gradient():
    sr = torch.rand(1, 4, 8, 8, requires_grad=True)
    clear = torch.zeros(1, 8, 8)
    clear[:, 5, 5] = 1
    masked_error(sr, torch.full((1, 4, 8, 8), torch.nan).where(clear < 1, 0.5), clear, "mse").sum().backward()
    assert sr.grad.isfinite().all() and (sr.grad != 0).sum() == 4


def test_a_sample_without_a_clear_pixel_costs_nothing():
    assert masked_error(torch.rand(1, 4, 8, 8), torch.rand(1, 4, 8, 8), torch.zeros(1, 8, 8), "l1").item() == 0


def test_bias_is_that_of_each_band():
    hr = torch.rand(1, 4, 8, 8)
    sr = hr + torch.tensor([0.1, -0.2, 0.3, 0.0])[None, :, None, None]
    assert masked_error(sr, hr, torch.ones(1, 8, 8), "l1", bias_removed=True).item() < 1e-6
    assert masked_error(sr, hr, torch.ones(1, 8, 8), "l1").item() == pytest.approx(0.15, abs=1e-6)
