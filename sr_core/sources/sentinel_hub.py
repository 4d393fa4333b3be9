"""Sentinel-2, and VHR from a collection of one's own, from Sentinel Hub or the Copernicus Data Space.

The Catalog is asked first: what was acquired over a patch, how cloudy, by which products. Then each pass is one request
to the Process API, with all bands and masks in one answer, on the patch's own grid: digital numbers as delivered, not
resampled where the product lies in the patch's UTM zone. Level L1C brings the ten bands of s2cloudless at 60 m as well,
by a second request, for a request has one resolution.

eo-learn's `SentinelHubEvalscriptTask` is not used: it asks for each Catalog time with a window of a second around it,
so that a pass over two tiles becomes two dates; it sends all requests through sentinelhub's own client, whose faults
`sentinel_hub_client` tells; and it drops the answers' georeference, which is to be checked here.
"""

from __future__ import annotations

import datetime as dt
import io
import json
import math
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.io import MemoryFile
from sentinelhub import CRS, BBox, DownloadRequest, MimeType, ResamplingType, SentinelHubRequest
from sentinelhub.data_collections import DataCollection
from shapely.geometry import box, shape
from shapely.geometry.base import BaseGeometry
from shapely.ops import transform as reproject

from sr_core import BANDS
from sr_core.config import SentinelHubSource
from sr_core.errors import ConfigError, DataError, SourceError
from sr_core.masks.s2cloudless import S2CLOUDLESS_BANDS
from sr_core.patches import S2_GSD, VHR_GSD, EOPatch, Patch
from sr_core.sources import SECRETS, Dates, Estimate, Region
from sr_core.sources.products import baseline_of, check_offsets, sensing_time
from sr_core.sources.rasters import S2_BANDS
from sr_core.sources.scl import SCL_CLOUD, SCL_NODATA
from sr_core.sources.sentinel_hub_client import Client, RateLimit, TemporaryError
from sr_core.sources.vhr import RADIANCE_SCALE

T = TypeVar("T")
ENDPOINTS = {
    "sentinel-hub": (
        "https://services.sentinel-hub.com",
        "https://services.sentinel-hub.com/auth/realms/main/protocol/openid-connect/token",
    ),
    "copernicus": (
        "https://sh.dataspace.copernicus.eu",
        "https://identity.dataspace.copernicus.eu/auth/realms/CDSE/protocol/openid-connect/token",
    ),
}
"""Base URL and token URL of each service."""
CLOUD_GSD = 60.0
LARGEST_SIDE = 2500
"""Pixels: a side of a Process request is at most this long; larger patches are asked for in blocks."""
ONE_PASS = dt.timedelta(minutes=30)
"""Products sensed within this time of each other over a patch are one acquisition."""
SECOND = dt.timedelta(seconds=1)
TOO_BRIGHT = 2
"""Mask of vhr.js where there are values that cannot be radiance."""
MOST_TOO_BRIGHT = 0.01
"""Share of such pixels that may be glint or defects; they are not valid."""
THREADS = 4
"""Requests of one process at the same time; the rate limit holds for all processes together."""
OUTPUTS = {"bands": "uint16", "masks": "uint8"}
EVALSCRIPTS = Path(__file__).with_name("evalscripts")
_PRODUCT = re.compile(r"S2[A-D]_MSIL(?:1C|2A)_\d{8}T\d{6}_N\d{4}_R\d{3}_T(?P<zone>\d{2})(?P<band>[C-X])")
"""A product's name; its tile's UTM zone and latitude band tell its reference system."""
LOOPBACK = {"localhost", "127.0.0.1", "::1"}


@dataclass(frozen=True)
class Product:
    """A tile of the Catalog."""

    id: str
    sensed: dt.datetime
    """When this tile was sensed, naive UTC: what the Process API filters by."""
    passed: dt.datetime
    """When the pass began, naive UTC; the same for all tiles of a Sentinel-2 pass."""
    epsg: int | None
    footprint: BaseGeometry
    """In EPSG:4326."""


