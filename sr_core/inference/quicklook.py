"""A small true-colour picture of a product, with its attribution drawn below."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import rasterio
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rasterio.enums import Resampling

MAX_SIDE = 900
"""Pixels of the picture's longer side."""
DPI = 100
STRETCH = (1.0, 99.0)
"""Percentiles of each band that become black and full: top-of-atmosphere blue is lifted by the air's own light."""


def write_quicklook(product: Path, path: Path, title: str, attribution: str) -> None:
    """Draw bands red, green, blue of a product (bands blue, green, red, ...; nodata 0) as a PNG; nodata is white."""
    with rasterio.open(product) as source:
        shrink = max(1.0, max(source.height, source.width) / MAX_SIDE)
        shape = (3, max(1, round(source.height / shrink)), max(1, round(source.width / shrink)))
        image = source.read((3, 2, 1), out_shape=shape, resampling=Resampling.average).astype(np.float32)
    rows, columns = shape[1:]
    # small products are enlarged, so that the line below has room
    enlarge = max(1.0, 360 / columns)
    width, height, margin = columns * enlarge / DPI, rows * enlarge / DPI, 0.3
    figure = Figure(figsize=(width, height + 2 * margin), dpi=DPI, facecolor="white")
    total = height + 2 * margin
    axes = figure.add_axes((0.0, margin / total, 1.0, height / total))
    axes.imshow(np.moveaxis(stretch(image), 0, -1), interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    figure.text(0.5, 1 - margin / 2 / total, title, ha="center", va="center", fontsize=9)
    figure.text(0.5, margin / 2 / total, attribution, ha="center", va="center", fontsize=7)
    # no date of drawing: the same product gives the same file
    figure.savefig(path, format="png", metadata={"Title": title, "Copyright": attribution, "Software": None})


def stretch(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """(3,H,W) to [0, 1], each band between two percentiles of what is not 0; where a pixel is 0 it becomes white."""
    known = image.any(axis=0)
    if not known.any():
        return np.ones_like(image)
    low, high = np.percentile(image[:, known], STRETCH, axis=1)[..., None, None]
    scaled = ((image - low) / np.maximum(high - low, 1.0)).clip(0, 1)
    return np.where(known, scaled, 1.0).astype(np.float32)
