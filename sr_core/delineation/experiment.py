"""The comparison: one delineation network an image kind (an *arm*), everything else equal.

Every arm learns with the same seed, steps, tiles and order on training ground, and is measured on test ground
that neither it nor the super-resolution network has learned from: pixels date by date, parcels from the mean of
all dates. Polygons of all arms are made with the same settings. The super-resolved images of *training* ground
come from a network that saw that ground, so that this arm learns from slightly better images than it meets.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from sr_core import REFLECTANCE_SCALE, SCALE
from sr_core.config import Delineate, QualityGate
from sr_core.delineation.gallery import Gallery
from sr_core.delineation.metrics import MIN_INSIDE, Mask, ParcelScore, RasterScores, parcel_scores, summarize
from sr_core.delineation.network import Delineator, save_delineator
from sr_core.delineation.polygons import instances_of, polygons_of, score_of, write_parcels
from sr_core.delineation.targets import Targets, make_targets
from sr_core.delineation.training import QUANTISED, Scene, predict, tile_corners, train
from sr_core.errors import ArtifactError
from sr_core.inference.windows import Window, super_resolve_window, windows
from sr_core.models.bundle import SuperResolver
from sr_core.patches import VHR_GSD, Patch, load_part, part_path
from sr_core.progress import track
from sr_core.radiometry.resample import bicubic_upsample
from sr_core.samples.frames import choose_frames
from sr_core.samples.split import TEST, TRAIN, GroundSplit
from sr_core.series import S2Series, load_parcels, load_s2

WORK = ".work"
"""Images and checkpoints of an unfinished experiment, below its output folder."""
NETWORKS = "networks"
"""The trained networks, a folder an arm: `truth`, `sr` and `bicubic` can judge super-resolution
(`train_hrn.perceptual_network`)."""
LEARNED_WITH = {"steps", "batch_size", "tile_px", "learning_rate", "dates", "seed"}
"""Settings of `Delineate` that are written beside a network."""
TOLERANCES_M = (2.5, 5.0)
"""Of the tolerant border errors, metres."""
WINDOW_PX = 256
"""Side of what is super-resolved at once, in 10 m pixels."""
PARCEL_COLUMNS = ["region", "patch", "label", "area_m2", "perimeter_m", "confidence", "geometry"]


@dataclass(frozen=True)
class Place:
    """One patch of the experiment: its dates, and the truth on the ground."""

    patch: Patch
    dates: tuple[int, ...]
    """Indices into the patch's Sentinel-2 series."""
    clear: Mask
    """(D, H / 4, W / 4): where each date shows the ground, at 10 m."""
    maps: NDArray[np.uint8]
    """(3, H, W) targets times 255, in the order of `HEADS`."""
    labels: NDArray[np.int32]
    """(H, W) instance raster of the reference parcels."""
    split: NDArray[np.uint8]
    """(H, W) codes of `sr_core.samples.split`."""
    owned: frozenset[int]
    """Labels of the parcels whose centroid lies in the patch's cell: each parcel is judged in one patch."""

    @property
    def name(self) -> str:
        return f"{self.patch.region}_{self.patch.id}"

    @property
    def learns(self) -> Mask:
        """(H, W): training ground of the patch's cell."""
        ground: Mask = self.cell & (self.split == TRAIN)
        return ground

    @property
    def tests(self) -> Mask:
        """(H, W): test ground of the patch's cell."""
        ground: Mask = self.cell & (self.split == TEST)
        return ground

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns at 10 m that are looked at: all, or the cell where nothing is tested."""
        if self.tests.any():
            return slice(0, self.patch.shape[0]), slice(0, self.patch.shape[1])
        return self.patch.cell_window()

    @property
    def cell(self) -> Mask:
        """(H, W): the patch's own cell; cells of a region do not overlap, patches do."""
        inside = np.zeros(self.labels.shape, bool)
        inside[self.patch.cell_window(VHR_GSD)] = True
        return inside