@dataclass(frozen=True)
class Acquisition:
    """One pass over a patch: `product` shows most of it, and `start` to `end` holds the products that show the rest."""

    product: Product
    start: dt.datetime
    end: dt.datetime

    @property
    def timestamp(self) -> dt.datetime:
        return self.product.passed


@dataclass(frozen=True)
class Recipe:
    """What is asked of each acquisition of a collection, and what it costs."""

    collection: DataCollection
    evalscript: str
    gsd: float
    n_bands: int
    n_masks: int
    input_bands: int
    """Bands that are charged: all but dataMask."""
    resampling: ResamplingType

    def processing_units(self, height: int, width: int) -> float:
        """Cost of one request, in processing units (PU).

        One PU is 512 x 512 pixels of 3 input bands in 8 or 16 bits; the factor of the area is at least 0.01 and a
        request costs at least 0.005 PU; dataMask is free. Source: Sentinel Hub documentation, Processing Unit
        definition, https://docs.sentinel-hub.com/api/latest/api/overview/processing-unit/. All outputs are integers
        of at most 16 bits, one sample a pixel, so that its other factors (32-bit formats, samples) are 1.
        """
        return max(0.005, max(0.01, height * width / 512**2) * self.input_bands / 3)


@dataclass(frozen=True)
class Image:
    """Bands (H, W, C) uint16 and masks (H, W, M) uint8 of one acquisition."""

    bands: NDArray[np.uint16]
    masks: NDArray[np.uint8]


