"""The perceptual loss, with a network whose features can be computed by hand, and with a delineation network."""

import json

import numpy as np
import pytest
import torch
from scipy.signal import correlate2d
from torch import nn
from torch.nn import functional as F

from sr_core.delineation.network import DESCRIPTION, WEIGHTS, Delineator, load_delineator, save_delineator
from sr_core.errors import ArtifactError
from sr_core.training.perceptual import PerceptualLoss, gram, perceptual_network


class TwoLayers(nn.Module):
    """A network of two convolutions; all that the loss asks of it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second = nn.Conv2d(4, 6, 3), nn.Conv2d(6, 5, 3)

    def forward(self, image, return_features):
        first = self.first(image).relu()
        return {"features": [first, self.second(first)]}


@pytest.fixture(scope="module")
def loss():
    return PerceptualLoss(perceptual_network(None, seed=0))


def fields(count: int = 3, side: int = 48, seed: int = 0) -> torch.Tensor:
    """Reflectance with edges: blocks of different brightness."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.rand(count, 4, side // 8, side // 8, generator=generator) * 0.3 + 0.02
    return F.interpolate(blocks, scale_factor=8.0) + 0.005 * torch.randn(count, 4, side, side, generator=generator)


CLEAR = torch.ones(3, 48, 48)


def test_the_same_image_is_at_no_distance(loss):
    feature, style = loss(fields(), fields(), CLEAR)
    assert feature.abs().max() == 0 and style.abs().max() == 0


def test_the_gradient_reaches_the_image_and_nothing_else(loss):
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    for index in (0, 1):
        sr = fields(seed=1).requires_grad_()
        loss(sr, fields(), CLEAR)[index].sum().backward()
        assert sr.grad.isfinite().all() and (sr.grad.flatten(1).abs().amax(dim=1) > 0).all()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in loss.parameters())
    assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items())


def test_the_network_never_trains(loss):
    loss.train()
    assert not any(module.training for module in loss.modules())


def test_a_sample_is_judged_alone(loss):
    sr, hr = fields(seed=1), fields()
    together = torch.stack(loss(sr, hr, CLEAR))
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(torch.stack(loss(sr[order], hr[order], CLEAR)), together[:, order])
    alone = [torch.stack(loss(sr[i : i + 1], hr[i : i + 1], CLEAR[:1])) for i in range(3)]
    torch.testing.assert_close(torch.cat(alone, 1), together)


def test_style_does_not_ask_where():
    features = torch.randn(2, 6, 8, 8)
    shuffled = features.flatten(2)[..., torch.randperm(64)].view_as(features)
    torch.testing.assert_close(gram(shuffled), gram(features))
    assert (shuffled - features).abs().max() > 1


def test_both_terms_equal_a_computation_by_hand():
    network = TwoLayers()
    sr, hr = fields(2, 16, seed=1), fields(2, 16)
    feature, style = PerceptualLoss(network)(sr, hr, torch.ones(2, 16, 16))

    def convolve(image, layer):
        weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
        return np.stack(
            [
                sum(correlate2d(band, kernel, mode="valid") for band, kernel in zip(image, kernels, strict=True))
                + offset
                for kernels, offset in zip(weight, bias, strict=True)
            ]
        )

    def layers(image):
        first = np.maximum(convolve(image.numpy().astype(np.float64), network.first), 0)
        return [first, convolve(first, network.second)]

    def products(features):
        flat = features.reshape(len(features), -1)
        return flat @ flat.T / flat.size

    for sample in range(2):
        pairs = list(zip(layers(sr[sample]), layers(hr[sample]), strict=True))
        by_feature = [((a - b) ** 2).sum() / (b**2).sum() for a, b in pairs]
        by_style = [((products(a) - products(b)) ** 2).sum() / (products(b) ** 2).sum() for a, b in pairs]
        assert feature[sample].item() == pytest.approx(np.mean(by_feature), rel=1e-4)
        assert style[sample].item() == pytest.approx(np.mean(by_style), rel=1e-4)


