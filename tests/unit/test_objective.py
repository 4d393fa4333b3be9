"""The objective: what each term judges, and what its gradient reaches."""

import pytest
import torch
from torch.nn import functional as F

from sr_core.config import TrainHRN
from sr_core.delineation.network import Delineator, save_delineator
from sr_core.models.alignment import translate
from sr_core.models.highresnet import Estimate
from sr_core.training.losses import degrade, low_frequency_error, masked_error, mean_difference
from sr_core.training.objective import Objective, Scene, validation_error

ALL = {"mean_matching": 0.5, "low_frequency": 0.7, "perceptual": 0.05, "style": 0.02, "uncertainty": True}


def ground(count: int = 2, side: int = 64, seed: int = 0) -> torch.Tensor:
    """Texture in normalised units, with ground around it from which it can be moved."""
    noise = torch.randn(count, 4, side + 20, side + 20, generator=torch.Generator().manual_seed(seed))
    return F.avg_pool2d(noise, 5, stride=1) * 5


def moved(image: torch.Tensor, down: float, across: float) -> torch.Tensor:
    return translate(image, torch.tensor([[down, across]]).expand(len(image), 2))[..., 8:-8, 8:-8]


def scene_of(hr: torch.Tensor, latest: torch.Tensor | None = None) -> Scene:
    count, bands, rows, columns = hr.shape
    latest = degrade(hr) if latest is None else latest
    return Scene(
        frames=torch.stack([latest, torch.full_like(latest, torch.nan)], 1),
        clear=torch.stack([torch.ones(latest[:, 0].shape), torch.zeros(latest[:, 0].shape)], 1),
        hr=hr,
        hr_clear=torch.ones(count, rows, columns),
        mean=torch.full((count, bands, 1, 1), 0.2),
        std=torch.tensor([0.02, 0.03, 0.04, 0.1]).view(1, 4, 1, 1).expand(count, 4, 1, 1),
    )


def judge(settings: TrainHRN, image: torch.Tensor, scene: Scene, log_scale: torch.Tensor | None = None):
    return Objective(settings)(Estimate(image, log_scale), scene)


def test_by_default_the_objective_is_the_registered_error():
    image, hr = moved(ground(), 0, 0), moved(ground(), 0.5, -1)
    total, terms = judge(TrainHRN(), image, scene_of(hr))
    assert total.shape == (2,) and set(terms) == {"pixel"} and terms["pixel"].dim() == 0
    torch.testing.assert_close(terms["pixel"], total.mean())
    unregistered, _ = judge(TrainHRN(registration="none"), image, scene_of(hr))
    torch.testing.assert_close(unregistered, masked_error(image, hr, torch.ones(2, 64, 64), "l1"))
    assert (total < 0.1 * unregistered).all()


def test_registration_forgives_a_shift_on_the_grid_and_a_bias_if_asked_but_not_more():
    image, near, far = moved(ground(), 0, 0), moved(ground(), 0.5, 1.0), moved(ground(), 3.0, 0.0)
    assert judge(TrainHRN(loss="mse"), image, scene_of(near))[0].max() < 0.01
    assert judge(TrainHRN(loss="mse"), image, scene_of(far))[0].min() > 0.1
    brighter = scene_of(near + 0.5)
    assert judge(TrainHRN(loss="mse"), image, brighter)[0].min() > 0.2
    assert judge(TrainHRN(loss="mse", remove_bias=True), image, brighter)[0].max() < 0.01


def test_the_gradient_goes_back_through_the_chosen_shift():
    image, hr = moved(ground(), 0, 0).requires_grad_(), moved(ground(), 0, 1)
    hr[:, :, 20, 20] += 1.0
    judge(TrainHRN(loss="mse"), image, scene_of(hr))[0].sum().backward()
    assert divmod(image.grad[0, 0].abs().argmax().item(), 64) == (20, 19)


@pytest.mark.parametrize("registration", ["grid", "shiftnet", "none"])
@pytest.mark.parametrize("kind", ["l1", "mse", "ssim", "mixed", "cmse"])
def test_every_loss_goes_with_every_registration(registration, kind):
    image = moved(ground(seed=1), 0, 0).requires_grad_()
    total, _ = judge(TrainHRN(registration=registration, loss=kind), image, scene_of(moved(ground(), 0, 0)))
    total.sum().backward()
    assert total.isfinite().all() and image.grad.isfinite().all() and image.grad.abs().max() > 0


def test_the_total_is_the_weighted_sum_of_its_terms():
    settings = TrainHRN(**ALL)
    image, hr = moved(ground(seed=1), 0, 0), moved(ground(), 0, 0)
    total, terms = judge(settings, image, scene_of(hr), torch.zeros_like(image))
    weights = {name: getattr(settings, name) for name in ALL if name != "uncertainty"} | {"pixel": 1, "laplace": 1}
    assert set(terms) == set(weights) and not any(value.requires_grad for value in terms.values())
    torch.testing.assert_close(total.mean(), sum(weights[name] * value for name, value in terms.items()))


