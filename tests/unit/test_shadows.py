"""The sun's place, and shadows where clouds may cast them."""

import datetime as dt
from pathlib import Path

import h5py
import numpy as np
import pytest

from sr_core.masks.shadows import (
    HIGHEST_M,
    LOWEST_M,
    coarse,
    dark_ground,
    geometric_shadow,
    patches_that_may_shade,
    shade_zone,
)
from sr_core.masks.sun import Sun, sun_on_grid, sun_over, sun_position
from sr_core.patches import make_patch

PATCH = make_patch("r", 32634, (500_000, 6_000_000, 502_000, 6_002_000), 0)
SIDE = 200
SOUTH = Sun(180.0, 45.0)


def ground() -> np.ndarray:
    """(200, 200, 4) reflectance x 10000: fields of crops and soil, with noise."""
    rng = np.random.default_rng(0)
    green, soil = np.array([300, 600, 300, 4500]), np.array([900, 1200, 1700, 2500])
    fields = rng.random((10, 10, 1)).repeat(20, axis=0).repeat(20, axis=1)
    return (green * fields + soil * (1 - fields) + rng.normal(0, 20, (SIDE, SIDE, 4))).astype(np.float32)


def frames() -> tuple[np.ndarray, np.ndarray]:
    """Three Sentinel-2 frames of it, all clear."""
    return np.stack([ground()] * 3).astype(np.uint16), np.ones((3, SIDE, SIDE), bool)


def radiance(shaded: np.ndarray | None = None) -> np.ndarray:
    """What VHR sees of it, in another unit; `shaded` ground has 40 % of the light."""
    lit = np.where(shaded[..., None], 0.4, 1.0) if shaded is not None else 1.0
    return (ground() * lit * np.array([0.06, 0.055, 0.05, 0.03]) + np.array([25, 14, 6, 2])).astype(np.float32)


def square(row: int, column: int, size: int = 30) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[row : row + size, column : column + size] = True
    return mask


def test_the_sun_over_golden() -> None:
    """The worked example of Reda and Andreas, Solar position algorithm for solar radiation applications, 2004."""
    sun = sun_position(dt.datetime(2003, 10, 17, 19, 30, 30), -105.1786, 39.742476)
    assert sun.azimuth == pytest.approx(194.34024, abs=0.05)
    assert sun.elevation == pytest.approx(90 - 50.11162, abs=0.05)


def test_solstice_and_equinox() -> None:
    noon = [sun_position(dt.datetime(2021, month, day, 12), 0, 50).elevation for month, day in ((6, 21), (12, 21))]
    assert noon == pytest.approx([90 - 50 + 23.44, 90 - 50 - 23.44], abs=0.1)
    assert sun_position(dt.datetime(2021, 3, 20, 0), 0, 0).elevation == pytest.approx(-88, abs=1)
    south = sun_position(dt.datetime(2021, 12, 21, 12), 0, -50)
    assert min(south.azimuth, 360 - south.azimuth) < 2  # in the southern hemisphere it stands in the north


def test_grid_north_is_not_true_north() -> None:
    east = make_patch("r", 32634, (690_000, 6_000_000, 692_000, 6_002_000), 0)
    assert sun_on_grid(PATCH, SOUTH).azimuth == pytest.approx(180, abs=0.1)  # on the zone's central meridian
    assert sun_on_grid(east, SOUTH).azimuth == pytest.approx(180 - 2.4, abs=0.1)
    assert sun_over(PATCH, dt.datetime(2020, 6, 21, 10, 36)).azimuth == pytest.approx(180, abs=2)


