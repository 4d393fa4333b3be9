"""Sentinel-2 L2A as cloud-optimised GeoTIFFs that a STAC catalogue names: item search, or a static catalogue.

Earth Search (`earth-search`) needs no account. The Copernicus Data Space (`copernicus`) may be searched without one,
but its pixels lie in S3 and need keys of that service, which GDAL takes from the standard AWS settings. Any other
catalogue is named by its URL or path.

Pixels are copied where an item lies in the patch's own UTM zone, as all Sentinel-2 tiles share one 10 m grid a zone; an
item of the neighbouring zone is resampled (bands by cubic convolution, SCL by nearest neighbour).
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import math
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np
import odc.stac
import pyproj
import pystac
import rasterio
import requests
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from pystac_client import Client
from pystac_client.exceptions import APIError
from pystac_client.stac_api_io import StacApiIO
from rasterio.errors import RasterioError
from rasterio.windows import Window
from shapely.errors import GEOSException
from shapely.geometry import box, shape
from shapely.ops import transform as reproject
from urllib3.util.retry import Retry

from sr_core import BANDS
from sr_core.config import StacSource
from sr_core.errors import DataError, SourceError
from sr_core.patches import S2_GSD, EOPatch, Patch
from sr_core.progress import say
from sr_core.sources import Dates, Region
from sr_core.sources.products import (
    OFFSET,
    OFFSET_SINCE,
    UNKNOWN,
    baseline_of,
    check_offsets,
    level_of,
    offset_of,
    sensing_time,
)
from sr_core.sources.scl import SCL_CLOUD, SCL_DARK_GROUND, SCL_NODATA

CATALOGUES = {
    "earth-search": "https://earth-search.aws.element84.com/v1",
    "copernicus": "https://stac.dataspace.copernicus.eu/v1",
}
ASSETS = (
    {"blue": "blue", "green": "green", "red": "red", "nir": "nir", "scl": "scl"},
    {"blue": "B02_10m", "green": "B03_10m", "red": "B04_10m", "nir": "B08_10m", "scl": "SCL_20m"},
    {"blue": "B02", "green": "B03", "red": "B04", "nir": "B08", "scl": "SCL"},
)
"""Names of assets: those of Earth Search, of the Copernicus Data Space, and of catalogues that use ESA's band names."""
COPERNICUS_S3 = {"AWS_S3_ENDPOINT": "eodata.dataspace.copernicus.eu", "AWS_VIRTUAL_HOSTING": "FALSE"}

SCL_GSD = (20.0, S2_GSD)
PASS = dt.timedelta(minutes=30)
"""Items within this are tiles of one pass: an orbit takes 100 minutes."""
SEARCH_DEGREES = 0.25
"""A search covers the patch's ground rounded to this, so that neighbouring patches share it."""
PAGE = 100
READERS = 8
"""Acquisitions of a patch that are read at the same time."""

TRANSIENT = (408, 429, 500, 502, 503, 504)
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
LONGEST_RETRY_AFTER_S = 300.0
"""A server that asks for more patience is asked again after this."""
CONNECT_S = 30.0

OVERVIEW_PX = 343
"""Of a whole product so many rows and columns are looked at: the coarsest overview of 10980 and of 5490."""
UNTILED_M = 20_480.0
"""Of a product without overviews, so much ground at its centre is looked at."""
DARK_PERCENTILE = 10.0
DARK_PIXELS = 200
REMOVED_BELOW, KEPT_ABOVE = 900.0, 1050.0
"""The dark end of red over vegetation and water, as stored: below the offset less its noise it has been removed, above
it is still there. `tests/unit/test_stac_source.py` holds it against 106 real dates."""

T = TypeVar("T")
DAMAGE = re.compile(r"IO error|can ?not read|read error|fail|range download|truncat|corrupt", re.IGNORECASE)
"""What GDAL only warns of although something could not be read: a georeference that is cut off is ignored by it."""
# a failed read is told by our error, with its address; odc's own line would be printed before every retry
logging.getLogger("odc.loader._rio").addHandler(logging.NullHandler())


