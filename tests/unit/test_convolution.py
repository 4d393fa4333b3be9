"""3 x 3 convolutions with replicated edges: what they compute, in PyTorch and in the compiled library."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sr_core.models import convolution, winograd
from sr_core.models.convolution import Conv3, Layers, convolve, fold_edges, replicate_edges

SHAPES = [(16, 32, 3, 13, 7), (64, 64, 2, 16, 16), (128, 64, 1, 9, 33), (32, 128, 2, 1, 1), (48, 48, 1, 30, 20)]
"""Input and output channels, images, height, width: multiples of a tile, and not."""


@pytest.fixture(params=["library", "torch"])
def way(request, monkeypatch):
    """The compiled library, or PyTorch as where it was not built."""
    if request.param == "torch":
        monkeypatch.setattr(winograd, "supported", lambda dtype: False)
    elif not winograd.supported(torch.float32):
        pytest.skip("the library of fast convolutions is not built, or this processor has no AVX-512")
    return request.param


def operation(shape: tuple[int, ...], whole: bool) -> tuple[Tensor, Conv3, nn.PReLU | None, Tensor | None]:
    inputs, outputs, images, height, width = shape
    torch.manual_seed(0)
    x = torch.randn(images, inputs, height, width, requires_grad=True)
    layer = Conv3(inputs, outputs).to(memory_format=torch.channels_last)
    if not whole:
        return x, layer, None, None
    return x, layer, nn.PReLU(), torch.randn(images, outputs, height, width, requires_grad=True)


def exact(x: Tensor, layer: Conv3, prelu: nn.PReLU | None, skip: Tensor | None) -> Tensor:
    y = F.conv2d(F.pad(x.double(), (1, 1, 1, 1), mode="replicate"), layer.weight.double(), layer.bias.double())
    if prelu is not None:
        y = F.prelu(y, prelu.weight.double())
    return y if skip is None else y + skip


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("whole", [False, True], ids=["convolution", "with PReLU and skip"])
def test_values_and_gradients_are_those_of_a_plain_convolution(way, shape, whole):
    x, layer, prelu, skip = parts = operation(shape, whole)
    learnt = [part for part in (x, layer.weight, layer.bias, prelu and prelu.weight, skip) if part is not None]
    found, expected = convolve(*parts), exact(*parts)
    assert relative(found, expected) < 3e-6
    gradient = torch.randn_like(expected)
    gradients = torch.autograd.grad(found, learnt, gradient.float()), torch.autograd.grad(expected, learnt, gradient)
    for part, truth in zip(*gradients, strict=True):
        assert relative(part, truth) < 2e-5


@pytest.mark.parametrize("shape", SHAPES)
def test_bfloat16_is_within_two_hundredths(way, shape):
    x, layer, prelu, skip = parts = operation(shape, whole=True)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = convolve(x, layer, prelu, skip.bfloat16())
    assert found.dtype == torch.bfloat16
    assert relative(found, exact(*parts)) < 0.02


@pytest.mark.parametrize("shape", SHAPES)
def test_the_matrix_unit_multiplies_as_vectors_do(shape):
    if not winograd.has_matrix_unit():
        pytest.skip("this processor has no matrix unit (AMX), or the library is not built")
    x, layer, prelu, skip = operation(shape, whole=True)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        tiles = convolve(x, layer, prelu, skip.bfloat16())
        with winograd.without_matrix_unit():
            vectors = convolve(x, layer, prelu, skip.bfloat16())
    # the same rounded factors, added in another order: at most the last bit of a bfloat16 differs
    assert relative(tiles, vectors) < 2e-3


def test_a_result_depends_neither_on_threads_nor_on_the_images_beside_it(way):
    x, layer, prelu, _ = operation((64, 64, 9, 12, 12), whole=True)
    with torch.no_grad():
        together = convolve(x, layer, prelu)
        alone = torch.cat([convolve(image[None], layer, prelu) for image in x])
        before = torch.get_num_threads()
        torch.set_num_threads(1 if before > 1 else 2)
        other = convolve(x, layer, prelu)
        torch.set_num_threads(before)
    if way == "library":
        assert torch.equal(together, alone) and torch.equal(together, other)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_layers_are_a_sequence_with_a_skip(way):
    torch.manual_seed(0)
    layers = Layers(Conv3(16, 16), nn.PReLU(), Layers(Conv3(16, 32)), nn.PReLU(), Conv3(32, 16), nn.PReLU())
    x = torch.randn(2, 16, 6, 6)
    torch.testing.assert_close(layers(x, skip=x), nn.Sequential(*layers)(x) + x)


def test_folding_edges_is_the_gradient_of_replicating_them():
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    gradient = torch.randn(2, 3, 6, 7, dtype=torch.float64)
    expected = torch.autograd.grad(F.pad(x, (1, 1, 1, 1), mode="replicate"), x, gradient)[0]
    torch.testing.assert_close(fold_edges(gradient), expected)
    torch.testing.assert_close(torch.autograd.grad(replicate_edges(x), x, gradient)[0], expected)


def test_other_precisions_and_channels_go_to_pytorch():
    for x, layer in (
        (torch.randn(1, 16, 4, 4).double(), Conv3(16, 16).double()),
        (torch.randn(1, 8, 4, 4), Conv3(8, 4)),
    ):
        torch.testing.assert_close(convolution.convolve(x, layer), exact(x, layer, None, None).to(x.dtype))