class SentinelHub:
    """The source `sentinelhub`. Opening it sends nothing; credentials are looked for when the first request is sent.

    `secrets` may hold SH_CLIENT_ID and SH_CLIENT_SECRET; `config.credentials` comes before them. Errors are
    `SourceError` (the service, its answers, the credentials) and `DataError` (no dates, unlike radiometry).
    """

    def __init__(self, config: SentinelHubSource, secrets: Mapping[str, str]) -> None:
        self.config, self._secrets = config, secrets
        self.max_processing_units = config.max_processing_units
        base_url, token_url = ENDPOINTS[config.service]
        self.base_url = _checked_url(config.base_url or base_url, "source.base_url")
        self.token_url = _checked_url(config.token_url or token_url, "source.token_url")
        # the Copernicus Data Space has no CLM and CLP
        clouds = () if config.service == "copernicus" else ("CLM", "CLP")
        self.masks = ("SCL", "dataMask") if config.level == "L2A" else (*clouds, "dataMask")
        kind = DataCollection.SENTINEL2_L1C if config.level == "L1C" else DataCollection.SENTINEL2_L2A
        self.s2_recipe = _sentinel2(kind, S2_BANDS, self.masks, S2_GSD)
        self.cloud_recipe = _sentinel2(kind, S2CLOUDLESS_BANDS, ("dataMask",), CLOUD_GSD)
        self.recipes = [self.s2_recipe, self.cloud_recipe] if config.level == "L1C" else [self.s2_recipe]
        self.vhr_recipe = _vhr(config) if config.byoc_collection else None

    def regions(self) -> list[Region]:
        """Empty: Sentinel-2 covers all land."""
        return []

    def s2(self, patch: Patch, period: Dates | None) -> EOPatch:
        """Sentinel-2 at 10 m; `CLM` from SCL (L2A) or from Sentinel Hub's own CLM (L1C), where it is not clear is
        cloud, also where CLM has no data; at L1C `DATA["CLOUD_BANDS"]` (T, ceil(H/6), ceil(W/6), 10), and
        `DATA["CLP"]` uint8 (T, H, W, 1), cloud probability x 255, where the service has it.
        """
        found = self._acquisitions(self._products(self.s2_recipe, patch.bbox, period), patch)
        if not found:
            raise DataError(
                f"{self.base_url}, patch {patch.id}: no Sentinel-2 {self.config.level} from {_told(period)} whose tile"
                f" has at most source.max_cloud_cover = {self.config.max_cloud_cover:g} of cloud;"
                " take a longer period, or raise it"
            )
        jobs = [(recipe, acquisition) for recipe in self.recipes for acquisition in found]
        images = _in_threads(lambda job: self._image(job[0], job[1], patch), jobs)
        bands = np.stack([image.bands for image in images[: len(found)]])
        masks = np.stack([image.masks for image in images[: len(found)]])
        layers = dict(zip(self.masks, np.moveaxis(masks, -1, 0), strict=True))
        valid = layers["dataMask"] == 1
        timestamps = [acquisition.timestamp for acquisition in found]
        ids = [acquisition.product.id for acquisition in found]
        baselines = [baseline_of(name) for name in ids]
        # harmonised by the service: a date that is not would be seen here
        check_offsets(bands.astype(np.int32), valid, timestamps, baselines, f"{self.base_url}, patch {patch.id}")
        eopatch = EOPatch(bbox=patch.bbox, timestamps=timestamps)
        if "SCL" in layers:
            valid &= ~np.isin(layers["SCL"], SCL_NODATA)
            eopatch.mask["CLM"] = np.isin(layers["SCL"], SCL_CLOUD)[..., None]
            eopatch.meta_info["mask_kind"] = "scl"
        elif "CLM" in layers:
            eopatch.mask["CLM"] = ((layers["CLM"] != 0) & valid)[..., None]
            eopatch.data["CLP"] = layers["CLP"][..., None]
            eopatch.meta_info["mask_kind"] = "clm"
        eopatch.data["BANDS"] = _stored(bands, valid)
        eopatch.mask["VALID"] = valid[..., None]
        if self.cloud_recipe in self.recipes:
            eopatch.data["CLOUD_BANDS"] = np.stack(
                [_stored(image.bands, image.masks[..., 0] == 1) for image in images[len(found) :]]
            )
        eopatch.meta_info.update(
            {
                "source": "sentinelhub",
                "product_ids": ids,
                "processing_baselines": baselines,
                "level": self.config.level,
                "region": patch.region,
                "patch_id": patch.id,
                "gsd_m": S2_GSD,
            }
        )
        return eopatch

    def vhr(self, patch: Patch, period: Dates | None) -> EOPatch | None:
        """VHR radiance at 2.5 m from the collection `config.byoc_collection`; None where there is none.

        Raises `DataError` where more than `MOST_TOO_BRIGHT` of a date cannot be radiance.
        """
        if self.vhr_recipe is None:
            return None
        recipe = self.vhr_recipe
        found = self._acquisitions(self._products(recipe, patch.bbox, period), patch)
        if not found:
            return None
        images = _in_threads(lambda acquisition: self._image(recipe, acquisition, patch), found)
        for acquisition, image in zip(found, images, strict=True):
            wrong, seen = int((image.masks == TOO_BRIGHT).sum()), int((image.masks > 0).sum())
            if wrong > MOST_TOO_BRIGHT * seen:
                raise DataError(
                    f"{self.base_url}, patch {patch.id}, {acquisition.product.id}: {wrong} of {seen} pixels are below 0"
                    f" or above {65535 / RADIANCE_SCALE:g} W m-2 sr-1 um-1; expected radiance times"
                    f" source.byoc_radiance_scale = {self.config.byoc_radiance_scale:g}"
                )
        valid = np.stack([image.masks == 1 for image in images])
        eopatch = EOPatch(bbox=patch.bbox, timestamps=[acquisition.timestamp for acquisition in found])
        eopatch.data["BANDS"] = _stored(np.stack([image.bands for image in images]), valid[..., 0])
        eopatch.mask["VALID"] = valid
        eopatch.meta_info.update(
            {
                "source": "sentinelhub",
                "tile_ids": [acquisition.product.id for acquisition in found],
                "radiance_scale": RADIANCE_SCALE,
            }
        )
        return eopatch

    def reference(self, patch: Patch) -> EOPatch | None:
        """None: the service has no parcels."""
        return None

    def truth(self, patch: Patch, period: Dates | None) -> dict[str, EOPatch]:
        """Empty: nothing is known beyond the pixels."""
        return {}

    def fingerprint(self) -> Any:
        """None: all that decides about the pixels is in the configuration."""
        return None

    def estimate(self, patches: Sequence[Patch], period: Dates | None) -> Estimate:
        """What a download of these patches takes, from the Catalog alone. Bytes are those of uncompressed answers."""
        sensors = {"s2": self.recipes} | ({"vhr": [self.vhr_recipe]} if self.vhr_recipe else {})
        requests, units, size = 0, 0.0, 0
        counts = {"s2": 0, "vhr": 0}
        for region, epsg in sorted({(patch.region, patch.epsg) for patch in patches}):
            here = [patch for patch in patches if (patch.region, patch.epsg) == (region, epsg)]
            west, south, east, north = zip(*(patch.bounds for patch in here), strict=True)
            bbox = BBox((min(west), min(south), max(east), max(north)), CRS(epsg))
            for sensor, recipes in sensors.items():
                products = self._products(recipes[0], bbox, period)
                for patch in here:
                    dates = len(self._acquisitions(products, patch))
                    counts[sensor] += dates
                    requests += 1  # of the Catalog
                    for recipe in recipes:
                        for _, _, height, width in _blocks(_shape(patch, recipe.gsd)):
                            requests += dates
                            units += dates * recipe.processing_units(height, width)
                            size += dates * height * width * (2 * recipe.n_bands + recipe.n_masks)
        return Estimate(len(patches), counts, requests, units, size)

    def admit(self, patches: Sequence[Patch], period: Dates | None) -> Estimate:
        """`estimate`; raises `SourceError` where it exceeds `max_processing_units`."""
        found = self.estimate(patches, period)
        if found.processing_units > self.max_processing_units:
            raise SourceError(
                f"{self.base_url}: the download is estimated at {found.processing_units:.0f} processing units"
                f" ({found.requests} requests for {found.patches} patches); expected at most"
                f" source.max_processing_units = {self.max_processing_units:g}. Raise it, or take a smaller"
                " area, a shorter period or a lower max_cloud_cover"
            )
        return found

    @cached_property
    def _client(self) -> Client:
        credentials = read_credentials(self.config.credentials, self._secrets)
        limit = RateLimit.of_account(self.base_url, credentials[0], self.config.requests_per_minute)
        return Client(self.base_url, self.token_url, credentials, limit, self.config.max_retries, self.config.timeout_s)

    def _products(self, recipe: Recipe, bbox: BBox, period: Dates | None) -> list[Product]:
        """All that the Catalog has in a box, of at most `max_cloud_cover` where the collection knows its clouds."""
        collection = str(recipe.collection.catalog_id)
        time = None
        if period is not None:
            time = (dt.datetime.combine(period[0], dt.time.min), dt.datetime.combine(period[1], dt.time(23, 59, 59)))
        clouds = None
        if recipe is not self.vhr_recipe:
            clouds = f"eo:cloud_cover <= {100 * self.config.max_cloud_cover:g}"
        try:
            features = list(self._client.catalog.search(collection, bbox=bbox, time=time, filter=clouds))
            return [_product(feature) for feature in features]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SourceError(
                f"{self.base_url}: a product of the Catalog's collection {collection} lacks {error};"
                " expected `id`, `geometry` and `properties.datetime`"
            ) from error

    def _acquisitions(self, products: Sequence[Product], patch: Patch) -> list[Acquisition]:
        """One a pass, time ascending.

        Where one product shows the whole patch, it alone is asked for, of the patch's own UTM zone if there is one,
        so that nothing is resampled; else the service mosaics the products of the pass.
        """
        outline = _outline(patch)
        footprints = np.array([product.footprint for product in products], dtype=object)
        shares = np.round(shapely.area(shapely.intersection(footprints, outline)) / outline.area, 6)
        shown = {product: float(share) for product, share in zip(products, shares, strict=True) if share > 0}
        passes: list[list[Product]] = []
        for product in sorted(shown, key=lambda product: (product.passed, product.id)):
            if passes and product.passed - passes[-1][0].passed <= ONE_PASS:
                passes[-1].append(product)
            else:
                passes.append([product])
        found = []
        for group in passes:
            best = max(group, key=lambda one: (shown[one] == 1, one.epsg == patch.epsg, shown[one], one.id))
            used = [best] if shown[best] == 1 else group
            start, end = min(product.sensed for product in used), max(product.sensed for product in used)
            # the Catalog may round to seconds
            found.append(Acquisition(best, start.replace(microsecond=0) - SECOND, end.replace(microsecond=0) + SECOND))
        return found

    def _image(self, recipe: Recipe, acquisition: Acquisition, patch: Patch) -> Image:
        """One acquisition on the patch's grid of `recipe.gsd`, from its north-west corner."""
        rows, columns = _shape(patch, recipe.gsd)
        image = Image(
            np.zeros((rows, columns, recipe.n_bands), np.uint16), np.zeros((rows, columns, recipe.n_masks), np.uint8)
        )
        west, north = patch.bounds[0], patch.bounds[3]
        for row, column, height, width in _blocks((rows, columns)):
            left, top = west + column * recipe.gsd, north - row * recipe.gsd
            bounds = (left, top - height * recipe.gsd, left + width * recipe.gsd, top)
            expected = Expected(
                f"{self.base_url}, patch {patch.id}, {acquisition.product.id}",
                patch.epsg,
                bounds,
                (height, width),
                {"bands": recipe.n_bands, "masks": recipe.n_masks},
            )
            request = self._request(recipe, acquisition, BBox(bounds, CRS(patch.epsg)), (width, height))
            part = self._client.fetch(request, expected.read)
            inside = slice(row, row + height), slice(column, column + width)
            image.bands[inside], image.masks[inside] = part["bands"], part["masks"]
        return image

    def _request(self, recipe: Recipe, acquisition: Acquisition, bbox: BBox, size: tuple[int, int]) -> DownloadRequest:
        sentinel2 = recipe is not self.vhr_recipe
        data = SentinelHubRequest.input_data(
            recipe.collection,
            time_interval=(acquisition.start, acquisition.end),
            upsampling=recipe.resampling,
            downsampling=recipe.resampling,
            other_args={"processing": {"harmonizeValues": True}} if sentinel2 else None,
        )
        request = SentinelHubRequest(
            recipe.evalscript,
            [dict(data)],  # a plain dictionary goes to the client's endpoint, not to the collection's own
            [SentinelHubRequest.output_response(name, MimeType.TIFF) for name in OUTPUTS],
            bbox=bbox,
            size=size,
            config=self._client.config,
        )
        return request.download_list[0]