@dataclass(frozen=True)
class _Item:
    """One product (an MGRS tile of one pass)."""

    stac: pystac.Item
    product_id: str
    timestamp: dt.datetime
    """Sensing time of the pass where the metadata have it, else of the tile; naive UTC."""
    baseline: str
    epsg: int | None
    footprint: Any
    """Polygon, EPSG:4326."""


@dataclass(frozen=True)
class _Acquisition:
    """One pass over a patch: `values` (H, W, 4) as stored less the offset, `valid` and `scl` (H, W)."""

    values: NDArray[np.int32]
    valid: NDArray[np.bool_]
    scl: NDArray[np.uint8] | None
    item: _Item
    offset: int
    certain: bool
    """Whether the offset is known beyond the catalogue's word."""


class StacCatalogue:
    """The source `stac`. Opening it reads nothing; errors name the catalogue or the file's address."""

    def __init__(self, config: StacSource) -> None:
        self.config = config
        self.place = CATALOGUES.get(config.catalog, config.catalog)
        if not _is_url(self.place) and not Path(self.place).is_file():
            raise SourceError(
                f"source.catalog: found {config.catalog!r}; expected {', '.join(CATALOGUES)}, a URL, or the path of a"
                " catalogue's JSON file"
            )
        self._found: dict[Any, list[_Item]] = {}
        self._offsets: dict[str, int | None] = {}

    def regions(self) -> list[Region]:
        """Empty: a catalogue covers much ground."""
        return []

    def s2(self, patch: Patch, period: Dates | None) -> EOPatch:
        """Sentinel-2 at 10 m, one acquisition a pass; where a patch reaches over several tiles of a pass, they are put
        together, the patch's own zone and the larger share first.

        Raises `DataError` where the catalogue has no item for the patch and the period.
        """
        where = f"{self.place}, {self.config.collection}, patch {patch.id}"
        passes = self._passes_over(patch, period)
        if not passes:
            asked = f"{period[0]} to {period[1]}" if period else "any time"
            raise DataError(
                f"{where}: no item of {asked} with at most source.max_cloud_cover = {self.config.max_cloud_cover:g};"
                " take a longer period, or raise it"
            )
        with ThreadPoolExecutor(READERS) as pool:
            read = list(pool.map(lambda items: self._acquisition(items, patch), passes))
        series = [found for found in read if found.valid.any()] or read[:1]
        values, valid = np.stack([found.values for found in series]), np.stack([found.valid for found in series])
        timestamps, baselines = [found.item.timestamp for found in series], [found.item.baseline for found in series]
        if self.config.offset == "auto":
            check_offsets(
                values,
                valid,
                timestamps,
                baselines,
                where,
                certain=[found.certain for found in series],
                cure="source.offset: metadata or none forces one reading of the metadata",
            )
        eopatch = EOPatch(bbox=patch.bbox, timestamps=timestamps)
        # valid ground is at least 1: 0 means nodata
        eopatch.data["BANDS"] = np.where(valid[..., None], np.clip(values, 1, 65535), 0).astype(np.uint16)
        eopatch.mask["VALID"] = valid[..., None]
        if all(found.scl is not None for found in series):
            scl = np.stack([found.scl for found in series if found.scl is not None])
            eopatch.mask["CLM"] = np.isin(scl[..., None], SCL_CLOUD)
            eopatch.meta_info["mask_kind"] = "scl"
        metadata = {
            "source": "stac",
            "product_ids": [found.item.product_id for found in series],
            "processing_baselines": baselines,
            "offsets_removed": [found.offset for found in series],
            "level": level_of(series[0].item.product_id + " " + self.config.collection.replace("-", " ")),
            "region": patch.region,
            "patch_id": patch.id,
            "gsd_m": S2_GSD,
        }
        eopatch.meta_info.update(metadata)
        return eopatch

    def vhr(self, patch: Patch, period: Dates | None) -> EOPatch | None:
        """None: the catalogue is one of Sentinel-2."""
        return None

    def reference(self, patch: Patch) -> EOPatch | None:
        """None: catalogues bring no parcels."""
        return None

    def truth(self, patch: Patch, period: Dates | None) -> dict[str, EOPatch]:
        """Empty: nothing is known beyond the pixels."""
        return {}

    def fingerprint(self) -> Any:
        """Time of change of a local catalogue's file. None for a remote one: a finished download is kept as the
        catalogue grows; delete `patches/` to take what is new."""
        return None if _is_url(self.place) else Path(self.place).stat().st_mtime_ns

    # items

    def _passes_over(self, patch: Patch, period: Dates | None) -> list[list[_Item]]:
        """Items over a patch by pass, time ascending; the better ones of a pass first."""
        to_wgs84 = pyproj.Transformer.from_crs(patch.epsg, "EPSG:4326", always_xy=True)
        ground = reproject(to_wgs84.transform, box(*patch.bounds))
        west, south, east, north = (float(value) for value in ground.bounds)
        snapped = (
            max(-180.0, math.floor(west / SEARCH_DEGREES) * SEARCH_DEGREES),
            max(-90.0, math.floor(south / SEARCH_DEGREES) * SEARCH_DEGREES),
            min(180.0, math.ceil(east / SEARCH_DEGREES) * SEARCH_DEGREES),
            min(90.0, math.ceil(north / SEARCH_DEGREES) * SEARCH_DEGREES),
        )
        if (snapped, period) not in self._found:
            try:
                self._found[snapped, period] = [self._described(item) for item in self._look_up(snapped, period)]
            except (APIError, pystac.STACError, OSError, ValueError, KeyError, GEOSException) as error:
                raise SourceError(
                    f"{self.place}: the catalogue cannot be read (source.max_retries is"
                    f" {self.config.max_retries}): {_short(error)}"
                ) from error
        shares = []
        for item in self._found[snapped, period]:
            cloud, day = item.stac.properties.get("eo:cloud_cover"), item.timestamp.date()
            if cloud is not None and cloud > 100 * self.config.max_cloud_cover:
                continue
            if period is None or period[0] <= day <= period[1]:
                shares.append((item.footprint.intersection(ground).area, item))
        # of a pass, the patch's own zone first, then the larger share, then the newer processing
        shares.sort(key=lambda pair: (pair[1].epsg == patch.epsg, pair[0], pair[1].baseline, pair[1].stac.id))
        return _passes([item for share, item in reversed(shares) if share > 0])

    def _look_up(self, bounds: tuple[float, ...], period: Dates | None) -> Iterator[pystac.Item]:
        root = self._root
        if not (isinstance(root, Client) and root.conforms_to("ITEM_SEARCH")):
            yield from self._walked
            return
        cloud = 100 * self.config.max_cloud_cover
        offered = {link.extra_fields.get("method", "GET") for link in root.get_links("search")}
        search = root.search(
            method="POST" if "POST" in offered or not offered else "GET",
            collections=[self.config.collection],
            bbox=bounds,
            # items have the time of their tile, which may lie past midnight when its pass began before
            datetime=f"{period[0]}T00:00:00Z/{period[1] + dt.timedelta(days=1)}T01:00:00Z" if period else None,
            query={"eo:cloud_cover": {"lte": cloud}} if root.conforms_to("QUERY") else None,
            limit=PAGE,
        )
        yield from search.items()

    @cached_property
    def _root(self) -> Any:
        """The catalogue's root, a `Client` or another STAC object."""
        io = _PatientIO(self.config.max_retries, self.config.timeout_s)
        return pystac.read_file(self.place, stac_io=io)

    @cached_property
    def _walked(self) -> list[pystac.Item]:
        """All items of the collection in a static catalogue. Raises `SourceError` where there is none."""
        found = list(_walk(self._root))
        items = [item for item in found if item.collection_id in (None, self.config.collection)]
        if not items:
            others = ", ".join(sorted({str(item.collection_id) for item in found})) or "no items"
            raise SourceError(
                f"{self.place}: no item of source.collection {self.config.collection!r}; the catalogue has {others}"
            )
        return items

    def _described(self, item: pystac.Item) -> _Item:
        if item.geometry is None:
            raise SourceError(f"{self.place}, item {item.id}: found no geometry, expected the footprint of the product")
        said = item.properties
        product = str(said.get("s2:product_uri") or said.get("sentinel:product_id") or item.id).removesuffix(".SAFE")
        named = re.search(r"\d{8}T\d{6}", product)
        if named:
            timestamp = sensing_time(named[0], item.id)
        elif item.datetime is not None:
            timestamp = item.datetime.astimezone(dt.UTC).replace(tzinfo=None, microsecond=0)
        else:
            raise SourceError(f"{self.place}, item {item.id}: found no datetime, expected the sensing time")
        code = str(said.get("proj:epsg") or said.get("proj:code") or "").rpartition(":")[2]
        epsg = int(code) if code.isdigit() else None
        return _Item(item, product, timestamp, _baseline(said, product), epsg, shape(item.geometry))

    def _names(self, item: _Item) -> Mapping[str, str]:
        """Names of an item's assets by band. Raises `SourceError` where one is missing."""
        there = item.stac.assets
        choices = [{str(k): v for k, v in self.config.assets.items()}] if self.config.assets else ASSETS
        for names in choices:
            if all(names.get(band) in there for band in BANDS):
                return {band: name for band, name in names.items() if name in there}
        raise SourceError(
            f"{self.place}, item {item.stac.id}: found the assets {', '.join(sorted(there))}; expected"
            f" {', '.join(str(choices[0].get(band)) for band in BANDS)}; name them by source.assets"
        )

    # pixels

    def _acquisition(self, items: Sequence[_Item], patch: Patch) -> _Acquisition:
        """One pass; later items fill what earlier ones leave open. The item that gives most names it."""
        values, valid = np.zeros((*patch.shape, 4), np.int32), np.zeros(patch.shape, bool)
        scl, classified = np.zeros(patch.shape, np.uint8), True
        given: list[tuple[int, _Item, int, bool]] = []
        for item in items:
            names = self._names(item)
            layers = [self._layer(item, names[band], patch, "cubic", (S2_GSD,)) for band in BANDS]
            bands = np.stack([pixels for pixels, _ in layers], axis=-1)
            good = np.logical_and.reduce([has_data for _, has_data in layers])
            classified &= "scl" in names
            if "scl" in names:
                classes = self._layer(item, names["scl"], patch, "nearest", SCL_GSD)[0].astype(np.uint8)
                good &= ~np.isin(classes, SCL_NODATA)
                scl[~valid] = classes[~valid]
            offset, certain = self._offset(item, names)
            fresh = good & ~valid
            values[fresh] = bands[fresh] - offset
            valid |= good
            given.append((int(fresh.sum()), item, offset, certain))
            if valid.all():
                break
        most = max(given, key=lambda one: one[0])
        # one uncertain part makes the whole uncertain
        certain = all(sure for count, _, _, sure in given if count)
        return _Acquisition(values, valid, scl if classified else None, most[1], most[2], certain)

    def _layer(
        self, item: _Item, name: str, patch: Patch, resampling: str, gsd: Sequence[float]
    ) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """An asset on the patch's 10 m grid, and where it has data."""
        rows, columns = patch.shape
        grid = GeoBox((rows, columns), patch.transform(), f"EPSG:{patch.epsg}")
        href = _href(item.stac, name)

        def read() -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
            with rasterio.open(href) as dataset:
                _check_raster(dataset, href, gsd)
            loaded = odc.stac.load(
                [item.stac],
                bands=[name],
                geobox=grid,
                groupby="id",
                dtype="int32",
                resampling=resampling,
                stac_cfg={item.stac.collection_id or "*": {"assets": {"*": {"data_type": "int32", "nodata": 0}}}},
                patch_url=lambda _: href,
            )
            pixels = np.asarray(loaded[name].values[0], np.int32)
            nodata = loaded[name].attrs.get("nodata")
            good = pixels != 0
            return pixels, good if nodata is None else good & (pixels != nodata)

        return self._patiently(href, read)

    def _patiently(self, href: str, read: Callable[[], T]) -> T:
        """`read()` under bounded retries. Raises `SourceError` naming the address and what the server says."""
        address = _without_query(href)
        for attempt in range(self.config.max_retries + 1):
            cause: Exception | None = None
            with _gdal_damage() as heard:
                try:
                    with rasterio.Env(**self._gdal(href, again=attempt > 0)):
                        found = read()
                    if not heard:
                        return found
                except RasterioError as error:
                    heard, cause = [str(error.__cause__ or error)], error
                except SourceError:
                    if not heard:
                        raise
            final, pause, told = self._diagnose(href, attempt, heard[0])
            if final or attempt == self.config.max_retries:
                tried = f"after {attempt + 1} tries" if attempt else "at the first try"
                raise SourceError(f"{address}: cannot be read {tried}: {told}") from cause
            time.sleep(max(pause, min(FIRST_PAUSE_S * 2**attempt, LONGEST_PAUSE_S)))
        raise AssertionError("unreachable")

    def _diagnose(self, href: str, attempt: int, reason: str) -> tuple[bool, float, str]:
        """Why a file could not be read: whether that is final, seconds to wait, and in words."""
        if href.startswith(("http://", "https://")):
            return _ask_server(href, self.config.timeout_s, reason)
        if _is_url(href):
            return attempt > 1, 0.0, f"{reason}; a store like this needs keys, in the standard AWS settings"
        return True, 0.0, f"the file may be truncated ({reason})"

    def _gdal(self, href: str, again: bool) -> dict[str, Any]:
        """GDAL's settings for one read, of this thread only. Retries are ours: GDAL knows no Retry-After."""
        settings: dict[str, Any] = {
            "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
            "GDAL_HTTP_MAX_RETRY": 0,
            "GDAL_HTTP_TIMEOUT": self.config.timeout_s,
            "GDAL_HTTP_CONNECTTIMEOUT": min(self.config.timeout_s, CONNECT_S),
            "GDAL_INGESTED_BYTES_AT_OPEN": 32768,
        }
        if self.config.catalog == "copernicus":
            settings |= COPERNICUS_S3
        if again:
            # what a failed read left in GDAL's cache is not trusted
            settings |= {"CPL_VSIL_CURL_NON_CACHED": f"/vsicurl/{href}", "VSI_CACHE": False}
        return settings

    # radiometric offset

    def _offset(self, item: _Item, names: Mapping[str, str]) -> tuple[int, bool]:
        """What is to be subtracted from an item's values, and whether that is known beyond the catalogue's word."""
        if self.config.offset == "none":
            return 0, True
        said = offset_in_metadata(item.stac, names["red"], item.baseline)
        if self.config.offset == "metadata":
            return said, True
        if item.baseline != UNKNOWN and item.baseline < OFFSET_SINCE:
            return 0, True
        seen = self._offset_in_pixels(item, names)
        return (said, False) if seen is None else (seen, True)

    def _offset_in_pixels(self, item: _Item, names: Mapping[str, str]) -> int | None:
        """The offset that a product's pixels show, the same for each of its patches; None where they show nothing."""
        if "scl" not in names:
            return None
        if item.stac.id in self._offsets:
            return self._offsets[item.stac.id]
        red, scl = (
            self._patiently(href, lambda href=href: _overview(href))  # type: ignore[misc]
            for href in (_href(item.stac, names["red"]), _href(item.stac, names["scl"]))
        )
        seen = offset_in_pixels(red, scl) if red.shape == scl.shape else None
        said = offset_in_metadata(item.stac, names["red"], item.baseline)
        if seen not in (None, said):
            say(f"{item.stac.id}: metadata say an offset of {said}, the pixels show {seen}; the pixels are believed")
        self._offsets[item.stac.id] = seen
        return seen


