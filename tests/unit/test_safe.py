"""SAFE products read by the source `files`: the same pixels as GeoTIFFs, and no pixel of a damaged product."""

import datetime as dt
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio

from sr_core.config import FilesSource
from sr_core.errors import DataError, SourceError
from sr_core.masks.s2cloudless import S2CLOUDLESS_BANDS
from sr_core.patches import make_patch
from sr_core.sources.files import FileSeries
from tests.unit.geotiffs import NORTH_WEST, product, write_product
from tests.unit.safe_products import BANDS, gsd_of, pyramid, write_safe, zipped

WEST, NORTH = NORTH_WEST
PATCH = make_patch("area", 32631, (WEST, NORTH - 600, WEST + 600, NORTH), 0)
FOUR = ("B02", "B03", "B04", "B08")
ALL_OFFSETS = dict.fromkeys(BANDS, -1000)


def opened(folder: Path, **keys) -> FileSeries:
    return FileSeries(FilesSource(kind="files", path=folder, **keys))


def stacked(images: dict) -> np.ndarray:
    return np.stack([images[band] for band in FOUR], axis=-1)


@pytest.mark.parametrize("packed", [False, True])
def test_the_same_pixels_as_geotiffs(tmp_path: Path, packed: bool) -> None:
    images = pyramid(bands=FOUR)
    write_product(tmp_path / "tiffs", product("20170401"), np.moveaxis(stacked(images), -1, 0))
    safe = write_safe(tmp_path / "safe", product("20170401"), images, NORTH_WEST)
    if packed:
        zipped(safe)
        shutil.rmtree(safe)
    source, reference = opened(tmp_path / "safe", region="plain"), opened(tmp_path / "tiffs", region="plain")
    assert source.regions() == reference.regions()
    found, expected = source.s2(PATCH, None), reference.s2(PATCH, None)
    assert np.array_equal(found.data["BANDS"], expected.data["BANDS"])
    assert np.array_equal(found.data["BANDS"][0], stacked(images))
    assert np.array_equal(found.mask["VALID"], expected.mask["VALID"])
    assert found.get_timestamps() == expected.get_timestamps() == [dt.datetime(2017, 4, 1, 8, 20, 1)]
    assert dict(found.meta_info) == dict(expected.meta_info)


def test_a_patch_across_its_border(tmp_path: Path) -> None:
    images = pyramid(bands=FOUR)
    write_safe(tmp_path, product("20170401"), images, NORTH_WEST)
    part = opened(tmp_path).s2(make_patch("area", 32631, (WEST + 210, NORTH - 450, WEST + 810, NORTH + 150), 0), None)
    assert np.array_equal(part.data["BANDS"][0, 15:, :39], stacked(images)[:45, 21:])
    assert part.mask["VALID"].sum() == 45 * 39


@pytest.mark.parametrize("level", ["L1C", "L2A"])
def test_offsets_as_the_metadata_state_them(tmp_path: Path, level: str) -> None:
    images = pyramid(bands=FOUR)
    images["B02"][0, 0] = 0
    stored = {band: np.where(image, image + 1000 + 10 * number, 0).astype(np.uint16)
              for number, (band, image) in enumerate(images.items())}  # fmt: skip
    offsets = ALL_OFFSETS | {band: -1000 - 10 * number for number, band in enumerate(images)}
    write_safe(tmp_path, product("20220501", "0400").replace("L1C", level), stored, NORTH_WEST, offsets=offsets)
    eopatch = opened(tmp_path).s2(PATCH, None)
    assert np.array_equal(eopatch.data["BANDS"][0].reshape(-1, 4)[1:], stacked(images).reshape(-1, 4)[1:])
    assert not eopatch.mask["VALID"][0, 0, 0, 0] and not eopatch.data["BANDS"][0, 0, 0].any()


def test_offset_by_the_baseline_where_the_metadata_are_silent(tmp_path: Path) -> None:
    images = pyramid(bands=FOUR)
    stored = {band: (image + 1000).astype(np.uint16) for band, image in images.items()}
    write_safe(tmp_path, product("20220501", "0400"), stored, NORTH_WEST)
    assert np.array_equal(opened(tmp_path).s2(PATCH, None).data["BANDS"][0], stacked(images))


def test_another_quantification(tmp_path: Path) -> None:
    images = pyramid(bands=FOUR)
    write_safe(tmp_path, product("20170401"), images, NORTH_WEST, quantification=5000)
    assert np.array_equal(opened(tmp_path).s2(PATCH, None).data["BANDS"][0], 2 * stacked(images))


