"""The source `files`: what it reads, and what it says of input that it cannot use."""

import datetime as dt
import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from sr_core.config import FilesSource
from sr_core.errors import DataError, SourceError
from sr_core.patches import make_patch
from sr_core.sources.files import FileSeries
from sr_core.sources.products import baseline_of, level_of, sensing_time
from tests.unit.geotiffs import NORTH_WEST, field, product, write_product, write_tiff

WEST, NORTH = NORTH_WEST
PATCH = make_patch("area", 32631, (WEST, NORTH - 640, WEST + 640, NORTH), 0)
DAYS = ("20170401", "20170411", "20170421")


def opened(folder: Path, **keys) -> FileSeries:
    return FileSeries(FilesSource(kind="files", path=folder, **keys))


@pytest.fixture
def series(tmp_path: Path) -> Path:
    for day in DAYS:
        write_product(tmp_path / "s2", product(day), field())
    return tmp_path / "s2"


def test_a_file_a_band(series: Path) -> None:
    source = opened(series, region="plain")
    (region,) = source.regions()
    assert (region.name, region.epsg, region.bounds) == ("plain", 32631, (WEST, NORTH - 640, WEST + 640, NORTH))
    eopatch = source.s2(PATCH, None)
    assert np.array_equal(eopatch.data["BANDS"][1], field().transpose(1, 2, 0))
    assert eopatch.mask["VALID"].all() and "CLM" not in eopatch.mask
    assert eopatch.get_timestamps()[0] == dt.datetime(2017, 4, 1, 8, 20, 1)
    assert (eopatch.meta_info["level"], eopatch.meta_info["processing_baselines"][0]) == ("L1C", "02.04")


def test_other_bands_and_files_beside_are_ignored(series: Path) -> None:
    folder = series / product(DAYS[0])
    write_tiff(folder / f"{folder.name}_b11.tif", field()[0][::2, ::2], gsd=20)
    write_tiff(folder / "quicklook.tif", field()[:3])
    assert len(opened(series).s2(PATCH, None).get_timestamps()) == 3


def test_bands_that_are_named_otherwise(series: Path, tmp_path: Path) -> None:
    exchanged = opened(series, s2_bands={"blue": "B04", "red": "B02"}).s2(PATCH, None)
    assert np.array_equal(exchanged.data["BANDS"][0], field()[[2, 1, 0, 3]].transpose(1, 2, 0))
    with pytest.raises(ValueError, match="one band for two colours"):
        opened(series, s2_bands={"blue": "B04"})
    (tmp_path / "sites").mkdir()
    write_netcdf(tmp_path / "sites", "a", np.full((3, 32, 32), 4, np.uint8))
    with pytest.raises(SourceError, match=r"source\.s2_bands is set, but .*NetCDF"):
        opened(tmp_path / "sites", s2_bands={"blue": "B04", "red": "B02"})


@pytest.mark.parametrize(
    ("blue", "red", "level", "keys", "doubted"),
    [
        (450, 800, "L1C", {}, True),  # no blue light is as dark through the air
        (450, 800, "L1C", {"s2_bands": {"blue": "B02", "red": "B04"}}, False),
        (800, 450, "L1C", {}, False),
        (1500, 3000, "L1C", {}, False),  # a desert
        (450, 800, "L2A", {}, False),  # the air is removed
    ],
)
def test_blue_that_is_darker_than_air_is_doubted_once(tmp_path, capsys, blue, red, level, keys, doubted) -> None:
    ground = np.stack([np.full((64, 64), value, np.uint16) for value in (blue, 700, red, 2000)])
    for day in DAYS:
        write_product(tmp_path / "s2", product(day).replace("L1C", level), ground)
    source = opened(tmp_path / "s2", **keys)
    for _ in range(2):
        source.s2(PATCH, None)
    assert capsys.readouterr().err.count("seem to be exchanged") == doubted


@pytest.mark.parametrize("name", ["2017-04-01.tif", "S2_20170401T102030_N0204.tif", "scene_20170401.tif"])
def test_a_file_a_date(tmp_path: Path, name: str) -> None:
    write_tiff(tmp_path / name, field())
    assert opened(tmp_path).s2(PATCH, None).get_timestamps()[0].date() == dt.date(2017, 4, 1)