def test_terms_about_the_truth_see_the_registered_image_and_the_constraint_the_one_that_was_made():
    image, hr = moved(ground(), 0, 0), moved(ground(), 1.0, -0.5)
    scene = scene_of(hr, latest=degrade(image))
    _, terms = judge(TrainHRN(**ALL), image, scene, torch.zeros_like(image))
    _, unregistered = judge(TrainHRN(**ALL, registration="none"), image, scene, torch.zeros_like(image))
    for name in ("pixel", "perceptual", "style", "laplace"):
        assert terms[name] < 0.9 * unregistered[name], name
    registered = translate(image, torch.tensor([[1.0, -0.5]]).expand(2, 2))
    latest, clear = scene.frames[:, 0], scene.clear[:, 0]
    torch.testing.assert_close(terms["mean_matching"], mean_difference(registered, latest, clear).mean())
    assert terms["low_frequency"] < 1e-6 < low_frequency_error(registered, latest, clear).mean()


def test_uncertainty_does_not_change_the_image():
    image, hr = moved(ground(seed=1), 0, 0), moved(ground(), 0.5, 0)
    gradients = []
    for uncertainty in (False, True):
        estimated = image.clone().requires_grad_()
        scale = torch.full_like(image, -1.0).requires_grad_() if uncertainty else None
        judge(TrainHRN(uncertainty=uncertainty), estimated, scene_of(hr), scale)[0].sum().backward()
        gradients.append(estimated.grad)
    torch.testing.assert_close(*gradients)
    assert scale.grad.abs().max() > 0


def test_the_scale_is_moved_with_the_image():
    """One bright error in an otherwise perfect image: its scale belongs where the image has it, not the truth."""
    image, hr = moved(ground(), 0, 0), moved(ground(), 1.0, 0.0)
    image = image.clone()
    image[:, :, 30, 30] += 3.0
    scale = torch.zeros_like(image).requires_grad_()
    judge(TrainHRN(uncertainty=True), image, scene_of(hr), scale)[0].sum().backward()
    lowest = scale.grad[0, 0].flatten().argmin().item()
    assert divmod(lowest, 64) == (30, 30)


@pytest.mark.parametrize("registration", ["grid", "shiftnet", "none"])
def test_what_is_not_clear_in_the_truth_changes_nothing(registration):
    settings = TrainHRN(**ALL, registration=registration, loss="mixed")
    image, scene = moved(ground(seed=1), 0, 0), scene_of(moved(ground(), 0, 0))
    scene.hr_clear[:, 20:30, 10:40] = 0
    hidden = scene.hr_clear[:, None] < 1
    found = []
    for below in (0.0, torch.nan):
        estimated = image.clone().requires_grad_()
        spoiled = Scene(**vars(scene) | {"hr": torch.where(hidden, below, scene.hr)})
        total, _ = judge(settings, estimated, spoiled, torch.zeros_like(image))
        total.sum().backward()
        found.append((total.detach(), estimated.grad))
    torch.testing.assert_close(found[0], found[1])
    assert found[1][1].isfinite().all()


def test_all_is_float32_under_autocast():
    settings = TrainHRN(**ALL, registration="shiftnet", loss="mixed")
    image, scene = moved(ground(seed=1), 0, 0), scene_of(moved(ground(), 0, 0))
    torch.manual_seed(0)
    objective = Objective(settings)
    expected, _ = objective(Estimate(image, torch.zeros_like(image)), scene)
    with torch.autocast("cpu", torch.bfloat16):
        found, terms = objective(Estimate(image, torch.zeros_like(image)), scene)
    assert {found.dtype} | {value.dtype for value in terms.values()} == {torch.float32}
    torch.testing.assert_close(found, expected)


def test_only_shiftnet_is_learned_and_saved(tmp_path):
    assert not list(Objective(TrainHRN(perceptual=1.0)).parameters())
    objective = Objective(TrainHRN(perceptual=1.0, registration="shiftnet"))
    assert {name.split(".")[0] for name, _ in objective.named_parameters()} == {"shiftnet"}
    assert {name.split(".")[0] for name in objective.state_dict()} == {"shiftnet"}
    # the frozen network follows the objective all the same
    objective.double()
    assert objective._frozen[0].network.mean.dtype == torch.float64


def test_the_trained_delineation_network_is_used(tmp_path):
    save_delineator(tmp_path, Delineator([0.2] * 4, [0.05] * 4, channels=8, levels=3), {})
    image, scene = moved(ground(seed=1), 0, 0), scene_of(moved(ground(), 0, 0))
    _, trained = judge(TrainHRN(perceptual=1.0, perceptual_network=tmp_path), image, scene)
    _, control = judge(TrainHRN(perceptual=1.0), image, scene)
    assert trained["perceptual"] > 0 and not torch.isclose(trained["perceptual"], control["perceptual"])


def test_validation_is_in_reflectance_registered_and_masked():
    image, hr = moved(ground(), 0, 0), moved(ground(), 0.5, -1)
    scene = scene_of(hr + 0.3)
    scene.hr_clear[:, :20] = 0
    scene.hr[:, :, :20] = torch.nan
    offset = ((0.3 * scene.std) ** 2).mean(dim=(1, 2, 3))
    for settings in (TrainHRN(), TrainHRN(remove_bias=True), TrainHRN(loss="ssim", registration="shiftnet")):
        error = validation_error(image, scene, settings)
        torch.testing.assert_close(error, offset, rtol=0.1, atol=0)
    assert (validation_error(image, scene, TrainHRN(registration="none")) > 3 * offset).all()
