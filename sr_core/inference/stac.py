"""STAC descriptions of products: an Item a date, and one Collection of all.

Links are relative, so that the folder can be moved, or read straight from a bucket.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import pystac
import shapely
from pyproj import Transformer
from pystac.extensions.eo import Band, EOExtension
from pystac.extensions.file import FileExtension
from pystac.extensions.mlm import InputStructure, MLMExtension, ModelInput, ModelOutput, ResultStructure, TaskType
from pystac.extensions.projection import ProjectionExtension
from pystac.extensions.raster import DataType, RasterBand, RasterExtension, Sampling
from shapely.ops import transform as reproject

from sr_core import BANDS, REFLECTANCE_SCALE
from sr_core.files import write_json
from sr_core.inference.mosaic import Mosaic
from sr_core.inference.rasters import Layer

COLLECTION_FILE = "collection.json"
MODEL_FILE = "model.json"
ITEM_FILE = "item.json"
PROCESSING = "https://stac-extensions.github.io/processing/v1.2.0/schema.json"
WAVELENGTHS_UM = {"blue": 0.4924, "green": 0.5598, "red": 0.6646, "nir": 0.8328}
"""Central wavelengths of Sentinel-2A's bands B02, B03, B04 and B08 (ESA, Sentinel-2 Spectral Response Functions)."""


def describe_date(
    *,
    identifier: str,
    collection: str,
    timestamp: dt.datetime,
    cells: Sequence[tuple[float, float, float, float]],
    mosaic: Mosaic,
    layers: Sequence[Layer],
    folder: Path,
    title: str,
    sources: Sequence[str],
    properties: Mapping[str, Any],
) -> dict[str, Any]:
    """The Item of one date as JSON, for `<collection>/<region>/<date>/item.json`.

    `cells` are the bounds of the ground that was made, metres of the mosaic's zone; `folder` holds the files of the
    `layers` already; `sources` are ids of the Sentinel-2 products it was made from.
    """
    to_wgs84 = Transformer.from_crs(mosaic.epsg, "EPSG:4326", always_xy=True)
    # an edge is straight in metres, not in degrees: a corner a kilometre
    outline = shapely.union_all([shapely.box(*cell) for cell in cells]).segmentize(1000.0)
    footprint = shapely.set_precision(reproject(to_wgs84.transform, outline), 1e-7)
    item = pystac.Item(
        id=identifier,
        geometry=json.loads(shapely.to_geojson(footprint)),
        bbox=[round(value, 7) for value in footprint.bounds],
        datetime=timestamp.replace(tzinfo=dt.UTC),
        properties={"title": title, **processing(), **properties},
        collection=collection,
        stac_extensions=[PROCESSING],
    )
    for layer in layers:
        asset = pystac.Asset(
            f"./{layer.file}", layer.title, layer.content, media_type=pystac.MediaType.COG, roles=list(layer.roles)
        )
        item.add_asset(layer.name, asset)
        projection = ProjectionExtension.ext(asset, add_if_missing=True)
        projection.code, projection.shape = f"EPSG:{mosaic.epsg}", list(mosaic.shape(layer.gsd))
        projection.transform = list(mosaic.transform(layer.gsd))[:6]
        EOExtension.ext(asset, add_if_missing=True).bands = [
            Band.create(band, band, center_wavelength=WAVELENGTHS_UM[band]) for band in BANDS
        ]
        RasterExtension.ext(asset, add_if_missing=True).bands = [
            RasterBand.create(
                nodata=layer.nodata,
                sampling=Sampling.AREA,
                data_type=DataType.UINT16,
                spatial_resolution=layer.gsd,
                scale=1 / REFLECTANCE_SCALE,
                offset=0.0,
            )
            for _ in BANDS
        ]
        FileExtension.ext(asset, add_if_missing=True).size = (folder / layer.file).stat().st_size
    item.add_asset(
        "quicklook", pystac.Asset("./quicklook.png", "Quicklook", media_type=pystac.MediaType.PNG, roles=["overview"])
    )
    up = f"../../{COLLECTION_FILE}"
    for relation in ("root", "parent", "collection"):
        item.add_link(pystac.Link(relation, up, media_type=pystac.MediaType.JSON))
    item.add_link(
        pystac.Link("ml-model", f"../../{MODEL_FILE}", media_type=pystac.MediaType.GEOJSON, title="The model used")
    )
    for source in sources:
        item.add_link(pystac.Link("derived_from", f"urn:sentinel-2:product:{source}", title=source))
    described: dict[str, Any] = item.to_dict(include_self_link=False, transform_hrefs=False)
    return described


