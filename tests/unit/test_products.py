"""Products: where their pixels lie, what they hold, and what is said of them."""

import datetime as dt
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
import rasterio
from rio_cogeo.cogeo import cog_validate

from sr_core.errors import ArtifactError
from sr_core.inference.dates import PatchDates, Target, find_targets
from sr_core.inference.mosaic import FrameStore, Mosaic
from sr_core.inference.products import Provenance, index_entry, kept_date, make_date
from sr_core.inference.stac import write_collection
from sr_core.models.normalization import Normalization
from sr_core.patches import Patch, make_patch
from sr_core.radiometry.resample import bicubic_upsample
from sr_core.series import S2Series

EPSG, WEST, NORTH, CELL, BUFFER = 32634, 500_000.0, 6_000_000.0, 320, 80
NORMALIZATION = Normalization((0.1,) * 4, (0.1,) * 4)
WALD = Provenance("abc123", 40.0, simulated=False)
DAYS = [dt.datetime(2017, 1, 1, 8, 30, 5) + dt.timedelta(days=10 * step) for step in range(4)]


@dataclass
class Bicubic:
    """Stands for a network: the latest frame, upsampled."""

    frames: int = 8
    scale: int = 4
    receptive_field: int = 5
    uncertainty: float | None = 0.02
    windows: int = 0

    def predict_with_scale(
        self,
        frames: np.ndarray,
        clear: np.ndarray,
        normalization: Normalization,
        precision: str,
        shifts: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray | None]:
        self.windows += 1
        image = bicubic_upsample(frames[0].astype(np.float32) / 10_000)
        return image, None if self.uncertainty is None else np.full_like(image, self.uncertainty)


def cell(row: int, column: int, cell_m: int = CELL) -> Patch:
    west, north = WEST + column * cell_m, NORTH - row * cell_m
    return make_patch("farm", EPSG, (west, north - cell_m, west + cell_m, north), BUFFER)


def ground(patch: Patch, when: int) -> np.ndarray:
    """(H,W,4) that tells where and when it is: smooth across patches."""
    rows, columns = patch.shape
    east = (patch.bounds[0] + 10 * (np.arange(columns) + 0.5) - WEST)[None, :]
    south = (NORTH - patch.bounds[3] + 10 * (np.arange(rows) + 0.5))[:, None]
    image = 2000 + east + 2 * south + 100 * when
    return np.stack([image + 10 * band for band in range(4)], axis=-1).astype(np.uint16)


def series(patch: Patch, days: list[dt.datetime] = DAYS) -> S2Series:
    bands = np.stack([ground(patch, when) for when in range(len(days))])
    shifts = np.zeros((len(days), 2), np.float32)
    return S2Series(
        patch, bands, np.ones(bands.shape[:3], bool), list(days), [f"S2A_{day:%Y%m%d}" for day in days], shifts
    )


def make(root: Path, all_series: list[S2Series], target: Target, **changes: Any) -> Mapping[str, Any]:
    by_patch = {each.patch.id: each for each in all_series}
    patches = [each.patch for each in all_series]
    store = FrameStore.write(root / f".frames-{target.name}", patches, target.frames, lambda patch: by_patch[patch.id])
    arguments = {
        "collection": "farm-sr",
        "window_px": 20,
        "provenance": WALD,
        "resolver": Bicubic(),
        "normalization": NORMALIZATION,
        **changes,
    }
    item = make_date(root, "farm", patches, target, store, **arguments)
    store.remove()
    return item


def targets(all_series: list[S2Series], **changes: Any) -> list[Target]:
    settings = {"frames": 8, "max_age_days": 60, "max_cloud": 0.1, **changes}
    return find_targets([PatchDates.of(each) for each in all_series], **settings)