def offset_in_metadata(item: pystac.Item, asset: str, baseline: str) -> int:
    """The offset of reflectance x 10000 that an item's metadata say is in its pixels, 0 or 1000.

    Earth Search's flag `earthsearch:boa_offset_applied` comes first where it says that the offset has been removed, as
    `raster:bands` keeps the offset of the original product there (Element84/earth-search#9); then the asset's own
    offset; then the processing baseline. Raises `SourceError` for a scale or an offset that no Sentinel-2 product has.
    """
    flags = [item.properties.get(f"{prefix}:boa_offset_applied") for prefix in ("earthsearch", "sentinel")]
    if True in flags:
        return 0
    extra = item.assets[asset].extra_fields
    bands = [band for key in ("raster:bands", "bands") for band in extra.get(key) or [{}]]
    said = [extra, *bands]
    scales = [found[key] for found in said for key in ("raster:scale", "scale") if key in found]
    offsets = [found[key] for found in said for key in ("raster:offset", "offset") if key in found]
    scale = float(scales[0]) if scales else 1e-4
    if not math.isclose(scale, 1e-4):
        raise SourceError(
            f"item {item.id}, asset {asset}: found the scale {scale:g}, expected 0.0001 (reflectance x 10000)"
        )
    if not offsets:
        return offset_of(baseline)
    stored = round(-float(offsets[0]) / scale)
    if stored not in (0, OFFSET):
        raise SourceError(f"item {item.id}, asset {asset}: found the offset {offsets[0]:g}, expected 0 or -0.1")
    return stored