@dataclass(frozen=True)
class Places:
    """All patches of the experiment, and what was left out of it."""

    used: list[Place]
    without_parcels: int
    without_dates: int
    lost_parcels: int
    """Reference parcels without a pixel of their own at 2.5 m, counted in each patch."""


def find_places(
    patches: Path, masks: Path, index: Sequence[Patch], split: GroundSplit, settings: Delineate, gate: QualityGate
) -> Places:
    """Patches with reference parcels and clear dates, with targets on their 2.5 m grid."""
    used, without_parcels, without_dates, lost = [], 0, 0, 0
    for patch in track(index, "reference parcels"):
        parcels = load_parcels(patches, patch)
        if parcels is None or not len(parcels):
            without_parcels += 1
            continue
        series = load_s2(patches, masks, patch)
        dates = choose_dates(series, settings.dates, gate)
        if not dates:
            without_dates += 1
            continue
        targets: Targets = make_targets(parcels, patch.transform(VHR_GSD), patch.hr_shape)
        lost += targets.lost
        maps = np.rint(targets.maps * QUANTISED).astype(np.uint8)
        ground = split.split_mask(patch, VHR_GSD)
        owned = frozenset((np.flatnonzero(_inside(parcels, patch)) + 1).tolist())
        used.append(Place(patch, dates, series.clear[list(dates)], maps, targets.labels, ground, owned))
    return Places(used, without_parcels, without_dates, lost)


def choose_dates(series: S2Series, count: int, gate: QualityGate) -> tuple[int, ...]:
    """Up to `count` dates spread over the season, as ascending indices into the series.

    A date qualifies when super-resolution could be trained on it: clear by `gate.max_frame_cloud`, with at least
    `gate.min_frames` clear frames up to it. The qualifying dates are cut into `count` runs of about equal length,
    and the clearest of each is taken, the later one of equals.
    """
    share = series.clear.mean(axis=(1, 2))
    ready = [index for index in range(len(share)) if len(frames_of(series, index, gate)) >= gate.min_frames]
    runs = [run for run in np.array_split(np.array(ready, np.int64), count) if len(run)]
    return tuple(max(run.tolist(), key=lambda index: (share[index], index)) for run in runs)


def frames_of(series: S2Series, date: int, gate: QualityGate) -> list[int]:
    """Frames that a date is super-resolved from, itself first; empty where it is too cloudy itself."""
    frames = choose_frames(
        series.timestamps,
        series.clear.mean(axis=(1, 2)),
        series.timestamps[date],
        frames=gate.frames,
        max_age_days=gate.max_age_days,
        max_cloud=gate.max_frame_cloud,
    )
    return frames if frames and frames[0] == date else []


