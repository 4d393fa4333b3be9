"""ShiftNet, and the gradient of a shift that it learns from."""

import pytest
import torch
from torch.nn import functional as F

from sr_core.models.alignment import lanczos_matrices, translate
from sr_core.models.shiftnet import ShiftNet
from sr_core.training.losses import masked_error


def pairs(count: int, seed: int, side: int = 32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Textured images, the same moved by up to a pixel, and by how much."""
    generator = torch.Generator().manual_seed(seed)
    ground = F.avg_pool2d(torch.randn(count, 4, side + 16, side + 16, generator=generator), 5, stride=1) * 5
    known = torch.rand(count, 2, generator=generator) * 2 - 1
    inside = (..., slice(6, -6), slice(6, -6))
    return ground[inside], translate(ground, known)[inside], known


@pytest.mark.parametrize("distances", [[[0.3, -0.7]], [[0.0, 1.0]], [[-1.25, 2.0]]])
def test_a_shift_is_differentiable_in_image_and_distance(distances):
    """At whole pixels too: there the kernel is smooth."""
    image = torch.randn(1, 2, 9, 8, dtype=torch.float64, requires_grad=True)
    distance = torch.tensor(distances, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(translate, (image, distance), eps=1e-5, atol=1e-4)
    torch.testing.assert_close(lanczos_matrices(9, distance[0]).sum(dim=-1), torch.ones(2, 9, dtype=torch.float64))


def test_gradient_descent_on_the_distance_finds_the_shift():
    sr, hr, known = pairs(4, seed=1)
    distance = torch.zeros(4, 2, requires_grad=True)
    optimizer = torch.optim.Adam([distance], lr=0.1)
    inside = (..., slice(3, -3), slice(3, -3))
    for _ in range(60):
        error = masked_error(translate(sr, distance)[inside], hr[inside], torch.ones(4, 26, 26), "mse").sum()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    assert (distance - known).abs().max() < 0.05


def test_untrained_it_leaves_images_where_they_are():
    sr, hr, _ = pairs(2, seed=0)
    assert ShiftNet(4, 1.0)(sr, hr, torch.ones(2, 32, 32)).abs().max() == 0


def nudged(radius: float = 2.0) -> ShiftNet:
    """A network that says something: its last layer is not zero."""
    torch.manual_seed(0)
    network = ShiftNet(4, radius)
    torch.nn.init.normal_(network.head.weight)
    return network


@pytest.mark.parametrize("shape", [(8, 8), (33, 20), (64, 128)])
def test_any_size_of_image(shape):
    shift = nudged()(torch.randn(2, 4, *shape), torch.randn(2, 4, *shape), torch.ones(2, *shape))
    assert shift.shape == (2, 2) and shift.isfinite().all()


def test_shifts_are_bounded_and_depend_on_neither_batch_nor_contrast():
    sr, hr, _ = pairs(5, seed=0)
    clear = torch.ones(5, 32, 32)
    network = nudged(radius=0.5)
    shift = network(sr, hr, clear)
    assert 0 < shift.abs().max() <= 0.5 and shift.std(dim=0).min() > 0
    torch.testing.assert_close(network(sr[2:3], hr[2:3], clear[:1]), shift[2:3])
    torch.testing.assert_close(network(sr * 0.1 + 3, hr * 0.1 + 3, clear), shift, rtol=1e-3, atol=1e-4)
    flat = network(torch.ones_like(sr), torch.ones_like(hr), clear)
    assert flat.isfinite().all()


def test_exchanged_images_move_the_other_way_and_equal_ones_not_at_all():
    sr, hr, _ = pairs(3, seed=0)
    clear = torch.ones(3, 32, 32)
    network = nudged()
    torch.testing.assert_close(network(hr, sr, clear), -network(sr, hr, clear))
    assert network(sr, sr, clear).abs().max() < 1e-5


def test_what_is_not_clear_is_not_seen_and_the_image_gets_no_gradient():
    sr, hr, _ = pairs(2, seed=0)
    clear = torch.ones(2, 32, 32)
    clear[:, 4:9] = 0
    network = nudged()
    cloudy = torch.where(clear[:, None] > 0, hr, torch.nan)
    torch.testing.assert_close(network(sr, cloudy, clear), network(sr, hr, clear))
    sr.requires_grad_()
    assert network(sr, cloudy, clear).requires_grad
    network(sr, cloudy, clear).sum().backward()
    assert sr.grad is None


def test_trained_it_recovers_shifts_of_unseen_images():
    torch.manual_seed(0)
    network = ShiftNet(4, 1.0)
    steps, side = 150, 40
    clear = torch.ones(16, side, side)
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps, pct_start=0.1)
    inside = (..., slice(3, -3), slice(3, -3))
    for step in range(steps):
        sr, hr, _ = pairs(16, seed=step, side=side)
        shift = network(sr, hr, clear)
        error = masked_error(translate(sr, shift)[inside], hr[inside], clear[inside], "mse")
        optimizer.zero_grad()
        error.mean().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    sr, hr, known = pairs(64, seed=10**6, side=side)
    with torch.no_grad():
        found = network(sr, hr, torch.ones(64, side, side))
    rms = (found - known).square().mean().sqrt().item()
    assert rms < 0.1, f"{rms:.3f} pixels"