@dataclass(frozen=True)
class Expected:
    """What an answer of the Process API must be: a tar of one GeoTIFF an output, on the ground that was asked for."""

    name: str
    epsg: int
    bounds: tuple[float, float, float, float]
    shape: tuple[int, int]
    channels: Mapping[str, int]

    def read(self, body: bytes) -> dict[str, NDArray[Any]]:
        """Arrays (H, W, C) by output. Raises `TemporaryError` for a body that is not whole, and `SourceError` for a
        whole one that is something else: it would be the same another time, and is charged for each time.
        """
        try:
            with tarfile.open(fileobj=io.BytesIO(body)) as tar:
                files = {
                    member.name: stream.read()
                    for member in tar.getmembers()
                    if (stream := tar.extractfile(member)) is not None
                }
        except tarfile.TarError as error:
            raise TemporaryError(f"the answer ({len(body)} bytes) is not a whole tar archive ({error})") from None
        expected = {f"{name}.tif" for name in OUTPUTS}
        if set(files) != expected:
            if set(files) < expected:
                raise TemporaryError(f"the answer holds {sorted(files)}; expected {sorted(expected)}")
            raise SourceError(f"{self.name}: the answer holds {sorted(files)}; expected {sorted(expected)}")
        return {name: self._read_tiff(name, files[f"{name}.tif"]) for name in OUTPUTS}

    def _read_tiff(self, output: str, content: bytes) -> NDArray[Any]:
        if not content:  # which rasterio would take for a file to be written
            raise TemporaryError(f"{output}.tif is empty")
        try:
            with MemoryFile(content) as memory, memory.open(driver="GTiff") as dataset:
                epsg = dataset.crs.to_epsg() if dataset.crs else None
                found = (dataset.dtypes[0], dataset.count, dataset.shape, epsg)
                wanted = (OUTPUTS[output], self.channels[output], self.shape, self.epsg)
                if found != wanted:
                    raise SourceError(
                        f"{self.name}: {output}.tif is {_described(*found)}; expected {_described(*wanted)}"
                    )
                if not np.allclose(dataset.bounds, self.bounds, rtol=0, atol=1e-3):
                    raise SourceError(
                        f"{self.name}: {output}.tif covers {tuple(dataset.bounds)}; expected {self.bounds}"
                    )
                pixels: NDArray[Any] = dataset.read()
        except RasterioError as error:
            raise TemporaryError(f"{output}.tif ({len(content)} bytes) is not a whole GeoTIFF ({error})") from None
        return np.moveaxis(pixels, 0, -1)


