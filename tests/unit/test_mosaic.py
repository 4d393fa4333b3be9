"""A region's products do not show how the region was cut: into patches, or into windows."""

import datetime as dt
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

from sr_core.inference.dates import PatchDates, find_targets
from sr_core.inference.mosaic import FrameReader, FrameStore, Mosaic
from sr_core.inference.products import Provenance, halo, make_date
from sr_core.inference.windows import Window
from sr_core.models.bundle import SuperResolver
from sr_core.models.highresnet import HighResNet
from sr_core.models.normalization import Normalization
from sr_core.patches import Patch, make_patch
from sr_core.series import S2Series

NORMALIZATION = Normalization((0.12,) * 4, (0.05,) * 4)
DAYS = [dt.datetime(2017, 1, 1, 8, 30) + dt.timedelta(days=10 * step) for step in range(5)]
SHIFTS = np.random.default_rng(3).uniform(-0.9, 0.9, (len(DAYS), 2)).astype(np.float32)
SIDE = 96
"""10 m pixels of the country; the region is its middle 78 x 66."""
WEST, NORTH = 500_000.0, 6_000_000.0


@pytest.fixture(scope="module")
def country() -> tuple[np.ndarray, np.ndarray]:
    """Images (T,H,W,4) and masks (T,H,W): rough ground, clouds that cross the patches' edges."""
    rng = np.random.default_rng(0)
    bands = rng.integers(600, 1800, (len(DAYS), SIDE, SIDE, 4), dtype=np.uint16)
    clear = np.ones(bands.shape[:3], bool)
    clear[1, 20:30, 40:52] = clear[3, 50:60, 30:48] = False
    clear[:, 60:63, 44:50] = False  # never seen
    return bands, clear


def network() -> SuperResolver:
    """A network that changes every pixel, and says how sure it is."""
    torch.manual_seed(1)
    model = HighResNet(channels=8, residual_blocks=1, fused_blocks=3, fusion="attention", uncertainty=True)
    torch.nn.init.normal_(model.project.weight, std=0.2)
    return SuperResolver(model.eval(), 4, {"bands": ["blue", "green", "red", "nir"]})


def cut(country: tuple[np.ndarray, np.ndarray], rows: list[int], columns: list[int], buffer_px: int) -> list[S2Series]:
    """The region's patches, its cells between these rows and columns of the country."""
    bands, clear = country
    found = []
    for top, bottom in pairwise(rows):
        for left, right in pairwise(columns):
            cell = (WEST + 10 * left, NORTH - 10 * bottom, WEST + 10 * right, NORTH - 10 * top)
            patch = make_patch("farm", 32634, cell, 10 * buffer_px)
            place = (
                slice(None),
                slice(top - buffer_px, bottom + buffer_px),
                slice(left - buffer_px, right + buffer_px),
            )
            names = [f"S2A_{day:%Y%m%d}" for day in DAYS]
            found.append(S2Series(patch, bands[place], clear[place], list(DAYS), names, SHIFTS))
    return found


def made(root: Path, pieces: list[S2Series], window_px: int, name: str = "sr") -> np.ndarray:
    """A layer of the last date's product, as counts (4,H,W)."""
    by_patch = {each.patch.id: each for each in pieces}
    patches = [each.patch for each in pieces]
    target = find_targets([PatchDates.of(each) for each in pieces], frames=4, max_age_days=60, max_cloud=0.5)[-1]
    store = FrameStore.write(root / "frames", patches, target.frames, lambda patch: by_patch[patch.id])
    make_date(
        root,
        "farm",
        patches,
        target,
        store,
        network(),
        NORMALIZATION,
        Provenance("k", 10.0, simulated=True),
        collection="farm-sr",
        window_px=window_px,
    )
    with rasterio.open(root / "farm" / target.name / f"{name}.tif") as layer:
        image: np.ndarray = layer.read()
    return image


@pytest.mark.parametrize(
    ("rows", "columns", "buffer_px", "window_px"),
    [
        ([9, 87], [15, 81], 9, 200),  # one patch, one window
        ([9, 87], [15, 81], 9, 23),
        ([9, 48, 87], [15, 37, 59, 81], 9, 31),  # odd sides, the buffer a third of the halo
        ([9, 35, 61, 87], [15, 48, 81], 0, 40),  # no buffer at all
    ],
)
def test_the_mosaic_is_the_whole_area_s_result(
    country: tuple[np.ndarray, np.ndarray],
    rows: list[int],
    columns: list[int],
    buffer_px: int,
    window_px: int,
    tmp_path: Path,
) -> None:
    """To a count, which is 1e-4 of reflectance, where the network sees the same ground."""
    pieces = cut(country, rows, columns, buffer_px)
    assert halo(network()) > 2 * buffer_px
    bands, clear = country
    around = (slice(rows[0] - buffer_px, rows[-1] + buffer_px), slice(columns[0] - buffer_px, columns[-1] + buffer_px))
    stack = np.moveaxis(bands[(slice(None), *around)], -1, 1)[::-1][:4]
    whole = network().predict(stack, clear[(slice(None), *around)][::-1][:4], NORMALIZATION, shifts=SHIFTS[::-1][:4])
    inner = (slice(4 * buffer_px, -4 * buffer_px or None),) * 2
    expected = whole[(slice(None), *inner)]

    found = made(tmp_path, pieces, window_px)

    never = np.zeros((SIDE, SIDE), bool)
    never[60:63, 44:50] = True
    never = never[rows[0] : rows[-1], columns[0] : columns[-1]].repeat(4, 0).repeat(4, 1)
    assert (found[:, never] == 0).all()  # masked, not invented
    assert np.abs(found / 10_000 - expected)[:, ~never].max() <= 1e-4


