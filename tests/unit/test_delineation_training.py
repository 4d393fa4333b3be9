"""The delineation network, its loss and its loop."""

import numpy as np
import pytest
import torch
from rasterio.transform import from_origin

from sr_core.config import Delineate
from sr_core.delineation import HEADS
from sr_core.delineation.losses import delineation_loss
from sr_core.delineation.metrics import RasterScores
from sr_core.delineation.network import Delineator
from sr_core.delineation.targets import make_targets
from sr_core.delineation.training import QUANTISED, Scene, Tiles, batch_of, predict, tile_corners, train
from sr_core.errors import ArtifactError, DataError
from sr_core.radiometry.resample import bicubic_upsample
from tests import landscape

SIZE_M = 800.0
SIDE = 320


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_scene(seed, arm):
    """One date of a small landscape, as Sentinel-2 upsampled (bicubic), in full (oracle), or at 10 m."""
    fields = landscape.parcels(SIZE_M, 40, seed)
    targets = make_targets(fields, from_origin(landscape.WEST, landscape.NORTH, 2.5, 2.5), (SIDE, SIDE))
    full = landscape.render(fields, SIZE_M, seed)
    frame = landscape.sentinel2(full, seed)
    image = {"bicubic": bicubic_upsample(frame), "oracle": full, "s2_x4": frame}[arm]
    return Scene(
        np.rint(image.clip(0, 6) * 1e4).astype(np.uint16)[None],
        np.rint(targets.maps * QUANTISED).astype(np.uint8),
        np.ones((1, SIDE // 4, SIDE // 4), bool),
        np.ones((SIDE, SIDE), bool),
    )


def make_network(channels=8, upscale=1):
    torch.manual_seed(0)
    return Delineator([0.06, 0.09, 0.09, 0.3], [0.02, 0.02, 0.04, 0.08], channels, upscale=upscale)


@pytest.mark.parametrize(("upscale", "shape"), [(1, (37, 50)), (1, (16, 5)), (4, (9, 14))])
def test_the_network_takes_any_size_and_returns_it_at_2_5_m(upscale, shape):
    network = make_network(upscale=upscale)
    result = network(torch.rand(2, 4, *shape), return_features=True)
    for head in HEADS:
        assert result[head].shape == (2, 1, shape[0] * upscale, shape[1] * upscale)
    assert len(result["features"]) == 5


def test_a_tile_does_not_depend_on_its_batch():
    network = make_network().eval()
    batch = torch.rand(3, 4, 32, 32)
    together, alone = network(batch)["extent"][1], network(batch[1:2])["extent"][0]
    torch.testing.assert_close(together, alone)


def test_gradients_reach_the_image():
    image = torch.rand(1, 4, 32, 32, requires_grad=True)
    features = make_network().requires_grad_(False)(image, return_features=True)["features"]
    sum(feature.square().mean() for feature in features).backward()
    assert image.grad.abs().sum() > 0


def test_the_loss_is_zero_for_the_truth_and_three_for_its_opposite():
    targets = (torch.rand(2, 3, 16, 16) > 0.5).float()
    valid = torch.ones(2, 16, 16, dtype=torch.bool)
    logits = {head: (targets[:, i : i + 1] * 2 - 1) * 100 for i, head in enumerate(HEADS)}
    assert delineation_loss(logits, targets, valid).item() == pytest.approx(0.0, abs=1e-5)
    assert delineation_loss(logits, 1 - targets, valid).item() == pytest.approx(3.0, abs=1e-4)


def test_the_loss_equals_its_formula():
    rng = np.random.default_rng(0)
    logits, y = rng.normal(size=(3, 8, 8)), rng.random((3, 8, 8))
    p = 1 / (1 + np.exp(-logits))

    def similarity(a, b):
        return ((a * b).sum() + 1e-5) / ((a * a + b * b - a * b).sum() + 1e-5)

    expected = sum(1 - (similarity(p[i], y[i]) + similarity(1 - p[i], 1 - y[i])) / 2 for i in range(3))
    given = {head: torch.tensor(logits[None, i : i + 1], dtype=torch.float32) for i, head in enumerate(HEADS)}
    found = delineation_loss(given, torch.tensor(y[None], dtype=torch.float32), torch.ones(1, 8, 8, dtype=torch.bool))
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_masked_pixels_and_empty_samples_do_not_count():
    logits = {head: torch.randn(2, 1, 16, 16, requires_grad=True) for head in HEADS}
    targets = (torch.rand(2, 3, 16, 16) > 0.5).float()
    valid = torch.zeros(2, 16, 16, dtype=torch.bool)
    valid[0, :8] = True
    loss = delineation_loss(logits, targets, valid)
    loss.backward()
    alone = delineation_loss({h: x[:1, :, :8] for h, x in logits.items()}, targets[:1, :, :8], valid[:1, :8])
    torch.testing.assert_close(loss, alone)
    assert not logits["extent"].grad[0, :, 8:].any() and not logits["extent"].grad[1].any()
    assert delineation_loss(logits, targets, torch.zeros_like(valid)).item() == 0


def test_tiles_lie_wholly_on_the_ground():
    ground = np.zeros((96, 96), bool)
    ground[10:80, 20:90] = True
    corners = tile_corners(ground, 32)
    assert len(corners) and not (corners % 4).any()
    assert all(ground[r : r + 32, c : c + 32].all() for r, c in corners)
    assert len(tile_corners(ground, 80)) == 0


def test_all_arms_draw_the_same_tiles():
    bicubic, coarse = make_scene(1, "bicubic"), make_scene(1, "s2_x4")
    tiles = Tiles([bicubic], 64, seed=3), Tiles([coarse], 64, seed=3)
    image, targets, valid = batch_of([bicubic], tiles[0], 7, 2)
    small, same_targets, same_valid = batch_of([coarse], tiles[1], 7, 2)
    assert image.shape == (2, 4, 64, 64) and small.shape == (2, 4, 16, 16)
    torch.testing.assert_close(targets, same_targets)
    torch.testing.assert_close(valid, same_valid)
    coarse_again = torch.nn.functional.avg_pool2d(image, 4)
    assert torch.corrcoef(torch.stack([coarse_again.flatten(), small.flatten()]))[0, 1] > 0.98


def test_a_tile_larger_than_the_ground_is_refused():
    with pytest.raises(DataError, match=r"delineate.tile_px = 512"):
        Tiles([make_scene(1, "bicubic")], 512, seed=0)


def test_a_stopped_loop_continues_bit_by_bit(tmp_path, monkeypatch):
    scenes = [make_scene(1, "bicubic")]
    settings = Delineate(channels=4, steps=8, batch_size=2, tile_px=64)
    monkeypatch.setattr("sr_core.delineation.training.CHECKPOINT_EVERY", 3)
    whole = make_network(4)
    losses = train(whole, scenes, settings, tmp_path / "whole.pt")

    import sr_core.delineation.training as training

    drawn = batch_of

    def stop_at_five(scenes, tiles, step, count):
        if step == 5:
            raise KeyboardInterrupt
        return drawn(scenes, tiles, step, count)

    monkeypatch.setattr(training, "batch_of", stop_at_five)
    with pytest.raises(KeyboardInterrupt):
        train(make_network(4), scenes, settings, tmp_path / "stopped.pt")
    monkeypatch.setattr(training, "batch_of", drawn)
    continued = make_network(4)
    assert train(continued, scenes, settings, tmp_path / "stopped.pt") == losses
    for name, value in whole.state_dict().items():
        assert torch.equal(value, continued.state_dict()[name]), name


def test_a_damaged_checkpoint_is_named(tmp_path):
    (tmp_path / "c.pt").write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(ArtifactError, match=r"c\.pt: damaged checkpoint"):
        train(make_network(4), [make_scene(1, "bicubic")], Delineate(channels=4, tile_px=64), tmp_path / "c.pt")


def test_a_loss_that_is_no_number_stops_the_loop(tmp_path):
    network = make_network(4)
    with torch.no_grad():
        next(network.parameters()).fill_(float("nan"))
    settings = Delineate(channels=4, steps=4, batch_size=2, tile_px=64)
    with pytest.raises(DataError, match="loss of step 0 is nan"):
        train(network, [make_scene(1, "bicubic")], settings, tmp_path / "c.pt")
    assert not (tmp_path / "c.pt").exists()


class PixelByPixel(torch.nn.Module):
    """A network whose result is known: the logit of every head is ten times the blue reflectance."""

    def __init__(self, upscale):
        super().__init__()
        self.upscale, self.weight = upscale, torch.nn.Parameter(torch.tensor(10.0))

    def forward(self, image):
        logit = self.weight * image[:, :1].repeat_interleave(self.upscale, 2).repeat_interleave(self.upscale, 3)
        return dict.fromkeys(HEADS, logit)


@pytest.mark.parametrize("upscale", [1, 4])
@pytest.mark.parametrize("shape", [(200, 232), (40, 300), (64, 64)])
def test_tiles_are_blended_to_the_whole_image(upscale, shape):
    rows, columns = shape[0] // upscale, shape[1] // upscale
    image = np.random.default_rng(0).integers(0, 5000, (4, rows, columns)).astype(np.uint16)
    probabilities = predict(PixelByPixel(upscale), image, tile_px=64)
    blue = image[0].repeat(upscale, 0).repeat(upscale, 1) / 1e4
    assert probabilities.shape == (3, *shape)
    np.testing.assert_allclose(probabilities, np.broadcast_to(1 / (1 + np.exp(-10 * blue)), (3, *shape)), rtol=1e-4)


def boundary_mcc(arm, folder):
    """Boundary MCC on an unseen landscape after a short training on two others."""
    settings = Delineate(channels=8, steps=70, batch_size=4, tile_px=96, learning_rate=5e-3, precision="float32")
    network = make_network(8, upscale=4 if arm == "s2_x4" else 1)
    train(network, [make_scene(seed, arm) for seed in (1, 2)], settings, folder / f"{arm}.pt")
    scene, scores = make_scene(9, arm), RasterScores()
    probabilities = predict(network, scene.images[0], settings.tile_px)
    scores.add(probabilities, scene.maps / QUANTISED, scene.ground)
    return scores.summary()["boundary_mcc"]


def test_finer_images_delineate_better(tmp_path):
    oracle, bicubic = boundary_mcc("oracle", tmp_path), boundary_mcc("bicubic", tmp_path)
    assert oracle > bicubic + 0.03 and oracle > 0.2, f"oracle {oracle:.3f}, bicubic {bicubic:.3f}"
