"""Products: one cloud-optimised GeoTIFF of super-resolved reflectance a region and date, and what speaks for it.

`<region>/<date>/sr.tif` holds reflectance x 10000 at 2.5 m, bands blue, green, red, nir. Beside it lie `s2.tif` (the
latest image as it was), `consistency.tif` (how far the product, seen through Sentinel-2's point-spread function, is
from that image), `uncertainty.tif` where the bundle says it, `quicklook.png` and `item.json` (STAC).

A date's folder is written aside and renamed: it is there whole or not at all. Its windows are kept until then, so that
a process that was killed goes on with the window that it was at. Nothing is invented: a pixel is nodata where the
latest image has no data, or where no frame saw the ground clearly.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sr_core import REFLECTANCE_SCALE, SCALE
from sr_core.files import write_json
from sr_core.inference.dates import Target
from sr_core.inference.engine import Shares, overlapped
from sr_core.inference.mosaic import FrameReader, FrameStore, Mosaic, bounded_cache
from sr_core.inference.quicklook import write_quicklook
from sr_core.inference.rasters import CONSISTENCY, S2, SR, UNCERTAINTY, Layer, Piece, write_cog, write_piece
from sr_core.inference.stac import ITEM_FILE, describe_date
from sr_core.inference.windows import Window, windows
from sr_core.models.bundle import Precision, SuperResolver
from sr_core.models.normalization import Normalization
from sr_core.patches import S2_GSD, VHR_GSD, Patch
from sr_core.progress import track
from sr_core.radiometry.resample import degrade

CONSISTENCY_MTF = 0.3
"""MTF at the 10 m Nyquist frequency of the point-spread function that the product is compared through: the upper end of
what is specified for Sentinel-2's 10 m bands."""
BLUR_PX = 5
"""That function's reach, in 10 m pixels."""
TALLY = "tally.json"


@dataclass(frozen=True)
class Provenance:
    """Where products come from, written into every file."""

    bundle_key: str
    """Key of the training run, or the digest of the bundle's weights."""
    trained_gsd_m: float | None
    """Ground sampling distance of the frames that the network learned from, metres; None where that is not known."""
    simulated: bool

    def attribution(self, years: Sequence[int]) -> str:
        """The line that has to be shown with a picture of these years."""
        if self.simulated:
            return "Simulated data: a computed landscape, not observed by any satellite"
        span = f"{min(years)}" if min(years) == max(years) else f"{min(years)}-{max(years)}"
        return f"Contains modified Copernicus Sentinel data {span}"

    def tags(self) -> dict[str, Any]:
        """What a user must know of the model."""
        if self.trained_gsd_m is None:
            transfer = "the bundle does not say at which ground sampling distance it was trained"
        elif self.trained_gsd_m == S2_GSD:
            transfer = f"trained and applied from {S2_GSD:g} m to {VHR_GSD:g} m"
        else:
            trained = self.trained_gsd_m
            transfer = (
                f"trained from {trained:g} m to {trained / SCALE:g} m (Wald's protocol) and applied from {S2_GSD:g} m"
                f" to {VHR_GSD:g} m: that what it learned holds at the finer scale is an assumption"
            )
        return {"bundle_key": self.bundle_key, "trained_gsd_m": self.trained_gsd_m, "transfer": transfer}


@dataclass(frozen=True)
class Tally:
    """Sums over pixels: of a window, or of a date."""

    pixels: int = 0
    """Of the ground that is made, at 2.5 m."""
    valid: int = 0
    compared: int = 0
    """Values of `consistency`."""
    difference: int = 0
    """Their sum, in reflectance x 10000."""

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.pixels + other.pixels,
            self.valid + other.valid,
            self.compared + other.compared,
            self.difference + other.difference,
        )

    def summary(self) -> dict[str, float | None]:
        """Share of the ground that the product covers, and its mean difference from Sentinel-2 in reflectance."""
        difference = self.difference / REFLECTANCE_SCALE
        return {
            "valid_share": round(self.valid / self.pixels, 4),
            "consistency_mae": round(difference / self.compared, 6) if self.compared else None,
        }