def test_scl_of_level_2a(tmp_path: Path) -> None:
    images = pyramid(bands=FOUR) | {"SCL": np.full((30, 30), 4, np.uint8)}
    images["SCL"][3, 5], images["SCL"][0, 0] = 9, 1
    write_safe(tmp_path, product("20170401").replace("L1C", "L2A"), images, NORTH_WEST)
    eopatch = opened(tmp_path).s2(PATCH, None)
    cloud = eopatch.mask["CLM"][0, ..., 0]
    assert cloud[6:8, 10:12].all() and cloud.sum() == 4
    assert not eopatch.mask["VALID"][0, :2, :2].any() and eopatch.mask["VALID"].sum() == 3596
    assert (eopatch.meta_info["level"], eopatch.meta_info["mask_kind"]) == ("L2A", "scl")
    assert "CLOUD_BANDS" not in eopatch.data


# --- tiles and passes ----------------------------------------------------------------------------------------------


def test_tiles_of_one_pass_side_by_side(tmp_path: Path) -> None:
    """Two tiles that overlap by 120 m, as neighbours in the grid of Sentinel-2 do; the west one ends in nodata."""
    west, east = pyramid(1, bands=FOUR), pyramid(2, bands=FOUR)
    for band in FOUR:
        east[band][:, :12] = west[band][:, 48:]
        west[band][:, 54:] = 0
    for tile, images, x in (("T31UFS", west, WEST), ("T31UGS", east, WEST + 480)):
        name = product("20170401").replace("T31UFS", tile)
        write_safe(tmp_path, name, images, (x, NORTH), tile=tile)
    source = opened(tmp_path)
    (region,) = source.regions()
    assert region.bounds == (WEST, NORTH - 600, WEST + 1080, NORTH)
    whole = source.s2(make_patch("area", 32631, (WEST, NORTH - 600, WEST + 1080, NORTH), 0), None)
    assert len(whole.get_timestamps()) == 1 and whole.mask["VALID"].all()
    assert np.array_equal(whole.data["BANDS"][0, :, :54], stacked(west)[:, :54])
    assert np.array_equal(whole.data["BANDS"][0, :, 48:], stacked(east))
    assert whole.meta_info["product_ids"][0].count("_T31U") == 2


def test_best_of_two_acquisitions_of_a_pass(tmp_path: Path) -> None:
    """Satellites that fly one behind the other: the acquisition that shows more of the patch."""
    images = pyramid(bands=FOUR)
    half = {band: np.where(np.arange(60) < 20, image, 0).astype(np.uint16) for band, image in images.items()}
    write_safe(tmp_path, product("20170401"), half, NORTH_WEST)
    write_safe(tmp_path, product("20170401").replace("T082001", "T083001"), images, NORTH_WEST)
    eopatch = opened(tmp_path).s2(PATCH, None)
    assert [time.minute for time in eopatch.get_timestamps()] == [30] and eopatch.mask["VALID"].all()


def test_the_latest_processing_of_a_tile(tmp_path: Path) -> None:
    old, new = pyramid(1, bands=FOUR), pyramid(2, bands=FOUR)
    write_safe(tmp_path, product("20170401"), old, NORTH_WEST)
    stored = {band: (image + 1000).astype(np.uint16) for band, image in new.items()}
    write_safe(tmp_path, product("20170401", "0500"), stored, NORTH_WEST, offsets=ALL_OFFSETS)
    eopatch = opened(tmp_path).s2(PATCH, None)
    assert np.array_equal(eopatch.data["BANDS"][0], stacked(new))
    assert eopatch.meta_info["processing_baselines"] == ["05.00"]


def test_zones_are_regions(tmp_path: Path) -> None:
    write_safe(tmp_path, product("20170401"), pyramid(bands=FOUR), NORTH_WEST)
    name = product("20170401").replace("T31UFS", "T32ULB")
    write_safe(tmp_path, name, pyramid(bands=FOUR), NORTH_WEST, epsg=32632, tile="T32ULB")
    regions = opened(tmp_path, region="plain").regions()
    assert [(region.name, region.epsg) for region in regions] == [("plain-1", 32631), ("plain-2", 32632)]


# --- bands of s2cloudless ------------------------------------------------------------------------------------------