@pytest.mark.realdata
def test_the_sun_of_real_products(sample_data: Path) -> None:
    """Angles in the metadata are those of the tile's middle, up to 80 km away, so agreement is to a degree."""
    (path, *_) = sorted((sample_data / "belgium").glob("S2_L2A_20m_*.nc"))
    with h5py.File(path) as product:
        since = dt.datetime.fromisoformat(product["timestamp"].attrs["units"].removeprefix("seconds since "))
        times = [since + dt.timedelta(seconds=int(seconds)) for seconds in product["timestamp"]]
        azimuth, zenith = product["sunAzimuthAngles"][:], product["sunZenithAngles"][:]
    found = np.array([sun_position(time, 3.02, 50.82) for time in times])
    assert np.median(np.abs(found[:, 0] - azimuth)) < 1.0
    assert np.median(np.abs(90 - found[:, 1] - zenith)) < 0.5


def test_shadows_fall_away_from_the_sun() -> None:
    cloud = square(150, 80)
    zone = shade_zone(PATCH, [(PATCH, cloud)], SOUTH)
    rows, columns = np.nonzero(zone)
    # the sun is in the south, 45 degrees high: a shadow lies as far north of its cloud as the cloud is high
    assert (columns.min(), columns.max()) == (80, 109)
    assert rows.max() == 179 - LOWEST_M / 10 and rows.min() == 0 and HIGHEST_M / 10 > 150
    assert shade_zone(PATCH, [(PATCH, cloud)], Sun(90.0, 45.0))[150:180, :60].all()


def test_clouds_of_other_patches_cast_shadows_here() -> None:
    south = make_patch("r", 32634, (500_000, 5_998_000, 502_000, 6_000_000), 0)
    zone = shade_zone(PATCH, [(south, square(20, 80))], SOUTH)
    assert zone[180, 80:110].all() and not zone[:, :80].any()
    far = make_patch("r", 32634, (500_000, 5_980_000, 502_000, 5_982_000), 0)
    assert not shade_zone(PATCH, [(far, square(20, 80))], SOUTH).any()


def test_dark_ground_is_told_from_dark_fields() -> None:
    shaded = square(60, 60, 50)
    clear = np.ones((SIDE, SIDE), bool)
    dark = dark_ground(radiance(shaded), clear, *frames())
    assert dark[64:106, 64:106].all() and not dark[:56].any() and not dark[:, :56].any()
    ploughed = radiance()
    ploughed[20:60, 20:60, 3] *= 0.4  # near infrared falls, red does not
    assert not dark_ground(ploughed, clear, *frames()).any()


def test_where_no_frame_shows_the_ground_nothing_is_dark() -> None:
    bands, seen = frames()
    seen[:] = False
    assert not dark_ground(radiance(square(60, 60)), np.ones((SIDE, SIDE), bool), bands, seen).any()


def test_a_cloud_and_its_shadow() -> None:
    cloud, shaded = square(150, 80), square(50, 80)  # 1 km high
    seen = radiance(shaded)
    seen[cloud] = 200
    elsewhere = square(50, 10)
    seen[elsewhere] *= 0.4  # as dark, but no cloud can shade it
    found = geometric_shadow(PATCH, [(PATCH, cloud)], SOUTH, seen, ~cloud, *frames(), 2)
    assert found[shaded].mean() > 0.98 and not found[elsewhere].any()
    assert found.sum() < 1.4 * shaded.sum() and not found[cloud].any()


def test_which_patches_may_shade_which() -> None:
    monday, tuesday = dt.datetime(2020, 6, 1, 12), dt.datetime(2020, 6, 2, 12)
    row = [make_patch("r", 32634, (x, 0, x + 2000, 2000), 0) for x in (500_000, 504_000, 530_000)]
    covers = {row[0]: {monday: 0.0}, row[1]: {monday: 0.4}, row[2]: {monday: 0.4}}
    assert patches_that_may_shade(covers) == {row[0]: [row[1]], row[1]: [], row[2]: []}
    assert patches_that_may_shade({row[0]: {monday: 0.0}, row[1]: {tuesday: 0.4}})[row[0]] == []


def test_a_mask_at_ten_metres() -> None:
    fine = np.zeros((8, 8), bool)
    fine[5, 2] = True
    assert coarse(fine).tolist() == [[False, False], [True, False]]
