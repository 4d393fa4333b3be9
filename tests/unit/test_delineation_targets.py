"""Targets from reference polygons: what a pixel belongs to, and where parcels end."""

import geopandas as gpd
import numpy as np
import pytest
from rasterio.transform import from_origin
from shapely.geometry import LineString, box

from sr_core.delineation.targets import boundary_of, distance_of, make_targets, rasterize_parcels
from sr_core.errors import DataError

GRID = from_origin(0, 100, 2.5, 2.5)
SHAPE = (40, 40)


def table(*geometries):
    return gpd.GeoDataFrame(geometry=list(geometries), crs=32634)


def test_touching_parcels_stay_apart():
    labels, lost = rasterize_parcels(table(box(0, 0, 50, 100), box(50, 0, 100, 100)), GRID, SHAPE)
    assert (labels[:, :20] == 1).all() and (labels[:, 20:] == 2).all() and lost == 0
    boundary = boundary_of(labels)
    assert boundary[:, 19:21].all() and boundary.sum() == 2 * 40, "two pixels wide, along the shared side only"


def test_parcels_are_rasterized_by_pixel_centre_and_small_ones_counted():
    slivers = table(box(20, 20, 21, 80), box(50, 50, 80, 80), box(500, 500, 600, 600))
    labels, lost = rasterize_parcels(slivers, GRID, SHAPE)
    assert lost == 1, "the sliver lies between pixel centres; the third polygon is not on the grid"
    assert (labels == 2).sum() == 12 * 12


def test_a_parcel_under_another_is_counted_as_lost():
    _, lost = rasterize_parcels(table(box(10, 10, 30, 30), box(0, 0, 50, 50)), GRID, SHAPE)
    assert lost == 1


def test_distance_is_to_another_label_and_one_in_the_middle_of_each_parcel():
    labels = np.zeros((14, 24), np.int32)
    labels[2:12, 2:12], labels[2:12, 12:22] = 1, 2
    distance = distance_of(labels)
    row = [0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2]
    assert distance[7, 2:22] == pytest.approx(row + row), "it falls to the shared side from both"
    assert distance[labels == 0].max() == 0


def test_a_parcel_cut_by_the_edge_keeps_the_distance_it_has_as_a_whole():
    parcel = table(box(-5, 20, 50, 80))
    cut = make_targets(parcel, GRID, SHAPE)
    whole = make_targets(parcel, from_origin(-100, 100, 2.5, 2.5), (40, 80))
    np.testing.assert_array_equal(cut.maps, whole.maps[:, :, 40:])
    naive = distance_of(rasterize_parcels(parcel, GRID, SHAPE)[0])
    assert naive[20, 0] > 0.9 and cut.maps[2][20, 0] < 0.3, "without a margin the cut looks like the middle"


def test_extent_covers_what_the_labels_cover():
    targets = make_targets(table(box(10, 10, 60, 60), box(60, 10, 90, 60)), GRID, SHAPE)
    np.testing.assert_array_equal(targets.maps[0] == 1, targets.labels > 0)
    assert targets.maps.shape == (3, 40, 40) and targets.maps.dtype == np.float32


def test_no_parcels_make_empty_targets():
    targets = make_targets(table(), GRID, SHAPE)
    assert not targets.maps.any() and targets.lost == 0


def test_lines_are_refused_by_name():
    with pytest.raises(DataError, match="found LineString, expected polygons"):
        make_targets(table(LineString([(0, 0), (50, 50)])), GRID, SHAPE)
