"""The uncertainty's calibration: scales that are wrong by a factor come out right."""

import pytest
import torch

from sr_core.errors import DataError
from sr_core.models.highresnet import HighResNet
from sr_core.training.calibration import Errors, calibrate


def laplace_errors(said: list[float], true: list[float]) -> Errors:
    """Errors of scale `true` a band where the network said `said`."""
    torch.manual_seed(0)
    exponential = torch.empty(2, 4, 100, 100).exponential_()
    scale = torch.tensor(said).view(1, 4, 1, 1).expand_as(exponential)
    return Errors(exponential * torch.tensor(true).view(1, 4, 1, 1), scale.log(), torch.ones(2, 100, 100))


def test_a_wrong_factor_of_each_band_is_found_and_intervals_then_hold_what_they_promise():
    model = HighResNet(channels=8, residual_blocks=1, uncertainty=True)
    coverage = calibrate(model, [laplace_errors(said=[0.1, 0.1, 0.2, 0.4], true=[0.1, 0.2, 0.1, 0.1])])
    torch.testing.assert_close(model.calibration.exp(), torch.tensor([1.0, 2.0, 0.5, 0.25]), rtol=0.02, atol=0)
    assert coverage == pytest.approx({"coverage_50": 0.5, "coverage_90": 0.9}, abs=0.01)


def test_the_correction_is_part_of_what_the_network_says():
    model = HighResNet(channels=8, residual_blocks=1, uncertainty=True).eval()
    frames, clear, shifts = torch.randn(1, 2, 4, 8, 8), torch.ones(1, 2, 8, 8), torch.zeros(1, 2, 2)
    before = model(frames, clear, shifts).log_scale
    calibrate(model, [laplace_errors(said=[0.1] * 4, true=[0.2] * 4)])
    torch.testing.assert_close(model(frames, clear, shifts).log_scale, before + model.calibration.view(1, 4, 1, 1))
    assert model.calibration.mean() == pytest.approx(0.693, abs=0.02)


def test_pixels_without_a_truth_do_not_count():
    model = HighResNet(channels=8, residual_blocks=1, uncertainty=True)
    errors = laplace_errors(said=[0.1] * 4, true=[0.1] * 4)
    errors.absolute[:, :, :50] = 1000.0
    errors.clear[:, :50] = 0
    calibrate(model, [errors])
    assert model.calibration.abs().max() < 0.05


def test_without_a_clear_pixel_there_is_nothing_to_calibrate_by():
    model = HighResNet(channels=8, residual_blocks=1, uncertainty=True)
    errors = laplace_errors(said=[0.1] * 4, true=[0.1] * 4)
    with pytest.raises(DataError, match="no clear validation pixel"):
        calibrate(model, [errors._replace(clear=torch.zeros(2, 100, 100))])