def at_60_m(images: dict, top: int, left: int, rows: int, columns: int) -> np.ndarray:
    """Means over 60 m from a corner in 10 m pixels, worked out on a canvas of 10 m, band after band."""
    found = []
    for band in S2CLOUDLESS_BANDS:
        factor = gsd_of(band) // 10
        fine = images[band].repeat(factor, 0).repeat(factor, 1).astype(float)
        fine = np.pad(fine, ((0, 60), (0, 60)), constant_values=np.nan)[top:, left:][: rows * 6, : columns * 6]
        found.append(np.nanmean(fine.reshape(rows, 6, columns, 6), axis=(1, 3)))
    return np.rint(np.stack(found, axis=-1)).astype(np.uint16)


def test_bands_of_s2cloudless_at_60_m(tmp_path: Path) -> None:
    images = pyramid()
    write_safe(tmp_path, product("20170401"), images, NORTH_WEST)
    bands = opened(tmp_path).s2(PATCH, None).data["CLOUD_BANDS"]
    assert bands.shape == (1, 10, 10, 10) and bands.dtype == np.uint16
    assert np.array_equal(bands[0], at_60_m(images, 0, 0, 10, 10))


def test_bands_of_s2cloudless_off_the_grid_of_60_m(tmp_path: Path) -> None:
    """A patch that begins inside a 60 m pixel and ends inside another, beyond the tile."""
    images = pyramid()
    write_safe(tmp_path, product("20170401"), images, NORTH_WEST)
    patch = make_patch("area", 32631, (WEST + 200, NORTH - 480, WEST + 600, NORTH - 80), 0)
    bands = opened(tmp_path).s2(patch, None).data["CLOUD_BANDS"]
    assert np.array_equal(bands[0], at_60_m(images, 8, 20, 7, 7))


def test_bands_of_s2cloudless_carry_no_offset_and_skip_nodata(tmp_path: Path) -> None:
    images = pyramid()
    stored = {band: (image + 1000).astype(np.uint16) for band, image in images.items()}
    stored["B02"][:6, :6] = 0
    write_safe(tmp_path, product("20220501", "0400"), stored, NORTH_WEST, offsets=ALL_OFFSETS)
    bands = opened(tmp_path).s2(PATCH, None).data["CLOUD_BANDS"][0]
    assert not bands[0, 0].any()
    assert np.array_equal(bands[1:], at_60_m(images, 0, 0, 10, 10)[1:])


def test_no_cloud_bands_where_one_is_missing(tmp_path: Path) -> None:
    images = pyramid(bands=tuple(band for band in BANDS if band != "B10"))
    write_safe(tmp_path, product("20170401"), images, NORTH_WEST)
    assert "CLOUD_BANDS" not in opened(tmp_path).s2(PATCH, None).data


# --- products that cannot be used ----------------------------------------------------------------------------------


@pytest.fixture
def safe(tmp_path: Path) -> Path:
    return write_safe(tmp_path, product("20170401"), pyramid(bands=FOUR), NORTH_WEST)


def jp2(safe: Path, band: str) -> Path:
    return next(safe.rglob(f"*_{band}.jp2"))