def processing() -> dict[str, Any]:
    """What the Processing extension says of all products."""
    return {
        "processing:software": {"subpixel": metadata.version("subpixel")},
        "processing:lineage": "clear frames of a rolling window, co-registered, fused into one image by HighRes-Net",
    }


def write_model(folder: Path, key: str, description: Mapping[str, Any]) -> None:
    """Write `model.json`, an Item of the Machine Learning Model extension: what the products were made with.

    `description` is the bundle's `model.json`, whose architecture, lineage and scores are kept whole. A model has no
    place (the geometry is null), and its time is Sentinel-2's.
    """
    bands, frames, scale = list(description["bands"]), int(description["frames"]), int(description["scale"])
    item = pystac.Item(
        id=f"model-{key}",
        geometry=None,
        bbox=None,
        datetime=None,
        start_datetime=dt.datetime(2015, 6, 23, tzinfo=dt.UTC),
        end_datetime=dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC),
        properties={
            "title": "HighRes-Net bundle",
            **{f"subpixel:{name}": description.get(name, {}) for name in ("architecture", "lineage", "scores")},
        },
    )
    MLMExtension.ext(item, add_if_missing=True).apply(
        name="subpixel HighRes-Net",
        architecture="HighRes-Net",
        tasks=[TaskType.SUPER_RESOLUTION],
        framework="pytorch",
        input=[
            ModelInput.create(
                name="frames, latest first, with masks and displacements",
                bands=bands,
                input=InputStructure.create(
                    shape=[-1, frames, len(bands), -1, -1],
                    dim_order=["batch", "time", "bands", "height", "width"],
                    data_type=DataType.FLOAT32,
                ),
                description="reflectance, each band less its mean over the place's clear pixels, over their deviation",
            )
        ],
        output=[
            ModelOutput.create(
                name=f"reflectance on a grid {scale} times as fine",
                tasks=[TaskType.SUPER_RESOLUTION],
                result=ResultStructure.create(
                    shape=[-1, len(bands), -1, -1],
                    dim_order=["batch", "bands", "height", "width"],
                    data_type=DataType.FLOAT32,
                ),
            )
        ],
    )
    for relation in ("root", "parent"):
        item.add_link(pystac.Link(relation, f"./{COLLECTION_FILE}", media_type=pystac.MediaType.JSON))
    write_json(folder / MODEL_FILE, item.to_dict(include_self_link=False, transform_hrefs=False))


def write_collection(
    folder: Path, identifier: str, description: str, items: Sequence[Mapping[str, Any]], *, real: bool
) -> None:
    """Write `collection.json` over the Items, each in the folder that its `subpixel:path` names.

    `real`: from Sentinel-2, not simulated.
    """
    times = [dt.datetime.fromisoformat(item["properties"]["datetime"]) for item in items]
    bounds = [float(bound) for bound in shapely.union_all([shapely.box(*item["bbox"]) for item in items]).bounds]
    attributions = sorted({item["properties"]["attribution"] for item in items})
    collection = pystac.Collection(
        id=identifier,
        description=f"{description} {'; '.join(attributions)}.",
        extent=pystac.Extent(pystac.SpatialExtent([bounds]), pystac.TemporalExtent([[min(times), max(times)]])),
        license="other",
        providers=[pystac.Provider("ESA / Copernicus", roles=[pystac.ProviderRole.PRODUCER])] if real else None,
        keywords=["super-resolution", "2.5 m", *(["Sentinel-2"] if real else ["simulation"])],
    )
    collection.add_link(pystac.Link("root", f"./{COLLECTION_FILE}", media_type=pystac.MediaType.JSON))
    for item in items:
        collection.add_link(
            pystac.Link(
                "item", f"./{item['properties']['subpixel:path']}/{ITEM_FILE}", media_type=pystac.MediaType.GEOJSON
            )
        )
    if real:
        notice = "https://sentinels.copernicus.eu/documents/247904/690755/Sentinel_Data_Legal_Notice"
        collection.add_link(pystac.Link("license", notice, title="Copernicus Sentinel data legal notice"))
    write_json(folder / COLLECTION_FILE, collection.to_dict(include_self_link=False, transform_hrefs=False))
