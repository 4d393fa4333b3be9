"""STAC descriptions of products: an Item a date, and one Collection of all.

Links are relative, so that the folder can be moved, or read straight from a bucket.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pystac
import shapely
from pyproj import Transformer
from pystac.extensions.eo import Band, EOExtension
from pystac.extensions.projection import ProjectionExtension
from pystac.extensions.raster import DataType, RasterBand, RasterExtension, Sampling
from shapely.ops import transform as reproject

from sr_core import BANDS, REFLECTANCE_SCALE

COLLECTION_FILE = "collection.json"
ITEM_FILE = "item.json"
WAVELENGTHS_UM = {"blue": 0.4924, "green": 0.5598, "red": 0.6646, "nir": 0.8328}
"""Central wavelengths of Sentinel-2A's bands B02, B03, B04 and B08 (ESA, Sentinel-2 Spectral Response Functions)."""


def describe_date(
    *,
    identifier: str,
    collection: str,
    timestamp: dt.datetime,
    cells: Sequence[tuple[float, float, float, float]],
    epsg: int,
    layers: Mapping[str, tuple[tuple[int, int], tuple[float, ...], int, float]],
    title: str,
    sources: Sequence[str],
    properties: Mapping[str, Any],
) -> dict[str, Any]:
    """The Item of one date as JSON, for `<collection>/<region>/<date>/item.json`.

    `cells` are the bounds of the ground that was made (metres of zone `epsg`); `layers` gives for the assets `sr` and
    `consistency` their shape (rows, columns), affine transform (six numbers), nodata value and pixel size in metres;
    `sources` are ids of the Sentinel-2 products it was made from.
    """
    to_wgs84 = Transformer.from_crs(epsg, "EPSG:4326", always_xy=True)
    # an edge is straight in metres, not in degrees: a corner a kilometre
    outline = shapely.union_all([shapely.box(*cell) for cell in cells]).segmentize(1000.0)
    footprint = shapely.set_precision(reproject(to_wgs84.transform, outline), 1e-7)
    item = pystac.Item(
        id=identifier,
        geometry=json.loads(shapely.to_geojson(footprint)),
        bbox=[round(value, 7) for value in footprint.bounds],
        datetime=timestamp.replace(tzinfo=dt.UTC),
        properties={"title": title, **properties},
        collection=collection,
    )
    titles = {
        "sr": ("Super-resolved reflectance", ["data", "reflectance"]),
        "consistency": ("Difference from the latest Sentinel-2 image, degraded to its grid", ["data", "quality"]),
    }
    for name, (shape, transform, nodata, gsd) in layers.items():
        asset = pystac.Asset(f"./{name}.tif", titles[name][0], media_type=pystac.MediaType.COG, roles=titles[name][1])
        item.add_asset(name, asset)
        projection = ProjectionExtension.ext(asset, add_if_missing=True)
        projection.code, projection.shape, projection.transform = f"EPSG:{epsg}", list(shape), list(transform)
        EOExtension.ext(asset, add_if_missing=True).bands = [
            Band.create(band, band, center_wavelength=WAVELENGTHS_UM[band]) for band in BANDS
        ]
        RasterExtension.ext(asset, add_if_missing=True).bands = [
            RasterBand.create(
                nodata=nodata,
                sampling=Sampling.AREA,
                data_type=DataType.UINT16,
                spatial_resolution=gsd,
                scale=1 / REFLECTANCE_SCALE,
                offset=0.0,
            )
            for _ in BANDS
        ]
    item.add_asset(
        "quicklook", pystac.Asset("./quicklook.png", "Quicklook", media_type=pystac.MediaType.PNG, roles=["overview"])
    )
    up = f"../../{COLLECTION_FILE}"
    for relation in ("root", "parent", "collection"):
        item.add_link(pystac.Link(relation, up, media_type=pystac.MediaType.JSON))
    for source in sources:
        item.add_link(pystac.Link("derived_from", f"urn:sentinel-2:product:{source}", title=source))
    described: dict[str, Any] = item.to_dict(include_self_link=False, transform_hrefs=False)
    return described


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


def write_json(path: Path, content: Any) -> None:
    """Write JSON aside and rename it."""
    aside = path.with_name(f".{path.name}")
    aside.write_text(json.dumps(content, indent=1), encoding="utf-8")
    aside.replace(path)