def test_uncertainty_and_the_latest_image_are_beside_it(country: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    pieces = cut(country, [9, 48, 87], [15, 48, 81], 9)
    scale = made(tmp_path, pieces, 40, "uncertainty")
    bands, clear = country
    stack, mask = np.moveaxis(bands, -1, 1)[::-1][:4], clear[::-1][:4]
    expected = network().predict_with_scale(stack, mask, NORMALIZATION, "float32", SHIFTS[::-1][:4])[1]
    # away from the region's edge, where the network sees the same in both
    inner = np.s_[:, 4 * 40 : 4 * 56, 4 * 40 : 4 * 56]
    moved = np.s_[:, 4 * 31 : 4 * 47, 4 * 25 : 4 * 41]
    known = scale[moved] != 65535
    assert known.mean() > 0.9
    assert np.abs(scale[moved] / 10_000 - expected[inner])[known].max() <= 1e-4
    with rasterio.open(next(tmp_path.glob("farm/*/s2.tif"))) as latest:
        assert (latest.res, latest.nodata, latest.descriptions[3]) == ((10.0, 10.0), 0, "nir")
        np.testing.assert_array_equal(latest.read(), np.moveaxis(bands[-1, 9:87, 15:81], -1, 0))


def test_a_cell_shows_its_own_patch_and_ground_outside_some_buffer(tmp_path: Path) -> None:
    """Sources may differ by a count where patches overlap; what is read must not depend on the order."""
    patches = [make_patch("farm", 32634, (WEST + x, NORTH - 80, WEST + x + 80, NORTH), 40) for x in (0, 80, 160)]

    def load(patch: Patch) -> S2Series:
        value = 1 + patches.index(patch)
        image = np.full((1, *patch.shape, 4), value, np.uint16)
        return S2Series(patch, image, np.ones(image.shape[:3], bool), DAYS[:1], ["a"], SHIFTS[:1])

    target = find_targets([PatchDates.of(load(patch)) for patch in patches], frames=1, max_age_days=1, max_cloud=0)[0]
    for order in (patches, patches[::-1]):
        store = FrameStore.write(tmp_path / order[0].id, order, target.frames, load)
        assert store.grid == Mosaic(32634, WEST - 40, NORTH + 40, 16, 32)
        with FrameReader.open([store.frames[target.name]]) as reader:
            images, clear = reader.read(Window(0, 0, 16, 32))
        assert images[0, 0, 4:12, 4:28].tolist() == [[1] * 8 + [2] * 8 + [3] * 8] * 8
        assert images.all()
        assert clear.all()
    assert FrameStore.write(tmp_path / patches[0].id, patches, target.frames, lambda _: pytest.fail("read again"))


def test_two_acquisitions_of_a_pass_fill_each_other(tmp_path: Path) -> None:
    """Where the swaths of two tiles meet; the frame's displacement is their mean by clear ground."""
    patch = make_patch("farm", 32634, (WEST, NORTH - 80, WEST + 80, NORTH), 0)
    bands = np.full((2, 8, 8, 4), 700, np.uint16)
    bands[0, :, 4:], bands[1, :, :2] = 0, 0
    bands[1] += bands[1] // 700 * 100
    clear = bands.any(axis=-1)
    days = [DAYS[0], DAYS[0] + dt.timedelta(seconds=15)]
    series = S2Series(patch, bands, clear, days, ["west", "east"], np.array([[0.0, 1.0], [0.5, 0.0]], np.float32))
    target = find_targets([PatchDates.of(series)], frames=2, max_age_days=9, max_cloud=0.3)[0]
    store = FrameStore.write(tmp_path, [patch], target.frames, lambda _: series)
    frame = store.frames[target.name]
    with FrameReader.open([frame]) as reader:
        images, known = reader.read(Window(0, 0, 8, 8))
    assert known.all()
    assert images[0, 0, 0].tolist() == [700, 700] + [800] * 6
    assert frame.shift == pytest.approx((0.5 * 48 / 80, 32 / 80))
    assert frame.products == {patch.id: {"east": days[1], "west": days[0]}}
