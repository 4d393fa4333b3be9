"""Patches cover an area without gaps, and an EOPatch is on disk whole or not at all."""

import geopandas as gpd
import numpy as np
import pytest
from eolearn.core import EOPatch
from shapely.geometry import Point

from sr_core.config import Area, Grid
from sr_core.errors import AreaError, ArtifactError
from sr_core.patches import load_part, make_patch, plan_patches, read_index, save_part, write_index

AREA = Area(crs="EPSG:32634", bbox=(682000, 6134000, 686000, 6138000), region="farmland")


def test_a_utm_box_of_whole_cells_gets_exactly_these():
    patches = plan_patches(AREA, Grid())
    assert [patch.id for patch in patches] == [
        "34N_682000_6136000",
        "34N_684000_6136000",
        "34N_682000_6134000",
        "34N_684000_6134000",
    ]
    assert {patch.shape for patch in patches} == {(240, 240)}
    assert patches[0].bounds == (681800.0, 6135800.0, 684200.0, 6138200.0)
    assert patches[0].cell_window(2.5) == (slice(80, 880), slice(80, 880))


@pytest.mark.parametrize(
    ("bbox", "message"),
    [((10.0, 85.0, 10.1, 85.1), "80 S to 84 N"), ((20.0, 50.0, 24.0, 52.0), "max_area_km2")],
)
def test_ground_outside_utm_or_too_large_is_refused(bbox, message):
    with pytest.raises(AreaError, match=message):
        plan_patches(Area(bbox=bbox), Grid())


def test_an_eopatch_comes_back_as_it_was_saved(tmp_path):
    patch = make_patch("farmland", 32634, (682000, 6134000, 684000, 6136000), 200)
    eopatch = EOPatch(bbox=patch.bbox, timestamps=["2020-05-01"])
    eopatch.data["BANDS"] = np.arange(16, dtype=np.uint16).reshape(1, 2, 2, 4)
    eopatch.vector_timeless["PARCELS"] = gpd.GeoDataFrame(
        {"parcel_id": ["a"], "area": [1.5]}, geometry=[Point(683000, 6135000)], crs="EPSG:32634"
    )
    (tmp_path / ".s2.12345").mkdir()  # left by a process that was killed
    save_part(eopatch, tmp_path / "s2")
    found = load_part(tmp_path / "s2")
    np.testing.assert_array_equal(found.data["BANDS"], eopatch.data["BANDS"])
    assert found.vector_timeless["PARCELS"]["parcel_id"].tolist() == ["a"]
    assert [path.name for path in tmp_path.iterdir()] == ["s2"]


def test_a_damaged_eopatch_is_named(tmp_path):
    eopatch = EOPatch(bbox=make_patch("x", 32634, (0, 0, 400, 400), 0).bbox, timestamps=["2020-05-01"])
    eopatch.data["BANDS"] = np.zeros((1, 2, 2, 4), np.uint16)
    save_part(eopatch, tmp_path / "s2")
    (tmp_path / "s2" / "data" / "BANDS.npy.gz").write_bytes(b"truncated")
    with pytest.raises(ArtifactError, match="s2"):
        load_part(tmp_path / "s2")
    with pytest.raises(ArtifactError, match="missing"):
        load_part(tmp_path / "vhr")


def test_the_index_keeps_the_order_of_the_patches(tmp_path):
    patches = plan_patches(AREA, Grid())
    write_index(tmp_path, patches)
    assert read_index(tmp_path) == patches