def read_credentials(path: Path | None, secrets: Mapping[str, str]) -> tuple[str, str]:
    """Client id and secret: from a mounted file (or a folder with a file a name, as Kubernetes mounts a secret) where
    `path` names one, else from `secrets`. Raises `SourceError` that tells which name is missing, and where.
    """
    found, where = dict(secrets), "the environment"
    if path is not None:
        where = f"source.credentials {path}"
        try:
            if path.is_dir():
                found = {name: (path / name).read_text("utf-8") for name in SECRETS if (path / name).is_file()}
            else:
                lines = (line.removeprefix("export ").partition("=") for line in path.read_text("utf-8").splitlines())
                found = {name.strip(): value for name, _, value in lines}
        except (OSError, UnicodeDecodeError) as error:
            raise SourceError(
                f"{where}: cannot be read ({getattr(error, 'strerror', None) or 'not text'}); expected lines"
                f" {' and '.join(f'{name}=...' for name in SECRETS)}"
            ) from None
    values = {name: found.get(name, "").strip().strip("\"'") for name in SECRETS}
    missing = [name for name, value in values.items() if not value]
    if missing:
        raise SourceError(
            f"{' and '.join(missing)}: not in {where}; Sentinel Hub needs {' and '.join(SECRETS)} of an OAuth client,"
            " in the environment or in the file that source.credentials names"
        )
    return values["SH_CLIENT_ID"], values["SH_CLIENT_SECRET"]


