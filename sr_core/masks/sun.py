"""Where the sun stands, from time and place: to a few hundredths of a degree, more than shadows ask.

Source: Michalsky, The Astronomical Almanac's algorithm for approximate solar position (1950-2050), Solar Energy 40,
1988.
"""

from __future__ import annotations

import datetime as dt
import math
from typing import NamedTuple

import pyproj

from sr_core.patches import Patch


class Sun(NamedTuple):
    """Degrees: azimuth clockwise from north, elevation above the horizon (without refraction)."""

    azimuth: float
    elevation: float


def sun_position(time: dt.datetime, longitude: float, latitude: float) -> Sun:
    """The sun at a time (naive UTC) over a place (degrees east and north)."""
    days = (time - dt.datetime(2000, 1, 1, 12)) / dt.timedelta(days=1)
    anomaly = math.radians(357.528 + 0.9856003 * days)
    ecliptic = math.radians(280.460 + 0.9856474 * days + 1.915 * math.sin(anomaly) + 0.020 * math.sin(2 * anomaly))
    obliquity = math.radians(23.439 - 0.0000004 * days)
    ascension = math.atan2(math.cos(obliquity) * math.sin(ecliptic), math.cos(ecliptic))
    declination = math.asin(math.sin(obliquity) * math.sin(ecliptic))
    sidereal = math.radians(280.46062 + 360.98564737 * days + longitude)
    angle = sidereal - ascension
    place = math.radians(latitude)
    up = math.sin(place) * math.sin(declination) + math.cos(place) * math.cos(declination) * math.cos(angle)
    east = -math.cos(declination) * math.sin(angle)
    north = math.cos(place) * math.sin(declination) - math.sin(place) * math.cos(declination) * math.cos(angle)
    return Sun(math.degrees(math.atan2(east, north)) % 360, math.degrees(math.asin(max(-1.0, min(1.0, up)))))


def sun_over(patch: Patch, time: dt.datetime) -> Sun:
    """The sun over a patch's centre, its azimuth as for `sun_on_grid`."""
    return sun_on_grid(patch, sun_position(time, *_centre(patch)))


def sun_on_grid(patch: Patch, sun: Sun) -> Sun:
    """The sun with its azimuth from the north of the patch's UTM grid instead of true north."""
    factors = pyproj.Proj(patch.epsg).get_factors(*_centre(patch))
    return Sun((sun.azimuth - factors.meridian_convergence) % 360, sun.elevation)


def _centre(patch: Patch) -> tuple[float, float]:
    """Longitude and latitude, degrees."""
    west, south, east, north = patch.bounds
    longitude, latitude = pyproj.Proj(patch.epsg)((west + east) / 2, (south + north) / 2, inverse=True)
    return float(longitude), float(latitude)
