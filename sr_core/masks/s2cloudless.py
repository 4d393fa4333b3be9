"""Clouds in Sentinel-2 L1C by the s2cloudless classifier, from ten bands at 60 m.

The classifier looks at one pixel at a time (gradient-boosted trees); its probabilities are averaged over a disc,
thresholded and grown. It knows clouds only: shadows are found beside it (`sr_core.masks.s2_clouds.shadow_mask`).

Source: Zupanc, Improving cloud detection with machine learning, 2017; compared with others in Skakun et al., Cloud Mask
Intercomparison eXercise (CMIX), Remote Sensing of Environment 274, 2022.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from sr_core import REFLECTANCE_SCALE
from sr_core.masks.morphology import Mask

S2CLOUDLESS_BANDS = ("B01", "B02", "B04", "B05", "B08", "B8A", "B09", "B10", "B11", "B12")
"""The bands that the classifier reads, in its order: the last axis of `DATA["CLOUD_BANDS"]`."""
CELL_PX = 6
"""A cell of 60 m is so many pixels of 10 m wide."""
THRESHOLD = 0.4
"""Of the cloud probability: the authors' choice."""
AVERAGE_OVER, DILATION = 4, 2
"""Cells of the discs that probabilities are averaged over and by which clouds grow: the authors' choice at 60 m."""


def s2cloudless_mask(cloud_bands: NDArray[np.uint16], shape: tuple[int, int]) -> tuple[Mask, Mask]:
    """Clouds (T, H, W) at 10 m, and the dates (T,) that could be judged.

    `cloud_bands` (T, ceil(H / 6), ceil(W / 6), 10) is top-of-atmosphere reflectance x 10000 at 60 m, bands as in
    `S2CLOUDLESS_BANDS`, 0 where there is no data, its north-west corner that of the 10 m pixels; `shape` is (H, W).
    A cell without data is judged like the nearest with data; a date without any is not judged.
    """
    known: Mask = np.asarray((cloud_bands > 0).all(axis=-1), bool)
    judged: Mask = np.asarray(known.any(axis=(1, 2)), bool)
    clouds = np.zeros((len(cloud_bands), *shape), bool)
    for index in np.flatnonzero(judged):
        cells = cloud_bands[index].astype(np.float32) / REFLECTANCE_SCALE
        if not known[index].all():
            nearest = distance_transform_edt(~known[index], return_distances=False, return_indices=True)
            cells = cells[tuple(nearest)]
        mask = _detector().get_cloud_masks(cells[None])[0].astype(bool)
        clouds[index] = mask.repeat(CELL_PX, axis=0).repeat(CELL_PX, axis=1)[: shape[0], : shape[1]]
    return clouds, judged


@cache
def _detector() -> Any:
    """The classifier; its trees take a second to load."""
    from s2cloudless import S2PixelCloudDetector

    return S2PixelCloudDetector(threshold=THRESHOLD, average_over=AVERAGE_OVER, dilation_size=DILATION)