@dataclass(frozen=True)
class Estimated:
    """A window as the network left it, with what the rest of the work needs."""

    image: NDArray[np.float32]
    """(C,H,W) reflectance of the window and `BLUR_PX` around it."""
    scale: NDArray[np.float32] | None
    latest: NDArray[np.uint16]
    """(C,h,w) of the window, as the next two."""
    clear: NDArray[np.bool_]
    """(h,w): the latest image is clear."""
    seen: NDArray[np.bool_]
    """(h,w): the latest image has data, and some frame is clear."""


@dataclass(frozen=True)
class DateWork:
    """One date of a region: the grid, the frames, and the windows that hold ground to be made."""

    mosaic: Mosaic
    store: FrameStore
    target: Target
    made: Sequence[Patch]
    """Patches that the date saw clearly."""
    resolver: SuperResolver
    normalization: Normalization
    precision: Precision

    def windows(self, window_px: int) -> list[Window]:
        """Windows of the mosaic (10 m pixels) that touch ground to be made, in a fixed order."""
        every = windows((slice(0, self.mosaic.rows), slice(0, self.mosaic.columns)), window_px)
        cells = np.array([self._cell(patch) for patch in self.made])
        return [
            window
            for window in every
            if (
                (cells[:, 0] < window.bottom)
                & (cells[:, 2] > window.top)
                & (cells[:, 1] < window.right)
                & (cells[:, 3] > window.left)
            ).any()
        ]

    def read(self, window: Window, reader: FrameReader) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
        """Frames and masks of a window with as much around it as its result depends on."""
        return reader.read(self._outer(window))

    def estimate(self, window: Window, data: tuple[NDArray[np.uint16], NDArray[np.bool_]]) -> Estimated:
        """Super-resolve what `read` gave."""
        frames, clear = data
        shifts = np.array([self.store.frames[frame.name].shift for frame in self.target.frames], np.float32)
        image, scale = self.resolver.predict_with_scale(frames, clear, self.normalization, self.precision, shifts)
        outer, inner = self._outer(window), self._in_frames(window)
        blurred = inner.grow(BLUR_PX, self.store.grid.shape())
        own, around = inner.inside(outer), blurred.inside(outer, SCALE)
        latest = frames[0][(slice(None), *own)]
        return Estimated(
            image[(slice(None), *around)],
            None if scale is None else scale[(slice(None), *inner.inside(outer, SCALE))],
            latest,
            clear[0][own],
            clear[(slice(None), *own)].any(axis=0) & latest.any(axis=0),
        )

    def layers(self, window: Window, found: Estimated) -> tuple[dict[Layer, NDArray[np.uint16]], Tally]:
        """The window of each layer, and what it adds to the date's sums."""
        inner = self._in_frames(window)
        blurred = inner.grow(BLUR_PX, self.store.grid.shape())
        own, fine = inner.inside(blurred), inner.inside(blurred, SCALE)
        displaced = self.store.frames[self.target.name].shift
        difference = degrade(found.image, mtf=CONSISTENCY_MTF, shift=displaced)[(slice(None), *own)]
        difference = np.abs(difference * REFLECTANCE_SCALE - found.latest)
        ground = self._ground(window)
        valid, comparable = found.seen & ground, found.clear & found.seen & ground
        valid_fine = valid.repeat(SCALE, axis=0).repeat(SCALE, axis=1)
        image = found.image[(slice(None), *fine)]
        made = {
            SR: np.where(valid_fine, _counts(image, 1, 65535), np.uint16(SR.nodata)),
            CONSISTENCY: np.where(
                comparable, _counts(difference, 0, CONSISTENCY.nodata - 1, 1.0), np.uint16(CONSISTENCY.nodata)
            ),
        }
        if found.scale is not None:
            scale = _counts(found.scale, 0, UNCERTAINTY.nodata - 1)
            made[UNCERTAINTY] = np.where(valid_fine, scale, np.uint16(UNCERTAINTY.nodata))
        compared = made[CONSISTENCY][:, comparable]
        tally = Tally(
            int(np.count_nonzero(ground)) * SCALE**2,
            int(np.count_nonzero(valid)) * SCALE**2,
            compared.size,
            int(compared.sum(dtype=np.int64)),
        )
        return made, tally

    def _ground(self, window: Window) -> NDArray[np.bool_]:
        """(h,w): the pixel lies in a cell that is made."""
        ground = np.zeros(window.shape, bool)
        for patch in self.made:
            top, left, bottom, right = self._cell(patch)
            if bottom > window.top and right > window.left:
                ground[
                    max(top - window.top, 0) : max(bottom - window.top, 0),
                    max(left - window.left, 0) : max(right - window.left, 0),
                ] = True
        return ground

    def _cell(self, patch: Patch) -> tuple[int, int, int, int]:
        cell = self.mosaic.window(patch.cell)
        return cell.top, cell.left, cell.bottom, cell.right

    def _in_frames(self, window: Window) -> Window:
        """A window of the mosaic, in pixels of the frames, which reach further by the patches' buffers."""
        corner = self.store.grid.window(self.mosaic.bounds)
        return Window(
            window.top + corner.top, window.left + corner.left, window.bottom + corner.top, window.right + corner.left
        )

    def _outer(self, window: Window) -> Window:
        return self._in_frames(window).grow(halo(self.resolver), self.store.grid.shape())


