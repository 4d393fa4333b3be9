"""Pictures of the comparison: what each arm sees, the parcels it finds, and the reference."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.image import imsave
from numpy.typing import NDArray

from sr_core import REFLECTANCE_SCALE
from sr_core.delineation.targets import Labels
from sr_core.patches import VHR_GSD, Patch

CROP_PX = 288
ZOOM = 3
"""Screen pixels of one pixel of 2.5 m, so that outlines are thinner than what they surround."""
REFERENCE_COLOUR = (0, 220, 255)
PREDICTED_COLOUR = (255, 170, 0)


class Gallery:
    """`gallery/<patch>_<arm>.png` of some test patches, and `gallery.json`, which lists them."""

    def __init__(self, folder: Path, patches: Sequence[Patch]) -> None:
        self.folder, self.patches = folder, patches
        self._stretch: dict[Patch, tuple[float, float]] = {}
        self._listed: list[dict[str, Any]] = []

    def add(
        self,
        arm: str,
        patch: Patch,
        image: NDArray[np.uint16],
        predicted: Labels,
        reference: Labels,
        ground: NDArray[np.bool_],
    ) -> None:
        """Draw the middle of a patch's test `ground` (H, W), where the patch is one of those to show.

        `image` is (4, h, w) reflectance x 10000, h and w those of the instance rasters or a part of them. All arms
        of a patch are stretched alike.
        """
        if patch not in self.patches:
            return
        window = _middle(ground)
        zoom = reference.shape[0] // image.shape[1]
        colours = image[2::-1].repeat(zoom, axis=1).repeat(zoom, axis=2)[:, *window].astype(np.float32)
        if patch not in self._stretch:
            low, high = np.percentile(colours[colours > 0], [1, 99]) if colours.any() else (0, REFLECTANCE_SCALE)
            self._stretch[patch] = float(low), float(max(high, low + 1))
        low, high = self._stretch[patch]
        grey = ((colours - low) / (high - low)).clip(0, 1) ** 0.8 * 255
        picture = np.ascontiguousarray(np.moveaxis(_zoomed(grey.astype(np.uint8)), 0, -1))
        for labels, colour in ((reference, REFERENCE_COLOUR), (predicted, PREDICTED_COLOUR)):
            picture[outline(_zoomed(labels[window]))] = colour
        name = f"{patch.region}_{patch.id}_{arm}.png"
        self.folder.mkdir(parents=True, exist_ok=True)
        aside = self.folder / f".{name}.{os.getpid()}"
        imsave(aside, picture, format="png")
        aside.replace(self.folder / name)
        legend = {"reference": _hex(REFERENCE_COLOUR), "predicted": _hex(PREDICTED_COLOUR)}
        item = {"file": name, "arm": arm, "region": patch.region, "patch": patch.id, "legend": legend}
        self._listed.append(item | {"side_m": picture.shape[0] / ZOOM * VHR_GSD})

    def finish(self) -> None:
        """Write `gallery.json`: a list of {file, arm, region, patch, legend: {what: colour}, side_m}, by patch."""
        if not self._listed:
            return
        listed = sorted(self._listed, key=lambda item: (item["region"], item["patch"]))
        aside = self.folder / f".gallery.json.{os.getpid()}"
        aside.write_text(json.dumps(listed, indent=1), encoding="utf-8")
        aside.replace(self.folder / "gallery.json")


def outline(labels: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Pixels (H, W) that differ from the one above or to the left: a line of one pixel around every parcel."""
    edge = np.zeros(labels.shape, bool)
    edge[1:] |= labels[1:] != labels[:-1]
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    return edge


def _middle(ground: NDArray[np.bool_]) -> tuple[slice, slice]:
    """A window of at most `CROP_PX` pixels a side around the middle of a mask."""
    sides = []
    for axis, size in enumerate(ground.shape):
        where = np.flatnonzero(ground.any(axis=1 - axis))
        start = (int(where[0]) + int(where[-1]) + 1 - CROP_PX) // 2
        start = max(min(start, size - CROP_PX), 0)
        sides.append(slice(start, min(start + CROP_PX, size)))
    return sides[0], sides[1]


def _zoomed(array: NDArray[np.generic]) -> NDArray[np.generic]:
    return array.repeat(ZOOM, axis=-2).repeat(ZOOM, axis=-1)


def _hex(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