def _sentinel2(collection: DataCollection, bands: Sequence[str], masks: Sequence[str], gsd: float) -> Recipe:
    script = evalscript("sentinel2.js", BANDS=list(bands), MASKS=list(masks))
    charged = len(bands) + len(masks) - 1
    # at 10 m nothing is to be resampled but classes; at 60 m interpolation comes nearer to a mean than one pixel does
    resampling = ResamplingType.NEAREST if gsd == S2_GSD else ResamplingType.BILINEAR
    return Recipe(collection, script, gsd, len(bands), len(masks), charged, resampling)


def _vhr(config: SentinelHubSource) -> Recipe:
    if set(config.byoc_bands) != set(BANDS):
        raise ConfigError(f"source.byoc_bands: found {sorted(config.byoc_bands)}; expected {', '.join(BANDS)}")
    names = [name for _, name in sorted(config.byoc_bands.items(), key=lambda item: BANDS.index(item[0]))]
    script = evalscript("vhr.js", BANDS=names, PAN=config.byoc_pan, SCALE=RADIANCE_SCALE / config.byoc_radiance_scale)
    charged = len(names) + (config.byoc_pan is not None)
    collection = DataCollection.define_byoc(str(config.byoc_collection))
    return Recipe(collection, script, VHR_GSD, len(names), 1, charged, ResamplingType.BILINEAR)