def test_a_mosaic_lies_where_it_says(tmp_path: Path) -> None:
    """Four cells become one seamless image, to the metre, with the values of the latest frame."""
    four = [series(cell(row, column)) for row in range(2) for column in range(2)]
    item = make(tmp_path, four, targets(four)[-1])
    folder = tmp_path / "farm" / "20170131T083005"
    assert {path.name for path in folder.iterdir()} == {
        *(f"{name}.tif" for name in ("sr", "s2", "consistency", "uncertainty")),
        "quicklook.png",
        "item.json",
    }

    with rasterio.open(folder / "sr.tif") as sr:
        assert sr.crs.to_epsg() == EPSG
        assert tuple(sr.bounds) == (WEST, NORTH - 2 * CELL, WEST + 2 * CELL, NORTH)
        assert sr.res == (2.5, 2.5)
        assert (sr.dtypes[0], sr.nodata, sr.scales[0]) == ("uint16", 0, 0.0001)
        assert sr.descriptions == ("blue", "green", "red", "nir")
        assert (sr.profile["compress"], sr.tags(ns="IMAGE_STRUCTURE")["PREDICTOR"]) == ("deflate", "2")
        image = sr.read()
        east, north = WEST + 401.25, NORTH - 203.75  # the middle of a pixel
        value = next(sr.sample([(east, north)]))
    np.testing.assert_allclose(value, 2000 + 401.25 + 2 * 203.75 + 300 + 10 * np.arange(4), atol=2)
    rows, columns = np.mgrid[0:256, 0:256] * 2.5 + 1.25
    inner = (slice(20, -20), slice(20, -20))  # a cell at the edge of all patches has no neighbour's pixels
    np.testing.assert_allclose(image[0][inner], (2300 + columns + 2 * rows)[inner], atol=2)
    assert image.min() > 0
    for name in ("sr", "s2", "consistency", "uncertainty"):
        assert cog_validate(folder / f"{name}.tif", strict=True) == (True, [], [])
    assert item["properties"]["subpixel:valid_share"] == 1.0
    assert item["properties"]["subpixel:consistency_mae"] < 0.0005


def test_the_result_does_not_depend_on_the_window(tmp_path: Path) -> None:
    two = [series(cell(0, column)) for column in range(2)]
    images = []
    for window_px in (7, 128):
        make(tmp_path / str(window_px), two, targets(two)[-1], window_px=window_px)
        with rasterio.open(tmp_path / str(window_px) / "farm" / "20170131T083005" / "sr.tif") as sr:
            images.append(sr.read().astype(int))
    assert np.abs(images[0] - images[1]).max() <= 1


def test_what_nobody_saw_is_nodata(tmp_path: Path) -> None:
    one = series(cell(0, 0))
    one.clear[:, 20:24, 20:24] = False  # cloudy at all dates
    one.clear[-1, 12:14, 12:14] = False  # cloudy in the latest only: earlier frames know it
    one.bands[-1, 30:33, 30:33] = 0  # the latest has no data
    one.clear[-1, 30:33, 30:33] = False
    make(tmp_path, [one], targets([one])[-1])
    folder = tmp_path / "farm" / "20170131T083005"
    with rasterio.open(folder / "sr.tif") as sr, rasterio.open(folder / "consistency.tif") as consistency:
        missing, incomparable = sr.read() == 0, consistency.read() == consistency.nodata
    expected = np.zeros((48, 48), bool)
    expected[20:24, 20:24] = expected[30:33, 30:33] = True
    inside = one.patch.cell_window()
    assert (missing == expected[inside].repeat(4, 0).repeat(4, 1)).all()
    expected[12:14, 12:14] = True
    assert (incomparable == expected[inside]).all()


def test_a_cloudy_patch_is_a_hole_in_the_mosaic(tmp_path: Path) -> None:
    two = [series(cell(0, column)) for column in range(2)]
    two[1].clear[-1, :30] = False
    item = make(tmp_path, two, targets(two)[-1])
    with rasterio.open(tmp_path / "farm" / "20170131T083005" / "sr.tif") as sr:
        image = sr.read()
        assert sr.bounds.right == WEST + 2 * CELL
    assert image[:, :, :128].all()
    assert not image[:, :, 128:].any()
    assert item["bbox"][2] - item["bbox"][0] < 0.006  # the footprint is the ground that was made


def test_consistency_is_the_distance_from_sentinel_2(tmp_path: Path) -> None:
    class Brighter(Bicubic):
        def predict_with_scale(self, *arguments: Any) -> tuple[np.ndarray, np.ndarray | None]:
            image, scale = super().predict_with_scale(*arguments)
            return image + np.array([0.01, 0, 0, 0.03], np.float32)[:, None, None], scale

    one = series(cell(0, 0))
    make(tmp_path, [one], targets([one])[-1], resolver=Brighter())
    with rasterio.open(tmp_path / "farm" / "20170131T083005" / "consistency.tif") as consistency:
        assert consistency.res == (10.0, 10.0)
        found = consistency.read()[:, 4:-4, 4:-4]
    np.testing.assert_allclose(found.mean(axis=(1, 2)), [100, 0, 0, 300], atol=2)