def spoil(path: Path) -> None:
    """Bytes in the middle of a code-stream: it decodes without a complaint, to other pixels."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    path.write_bytes(data)


def rewrite(path: Path, pattern: str, replacement: str) -> None:
    text = path.read_text()
    changed = re.sub(pattern, replacement, text)
    assert changed != text
    path.write_text(changed)


def test_a_damaged_jp2_is_found_by_the_manifest(safe: Path) -> None:
    with rasterio.open(jp2(safe, "B03")) as dataset:
        before = dataset.read(1)
    spoil(jp2(safe, "B03"))
    with rasterio.open(jp2(safe, "B03")) as dataset:
        assert (dataset.read(1) != before).any()  # GDAL alone would not tell
    with pytest.raises(SourceError, match=r"_B03\.jp2: damaged: its MD5 is \w+, expected \w+ by manifest\.safe"):
        opened(safe.parent).s2(PATCH, None)


def test_a_damaged_jp2_is_found_in_a_zip(safe: Path) -> None:
    (safe / "manifest.safe").unlink()
    packed = zipped(safe)
    content = jp2(safe, "B04").read_bytes()
    shutil.rmtree(safe)
    data = bytearray(packed.read_bytes())
    place = data.index(content) + len(content) // 2
    data[place : place + 40] = bytes(40)
    packed.write_bytes(data)
    with pytest.raises(SourceError, match=r"\.zip/.*_B04\.jp2: damaged: Bad CRC-32"):
        opened(packed.parent).s2(PATCH, None)


def test_a_jp2_cut_short(safe: Path) -> None:
    with jp2(safe, "B08").open("r+b") as file:
        file.truncate(file.seek(0, 2) - 200)
    with pytest.raises(SourceError, match=r"_B08\.jp2: found \d+ bytes, expected \d+ by manifest\.safe"):
        opened(safe.parent)
    (safe / "manifest.safe").unlink()
    with pytest.raises(SourceError, match=r"_B08\.jp2: cannot be read, the file may be truncated"):
        opened(safe.parent).s2(PATCH, None)


def test_a_zip_cut_short(safe: Path) -> None:
    packed = zipped(safe)
    shutil.rmtree(safe)
    with packed.open("r+b") as file:
        file.truncate(file.seek(0, 2) * 3 // 4)
    with pytest.raises(SourceError, match=r"N0204.*\.zip: not a readable zip, it may be truncated"):
        opened(packed.parent)


def test_a_zip_of_something_else(tmp_path: Path) -> None:
    write_product(tmp_path / "in.SAFE", "x_20170401", np.ones((4, 8, 8), np.uint16))
    zipped(tmp_path / "in.SAFE")
    shutil.rmtree(tmp_path / "in.SAFE")
    with pytest.raises(SourceError, match=r"in\.zip: found 4 file\(s\) but no MTD_MSIL1C\.xml"):
        opened(tmp_path)


def test_a_zip_beside_geotiffs_is_not_looked_at(safe: Path) -> None:
    zipped(safe)
    shutil.rmtree(safe)
    write_product(safe.parent, product("20170411"), np.ones((4, 60, 60), np.uint16))
    assert [time.day for time in opened(safe.parent).s2(PATCH, None).get_timestamps()] == [11]


def test_a_band_missing(safe: Path) -> None:
    jp2(safe, "B08").unlink()
    with pytest.raises(SourceError, match=r"IMG_DATA: band B08 is missing; .* found B02, B03, B04"):
        opened(safe.parent)


@pytest.mark.parametrize("name", ["MTD_MSIL1C.xml", "MTD_TL.xml"])
def test_metadata_missing(safe: Path, name: str) -> None:
    next(safe.rglob(name)).unlink()
    with pytest.raises(SourceError, match=rf"\.SAFE.*{name}.* (is )?missing"):
        opened(safe.parent)


@pytest.mark.parametrize("name", ["MTD_MSIL1C.xml", "MTD_TL.xml"])
def test_metadata_cut_short(safe: Path, name: str) -> None:
    (safe / "manifest.safe").unlink()
    path = next(safe.rglob(name))
    path.write_text(path.read_text()[:200])
    with pytest.raises(SourceError, match=rf"{name}: not readable as XML, it may be truncated"):
        opened(safe.parent)


@pytest.mark.parametrize(
    ("pattern", "replacement", "message"),
    [
        (r"<QUANTIFICATION_VALUE.*?</QUANTIFICATION_VALUE>", "", r"QUANTIFICATION_VALUE is ''"),
        (r">10000<", ">0<", r"QUANTIFICATION_VALUE is 0; expected a positive number"),
        (r">02\.04<", ">4<", r"PROCESSING_BASELINE is '4'"),
        (r">2017-04-01T", ">01.04.2017 ", r"DATATAKE_SENSING_START is '01\.04\.2017"),
    ],
)
def test_metadata_that_say_nothing_useful(safe: Path, pattern: str, replacement: str, message: str) -> None:
    (safe / "manifest.safe").unlink()
    rewrite(safe / "MTD_MSIL1C.xml", pattern, replacement)
    with pytest.raises((SourceError, DataError), match=rf"MTD_MSIL1C\.xml: {message}"):
        opened(safe.parent)


@pytest.mark.parametrize(
    ("baseline", "offsets", "message"),
    [
        ("0204", ALL_OFFSETS, r"RADIO_ADD_OFFSET is B01 -1000, .* contradicts processing baseline 02\.04"),
        ("0400", dict.fromkeys(BANDS, 0), r"contradicts processing baseline 04\.00"),
        (
            "0400",
            ALL_OFFSETS | {"B08": 0},
            r"RADIO_ADD_OFFSET is B08 -?0, which contradicts processing baseline 04\.00",
        ),
    ],
)
def test_offsets_against_the_baseline(tmp_path: Path, baseline: str, offsets: dict, message: str) -> None:
    write_safe(tmp_path, product("20220501", baseline), pyramid(bands=FOUR), NORTH_WEST, offsets=offsets)
    with pytest.raises(DataError, match=rf"MTD_MSIL1C\.xml: .*{message}"):
        opened(tmp_path)


def test_an_offset_missing(tmp_path: Path) -> None:
    offsets = {band: value for band, value in ALL_OFFSETS.items() if band != "B03"}
    write_safe(tmp_path, product("20220501", "0400"), pyramid(bands=FOUR), NORTH_WEST, offsets=offsets)
    with pytest.raises(SourceError, match="RADIO_ADD_OFFSET of B03 is missing"):
        opened(tmp_path)


def test_the_name_against_the_metadata(tmp_path: Path) -> None:
    write_safe(tmp_path, product("20220501", "0400"), pyramid(bands=FOUR), NORTH_WEST, baseline="03.01")
    with pytest.raises(DataError, match=r"processing baseline is 03\.01, but the product is named .*\(04\.00\)"):
        opened(tmp_path)


def test_a_jp2_of_another_place(safe: Path) -> None:
    (safe / "manifest.safe").unlink()
    rewrite(next(safe.rglob("MTD_TL.xml")), r"<ULX>600000", "<ULX>600010")
    with pytest.raises(SourceError, match=r"_B02\.jp2: found .* from 600000, .* expected .* from 600010"):
        opened(safe.parent).s2(PATCH, None)


def test_scl_of_some_products_only(tmp_path: Path) -> None:
    images = pyramid(bands=FOUR)
    name = product("20170401").replace("L1C", "L2A")
    write_safe(tmp_path, name, images | {"SCL": np.full((30, 30), 4, np.uint8)}, NORTH_WEST)
    write_safe(tmp_path, product("20170411").replace("L1C", "L2A"), images, NORTH_WEST)
    with pytest.raises(SourceError, match=r"20170411.*SCL is missing; found it in 1 of 2 products"):
        opened(tmp_path)


def test_both_levels(safe: Path) -> None:
    write_safe(safe.parent, product("20170411").replace("L1C", "L2A"), pyramid(bands=FOUR), NORTH_WEST)
    with pytest.raises(SourceError, match="levels L1C and L2A"):
        opened(safe.parent)


def test_safe_beside_geotiffs(safe: Path) -> None:
    write_product(safe.parent, product("20170411"), np.ones((4, 60, 60), np.uint16))
    with pytest.raises(SourceError, match=r"found SAFE products and 4 GeoTIFF.*expected one kind"):
        opened(safe.parent)


# --- real pixels ---------------------------------------------------------------------------------------------------


@pytest.mark.realdata
@pytest.mark.parametrize("packed", [False, True])
def test_okavango_as_safe(sample_data: Path, tmp_path: Path, packed: bool) -> None:
    """Crops of real products, once more as SAFE: every pixel as in the GeoTIFFs."""
    reference = opened(sample_data / "okavango")
    (region,) = reference.regions()
    west, _, _, north = region.bounds
    period = (dt.date(2017, 4, 1), dt.date(2017, 4, 30))
    names = [path.name for path in sorted((sample_data / "okavango").glob("S2A_*_201704*"))]
    for name in names:
        images = {}
        for band in (*FOUR, "B10", "B11"):
            with rasterio.open(sample_data / "okavango" / name / f"{name}_{band.lower()}.tif") as dataset:
                side = 1200 // gsd_of(band)
                images[band] = dataset.read(1)[:side, :side]
        safe = write_safe(tmp_path, name, images, (west, north), epsg=region.epsg, tile="T34KGD")
        if packed:
            zipped(safe)
            shutil.rmtree(safe)
    patch = make_patch("okavango", region.epsg, (west + 200, north - 1000, west + 1000, north - 200), 0)
    found, expected = opened(tmp_path).s2(patch, period), reference.s2(patch, period)
    assert len(names) == len(found.get_timestamps()) == 3
    assert np.array_equal(found.data["BANDS"], expected.data["BANDS"])
    assert found.get_timestamps() == expected.get_timestamps()
    assert found.meta_info["product_ids"] == expected.meta_info["product_ids"] == names