def halo(resolver: SuperResolver) -> int:
    """How far beyond a window its product depends on the frames, in 10 m pixels: the network's reach, and around the
    image that of the point-spread function through which it is compared."""
    return resolver.receptive_field // 2 + BLUR_PX


def make_date(
    root: Path,
    region: str,
    patches: Sequence[Patch],
    target: Target,
    store: FrameStore,
    resolver: SuperResolver,
    normalization: Normalization,
    provenance: Provenance,
    *,
    collection: str,
    window_px: int,
    precision: Precision = "float32",
    shares: Shares | None = None,
    keep: Callable[[Path, str], None] = lambda folder, last: None,
) -> dict[str, Any]:
    """Make `<root>/<region>/<date>/` and return its STAC Item.

    `patches` are all of the region, whose cells make the mosaic; those that are not the target's are nodata. `store`
    holds the target's frames. Finished windows of an interrupted call with the same arguments are used. Adds the time
    it takes to `shares`. `keep` is told of each folder that is finished, a window's or the date's, and of the file in
    it that says so: for a caller whose `root` does not outlive it.
    """
    shares = Shares() if shares is None else shares
    folder, aside = root / region / target.name, root / region / f".{target.name}"
    pieces = windows_of(root, region, target)
    for left in (aside, folder):  # without its item, or the date would be kept
        shutil.rmtree(left, ignore_errors=True)
    pieces.mkdir(parents=True, exist_ok=True)
    made = [patch for patch in patches if patch.id in set(target.patches)]
    mosaic = Mosaic.of(patches)
    work = DateWork(mosaic, store, target, made, resolver, normalization, precision)
    every = work.windows(window_px)
    missing = [window for window in every if not (pieces / _name(window) / TALLY).is_file()]
    with bounded_cache(), FrameReader.open([store.frames[frame.name] for frame in target.frames]) as reader:

        def write(window: Window, found: Estimated) -> None:
            _write_window(pieces / _name(window), mosaic, window, *work.layers(window, found))
            keep(pieces / _name(window), TALLY)

        steps = overlapped(missing, lambda window: work.read(window, reader), work.estimate, write, shares)
        for _ in track(steps, f"{region} {target.timestamp:%Y-%m-%d}", len(missing)):
            pass
        with shares.while_finishing():
            aside.mkdir()
            item = _finish(aside, pieces, every, work, region, provenance, collection)
            aside.rename(folder)
            shutil.rmtree(pieces)
        keep(folder, ITEM_FILE)
    return item


def kept_date(root: Path, region: str, target: Target) -> dict[str, Any] | None:
    """The STAC Item of a date that is made, or None."""
    path = root / region / target.name / ITEM_FILE
    if not path.is_file():
        return None
    shutil.rmtree(windows_of(root, region, target), ignore_errors=True)
    item: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return item


def windows_of(root: Path, region: str, target: Target) -> Path:
    """Where the finished windows of a date lie until it is made."""
    return root / region / f".{target.name}.windows"


def index_entry(item: Mapping[str, Any]) -> dict[str, Any]:
    """A date's line in `products.json`."""
    properties = item["properties"]
    short = {
        name.removeprefix("subpixel:"): value for name, value in properties.items() if name.startswith("subpixel:")
    }
    names = ("region", "path", "patches", "frames", "valid_share", "consistency_mae", "years")
    return {
        "id": item["id"],
        "datetime": properties["datetime"],
        "bbox": item["bbox"],
        "attribution": properties["attribution"],
        **{name: short[name] for name in names},
        "layers": [name for name, asset in item["assets"].items() if asset["href"].endswith(".tif")],
    }