def evalscript(name: str, **constants: Any) -> str:
    """A script of `evalscripts/`, with constants defined behind its first line, which must be its version."""
    version, rest = (EVALSCRIPTS / name).read_text(encoding="utf-8").split("\n", 1)
    defined = "".join(f"const {key} = {json.dumps(value)};\n" for key, value in constants.items())
    return f"{version}\n{defined}{rest}"


def _product(feature: Mapping[str, Any]) -> Product:
    properties = feature["properties"]
    time = dt.datetime.fromisoformat(properties["datetime"])
    sensed = time.astimezone(dt.UTC).replace(tzinfo=None) if time.tzinfo else time
    name = str(feature["id"]).removesuffix(".SAFE")
    passed, epsg = sensed, properties.get("proj:epsg")
    if found := _PRODUCT.match(name):
        passed = sensing_time(name, name)
        epsg = (32600 if found["band"] >= "N" else 32700) + int(found["zone"])
    return Product(name, sensed, passed, epsg, shape(feature["geometry"]))


def _outline(patch: Patch) -> BaseGeometry:
    """The patch's ground in EPSG:4326."""
    to_wgs84 = pyproj.Transformer.from_crs(patch.epsg, "EPSG:4326", always_xy=True)
    return reproject(to_wgs84.transform, box(*patch.bounds).segmentize(1000.0))


def _shape(patch: Patch, gsd: float) -> tuple[int, int]:
    """Rows and columns of `gsd` metres that cover the patch from its north-west corner."""
    west, south, east, north = patch.bounds
    return math.ceil((north - south) / gsd - 1e-6), math.ceil((east - west) / gsd - 1e-6)


def _blocks(shape: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    """Row, column, height and width of blocks that a request may ask for."""
    for row in range(0, shape[0], LARGEST_SIDE):
        for column in range(0, shape[1], LARGEST_SIDE):
            yield row, column, min(LARGEST_SIDE, shape[0] - row), min(LARGEST_SIDE, shape[1] - column)


def _stored(bands: NDArray[np.uint16], valid: NDArray[np.bool_]) -> NDArray[np.uint16]:
    """As patches hold them: 0 is nodata, and data are at least 1."""
    return np.where(valid[..., None], np.maximum(bands, 1), 0).astype(np.uint16)


def _in_threads(function: Callable[[Any], T], items: Sequence[Any]) -> list[T]:
    """What `function` makes of each item, in order, `THREADS` at a time; the first error ends it."""
    with ThreadPoolExecutor(THREADS) as pool:
        futures = [pool.submit(function, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _checked_url(url: str, key: str) -> str:
    """The URL without a trailing slash. Raises `ConfigError` unless it is https, or http on this machine."""
    parts = urlsplit(url)
    if not parts.hostname or not (parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOOPBACK)):
        raise ConfigError(f"{key}: found {url!r}; expected https://..., for credentials and tokens go there")
    return url.rstrip("/")


def _described(dtype: str, count: int, shape: tuple[int, int], epsg: int | None) -> str:
    return f"{count} x {shape[0]} x {shape[1]} {dtype} in EPSG:{epsg}"


def _told(period: Dates | None) -> str:
    return f"{period[0]} to {period[1]}" if period else "all time"
