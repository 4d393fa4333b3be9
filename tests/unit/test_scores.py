"""Per-sample scores, with scikit-image as oracle."""

import math

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from sr_core.quality.scores import psnr_of, score, ssim_map

RNG = np.random.default_rng(3)
FIELDS = np.kron(RNG.uniform(0.05, 0.45, (4, 9, 8)), np.ones((8, 8))).astype(np.float32)
NOISY = (FIELDS + RNG.normal(0, 0.02, FIELDS.shape)).astype(np.float32)
ALL_CLEAR = np.ones(FIELDS.shape[1:], bool)


def test_unshifted_scores_equal_scikit_image():
    found = score(FIELDS, NOISY, ALL_CLEAR, max_shift=0)
    expected = structural_similarity(
        FIELDS, NOISY, channel_axis=0, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert found.ssim == pytest.approx(expected, abs=1e-6)
    assert found.psnr == pytest.approx(peak_signal_noise_ratio(FIELDS, NOISY, data_range=1.0), abs=1e-5)
    assert found.mse == pytest.approx(np.mean((FIELDS - NOISY) ** 2), rel=1e-5)
    assert found.shift == (0, 0)


def test_ssim_map_equals_scikit_image_in_the_interior():
    one, other = FIELDS[0].astype(np.float64), NOISY[0].astype(np.float64)
    _, expected = structural_similarity(
        one, other, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )
    np.testing.assert_allclose(ssim_map(FIELDS[0], NOISY[0])[5:-5, 5:-5], expected[5:-5, 5:-5], atol=1e-6)


@pytest.mark.parametrize("shift", [(2, -3), (-1, 0), (3, 3)])
def test_a_displaced_truth_is_moved_back(shift):
    displaced = np.roll(FIELDS, (-shift[0], -shift[1]), axis=(1, 2))
    found = score(displaced, FIELDS, ALL_CLEAR)
    assert found.shift == shift
    assert found.psnr == 100.0 and found.ssim == pytest.approx(1.0)


def test_the_shift_is_found_on_nir():
    truth = FIELDS.copy()
    truth[:3] = np.roll(truth[:3], 2, axis=1)
    assert score(truth, FIELDS, ALL_CLEAR).shift == (0, 0)


def test_masked_pixels_do_not_count_at_all():
    clouded, clear = NOISY.copy(), ALL_CLEAR.copy()
    clear[20:40, 10:30] = False
    clouded[:, ~clear] = 0.0
    other = clouded.copy()
    other[:, ~clear] = 0.9
    assert score(clouded, FIELDS, clear) == score(other, FIELDS, clear)
    assert score(clouded, FIELDS, clear).psnr == pytest.approx(score(NOISY, FIELDS, ALL_CLEAR).psnr, abs=0.3)


def test_changed_land_scores_low():
    changed = FIELDS[:, ::-1, ::-1].copy()
    assert score(changed, FIELDS, ALL_CLEAR).ssim < 0.3 < score(NOISY, FIELDS, ALL_CLEAR).ssim


def test_nothing_clear_has_no_score():
    found = score(FIELDS, NOISY, ~ALL_CLEAR)
    assert math.isnan(found.psnr) and math.isnan(found.ssim) and math.isnan(found.mse)


def test_psnr_is_finite_for_identical_images():
    assert psnr_of(0.0) == 100.0 and psnr_of(1e-4) == pytest.approx(40.0)
