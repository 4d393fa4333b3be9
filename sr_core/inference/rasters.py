"""The rasters of a product: what each layer is, the pieces it is made of, and the cloud-optimised GeoTIFF at the end.

Pieces are small GeoTIFFs, one a window, so that what is finished outlives a killed process. GDAL reads them as one
virtual raster, from which its COG driver makes the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio.crs import CRS
from rio_cogeo.cogeo import cog_validate

from sr_core import BANDS, REFLECTANCE_SCALE
from sr_core.errors import ArtifactError
from sr_core.inference.mosaic import Mosaic
from sr_core.inference.windows import Window
from sr_core.patches import S2_GSD, VHR_GSD

COLOURS = ("Blue", "Green", "Red", "Undefined")
TILE = 512
LEVEL = 3
"""Of DEFLATE: 6, the usual one, takes twice the time for files that are a few per cent smaller."""


@dataclass(frozen=True)
class Layer:
    """One raster of a product: uint16, reflectance x 10000, bands blue, green, red, nir."""

    name: str
    gsd: float
    """Metres."""
    nodata: int
    title: str
    roles: tuple[str, ...]
    content: str
    """What a pixel means; written into the file."""

    @property
    def file(self) -> str:
        return f"{self.name}.tif"

    @property
    def scale(self) -> int:
        """Pixels of the layer in a 10 m pixel, a side."""
        return round(S2_GSD / self.gsd)


SR = Layer(
    "sr",
    VHR_GSD,
    0,
    "Super-resolved reflectance",
    ("data", "reflectance"),
    "surface or top-of-atmosphere reflectance as in the source, x 10000; 0: no data",
)
S2 = Layer(
    "s2",
    S2_GSD,
    0,
    "The latest Sentinel-2 image as it was",
    ("data", "reflectance"),
    "reflectance of the latest image as delivered, clouds and all, x 10000; 0: no data",
)
CONSISTENCY = Layer(
    "consistency",
    S2_GSD,
    65535,
    "Difference from the latest Sentinel-2 image, degraded to its grid",
    ("data", "quality"),
    "|degrade(sr) - Sentinel-2| in reflectance x 10000; 65535: no data, or the latest image is cloudy there",
)
UNCERTAINTY = Layer(
    "uncertainty",
    VHR_GSD,
    65535,
    "How far off the super-resolved reflectance may be",
    ("data", "quality"),
    "scale of a Laplace distribution around sr, in reflectance x 10000: half of all errors are below 0.69 of it;"
    " 65535: no data",
)


@dataclass(frozen=True)
class Piece:
    """A GeoTIFF, or a rectangle of one, that fills a window of a mosaic."""

    path: Path
    window: Window
    """Where it lies, in 10 m pixels of the mosaic."""
    offset: tuple[int, int] = (0, 0)
    """Row and column in the file where the window begins, in the file's pixels."""


def write_piece(path: Path, image: NDArray[np.uint16], layer: Layer, mosaic: Mosaic, window: Window) -> None:
    """Write (4,H,W) of a window as a plain GeoTIFF."""
    profile = {
        "driver": "GTiff",
        "count": image.shape[0],
        "height": image.shape[1],
        "width": image.shape[2],
        "dtype": "uint16",
        "nodata": layer.nodata,
        "crs": f"EPSG:{mosaic.epsg}",
        "transform": mosaic.transform(layer.gsd, window.top, window.left),
        "interleave": "pixel",
    }
    with rasterio.open(path, "w", **profile) as raster:
        raster.write(image)


def write_cog(
    path: Path, layer: Layer, mosaic: Mosaic, pieces: Sequence[Piece], tags: Mapping[str, str], threads: int
) -> None:
    """Write a layer of the whole mosaic as a COG; ground without a piece is nodata.

    DEFLATE with the horizontal predictor, tiles of 512 pixels, overviews by averaging until one tile holds all.
    Raises `ArtifactError` where the result is not a valid COG.
    """
    virtual = path.with_suffix(".vrt")
    virtual.write_bytes(_virtual_raster(layer, mosaic, pieces, tags))
    rasterio.shutil.copy(
        virtual,
        path,
        driver="COG",
        compress="DEFLATE",
        level=LEVEL,
        predictor=2,
        blocksize=TILE,
        overview_resampling="AVERAGE",
        bigtiff="IF_SAFER",
        num_threads=threads,
    )
    virtual.unlink()
    valid, errors, warnings = cog_validate(path, strict=True, quiet=True)
    if not valid:
        raise ArtifactError(f"{path}: not a valid cloud-optimised GeoTIFF: {'; '.join([*errors, *warnings])}")


def _virtual_raster(layer: Layer, mosaic: Mosaic, pieces: Sequence[Piece], tags: Mapping[str, str]) -> bytes:
    """GDAL's VRT (https://gdal.org/drivers/raster/vrt.html) of the pieces."""
    rows, columns = mosaic.shape(layer.gsd)
    root = ElementTree.Element("VRTDataset", rasterXSize=str(columns), rasterYSize=str(rows))
    ElementTree.SubElement(root, "SRS").text = CRS.from_epsg(mosaic.epsg).to_wkt()
    ElementTree.SubElement(root, "GeoTransform").text = ", ".join(map(str, mosaic.transform(layer.gsd).to_gdal()))
    metadata = ElementTree.SubElement(root, "Metadata")
    for key, value in tags.items():
        ElementTree.SubElement(metadata, "MDI", key=key).text = value
    ElementTree.SubElement(
        ElementTree.SubElement(root, "Metadata", domain="IMAGE_STRUCTURE"), "MDI", key="INTERLEAVE"
    ).text = "PIXEL"
    for number, (band, colour) in enumerate(zip(BANDS, COLOURS, strict=True), start=1):
        element = ElementTree.SubElement(root, "VRTRasterBand", dataType="UInt16", band=str(number))
        ElementTree.SubElement(element, "Description").text = band
        ElementTree.SubElement(element, "NoDataValue").text = str(layer.nodata)
        ElementTree.SubElement(element, "ColorInterp").text = colour
        ElementTree.SubElement(element, "Scale").text = repr(1 / REFLECTANCE_SCALE)
        for piece in pieces:
            source = ElementTree.SubElement(element, "SimpleSource")
            ElementTree.SubElement(source, "SourceFilename", relativeToVRT="0").text = str(piece.path.resolve())
            ElementTree.SubElement(source, "SourceBand").text = str(number)
            height, width = (str(side * layer.scale) for side in piece.window.shape)
            (top, left), (down, across) = piece.offset, (piece.window.top, piece.window.left)
            ElementTree.SubElement(source, "SrcRect", xOff=str(left), yOff=str(top), xSize=width, ySize=height)
            place = {"xOff": str(across * layer.scale), "yOff": str(down * layer.scale)}
            ElementTree.SubElement(source, "DstRect", place, xSize=width, ySize=height)
    tree: bytes = ElementTree.tostring(root, encoding="utf-8")
    return tree