def test_bands_by_description(tmp_path: Path) -> None:
    import rasterio

    path = write_tiff(tmp_path / "20170401.tif", field()[::-1])
    with rasterio.open(path, "r+") as dataset:
        dataset.descriptions = ("B08", "B04", "B03", "B02")
    assert np.array_equal(opened(tmp_path).s2(PATCH, None).data["BANDS"][0], field().transpose(1, 2, 0))


@pytest.mark.parametrize(
    "tags",
    [
        ({"BAND_NAME": "B08_10m"}, {"BAND_NAME": "B04_10m"}, {"BAND_NAME": "B03_10m"}, {"BAND_NAME": "B02_10m"}),
        ({"name": "Near infrared (842 nm)"}, {"name": "red"}, {"name": "green"}, {"name": "BLUE"}),
        ({"DESCRIPTION": "B8 - NIR"}, {"DESCRIPTION": "B4 - red"}, {"common_name": "green"}, {"BAND": "B2"}),
    ],
)
def test_bands_by_tags(tmp_path: Path, tags: tuple[dict[str, str], ...]) -> None:
    import rasterio

    path = write_tiff(tmp_path / "20170401.tif", field()[::-1])
    with rasterio.open(path, "r+") as dataset:
        for number, text in enumerate(tags, start=1):
            dataset.update_tags(number, **text)
    assert np.array_equal(opened(tmp_path).s2(PATCH, None).data["BANDS"][0], field().transpose(1, 2, 0))


def test_scl_as_a_file_of_20_m(tmp_path: Path) -> None:
    scl = np.full((32, 32), 4, np.uint8)
    scl[3, 5], scl[2, 7] = 9, 0
    for day in DAYS:
        name = product(day).replace("L1C", "L2A")
        write_product(tmp_path, name, field())
        write_tiff(tmp_path / name / f"{name}_SCL_20m.tif", scl, gsd=20)
    eopatch = opened(tmp_path).s2(PATCH, None)
    assert eopatch.mask["CLM"][1, 6:8, 10:12].all() and eopatch.mask["CLM"].sum() == 3 * 4
    assert (~eopatch.mask["VALID"][1]).sum() == 4 and not eopatch.mask["VALID"][1, 4:6, 14:16].any()
    (tmp_path / name / f"{name}_SCL_20m.tif").unlink()
    with pytest.raises(SourceError, match=rf"product {name}: SCL is missing; found it for 2 of 3"):
        opened(tmp_path)