def _name(window: Window) -> str:
    return f"{window.top}_{window.left}"


def _write_window(
    folder: Path, mosaic: Mosaic, window: Window, layers: Mapping[Layer, NDArray[np.uint16]], tally: Tally
) -> None:
    """Write a window's pieces aside and rename their folder."""
    aside = folder.with_name(f".{folder.name}")
    for left in (aside, folder):
        shutil.rmtree(left, ignore_errors=True)
    aside.mkdir()
    for layer, image in layers.items():
        write_piece(aside / layer.file, image, layer, mosaic, window)
    write_json(aside / TALLY, asdict(tally))
    aside.rename(folder)


def _finish(
    folder: Path,
    pieces: Path,
    every: Sequence[Window],
    work: DateWork,
    region: str,
    provenance: Provenance,
    collection: str,
) -> dict[str, Any]:
    """Write all files of a date from its windows into `folder`."""
    mosaic, target = work.mosaic, work.target
    tally = Tally()
    for window in every:
        tally += Tally(**json.loads((pieces / _name(window) / TALLY).read_text(encoding="utf-8")))
    sources: dict[str, dt.datetime] = {}
    for frame in target.frames:
        for patch in target.patches:
            sources |= work.store.frames[frame.name].products.get(patch, {})
    years = sorted({taken.year for taken in sources.values()})
    attribution = provenance.attribution(years)
    latest_first = sorted(sources, key=lambda name: (sources[name], name), reverse=True)
    tags = {
        "TIFFTAG_DATETIME": f"{target.timestamp:%Y:%m:%d %H:%M:%S}",
        "TIFFTAG_SOFTWARE": "subpixel",
        "TIFFTAG_COPYRIGHT": attribution,
        "attribution": attribution,
        "region": region,
        "acquired": f"{target.timestamp.isoformat()}Z",
    }
    derived = {
        **tags,
        "source_products": json.dumps(latest_first),
        **{name: str(value) for name, value in provenance.tags().items()},
    }
    layers = [SR, CONSISTENCY]
    if (pieces / _name(every[0]) / UNCERTAINTY.file).is_file():
        layers.append(UNCERTAINTY)
    threads = os.cpu_count() or 1
    for layer in layers:
        parts = [Piece(pieces / _name(window) / layer.file, window) for window in every]
        write_cog(folder / layer.file, layer, mosaic, parts, {**derived, "content": layer.content}, threads)
    latest = work.store.frames[target.name]
    corner = work.store.grid.window(mosaic.bounds)
    whole = Piece(latest.path, Window(0, 0, mosaic.rows, mosaic.columns), (corner.top, corner.left))
    of_pass = {name for those in latest.products.values() for name in those}
    as_it_was = {**tags, "source_products": json.dumps(sorted(of_pass)), "content": S2.content}
    write_cog(folder / S2.file, S2, mosaic, [whole], as_it_was, threads)
    layers.insert(1, S2)
    title = f"{region}, {target.timestamp:%Y-%m-%d %H:%M} UTC, {VHR_GSD:g} m"
    write_quicklook(folder / SR.file, folder / "quicklook.png", title, attribution)
    item = describe_date(
        identifier=f"{region}-{target.name}",
        collection=collection,
        timestamp=target.timestamp,
        cells=[patch.cell for patch in work.made],
        mosaic=mosaic,
        layers=layers,
        folder=folder,
        title=title,
        sources=latest_first,
        properties={
            "gsd": VHR_GSD,
            "attribution": attribution,
            **{f"subpixel:{name}": value for name, value in provenance.tags().items()},
            **{f"subpixel:{name}": value for name, value in tally.summary().items()},
            "subpixel:region": region,
            "subpixel:path": f"{region}/{target.name}",
            "subpixel:patches": len(work.made),
            "subpixel:frames": len(target.frames),
            "subpixel:years": years,
        },
    )
    write_json(folder / ITEM_FILE, item)
    return item


def _counts(values: NDArray[np.float32], low: int, high: int, scale: float = REFLECTANCE_SCALE) -> NDArray[np.uint16]:
    counts: NDArray[np.uint16] = np.rint(values * np.float32(scale)).clip(low, high).astype(np.uint16)
    return counts