class ImageMaker:
    """Makes an arm's images of a place, once, and keeps them as .npy for all epochs and for starting again.

    Only the arm `sr` needs a `resolver`.
    """

    def __init__(
        self,
        patches: Path,
        masks: Path,
        cache: Path,
        resolver: SuperResolver | None,
        settings: Delineate,
        gate: QualityGate,
    ) -> None:
        self.patches, self.masks, self.cache = patches, masks, cache
        self.resolver, self.precision, self.gate = resolver, settings.precision, gate

    def images(self, arm: str, place: Place) -> NDArray[np.uint16]:
        """(D, 4, H, W) reflectance x 10000 on disk; of the arm `s2_x4` (D, 4, H / 4, W / 4).

        Super-resolved images are 0 outside `place.window`.
        """
        path = self.cache / arm / f"{place.name}.npy"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            series = load_s2(self.patches, self.masks, place.patch)
            images = np.stack([self._image(arm, place, series, date) for date in place.dates])
            aside = path.with_name(f".{path.name}.{os.getpid()}")
            with aside.open("wb") as file:
                np.save(file, images)
            aside.replace(path)
        kept: NDArray[np.uint16] = np.load(path, mmap_mode="r")
        return kept

    def _image(self, arm: str, place: Place, series: S2Series, date: int) -> NDArray[np.uint16]:
        bands = np.moveaxis(series.bands, -1, 1)
        if arm == "s2_x4":
            frame: NDArray[np.uint16] = bands[date]
            return frame
        if arm == "truth":
            return self._truth(series, date)
        if arm == "bicubic":
            image = bicubic_upsample(bands[date].astype(np.float32) / REFLECTANCE_SCALE)
        else:
            image = self._super_resolved(place, series, frames_of(series, date, self.gate))
        result: NDArray[np.uint16] = np.rint(image * REFLECTANCE_SCALE).clip(0, 65535).astype(np.uint16)
        return result

    def _super_resolved(self, place: Place, series: S2Series, chosen: list[int]) -> NDArray[np.float32]:
        assert self.resolver is not None
        frames, clear = np.moveaxis(series.bands[chosen], -1, 1), series.clear[chosen]
        normalization = self.resolver.region(place.patch.region)
        shifts = series.shifts[chosen]
        image = np.zeros((frames.shape[1], *place.labels.shape), np.float32)
        whole = Window(0, 0, *place.patch.shape)
        for window in windows(place.window, WINDOW_PX):
            part = super_resolve_window(self.resolver, frames, clear, normalization, window, self.precision, shifts)
            image[:, *window.inside(whole, SCALE)] = part
        return image

    def _truth(self, series: S2Series, date: int) -> NDArray[np.uint16]:
        path = part_path(self.patches, series.patch, "truth")
        part = load_part(path)
        timestamps = list(part.get_timestamps())
        if series.timestamps[date] not in timestamps:
            raise ArtifactError(
                f"EOPatch {path}: no image of {series.timestamps[date]:%Y-%m-%d}, expected one of every"
                " Sentinel-2 date: the arm `truth` of delineate.arms needs a simulated source"
            )
        truth: NDArray[np.uint16] = np.moveaxis(part.data["S2_HR"][timestamps.index(series.timestamps[date])], -1, 0)
        return truth