@pytest.mark.parametrize("one_file", [False, True])
def test_bands_of_s2cloudless(tmp_path: Path, one_file: bool) -> None:
    """The same means over 60 m, from files of 10, 20 and 60 m and from one file where all were brought to 10 m."""
    import rasterio

    from sr_core.masks.s2cloudless import S2CLOUDLESS_BANDS
    from tests.unit.safe_products import gsd_of, pyramid

    images = pyramid()
    if one_file:
        fine = [images[band].repeat(gsd_of(band) // 10, 0).repeat(gsd_of(band) // 10, 1) for band in images]
        path = write_tiff(tmp_path / f"{product('20170401')}.tif", np.stack(fine))
        with rasterio.open(path, "r+") as dataset:
            dataset.descriptions = tuple(images)
    else:
        for band, image in images.items():
            write_tiff(tmp_path / f"{product('20170401')}_{band}.tif", image, gsd=gsd_of(band))
    patch = make_patch("area", 32631, (WEST, NORTH - 600, WEST + 600, NORTH), 0)
    found = opened(tmp_path).s2(patch, None).data["CLOUD_BANDS"][0]
    assert np.array_equal(found[..., S2CLOUDLESS_BANDS.index("B09")], images["B09"])
    blue, swir = images["B02"].reshape(10, 6, 10, 6), images["B11"].reshape(10, 3, 10, 3)
    assert np.array_equal(found[..., 1], np.rint(blue.mean(axis=(1, 3))))
    assert np.array_equal(found[..., 8], np.rint(swir.mean(axis=(1, 3))))


def test_ground_outside_is_not_valid(series: Path) -> None:
    shifted = make_patch("area", 32631, (WEST + 320, NORTH - 320, WEST + 960, NORTH + 320), 0)
    eopatch = opened(series).s2(shifted, None)
    inside = eopatch.mask["VALID"][0, ..., 0]
    assert inside[32:, :32].all() and inside.sum() == 32 * 32
    assert np.array_equal(eopatch.data["BANDS"][0, 32:, :32], field().transpose(1, 2, 0)[:32, 32:])
    assert not eopatch.data["BANDS"][0][~inside].any()


def test_patch_off_the_pixel_grid(series: Path) -> None:
    with pytest.raises(SourceError, match=r"off the grid of 10 m"):
        opened(series).s2(make_patch("area", 32631, (WEST + 5, NORTH - 640, WEST + 645, NORTH), 0), None)


def test_nodata(tmp_path: Path) -> None:
    image = field()
    image[2, :10] = 9999
    write_tiff(tmp_path / "20170401.tif", image)
    eopatch = opened(tmp_path, nodata=9999).s2(PATCH, None)
    assert not eopatch.mask["VALID"][0, :10].any() and eopatch.mask["VALID"][0, 10:].all()
    assert not eopatch.data["BANDS"][0, :10].any()


def test_reflectance_as_floats(tmp_path: Path) -> None:
    write_tiff(tmp_path / "20170401.tif", (field() / 10_000).astype(np.float32))
    assert np.array_equal(opened(tmp_path).s2(PATCH, None).data["BANDS"][0], field().transpose(1, 2, 0))


def test_offset_is_removed_from_baseline_04_00(tmp_path: Path) -> None:
    for day in DAYS:
        write_product(tmp_path, product(day), field())
    image = field() + 1000
    image[0, 0, 0] = 900  # darker than zero reflectance
    write_product(tmp_path, product("20220501", "0400"), image.astype(np.uint16))
    bands = opened(tmp_path).s2(PATCH, None).data["BANDS"]
    assert bands[-1, 0, 0, 0] == 1
    assert np.array_equal(bands[-1].reshape(-1, 4)[1:], bands[0].reshape(-1, 4)[1:])


@pytest.mark.parametrize("baselines", [("0204", "0301"), ("0204", "0400")])
def test_offset_left_in_or_lost_twice(tmp_path: Path, baselines: tuple[str, str]) -> None:
    early, late = baselines
    for day in DAYS:
        write_product(tmp_path, product(day, early), field())
    kept = 1000 if late < "0400" else 0
    write_product(tmp_path, product("20170501", late), (field() + kept).astype(np.uint16))
    with pytest.raises(DataError, match=r"jumps by [+-]1000 from 2017-04-\d+.* to 2017-05-01"):
        opened(tmp_path).s2(PATCH, None)


def test_a_cloudy_date_is_no_offset(tmp_path: Path) -> None:
    for day, cloudy in zip(DAYS, (False, True, False), strict=True):
        write_tiff(tmp_path / f"{day}.tif", field(cloudy=cloudy))
    assert len(opened(tmp_path).s2(PATCH, None).get_timestamps()) == 3


def test_one_acquisition_a_pass(tmp_path: Path) -> None:
    half = field()
    half[:, :, :40] = 0
    write_product(tmp_path, product("20170401"), half)
    write_product(tmp_path, product("20170401").replace("T090000", "T120000"), field())
    write_product(tmp_path, product("20170401").replace("T082001", "T084001"), half)  # of the same pass
    write_product(tmp_path, product("20170401").replace("T082001", "T091001"), half)
    eopatch = opened(tmp_path).s2(PATCH, None)
    assert [(time.hour, time.minute) for time in eopatch.get_timestamps()] == [(8, 20), (9, 10)]
    assert eopatch.mask["VALID"][0].all() and not eopatch.mask["VALID"][1].all()


def test_fingerprint_follows_the_files(series: Path) -> None:
    before = opened(series).fingerprint()
    assert before == opened(series).fingerprint()
    os.utime(next(series.rglob("*.tif")), ns=(1, 1))
    assert before != opened(series).fingerprint()


def test_names() -> None:
    assert sensing_time("x_2017-04-01", "f") == dt.datetime(2017, 4, 1)
    assert sensing_time("20171399_20170401", "f") == dt.datetime(2017, 4, 1)
    assert (level_of("S2B_MSIL2A_2022"), level_of("scene")) == ("L2A", "unknown")
    assert (baseline_of(product("20170401")), baseline_of("scene")) == ("02.04", "unknown")


# --- input that cannot be used -------------------------------------------------------------------------------------


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"source\.path .*nowhere: no such folder"):
        opened(tmp_path / "nowhere")


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="the folder is empty"):
        opened(tmp_path)


