"""From probabilities to polygons."""

import geopandas as gpd
import numpy as np
import pytest
from rasterio.transform import from_origin

from sr_core.delineation.polygons import instances_of, polygons_of, score_of, write_parcels
from sr_core.delineation.targets import boundary_of, distance_of


def certain(labels):
    """Probabilities of a network that knows the parcels."""
    return np.stack([labels > 0, boundary_of(labels), distance_of(labels)]).astype(np.float32)


def two_fields():
    labels = np.zeros((60, 100), np.int32)
    labels[10:50, 10:50], labels[10:50, 50:90] = 1, 2
    return labels


def test_touching_parcels_are_found_one_by_one():
    labels = two_fields()
    np.testing.assert_array_equal(instances_of(certain(labels)), labels)


def test_small_parcels_are_removed_and_labels_have_no_gaps():
    labels = two_fields()
    labels[2:8, 2:8] = 3
    assert instances_of(certain(labels), min_area_px=30).max() == 3
    found = instances_of(certain(labels), min_area_px=40)
    assert sorted(np.unique(found)) == [0, 1, 2]
    assert not found[2:8, 2:8].any()


def test_no_parcel_where_nothing_is_likely():
    assert not instances_of(np.zeros((3, 20, 20), np.float32)).any()


def test_the_score_depends_on_the_pixel_alone():
    probabilities = np.array([0.55, 0.30, 0.5], np.float32)[:, None, None]
    assert score_of(probabilities).item() == pytest.approx(0.625)


def test_polygons_are_in_metres_with_confidence(tmp_path):
    labels = two_fields()
    score = np.where(labels == 1, 0.9, 0.6).astype(np.float32)
    parcels = polygons_of(labels, score, from_origin(500_000, 6_000_000, 2.5, 2.5), 32634)
    assert parcels.crs.to_epsg() == 32634
    assert parcels["area_m2"].tolist() == [10_000, 10_000]
    assert parcels["perimeter_m"].tolist() == [400, 400]
    assert parcels["confidence"].tolist() == pytest.approx([0.9, 0.6])
    assert parcels.total_bounds.tolist() == [500_025, 5_999_875, 500_225, 5_999_975]
    write_parcels(parcels, tmp_path / "fields.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["fields.parquet"]
    assert gpd.read_parquet(tmp_path / "fields.parquet").geometry.geom_equals(parcels.geometry).all()


def test_an_empty_raster_makes_an_empty_table():
    nothing = np.zeros((8, 8), np.int32)
    parcels = polygons_of(nothing, nothing.astype(np.float32), from_origin(0, 0, 2.5, 2.5), 32634)
    assert len(parcels) == 0 and "area_m2" in parcels and parcels.crs.to_epsg() == 32634