def training_statistics(places: Sequence[Place], maker: ImageMaker) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each band, reflectance, over the clear bicubic pixels of training ground.

    All arms share them, so that an arm's radiometry is seen as it is.
    """
    count, total, squares = 0, np.zeros(4), np.zeros(4)
    for place in places:
        for image, clear in zip(maker.images("bicubic", place), place.clear, strict=True):
            values = image[:, place.learns & _at_hr(clear)].astype(np.float64) / REFLECTANCE_SCALE
            count += values.shape[1]
            total += values.sum(axis=1)
            squares += (values**2).sum(axis=1)
    mean = total / max(count, 1)
    std = np.sqrt(np.maximum(squares / max(count, 1) - mean**2, 1e-6))
    return mean.tolist(), std.tolist()


def compare(places: Sequence[Place], maker: ImageMaker, settings: Delineate, output: Path) -> dict[str, Any]:
    """Train and measure every arm of `settings.arms`; write `<arm>.parquet`, `networks/<arm>/` and `gallery/` into
    `output`.

    Returns `{"raster": {arm: scores}, "vector": {arm: scores}, "pixels": {arm: {head: counts}}}`: of pixels Matthews'
    correlation of each head, with the confusion (`tp`, `tn`, `fp`, `fn`) and the `roc` behind it, of parcels the mean
    errors of `sr_core.delineation.metrics` and the number of references. Work of an unfinished experiment is kept in
    `output/.work` and continued.
    """
    learning = [place for place in places if len(tile_corners(place.learns, settings.tile_px))]
    testing = [place for place in places if place.tests.any()]
    mean, std = training_statistics(learning, maker)
    gallery = Gallery(output / "gallery", [place.patch for place in testing][: settings.gallery])
    result: dict[str, Any] = {"raster": {}, "vector": {}, "pixels": {}}
    for arm in settings.arms:
        for place in track([*learning, *(place for place in testing if place not in learning)], f"{arm} images"):
            maker.images(arm, place)
        torch.manual_seed(settings.seed)
        network = Delineator(mean, std, settings.channels, upscale=SCALE if arm == "s2_x4" else 1)
        network.to("cuda" if torch.cuda.is_available() else "cpu")
        scenes = [Scene(maker.images(arm, place), place.maps, place.clear, place.learns) for place in learning]
        train(network, scenes, settings, output / WORK / f"{arm}.pt", f"delineate {arm}")
        save_delineator(output / NETWORKS / arm, network, {"arm": arm, **settings.model_dump(include=LEARNED_WITH)})
        judged = Judgement()
        for place in track(testing, f"{arm} parcels"):
            images = maker.images(arm, place)
            labels = judged.add(place, _predictions(network, images, settings), settings)
            gallery.add(arm, place.patch, images[-1], labels, place.labels, place.tests)
        result["raster"][arm], result["vector"][arm] = judged.raster.summary(), summarize(judged.parcels)
        result["pixels"][arm] = {
            head: {**asdict(confusion), "roc": judged.raster.roc(head)}
            for head, confusion in judged.raster.heads.items()
        }
        write_parcels(judged.polygons(), output / f"{arm}.parquet")
    gallery.finish()
    shutil.rmtree(output / WORK, ignore_errors=True)
    return result


class Judgement:
    """Scores and polygons of one arm, test place after test place."""

    def __init__(self) -> None:
        self.raster = RasterScores()
        self.parcels: list[ParcelScore] = []
        self._polygons: list[gpd.GeoDataFrame] = []

    def add(self, place: Place, probabilities: NDArray[np.float32], settings: Delineate) -> NDArray[np.int32]:
        """Judge (D, 3, H, W) probabilities, a date each. Returns the predicted instances (H, W) of all dates."""
        test = place.split == TEST
        clear = np.stack([_at_hr(date) for date in place.clear])
        truth = place.maps.astype(np.float32) / QUANTISED
        for date, found in enumerate(probabilities):
            self.raster.add(found, truth, place.tests & clear[date])
        seen = clear.any(axis=0)
        weight = np.where(seen, clear, True).astype(np.float32)[:, None]
        merged = (probabilities * weight).sum(axis=0) / weight.sum(axis=0)
        labels = instances_of(merged, settings.min_area_m2 / VHR_GSD**2)
        scores = parcel_scores(place.labels, labels, test & seen, tuple(metres / VHR_GSD for metres in TOLERANCES_M))
        self.parcels += [score for score in scores if score.label in place.owned]
        polygons = polygons_of(labels, score_of(merged), place.patch.transform(VHR_GSD), place.patch.epsg)
        on_test = np.bincount(labels[test], minlength=labels.max() + 1) / np.bincount(labels.ravel())
        kept = (on_test[polygons["label"]] >= MIN_INSIDE) & _inside(polygons, place.patch)
        polygons = polygons[kept].assign(region=place.patch.region, patch=place.patch.id)
        self._polygons.append(polygons[PARCEL_COLUMNS])
        return labels

    def polygons(self) -> gpd.GeoDataFrame:
        """All polygons of test ground, each once, in the UTM zone of the first place."""
        crs = self._polygons[0].crs
        merged = pd.concat([polygons.to_crs(crs) for polygons in self._polygons], ignore_index=True)
        return gpd.GeoDataFrame(merged, geometry="geometry", crs=crs)


def _predictions(network: Delineator, images: NDArray[np.uint16], settings: Delineate) -> NDArray[np.float32]:
    return np.stack([predict(network, image, settings.tile_px, settings.precision) for image in images])


def _inside(polygons: gpd.GeoDataFrame, patch: Patch) -> Mask:
    """Which polygons have their centroid in the patch's cell, so that no two patches claim one."""
    west, south, east, north = patch.cell
    x, y = polygons.geometry.centroid.x.to_numpy(float), polygons.geometry.centroid.y.to_numpy(float)
    inside: Mask = (x >= west) & (x < east) & (y >= south) & (y < north)
    return inside


def _at_hr(mask: Mask) -> Mask:
    return mask.repeat(SCALE, axis=0).repeat(SCALE, axis=1)