def test_an_interrupted_date_goes_on_with_its_next_window(tmp_path: Path) -> None:
    class Torn(Bicubic):
        def predict_with_scale(self, *arguments: Any) -> tuple[np.ndarray, np.ndarray | None]:
            if self.windows == 2:
                raise MemoryError("torn")
            return super().predict_with_scale(*arguments)

    two = [series(cell(0, column)) for column in range(2)]
    target = targets(two)[-1]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    make(whole, two, target, resolver=Bicubic())

    with pytest.raises(MemoryError, match="torn"):
        make(resumed, two, target, resolver=Torn())
    assert kept_date(resumed, "farm", target) is None
    assert not (resumed / "farm" / target.name).exists()
    rest = Bicubic()
    item = make(resumed, two, target, resolver=rest)
    assert rest.windows == 8 - 2  # two cells of 32 pixels, windows of at most 20: 2 rows of 4
    assert contents(resumed / "farm" / target.name) == contents(whole / "farm" / target.name)
    assert kept_date(resumed, "farm", target) == item
    assert [path.name for path in (resumed / "farm").iterdir()] == [target.name]  # nothing is left behind


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_tags_say_where_it_comes_from(tmp_path: Path) -> None:
    one = series(cell(0, 0))
    make(tmp_path, [one], targets([one])[-1])
    with rasterio.open(tmp_path / "farm" / "20170131T083005" / "sr.tif") as sr:
        tags = sr.tags()
    assert tags["attribution"] == tags["TIFFTAG_COPYRIGHT"] == "Contains modified Copernicus Sentinel data 2017"
    assert tags["bundle_key"] == "abc123"
    assert tags["trained_gsd_m"] == "40.0"
    assert "from 40 m to 10 m (Wald's protocol) and applied from 10 m to 2.5 m" in tags["transfer"]
    assert json.loads(tags["source_products"]) == ["S2A_20170131", "S2A_20170121", "S2A_20170111", "S2A_20170101"]


def test_attributions() -> None:
    assert WALD.attribution([2017, 2016]) == "Contains modified Copernicus Sentinel data 2016-2017"
    assert Provenance("k", 10.0, simulated=True).attribution([2024]).startswith("Simulated data")
    assert "Copernicus" not in Provenance("k", 10.0, simulated=True).attribution([2024])


def test_stac_can_be_read_back(tmp_path: Path) -> None:
    one = series(cell(0, 0))
    items = [make(tmp_path, [one], target) for target in targets([one])]
    write_collection(tmp_path, "farm-sr", "A farm.", items, real=True)

    collection = pystac.Collection.from_file(str(tmp_path / "collection.json"))
    found = sorted(collection.get_items(), key=lambda item: item.id)
    assert [item.id for item in found] == [f"farm-{day:%Y%m%dT%H%M%S}" for day in DAYS]
    assert collection.extent.temporal.intervals[0][0].replace(tzinfo=None) == DAYS[0]
    assert "Contains modified Copernicus Sentinel data 2017" in collection.description
    last = found[-1]
    assert last.get_collection().id == "farm-sr"
    assert last.datetime.replace(tzinfo=None) == DAYS[-1]
    assert {asset.media_type for asset in last.assets.values()} == {pystac.MediaType.COG, pystac.MediaType.PNG}
    assert all(Path(asset.get_absolute_href()).is_file() for asset in last.assets.values())
    assert [link.title for link in last.get_links("derived_from")][:2] == ["S2A_20170131", "S2A_20170121"]
    asset = last.assets["sr"]
    with rasterio.open(asset.get_absolute_href()) as sr:
        assert asset.ext.proj.code == f"EPSG:{EPSG}"
        assert tuple(asset.ext.proj.shape) == sr.shape
        assert tuple(asset.ext.proj.transform) == tuple(sr.transform)[:6]
    assert [band.common_name for band in asset.ext.eo.bands] == ["blue", "green", "red", "nir"]
    assert asset.ext.raster.bands[0].scale == 0.0001
    text = (tmp_path / "collection.json").read_text() + (
        tmp_path / items[0]["properties"]["subpixel:path"] / "item.json"
    ).read_text()
    assert str(tmp_path) not in text  # the folder can be moved
    assert index_entry(items[0])["path"] == "farm/20170101T083005"


def test_the_quicklook_carries_the_attribution(tmp_path: Path) -> None:
    one = series(cell(0, 0))
    make(tmp_path, [one], targets([one])[-1])
    picture = (tmp_path / "farm" / "20170131T083005" / "quicklook.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert b"Contains modified Copernicus Sentinel data 2017" in picture
    with rasterio.open(tmp_path / "farm" / "20170131T083005" / "quicklook.png") as source:
        below = source.read((1, 2, 3))[:, -30:]
    assert (below.min(axis=0) < 128).sum() > 100  # drawn, not only in the metadata


def test_cells_that_share_no_grid_are_refused() -> None:
    odd = make_patch("farm", EPSG, (WEST + 323, NORTH - 320, WEST + 643, NORTH), BUFFER)
    with pytest.raises(ArtifactError, match=re.escape(f"patch {odd.id}: EPSG:32634, cell (500323.0, ")):
        Mosaic.of([cell(0, 0), odd])