def test_folder_without_images(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("nothing")
    with pytest.raises(SourceError, match="found no GeoTIFF"):
        opened(tmp_path)


@pytest.mark.parametrize("options", [{}, {"compress": "lzw"}, {"tiled": True, "blockxsize": 16, "blockysize": 16}])
def test_truncated_in_its_data(series: Path, options: dict) -> None:
    path = write_tiff(series / product(DAYS[1]) / f"{product(DAYS[1])}_b03.tif", field()[1], **options)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1200)
    with pytest.raises(SourceError, match=rf"{product(DAYS[1])}_b03\.tif.*truncated"):
        opened(series).s2(PATCH, None)


def test_truncated_in_its_header(series: Path) -> None:
    path = series / product(DAYS[1]) / f"{product(DAYS[1])}_b03.tif"
    path.write_bytes(path.read_bytes()[:6])
    with pytest.raises(SourceError, match=r"_b03\.tif: not a readable GeoTIFF"):
        opened(series)


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (field(32)[2], {}, r"found 32 x 32 pixels; expected 64 x 64"),
        (field()[2], {"epsg": 32632}, r"found CRS EPSG:32632; expected EPSG:32631"),
        (field()[2], {"origin": (WEST + 10, NORTH)}, r"found the transform .*600010"),
    ],
)
def test_a_band_off_the_common_grid(series: Path, image: np.ndarray, options: dict, message: str) -> None:
    write_tiff(series / product(DAYS[1]) / f"{product(DAYS[1])}_b04.tif", image, **options)
    with pytest.raises(SourceError, match=rf"_b04\.tif: {message}"):
        opened(series)


def test_a_band_missing(series: Path) -> None:
    next(series.rglob(f"*{DAYS[1]}*_b08.tif")).unlink()
    with pytest.raises(SourceError, match=rf"product S2A.*{DAYS[1]}.*: band B08 is missing"):
        opened(series)


def test_too_few_bands_in_a_file(tmp_path: Path) -> None:
    write_tiff(tmp_path / "20170401.tif", field()[:3])
    with pytest.raises(SourceError, match=r"20170401\.tif: found 3 band"):
        opened(tmp_path)


def test_not_utm(tmp_path: Path) -> None:
    write_tiff(tmp_path / "20170401.tif", field(), epsg=3857)
    with pytest.raises(SourceError, match=r"found CRS EPSG:3857; expected a UTM zone"):
        opened(tmp_path)


def test_no_date_in_the_name(tmp_path: Path) -> None:
    write_tiff(tmp_path / "spring.tif", field())
    with pytest.raises(SourceError, match=r"spring\.tif: no date found in the name 'spring'"):
        opened(tmp_path)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity(tmp_path: Path, bad: float) -> None:
    image = field().astype(np.float32)
    image[1, 5, 5:8] = bad
    write_tiff(tmp_path / "20170401.tif", image)
    with pytest.raises(DataError, match=r"20170401\.tif: found 3 NaN or infinite pixels"):
        opened(tmp_path).s2(PATCH, None)


def test_nan_as_the_files_nodata(tmp_path: Path) -> None:
    image = field().astype(np.float32)
    image[1, 5, 5:8] = np.nan
    write_tiff(tmp_path / "20170401.tif", image, nodata=np.nan)
    assert (~opened(tmp_path).s2(PATCH, None).mask["VALID"]).sum() == 3


def test_no_dates_in_the_period(series: Path) -> None:
    with pytest.raises(DataError, match=r"no dates in period 2018.*; the source has 2017-04-01 to 2017-04-21"):
        opened(series).s2(PATCH, (dt.date(2018, 1, 1), dt.date(2018, 2, 1)))


def test_mixed_levels(series: Path) -> None:
    write_product(series, product("20170501").replace("L1C", "L2A"), field())
    with pytest.raises(SourceError, match="levels L1C and L2A"):
        opened(series)


# --- NetCDF --------------------------------------------------------------------------------------------------------


def write_netcdf(folder: Path, site: str, scl: np.ndarray, gsd: int = 10) -> Path:
    """Three days of one field, and its SCL at 20 m."""
    days = len(scl)
    for step, names in ((10, ("B02", "B03", "B04", "B08")), (20, ("SCL",))):
        side = 640 // step
        with h5py.File(folder / f"S2_L2A_{step}m_{site}.nc", "w") as file:
            file["x"] = WEST + step / 2 + step * np.arange(side)
            file["y"] = NORTH - step / 2 - step * np.arange(side)
            file["timestamp"] = np.arange(days, dtype=np.int64) * 86400 * 5
            file["timestamp"].attrs["units"] = "seconds since 2018-05-01 10:50:00"
            file["spatial_ref"] = 0
            file["spatial_ref"].attrs["crs_wkt"] = __import__("rasterio").CRS.from_epsg(32631).to_wkt()
            for name, layer in zip(names, field(), strict=False):
                file[name] = scl if name == "SCL" else np.stack([layer] * days)
    return folder