def offset_in_pixels(red: NDArray[np.int32], scl: NDArray[np.int32]) -> int | None:
    """The offset in the stored values of red, seen where `scl` is vegetation or water; None where it is not clear.

    Both reflect little red light, so that their dark end lies well below the offset where it has been removed, and no
    value lies below it where it has not.
    """
    dark = red[np.isin(scl, SCL_DARK_GROUND) & (red > 0)]
    if len(dark) < DARK_PIXELS:
        return None
    found = float(np.percentile(dark, DARK_PERCENTILE))
    return 0 if found < REMOVED_BELOW else OFFSET if found > KEPT_ABOVE else None


class _Damage(logging.Handler):
    """Collects what GDAL warns of in one thread."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.thread, self.heard = threading.get_ident(), list[str]()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self.thread and DAMAGE.search(record.getMessage()):
            self.heard.append(record.getMessage())


@contextmanager
def _gdal_damage() -> Iterator[list[str]]:
    """Warnings of damage, from rasterio's loggers, while the block runs."""
    listener = _Damage()
    loggers = [logging.getLogger(name) for name in ("rasterio._env", "rasterio._err")]
    for logger in loggers:
        logger.addHandler(listener)
    try:
        yield listener.heard
    finally:
        for logger in loggers:
            logger.removeHandler(listener)


