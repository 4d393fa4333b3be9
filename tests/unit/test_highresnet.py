"""HighRes-Net: masks, padding, order of frames, shapes, the start from bicubic, uncertainty, and export."""

import itertools

import pytest
import torch

from sr_core.config import TrainHRN
from sr_core.models.alignment import AlignedNetwork
from sr_core.models.highresnet import Decoder, HighResNet, bicubic, masked_mean, masked_median, phase

FUSIONS = ("recursive", "attention")


def network(**choices) -> HighResNet:
    """A small network none of whose layers is zero any more, so that everything matters."""
    torch.manual_seed(0)
    built = HighResNet(**{"channels": 8, "residual_blocks": 1} | choices).eval()
    torch.nn.init.normal_(built.project.weight, std=0.1)
    torch.nn.init.normal_(built.encoder.phase.weight, std=0.3)
    return built


@pytest.fixture(scope="module", params=FUSIONS)
def model(request) -> HighResNet:
    return network(fusion=request.param)


def series(frames: int, rows: int = 10, columns: int = 12) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(frames)
    images = torch.randn(2, frames, 4, rows, columns, generator=generator)
    clear = (torch.rand(2, frames, rows, columns, generator=generator) > 0.3).float()
    return images, clear, torch.rand(2, frames, 2, generator=generator) - 0.5


def test_every_choice_of_the_configuration_is_a_network_that_trains():
    images, clear, shifts = series(3)
    choices = {
        "fusion": FUSIONS,
        "decoder": ("pixel_shuffle", "transposed", "resize"),
        "residual": ("latest", "mean", "none"),
        "reference": ("median", "latest"),
    }
    for values in itertools.product(*choices.values()):
        settings = TrainHRN(channels=8, residual_blocks=1, fused_blocks=1, **dict(zip(choices, values, strict=True)))
        built = HighResNet.from_settings(settings)
        image, log_scale = built(images, clear, shifts)
        assert image.shape == (2, 4, 40, 48) and log_scale is None
        (image - 1).square().sum().backward()
        assert built.project.weight.grad.abs().max() > 0


def test_training_starts_at_the_bicubic_image():
    frames, clear, shifts = series(5)
    everywhere = torch.ones_like(clear)
    start = {
        "latest": bicubic(frames[:, 0]),
        "mean": bicubic(frames.mean(dim=1)),
        "none": torch.zeros(2, 4, 40, 48),
    }
    for residual, image in start.items():
        fresh = HighResNet(channels=8, residual_blocks=1, residual=residual)
        torch.testing.assert_close(fresh(frames, everywhere, shifts).image, image)


@pytest.mark.parametrize("frames", [1, 2, 3, 5, 8, 16])
def test_any_number_of_frames_any_size(model, frames):
    assert model(*series(frames, rows=7, columns=5)).image.shape == (2, 4, 28, 20)


@pytest.mark.parametrize("frames", [1, 2, 3, 5, 7, 8])
def test_padding_changes_nothing(model, frames):
    images, clear, shifts = series(frames)
    missing = 8 - frames
    padded = model(
        torch.cat([images, torch.full((2, missing, 4, 10, 12), 77.0)], 1),
        torch.cat([clear, torch.zeros(2, missing, 10, 12)], 1),
        torch.cat([shifts, torch.zeros(2, missing, 2)], 1),
    )
    torch.testing.assert_close(padded.image, model(images, clear, shifts).image, atol=1e-5, rtol=1e-5)


def test_a_batch_may_mix_numbers_of_frames(model):
    images, clear, shifts = series(6)
    clear[1, 2:] = 0
    together = model(images, clear, shifts).image
    torch.testing.assert_close(together[:1], model(images[:1], clear[:1], shifts[:1]).image, atol=1e-5, rtol=1e-5)
    alone = model(images[1:, :2], clear[1:, :2], shifts[1:, :2]).image
    torch.testing.assert_close(together[1:], alone, atol=1e-5, rtol=1e-5)


