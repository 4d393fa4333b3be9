"""Shadows of clouds that lie outside a patch: a patch next to a cloudy one at the same VHR time is suspect.

Rule: Sinergise, Multi-temporal Super-Resolution on Sentinel-2 Imagery, 2021.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping

from shapely import STRtree
from shapely.geometry import box

from sr_core.patches import Patch

CloudCover = Mapping[Patch, Mapping[dt.datetime, float]]


def shadowed_patches(cloud_cover: CloudCover, max_cloud_cover: float) -> set[tuple[Patch, dt.datetime]]:
    """Patches and times with a touching patch, in the same UTM zone, cloudier than `max_cloud_cover` at that time.

    Bounds touch when they share ground, an edge or a corner. A patch is not its own neighbour.
    """
    flagged: set[tuple[Patch, dt.datetime]] = set()
    for epsg in {patch.epsg for patch in cloud_cover}:
        patches = [patch for patch in cloud_cover if patch.epsg == epsg]
        outlines = [box(*patch.bounds) for patch in patches]
        for first, second in STRtree(outlines).query(outlines, predicate="intersects").T:
            patch, neighbour = patches[first], patches[second]
            if patch == neighbour:
                continue
            for time, cover in cloud_cover[neighbour].items():
                if cover > max_cloud_cover and time in cloud_cover[patch]:
                    flagged.add((patch, time))
    return flagged