class _PatientIO(StacApiIO):  # type: ignore[misc]
    """Reads a catalogue's JSON under bounded retries, also where the body is cut off."""

    def __init__(self, retries: int, timeout_s: float) -> None:
        super().__init__(timeout=timeout_s, max_retries=_BoundedRetry.of(retries))
        self.retries = retries

    def request(self, href: str, *args: Any, **kwargs: Any) -> str:
        for attempt in range(self.retries + 1):
            try:
                text: str = super().request(href, *args, **kwargs)
                json.loads(text)
                return text
            except (APIError, ValueError) as error:
                if attempt == self.retries or getattr(error, "status_code", None) is not None:
                    raise APIError(f"{_without_query(href)}: {_short(error)}") from error
                time.sleep(min(FIRST_PAUSE_S * 2**attempt, LONGEST_PAUSE_S))
        raise AssertionError("unreachable")


class _BoundedRetry(Retry):
    """urllib3's retries, which honour Retry-After, with a limit to it."""

    @classmethod
    def of(cls, retries: int) -> _BoundedRetry:
        return cls(
            total=retries,
            backoff_factor=FIRST_PAUSE_S,
            backoff_max=LONGEST_PAUSE_S,
            status_forcelist=TRANSIENT,
            allowed_methods=None,
        )

    def get_retry_after(self, response: Any) -> float | None:
        asked = super().get_retry_after(response)
        return None if asked is None else min(asked, LONGEST_RETRY_AFTER_S)