def test_with_attention_the_order_of_the_earlier_frames_means_nothing():
    images, clear, shifts = series(6)
    order = [0, 3, 5, 1, 4, 2]
    for residual in ("latest", "mean", "none"):
        model = network(fusion="attention", residual=residual)
        other = model(images[:, order], clear[:, order], shifts[:, order]).image
        torch.testing.assert_close(other, model(images, clear, shifts).image, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_which_frame_is_the_latest_matters(fusion):
    images, clear, shifts = series(6)
    model, order = network(fusion=fusion), [1, 0, 2, 3, 4, 5]
    other = model(images[:, order], clear[:, order], shifts[:, order]).image
    assert (other - model(images, clear, shifts).image).abs().max() > 0.1


def test_what_a_mask_covers_contributes_nothing(model):
    images, clear, shifts = series(6)
    other = torch.where(clear.unsqueeze(2) > 0, images, 50.0)
    torch.testing.assert_close(model(other, clear, shifts).image, model(images, clear, shifts).image)


@pytest.mark.parametrize("frames", [2, 3, 4, 5, 7, 8])
def test_every_frame_counts(model, frames):
    images, clear, shifts = series(frames)
    images.requires_grad_()
    model(images, torch.ones_like(clear), shifts).image.square().sum().backward()
    assert (images.grad.abs().amax(dim=(0, 2, 3, 4)) > 0).all()


def test_where_nothing_is_clear_the_output_is_finite(model):
    images, clear, shifts = series(3)
    assert model(images, torch.zeros_like(clear), shifts).image.isfinite().all()


def test_the_fraction_of_a_pixel_counts_and_whole_pixels_do_not(model):
    images, clear, shifts = series(4)
    image = model(images, clear, shifts).image
    torch.testing.assert_close(model(images, clear, shifts + 1).image, image, atol=1e-4, rtol=1e-4)
    assert (model(images, clear, shifts + 0.25).image - image).abs().max() > 1e-3
    torch.testing.assert_close(phase(torch.zeros(2)), torch.tensor([1.0, 0, 1, 0, 1, 0, 0, 0]))


def test_median_and_mean_ignore_masked_frames():
    frames = torch.tensor([9.0, 1.0, 3.0, 100.0]).reshape(1, 4, 1, 1, 1)
    clear = torch.tensor([1.0, 1.0, 1.0, 0.0]).reshape(1, 4, 1, 1)
    assert masked_median(frames, clear).item() == 3.0
    assert masked_median(frames, torch.ones_like(clear)).item() == 6.0
    assert masked_median(frames, torch.zeros_like(clear)).item() == 0.0
    torch.testing.assert_close(masked_mean(frames, clear).item(), 13 / 3)
    assert masked_mean(frames, torch.zeros_like(clear)).item() == 0.0


@pytest.mark.parametrize("kind", ["pixel_shuffle", "resize"])
def test_a_fresh_decoder_has_no_checkerboard(kind):
    torch.manual_seed(0)
    fine = Decoder(16, 4, 4, kind).up(torch.randn(1, 16, 6, 6))
    inner = fine.unflatten(3, (6, 4)).unflatten(2, (6, 4)) if kind == "pixel_shuffle" else fine[..., 1:3, 1:3]
    spread = inner.std(dim=(3, 5)) if kind == "pixel_shuffle" else (inner - inner.mean(dim=(2, 3), keepdim=True)).abs()
    assert spread.max() < 1e-5


@pytest.mark.parametrize("kind", ["transposed", "resize"])
def test_decoders_start_with_the_same_spread(kind):
    """PyTorch starts a transposed convolution too small: by half with these channels."""
    torch.manual_seed(0)
    features = torch.randn(4, 32, 16, 16)
    usual = Decoder(32, 8, 4, "pixel_shuffle").up(features).std()
    assert Decoder(32, 8, 4, kind).up(features).std().item() == pytest.approx(usual.item(), rel=0.15)


@pytest.mark.parametrize("channels", [32, 48, 64])
@pytest.mark.parametrize("kind", ["pixel_shuffle", "transposed", "resize"])
def test_gradients_through_a_decoder_are_those_of_float32(kind, channels):
    """On CPUs with AMX, PyTorch's bfloat16 gradient of a transposed convolution is wrong; trainings diverged."""
    torch.manual_seed(0)
    features = torch.randn(8, channels, 16, 16)
    decoder = Decoder(channels, channels // 4, 4, kind).to(memory_format=torch.channels_last)
    target = torch.randn(8, channels // 4, 64, 64)

    def gradient(bfloat16: bool) -> torch.Tensor:
        x = features.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            fine = decoder(x)
        (found,) = torch.autograd.grad((fine.float() * target).sum(), x)
        return found

    exact = gradient(bfloat16=False)
    # signs before the PReLU turn with the rounding, hence some per cent; it was over a hundred
    assert (gradient(bfloat16=True) - exact).abs().mean() < 0.06 * exact.abs().mean()


@pytest.mark.parametrize("kind", ["pixel_shuffle", "transposed", "resize"])
def test_an_exported_decoder_runs_in_bfloat16(kind):
    """As the model server does it: exported in float32, run under autocast."""
    torch.manual_seed(0)
    features = torch.randn(2, 32, 8, 8)
    decoder = torch.nn.Sequential(torch.nn.Conv2d(32, 32, 1), Decoder(32, 8, 4, kind))  # the first gives it bfloat16
    program = torch.export.export(decoder, (features,)).module()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(program(features).float(), decoder(features).float(), atol=0.05, rtol=0.05)


def test_no_row_of_a_transposed_convolution_is_dead():
    """The published one has kernel 3 at stride 4: every fourth row and column is its bias alone."""
    torch.manual_seed(0)
    images = torch.randn(1, 16, 6, 6, requires_grad=True)
    fine = Decoder(16, 4, 4, "transposed").up(images)
    assert fine.shape == (1, 4, 24, 24)
    assert fine.std(dim=(1, 3)).min() > 0 and fine.std(dim=(1, 2)).min() > 0


@pytest.mark.parametrize("frames", [1, 3, 8])
@pytest.mark.parametrize("choices", [{}, {"fused_blocks": 2, "decoder": "transposed"}, {"decoder": "resize"}])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_receptive_field_is_the_reach_of_a_gradient(fusion, choices, frames):
    model = network(fusion=fusion, **choices).double()  # fast convolutions reach farther by rounding
    images = torch.randn(1, frames, 4, 61, 61, dtype=torch.float64, requires_grad=True)
    output = model(images, torch.ones_like(images[:, :, 0]), torch.zeros(1, frames, 2).double()).image
    output[:, :, 120:124, 120:124].square().sum().backward()
    reached = images.grad.abs().amax(dim=(0, 1, 2)) > 0
    rows = reached.any(dim=1).nonzero()
    assert int(rows.max() - rows.min()) + 1 <= model.receptive_field(frames)
    assert int(rows.max() - rows.min()) + 1 >= model.receptive_field(frames) - 2


def test_being_asked_for_uncertainty_does_not_change_the_image(model):
    images, clear, shifts = series(3)
    doubtful = network(fusion=model.architecture["fusion"], uncertainty=True)
    doubtful.load_state_dict(model.state_dict(), strict=False)
    image, log_scale = doubtful(images, clear, shifts)
    torch.testing.assert_close(image, model(images, clear, shifts).image)
    assert log_scale.shape == image.shape
    log_scale.sum().backward()
    assert doubtful.encoder.enter.weight.grad is None and doubtful.spread[0].weight.grad.abs().max() > 0


@pytest.mark.parametrize("uncertainty", [False, True])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_exports_with_dynamic_batch_height_and_width(fusion, uncertainty):
    model = AlignedNetwork(network(fusion=fusion, uncertainty=uncertainty)).eval()
    images, clear, shifts = series(8)
    batch, height, width = (torch.export.Dim(name, min=2, max=512) for name in ("batch", "height", "width"))
    shapes = ({0: batch, 3: height, 4: width}, {0: batch, 2: height, 3: width}, {0: batch})
    with torch.no_grad():
        program = torch.export.export(model, (images, clear, shifts), dynamic_shapes=shapes)
        other, other_clear = (torch.cat([part] * 2)[..., :9, :7] for part in (images, clear))
        given = (other, other_clear, torch.cat([shifts] * 2))
        for found, expected in zip(program.module()(*given), model(*given), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_choice_it_does_not_know_is_refused_by_name():
    for name in ("reference", "fusion", "decoder", "residual"):
        with pytest.raises(ValueError, match=f"{name}: found 'magic'"):
            HighResNet(channels=8, residual_blocks=1, **{name: "magic"})
    with pytest.raises(ValueError, match="channels: found 12, expected a multiple of 8"):
        HighResNet(channels=12, fusion="attention")