def test_netcdf_sites_with_scl(tmp_path: Path) -> None:
    scl = np.full((3, 32, 32), 4, np.uint8)
    scl[1, 3, 5], scl[2, 0, 0] = 9, 1
    write_netcdf(tmp_path, "a", scl)
    (tmp_path / "OUTPUT_a.nc").write_bytes(b"of no interest")
    source = opened(tmp_path, region="flat")
    assert [region.name for region in source.regions()] == ["flat-1"]
    eopatch = source.s2(PATCH, None)
    cloud = eopatch.mask["CLM"][..., 0]
    assert cloud[1, 6:8, 10:12].all() and cloud.sum() == 4
    assert (~eopatch.mask["VALID"]).sum() == 4
    assert eopatch.get_timestamps()[1] == dt.datetime(2018, 5, 6, 10, 50)
    odd = make_patch("area", 32631, (WEST + 110, NORTH - 640, WEST + 750, NORTH), 0)
    assert source.s2(odd, None).mask["CLM"][1, 6:8, 0, 0].all()


def test_dates_of_bad_scl_are_not_read(tmp_path: Path) -> None:
    scl = np.full((3, 32, 32), 4, np.uint8)
    scl[1] = 9
    write_netcdf(tmp_path, "a", scl)
    assert len(opened(tmp_path, max_bad_scl=0.5).s2(PATCH, None).get_timestamps()) == 2
    scl[:] = 8
    write_netcdf(tmp_path, "a", scl)
    with pytest.raises(DataError, match=r"max_bad_scl = 0\.5"):
        opened(tmp_path, max_bad_scl=0.5).s2(PATCH, None)


def test_truncated_netcdf(tmp_path: Path) -> None:
    path = write_netcdf(tmp_path, "a", np.full((3, 32, 32), 4, np.uint8)) / "S2_L2A_10m_a.nc"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(SourceError, match=r"S2_L2A_10m_a\.nc: not a readable NetCDF"):
        opened(tmp_path)


@pytest.mark.realdata
def test_the_okavango_files_call_red_b02_and_blue_b04(sample_data: Path, capsys) -> None:
    okavango = opened(sample_data / "okavango")
    (region,) = okavango.regions()
    okavango.s2(make_patch("area", region.epsg, region.bounds, 0), None)
    assert "the darkest ground is 0.03" in capsys.readouterr().err


@pytest.mark.realdata
def test_real_series_are_read_whole(sample_data: Path) -> None:
    okavango = opened(sample_data / "okavango")
    (region,) = okavango.regions()
    west, _, _, north = region.bounds
    eopatch = okavango.s2(make_patch("area", region.epsg, (west, north - 1000, west + 1000, north), 0), None)
    assert eopatch.data["BANDS"].shape == (26, 100, 100, 4) and eopatch.mask["VALID"].all()
    belgium = opened(sample_data / "belgium")
    dates = [belgium.s2(make_patch(r.name, r.epsg, r.bounds, 0), None).get_timestamps() for r in belgium.regions()]
    assert [len(found) for found in dates] == [118, 72]


@pytest.mark.realdata
@pytest.mark.parametrize("cut", [6, 13, 20])
def test_real_series_with_an_offset_from_some_date_on(sample_data: Path, cut: int) -> None:
    from sr_core.sources.products import check_offsets

    okavango = opened(sample_data / "okavango")
    (region,) = okavango.regions()
    eopatch = okavango.s2(make_patch("area", region.epsg, region.bounds, 0), None)
    values = eopatch.data["BANDS"].astype(np.int32)
    valid, times = eopatch.mask["VALID"][..., 0], eopatch.get_timestamps()
    check_offsets(values, valid, times, ["unknown"] * 26, "okavango")
    values[cut:] += 1000
    with pytest.raises(DataError, match=r"jumps by"):
        check_offsets(values, valid, times, ["unknown"] * 26, "okavango")
