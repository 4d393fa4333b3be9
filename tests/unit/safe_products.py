"""Small SAFE products for tests: real JP2, real metadata, a manifest with checksums."""

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.transform import Affine

BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
GSD = dict.fromkeys(("B02", "B03", "B04", "B08"), 10) | dict.fromkeys(("B01", "B09", "B10"), 60)


def gsd_of(band: str) -> int:
    return GSD.get(band, 20)


def write_safe(
    folder: Path,
    name: str,
    images: Mapping[str, NDArray],
    origin: tuple[float, float],
    *,
    epsg: int = 32631,
    tile: str = "T31UFS",
    offsets: Mapping[str, int] | None = None,
    quantification: int = 10_000,
    baseline: str | None = None,
    manifest: bool = True,
) -> Path:
    """`<name>.SAFE` with a JP2 of each image (H, W) by band; `offsets` by band as the metadata give them, -1000."""
    level = "L2A" if "MSIL2A" in name else "L1C"
    _, _, start, number, _, _, generated = name.split("_")
    baseline = baseline or f"{number[1:3]}.{number[3:]}"
    root = folder / f"{name}.SAFE"
    granule = root / "GRANULE" / f"{level}_{tile}_A000001_{start}"
    rows, columns = images["B02"].shape
    for band, image in images.items():
        gsd = gsd_of(band)
        place = granule / "IMG_DATA" / (f"R{gsd}m/{tile}_{start}_{band}_{gsd}m.jp2" if level == "L2A" else "")
        write_jp2(place if level == "L2A" else place / f"{tile}_{start}_{band}.jp2", image, gsd, origin, epsg)
    tag = "BOA_ADD_OFFSET" if level == "L2A" else "RADIO_ADD_OFFSET"
    listed = "".join(f'<{tag} band_id="{BANDS.index(band)}">{value}</{tag}>' for band, value in (offsets or {}).items())
    value = "BOA_QUANTIFICATION_VALUE" if level == "L2A" else "QUANTIFICATION_VALUE"
    times = {"PRODUCT_START_TIME": start, "GENERATION_TIME": generated}
    times = {key: f"{t[:4]}-{t[4:6]}-{t[6:11]}:{t[11:13]}:{t[13:15]}.024Z" for key, t in times.items()}
    (root / f"MTD_MSI{level}.xml").write_text(
        f'<?xml version="1.0" encoding="UTF-8"?>\n<n1:Level-{level[1:]}_User_Product xmlns:n1="https://psd-14.esa.int">'
        f"<n1:General_Info><Product_Info><PRODUCT_START_TIME>{times['PRODUCT_START_TIME']}</PRODUCT_START_TIME>"
        f"<PRODUCT_URI>{name}.SAFE</PRODUCT_URI><PROCESSING_BASELINE>{baseline}</PROCESSING_BASELINE>"
        f"<GENERATION_TIME>{times['GENERATION_TIME']}</GENERATION_TIME><Datatake>"
        f"<DATATAKE_SENSING_START>{times['PRODUCT_START_TIME']}</DATATAKE_SENSING_START></Datatake></Product_Info>"
        "<Product_Image_Characteristics><Special_Values><SPECIAL_VALUE_TEXT>NODATA</SPECIAL_VALUE_TEXT>"
        "<SPECIAL_VALUE_INDEX>0</SPECIAL_VALUE_INDEX></Special_Values>"
        f'<{value} unit="none">{quantification}</{value}>{listed}</Product_Image_Characteristics></n1:General_Info>'
        f"</n1:Level-{level[1:]}_User_Product>"
    )
    (granule / "MTD_TL.xml").write_text(
        f'<n1:Level-{level[1:]}_Tile_ID xmlns:n1="https://psd-14.esa.int"><n1:Geometric_Info><Tile_Geocoding>'
        f"<HORIZONTAL_CS_CODE>EPSG:{epsg}</HORIZONTAL_CS_CODE>"
        f'<Size resolution="10"><NROWS>{rows}</NROWS><NCOLS>{columns}</NCOLS></Size>'
        f'<Geoposition resolution="10"><ULX>{origin[0]:.0f}</ULX><ULY>{origin[1]:.0f}</ULY></Geoposition>'
        f"</Tile_Geocoding></n1:Geometric_Info></n1:Level-{level[1:]}_Tile_ID>"
    )
    if manifest:
        files = sorted(path for path in root.rglob("*") if path.is_file())
        (root / "manifest.safe").write_text(
            '<xfdu:XFDU xmlns:xfdu="urn:ccsds:schema:xfdu:1"><dataObjectSection>'
            + "".join(
                f'<dataObject><byteStream mimeType="application/octet-stream" size="{path.stat().st_size}">'
                f'<fileLocation locatorType="URL" href="./{path.relative_to(root).as_posix()}"/>'
                f'<checksum checksumName="MD5">{hashlib.md5(path.read_bytes()).hexdigest()}</checksum>'
                "</byteStream></dataObject>"
                for path in files
            )
            + "</dataObjectSection></xfdu:XFDU>"
        )
    return root


def write_jp2(path: Path, image: NDArray, gsd: int, origin: tuple[float, float], epsg: int) -> None:
    """Lossless."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path,
        "w",
        driver="JP2OpenJPEG",
        width=image.shape[1],
        height=image.shape[0],
        count=1,
        dtype=image.dtype,
        crs=f"EPSG:{epsg}",
        transform=Affine(gsd, 0, origin[0], 0, -gsd, origin[1]),
        QUALITY="100",
        REVERSIBLE="YES",
        YCBCR420="NO",
    ) as dataset:
        dataset.write(image, 1)


def zipped(safe: Path) -> Path:
    """The same product as a zip, beside it; the folder is kept."""
    path = safe.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(safe.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(safe.parent).as_posix())
    return path


def pyramid(seed: int = 0, side: int = 60, bands: tuple[str, ...] = BANDS) -> dict[str, NDArray[np.uint16]]:
    """Random bands of their own sizes over one piece of ground, `side` pixels of 10 m."""
    rng = np.random.default_rng(seed)
    return {band: rng.integers(200, 4000, (side * 10 // gsd_of(band),) * 2).astype(np.uint16) for band in bands}
