"""Windows give what the whole patch gives."""

import numpy as np
import pytest
import torch

from sr_core.inference.windows import Window, super_resolve_window, windows
from sr_core.models.bundle import SuperResolver
from sr_core.models.highresnet import HighResNet
from sr_core.models.normalization import Normalization

NORMALIZATION = Normalization((0.05, 0.08, 0.1, 0.3), (0.03, 0.04, 0.05, 0.08))


def network(frames: int) -> SuperResolver:
    """A network that changes every pixel: untrained, its residual would be zero."""
    torch.manual_seed(1)
    model = HighResNet(channels=8, residual_blocks=1)
    torch.nn.init.normal_(model.project.weight, std=0.1)
    return SuperResolver(model.eval(), frames, {"bands": ["blue", "green", "red", "nir"]})


def stack(frames: int, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(rows)
    images = rng.integers(100, 5000, (frames, 4, rows, columns), dtype=np.uint16)
    return images, rng.random((frames, rows, columns)) > 0.3


@pytest.mark.parametrize(
    ("rows", "columns", "window_px", "frames"), [(64, 64, 32, 2), (67, 53, 16, 5), (40, 91, 37, 4)]
)
def test_windows_equal_the_whole(rows: int, columns: int, window_px: int, frames: int) -> None:
    resolver = network(frames)
    images, clear = stack(frames, rows, columns)
    shifts = np.random.default_rng(0).uniform(-1.9, 1.9, (frames, 2)).astype(np.float32)
    whole = resolver.predict(images, clear, NORMALIZATION, shifts=shifts)
    for other in (
        resolver.predict(images, np.ones_like(clear), NORMALIZATION, shifts=shifts),
        resolver.predict(images, clear, NORMALIZATION),
    ):
        assert np.ptp(whole - other) > 0.01  # the mask matters, and so do the displacements

    pieced = np.full_like(whole, np.nan)
    for window in windows((slice(0, rows), slice(0, columns)), window_px):
        assert max(window.shape) <= window_px
        place = (slice(None), *window.inside(Window(0, 0, rows, columns), 4))
        assert np.isnan(pieced[place]).all()  # no pixel twice
        pieced[place] = super_resolve_window(resolver, images, clear, NORMALIZATION, window, shifts=shifts)

    np.testing.assert_allclose(pieced, whole, atol=1e-4)


def test_a_narrower_halo_would_be_seen() -> None:
    """The halo is needed: with a quarter of it the result is another."""
    resolver = network(4)
    images, clear = stack(4, 70, 70)
    reach = resolver.receptive_field // 2
    window = Window(33, 33, 37, 37)
    right = super_resolve_window(resolver, images, clear, NORMALIZATION, window)
    outer = window.grow(reach // 4, (70, 70))
    rows, columns = outer.slices
    wrong = resolver.predict(images[..., rows, columns], clear[..., rows, columns], NORMALIZATION)
    assert np.abs(wrong[(slice(None), *window.inside(outer, 4))] - right).max() > 1e-4


def test_windows_of_a_cell_are_balanced() -> None:
    cut = list(windows((slice(20, 220), slice(20, 220)), 128))
    assert [window.shape for window in cut] == [(100, 100)] * 4
    assert (cut[0].top, cut[-1].bottom) == (20, 220)