def _walk(node: Any) -> Iterator[pystac.Item]:
    """All items below a STAC object."""
    if isinstance(node, pystac.Item):
        yield node
        return
    for link in node.get_links():
        if link.rel in ("item", "child"):
            yield from _walk(link.resolve_stac_object(root=node.get_root()).target)


def _passes(items: Sequence[_Item]) -> list[list[_Item]]:
    """Items by pass, time ascending; within a pass in the order given."""
    found: list[list[_Item]] = []
    ends: list[dt.datetime] = []
    for moment in sorted({item.timestamp for item in items}):
        same = [item for item in items if item.timestamp == moment]
        if ends and moment - ends[-1] <= PASS:
            found[-1] += same
            ends[-1] = moment
        else:
            found.append(same)
            ends.append(moment)
    return [sorted(items_of_pass, key=items.index) for items_of_pass in found]


def _overview(href: str) -> NDArray[np.int32]:
    """A whole raster coarsely, by nearest neighbour: at most `OVERVIEW_PX` rows and columns, of at least 20 m each."""
    with rasterio.open(href) as dataset:
        _check_raster(dataset, href, SCL_GSD)
        rows, columns = dataset.shape
        window = None
        if not dataset.overviews(1) and max(dataset.shape) * dataset.res[0] > UNTILED_M:
            side = round(UNTILED_M / dataset.res[0])
            top, left = max(0, (rows - side) // 2), max(0, (columns - side) // 2)
            rows, columns = min(rows, side), min(columns, side)
            window = Window(left, top, columns, rows)
        coarse = tuple(min(OVERVIEW_PX, round(length * dataset.res[0] / 20)) for length in (rows, columns))
        return np.asarray(dataset.read(1, out_shape=coarse, window=window), np.int32)


def _check_raster(dataset: Any, href: str, gsd: Sequence[float]) -> None:
    """Raise `SourceError` unless a raster has one band of integers, a reference system, and pixels of a `gsd` (m)."""
    address, step = _without_query(href), dataset.transform
    if dataset.count != 1 or np.dtype(dataset.dtypes[0]).kind not in "ui":
        raise SourceError(
            f"{address}: found {dataset.count} band(s) of {dataset.dtypes[0]}; expected one band of integers"
        )
    if dataset.crs is None:
        raise SourceError(f"{address}: found no reference system; expected a UTM zone")
    if not any(abs(step.a - metres) < 1e-6 and abs(step.e + metres) < 1e-6 for metres in gsd):
        wanted = " or ".join(f"{metres:g}" for metres in gsd)
        raise SourceError(f"{address}: found pixels of {step.a:g} x {-step.e:g}; expected {wanted} m, north up")


def _ask_server(href: str, timeout_s: float, reason: str) -> tuple[bool, float, str]:
    """What a server says of a file that could not be read: whether that is final, its Retry-After, and in words."""
    try:
        with requests.get(href, headers={"Range": "bytes=0-0"}, timeout=timeout_s, stream=True) as answer:
            status, said = answer.status_code, f"the server answers {answer.status_code} {answer.reason}"
            waits = _BoundedRetry().get_retry_after(answer.raw) or 0.0
    except requests.RequestException as error:
        return False, 0.0, f"no answer from the server ({type(error).__name__}; source.timeout_s is {timeout_s:g})"
    if status == 206:
        return False, 0.0, f"{reason}; the body may be truncated, or too slow for source.timeout_s = {timeout_s:g}"
    if status == 200:
        return True, 0.0, "the server ignores range requests, which a cloud-optimised GeoTIFF needs"
    hint = "; this file needs an account" if status in (401, 403) else ""
    return status not in TRANSIENT, waits, f"{said}{hint}"


def _baseline(said: Mapping[str, Any], product: str) -> str:
    """Processing baseline such as "05.09", from an item's properties or its product's name."""
    for key in ("s2:processing_baseline", "processing:version", "sentinel:processing_baseline"):
        found = re.fullmatch(r"(\d{1,2})\.(\d{2})", str(said.get(key, "")))
        if found:
            return f"{int(found[1]):02d}.{found[2]}"
    return baseline_of(product)


def _href(item: pystac.Item, name: str) -> str:
    asset = item.assets[name]
    return str(asset.get_absolute_href() or asset.href)


def _is_url(place: str) -> bool:
    return "://" in place


def _without_query(href: str) -> str:
    """An address without its query, where signed ones carry their tokens."""
    return urlsplit(href)._replace(query="", fragment="").geturl()


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return (text[:300] + " ...") if len(text) > 300 else text or type(error).__name__
