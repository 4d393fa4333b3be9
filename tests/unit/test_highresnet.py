"""HighRes-Net: masks, padding, shapes, the start from bicubic, and export."""

import pytest
import torch

from sr_core.models.highresnet import HighResNet, bicubic, masked_median


@pytest.fixture(scope="module")
def model() -> HighResNet:
    """A network whose last layer is not zero any more, so that everything before it matters."""
    torch.manual_seed(0)
    network = HighResNet(channels=8, residual_blocks=1).eval()
    torch.nn.init.normal_(network.decoder.project.weight, std=0.1)
    return network


def series(frames: int, rows: int = 10, columns: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(frames)
    images = torch.randn(2, frames, 4, rows, columns, generator=generator)
    return images, (torch.rand(2, frames, rows, columns, generator=generator) > 0.3).float()


def test_training_starts_at_the_bicubic_latest_frame():
    frames, _ = series(5)
    output = HighResNet(channels=8, residual_blocks=1)(frames, torch.ones(2, 5, 10, 12))
    torch.testing.assert_close(output, bicubic(frames[:, 0]))


@pytest.mark.parametrize("frames", [1, 2, 3, 5, 8, 16])
def test_any_number_of_frames_any_size(model, frames):
    assert model(*series(frames, rows=7, columns=5)).shape == (2, 4, 28, 20)


@pytest.mark.parametrize("frames", [1, 2, 3, 5, 7, 8])
def test_padding_changes_nothing(model, frames):
    images, clear = series(frames)
    rubbish = torch.full((2, 8 - frames, 4, 10, 12), 77.0)
    padded = model(torch.cat([images, rubbish], 1), torch.cat([clear, torch.zeros(2, 8 - frames, 10, 12)], 1))
    torch.testing.assert_close(padded, model(images, clear), atol=1e-5, rtol=1e-5)


def test_what_a_mask_covers_contributes_nothing(model):
    images, clear = series(6)
    other = torch.where(clear.unsqueeze(2) > 0, images, 50.0)
    torch.testing.assert_close(model(other, clear), model(images, clear))


@pytest.mark.parametrize("frames", [2, 3, 4, 5, 7, 8])
def test_every_frame_counts(model, frames):
    images, clear = series(frames)
    images.requires_grad_()
    model(images, torch.ones_like(clear)).square().sum().backward()
    assert (images.grad.abs().amax(dim=(0, 2, 3, 4)) > 0).all()


def test_where_nothing_is_clear_the_output_is_finite(model):
    images, clear = series(3)
    assert model(images, torch.zeros_like(clear)).isfinite().all()


def test_median_ignores_masked_frames_and_averages_the_middle_two():
    frames = torch.tensor([9.0, 1.0, 3.0, 100.0]).reshape(1, 4, 1, 1, 1)
    clear = torch.tensor([1.0, 1.0, 1.0, 0.0]).reshape(1, 4, 1, 1)
    assert masked_median(frames, clear).item() == 3.0
    assert masked_median(frames, torch.ones_like(clear)).item() == 6.0
    assert masked_median(frames, torch.zeros_like(clear)).item() == 0.0


def test_a_fresh_decoder_has_no_checkerboard():
    torch.manual_seed(0)
    decoder = HighResNet(channels=16, residual_blocks=1).decoder
    fine = decoder.shuffle(decoder.expand(torch.randn(1, 16, 6, 6)))
    blocks = fine.unflatten(3, (6, 4)).unflatten(2, (6, 4))
    assert blocks.std(dim=(3, 5)).max() < 1e-5


@pytest.mark.parametrize("frames", [1, 3, 8])
def test_receptive_field_is_the_reach_of_a_gradient(model, frames):
    images = torch.randn(1, frames, 4, 61, 61, requires_grad=True)
    output = model(images, torch.ones(1, frames, 61, 61))
    output[:, :, 120:124, 120:124].square().sum().backward()
    reached = images.grad.abs().amax(dim=(0, 1, 2)) > 0
    rows = reached.any(dim=1).nonzero()
    assert int(rows.max() - rows.min()) + 1 <= model.receptive_field(frames)
    assert int(rows.max() - rows.min()) + 1 >= model.receptive_field(frames) - 2


def test_exports_with_dynamic_batch_height_and_width(model):
    images, clear = series(8)
    batch, height, width = (torch.export.Dim(name, min=2, max=512) for name in ("batch", "height", "width"))
    shapes = ({0: batch, 3: height, 4: width}, {0: batch, 2: height, 3: width})
    with torch.no_grad():
        program = torch.export.export(model, (images, clear), dynamic_shapes=shapes)
        other, other_clear = (torch.cat([part] * 2)[..., :9, :7] for part in (images, clear))
        torch.testing.assert_close(program.module()(other, other_clear), model(other, other_clear))
