"""Registration at the loss: known shifts are found, and the gradient goes through the one that is chosen."""

import numpy as np
import pytest
import torch

from sr_core.training.losses import masked_error
from sr_core.training.registration import Registration, best_shifts, registered_error, shift


def waves(down: float = 0.0, across: float = 0.0, side: int = 40) -> torch.Tensor:
    """Smooth images (3,2,side,side), moved exactly by shifting the coordinates."""
    rows, columns = np.mgrid[:side, :side].astype(np.float64)
    rows, columns = rows - down, columns - across
    images = [
        [np.sin(rows / (3 + band) + index) + np.cos(columns / (4 + index) + 0.3 * rows) for band in range(2)]
        for index in range(3)
    ]
    return torch.from_numpy(np.array(images, np.float32))


@pytest.mark.parametrize("distance", [(1.0, 0.0), (-2.0, 1.0), (0.5, -0.5), (0.0, 1.5), (0.25, 0.75)])
def test_shift_moves_the_image(distance):
    moved = shift(waves(), [distance[0]] * 3, [distance[1]] * 3)
    torch.testing.assert_close(moved[..., 6:-6, 6:-6], waves(*distance)[..., 6:-6, 6:-6], atol=0.02, rtol=0)


def test_each_image_has_its_own_shift():
    moved = shift(waves(), [0.0, 1.0, 0.5], [0.5, 0.0, 0.0])
    for index, distance in enumerate([(0.0, 0.5), (1.0, 0.0), (0.5, 0.0)]):
        expected = waves(*distance)[index]
        torch.testing.assert_close(moved[index][..., 6:-6, 6:-6], expected[..., 6:-6, 6:-6], atol=0.02, rtol=0)


def test_shift_keeps_brightness():
    flat = torch.full((1, 1, 16, 16), 0.37)
    torch.testing.assert_close(shift(flat, [0.5], [1.3]), flat)


def test_whole_pixels_are_exact():
    torch.testing.assert_close(shift(waves(), [2.0] * 3, [-1.0] * 3)[..., 2:, :-1], waves()[..., :-2, 1:])


@pytest.mark.parametrize("known", [(0.0, 0.0), (1.0, -0.5), (-1.0, 1.0), (0.5, 0.0)])
def test_known_shifts_are_recovered_for_each_sample(known):
    sr, hr = waves(), waves(*known)
    hr[1] = waves()[1]
    found = best_shifts(sr, hr, torch.ones(3, 40, 40), Registration(1.0, 0.5))
    assert found == [known, (0.0, 0.0), known]


def test_a_registered_error_forgives_a_shift_and_a_brightness_but_not_more():
    registration = Registration(1.0, 0.5)
    clear = torch.ones(3, 40, 40)
    assert masked_error(waves(), waves(0.5, 1.0), clear, "mse").min() > 0.01
    assert registered_error(waves(), waves(0.5, 1.0), clear, registration).max() < 1e-4
    assert registered_error(waves(), waves(3.0, 0.0), clear, registration).min() > 0.01
    brighter = waves(0.5, 1.0) + 0.2
    assert registered_error(waves(), brighter, clear, registration).min() > 0.03
    assert registered_error(waves(), brighter, clear, registration, bias_removed=True).max() < 1e-4


def test_the_gradient_flows_through_the_chosen_shift():
    sr, hr = waves().requires_grad_(), waves(0.0, 1.0)
    hr[:, :, 20, 20] += 1.0
    registered_error(sr, hr, torch.ones(3, 40, 40), Registration(1.0, 0.5)).sum().backward()
    assert sr.grad[0, 0].abs().argmax().item() == 20 * 40 + 19


def test_grids():
    assert Registration(0.0).shifts == (0.0,) and Registration(0.0).border == 0
    assert Registration(1.0, 0.5).shifts == (-1.0, -0.5, 0.0, 0.5, 1.0)
    assert Registration(0.9, 0.3).shifts == pytest.approx((-0.9, -0.6, -0.3, 0.0, 0.3, 0.6, 0.9))