def test_a_blurred_truth_is_further_away_than_a_slightly_noisy_one(loss):
    hr = fields()
    blurred = F.avg_pool2d(F.pad(hr, [2] * 4, mode="replicate"), 5, stride=1)
    noisy = hr + 0.001 * torch.randn(hr.shape, generator=torch.Generator().manual_seed(1))
    for far, near in zip(loss(blurred, hr, CLEAR), loss(noisy, hr, CLEAR), strict=True):
        assert (far > 3 * near).all()


def test_what_is_not_clear_is_equal_before_the_network_looks(loss):
    sr, hr, clear = fields(seed=1), fields(), CLEAR.clone()
    clear[:, 10:30, 5:25] = 0
    hidden = clear[:, None] < 1
    cloudy = torch.where(hidden, torch.nan, hr)
    sr.requires_grad_()
    feature, style = loss(sr, cloudy, clear)
    (feature + style).sum().backward()
    assert feature.isfinite().all() and sr.grad.isfinite().all()
    assert sr.grad[hidden.expand_as(sr.grad)].abs().max() == 0
    # an image that is right wherever the truth is known costs nothing, whatever it shows below the cloud
    right = torch.where(hidden, 0.9, hr)
    assert loss(right, cloudy, clear)[0].max() == 0


def test_the_control_is_a_function_of_its_seed():
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    first, again, other = (perceptual_network(None, seed).encoder[0][0].weight for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.rand(1), expected), "drawing the control must not move the run's own random numbers"


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(2)
    network = Delineator([0.05, 0.08, 0.09, 0.3], [0.02, 0.02, 0.03, 0.08], channels=8, levels=3)
    save_delineator(tmp_path / "truth", network, {"arm": "truth"})
    return tmp_path / "truth", network


def test_a_delineation_network_is_read_as_it_was_written(saved):
    folder, network = saved
    image = fields(1)
    read = load_delineator(folder)
    assert not read.training and sorted(path.name for path in folder.iterdir()) == [DESCRIPTION, WEIGHTS]
    for name, value in network.eval()(image).items():
        torch.testing.assert_close(read(image)[name], value)
    assert PerceptualLoss(perceptual_network(folder, 0))(image, fields(1, seed=1), CLEAR[:1])[0].item() > 0


def describe(folder, **changes):
    path = folder / DESCRIPTION
    description = json.loads(path.read_text())
    description["architecture"] |= changes
    path.write_text(json.dumps(description))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / DESCRIPTION).unlink(), r"network\.json: missing; expected a folder with"),
        (lambda folder: (folder / DESCRIPTION).write_text("{"), r"network\.json: not the description"),
        (lambda folder: (folder / DESCRIPTION).write_text("[1]"), r"network\.json: not the description"),
        (lambda folder: describe(folder, version=9), r"found delineator version 9, expected delineator version 1"),
        (lambda folder: describe(folder, levels="three"), r"network\.json: architecture .* is not one of"),
        (lambda folder: describe(folder, channels=16), r"network\.safetensors: does not fit the architecture"),
        (lambda folder: (folder / WEIGHTS).unlink(), r"network\.safetensors: missing"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b"12345678 half"), r"network\.safetensors: cannot be read"),
    ],
)
def test_a_folder_that_is_not_whole_is_named(saved, spoil, message):
    folder, _ = saved
    spoil(folder)
    with pytest.raises(ArtifactError, match=message):
        load_delineator(folder)


def test_a_network_for_10_m_is_refused(tmp_path):
    save_delineator(tmp_path, Delineator([0.1] * 4, [0.1] * 4, channels=8, levels=2, upscale=4), {})
    with pytest.raises(ArtifactError, match=r"reads images of 10 m \(arm s2_x4\), expected one that reads 2\.5 m"):
        perceptual_network(tmp_path, 0)
