"""Registration at the loss: images move as they should, and known shifts are found."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sr_core.models.alignment import translate
from sr_core.training.losses import masked_error
from sr_core.training.registration import Registration, best_shifts, shift_errors


def waves(down: float = 0.0, across: float = 0.0, side: int = 40) -> torch.Tensor:
    """Smooth images (3,2,side,side), moved exactly by shifting the coordinates."""
    rows, columns = np.mgrid[:side, :side].astype(np.float64)
    rows, columns = rows - down, columns - across
    images = [
        [np.sin(rows / (3 + band) + index) + np.cos(columns / (4 + index) + 0.3 * rows) for band in range(2)]
        for index in range(3)
    ]
    return torch.from_numpy(np.array(images, np.float32))


def move(images: torch.Tensor, down: list[float], across: list[float]) -> torch.Tensor:
    return translate(images, torch.tensor([down, across]).T)


@pytest.mark.parametrize("distance", [(1.0, 0.0), (-2.0, 1.0), (0.5, -0.5), (0.0, 1.5), (0.25, 0.75)])
def test_shift_moves_the_image(distance):
    moved = move(waves(), [distance[0]] * 3, [distance[1]] * 3)
    torch.testing.assert_close(moved[..., 6:-6, 6:-6], waves(*distance)[..., 6:-6, 6:-6], atol=0.02, rtol=0)


def test_each_image_has_its_own_shift():
    moved = move(waves(), [0.0, 1.0, 0.5], [0.5, 0.0, 0.0])
    for index, distance in enumerate([(0.0, 0.5), (1.0, 0.0), (0.5, 0.0)]):
        expected = waves(*distance)[index]
        torch.testing.assert_close(moved[index][..., 6:-6, 6:-6], expected[..., 6:-6, 6:-6], atol=0.02, rtol=0)


def test_shift_keeps_brightness():
    flat = torch.full((1, 1, 16, 16), 0.37)
    torch.testing.assert_close(move(flat, [0.5], [1.3]), flat)


def test_whole_pixels_are_exact():
    torch.testing.assert_close(move(waves(), [2.0] * 3, [-1.0] * 3)[..., 2:, :-1], waves()[..., :-2, 1:])


@pytest.mark.parametrize("known", [(0.0, 0.0), (1.0, -0.5), (-1.0, 1.0), (0.5, 0.0)])
def test_known_shifts_are_recovered_for_each_sample(known):
    sr, hr = waves(), waves(*known)
    hr[1] = waves()[1]
    found = best_shifts(sr, hr, torch.ones(3, 40, 40), Registration(1.0, 0.5))
    assert found.tolist() == [[*known], [0.0, 0.0], [*known]]


@pytest.mark.parametrize("registration", [Registration(1.0, 0.5), Registration(1.3, 0.3), Registration(2.0, 1.0)])
@pytest.mark.parametrize("bias_removed", [False, True])
def test_the_search_is_the_exhaustive_one(registration, bias_removed):
    """Every shift interpolated on its own and judged by `masked_error`: the definition of what is searched for."""
    sr, hr = waves(), waves(0.4, -0.9) + 0.3 * torch.rand(3, 2, 40, 40) + 0.2
    clear = (torch.rand(3, 40, 40) > 0.2).float()
    hr = torch.where(clear[:, None] > 0, hr, torch.nan)
    inside = (..., slice(registration.border, -registration.border), slice(registration.border, -registration.border))
    expected = torch.empty(3, len(registration.shifts), len(registration.shifts))
    for i, down in enumerate(registration.shifts):
        for j, across in enumerate(registration.shifts):
            moved = move(sr, [down] * 3, [across] * 3)
            expected[:, i, j] = masked_error(moved[inside], hr[inside], clear[inside], "mse", bias_removed)
    torch.testing.assert_close(shift_errors(sr, hr, clear, registration, bias_removed), expected, rtol=1e-4, atol=1e-6)
    best = expected.flatten(1).argmin(1)
    shifts = torch.tensor(registration.shifts)
    chosen = torch.stack([shifts[best // len(shifts)], shifts[best % len(shifts)]], 1)
    torch.testing.assert_close(best_shifts(sr, hr, clear, registration, bias_removed), chosen)


def test_refined_shifts_are_right_within_a_twentieth_of_a_pixel():
    generator = torch.Generator().manual_seed(0)
    known = torch.rand(16, 2, generator=generator) * 2 - 1
    ground = F.avg_pool2d(torch.randn(16, 4, 80, 80, generator=generator), 5, stride=1)
    inside = (..., slice(6, -6), slice(6, -6))
    clear = (torch.rand(16, 64, 64, generator=generator) > 0.2).float()
    sr, hr = ground[inside], translate(ground, known)[inside]
    assert sr.shape[-1] == 64
    found = best_shifts(sr, hr, clear, Registration(1.5, 0.5), refine=True)
    assert (found - known).abs().max() < 0.05
    on_the_grid = best_shifts(sr, hr, clear, Registration(1.5, 0.5))
    assert (on_the_grid - known).abs().max() > 0.2


def test_grids():
    assert Registration(0.0).shifts == (0.0,) and Registration(0.0).border == 0
    assert Registration(1.0, 0.5).shifts == (-1.0, -0.5, 0.0, 0.5, 1.0)
    assert Registration(0.9, 0.3).shifts == pytest.approx((-0.9, -0.6, -0.3, 0.0, 0.3, 0.6, 0.9))
