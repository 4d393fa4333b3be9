"""VHR of any vendor: counts to radiance by DIMAP, and pixels of any size and reference system on the 2.5 m grid."""

import datetime as dt
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp
from rasterio.warp import Resampling, calculate_default_transform, reproject

from sr_core.config import FilesSource, parse_config
from sr_core.errors import ConfigError, DataError, SourceError
from sr_core.patches import EOPatch, load_part, make_patch, save_part
from sr_core.sources.dimap import find_dimap, toa_reflectance
from sr_core.sources.files import FileSeries
from tests.unit.dimap_documents import BANDS, ESUN, deimos_2, pleiades, spot
from tests.unit.geotiffs import NORTH_WEST, field, product, write_product, write_tiff

WEST, NORTH = NORTH_WEST
SIDE = 160
PATCH = make_patch("area", 32631, (WEST, NORTH - SIDE, WEST + SIDE, NORTH), 0)
PX = SIDE * 4 // 10
IMAGE = "DE2_PSH_L1C_20170415.tif"


def counts(pixels: int = PX, seed: int = 3) -> np.ndarray:
    """(4, pixels, pixels) in the order blue, green, red, nir: counts of 11 bits, each band at its own level."""
    rng = np.random.default_rng(seed)
    levels = np.array([600, 500, 450, 900])[:, None, None]
    return (levels + rng.integers(0, 200, (4, pixels, pixels))).astype(np.uint16)


def vendor(folder: Path, image: np.ndarray, document: str = "", name: str = IMAGE, xml: str = "", **options) -> Path:
    """A vendor's folder: an image, and metadata beside it."""
    write_tiff(folder / "vhr" / name, image, **({"gsd": 2.5} | options))
    if document:
        (folder / "vhr" / (xml or f"{Path(name).stem}.dim")).write_text(document)
    if not (folder / "s2").is_dir():
        write_product(folder / "s2", product("20170410"), field())
    return folder


def source(folder: Path, **keys) -> FileSeries:
    return FileSeries(FilesSource(kind="files", path=folder / "s2", vhr_path=folder / "vhr", **keys))


def read(folder: Path, patch=PATCH, **keys) -> EOPatch:
    found = source(folder, **keys).vhr(patch, None)
    assert found is not None
    return found


def radiance(eopatch: EOPatch) -> np.ndarray:
    """(4H, 4W, 4) of the first date."""
    return eopatch.data["BANDS"][0] / eopatch.meta_info["radiance_scale"]


# --- counts to radiance --------------------------------------------------------------------------------------------


def test_deimos_2_multiplies(tmp_path: Path) -> None:
    """Radiance = count x gain + bias. By hand: 650 x 0.08 + 1.5 = 53.5 in the blue."""
    gain = {"blue": 0.08, "green": 0.09, "red": 0.1, "nir": 0.05}
    bias = {"blue": 1.5, "green": 0.0, "red": -0.5, "nir": 0.0}
    image = counts()
    image[0, 0, 0] = 650
    eopatch = read(vendor(tmp_path, image[::-1], deimos_2(gain=gain, bias=bias)))
    found = radiance(eopatch)
    assert found[0, 0, 0] == pytest.approx(53.5)
    for index, band in enumerate(BANDS):
        assert np.allclose(found[..., index], image[index] * gain[band] + bias[band], atol=0.00501)
    assert eopatch.data["BANDS"].dtype == np.uint16 and eopatch.mask["VALID"].all()
    assert eopatch.get_timestamps() == [dt.datetime(2017, 4, 15, 8, 41, 7)]
    assert eopatch.meta_info["sun"] == [[41.5, 52.25]]
    assert eopatch.meta_info["incidence_deg"] == [4.1]
    assert eopatch.meta_info["solar_irradiance"] == [[ESUN[band] for band in BANDS]]
    assert eopatch.meta_info["tile_ids"] == ["DE2_PSH_L1C_20170415"]


def test_the_dictionary_of_v1_divides(tmp_path: Path) -> None:
    """Radiance = count / gain + bias. By hand: 640 / 4 + 2 = 162."""
    image = counts()
    image[0, 0, 0] = 640
    found = read(vendor(tmp_path, image, spot(bias=dict.fromkeys(BANDS, 2.0)), name="vision.tif"))
    assert radiance(found)[0, 0, 0] == pytest.approx(162.0)
    assert np.allclose(radiance(found), np.moveaxis(image, 0, -1) / 4 + 2, atol=0.00501)
    assert found.get_timestamps() == [dt.datetime(2017, 4, 15, 8, 41, 7)]


@pytest.mark.parametrize("xml", ["DIM_PHR1A_201704151053202_ORT_1.XML", "delivery.xml"])
def test_v2_divides_and_knows_its_bands(tmp_path: Path, xml: str) -> None:
    """Pleiades: red, green, blue, infrared in the file; radiance = count / gain + bias."""
    name = "IMG_PHR1A_201704151053202_ORT_1_R1C1.TIF"
    folder = vendor(tmp_path, counts()[[2, 1, 0, 3]], pleiades(name, gain=9.5, bias=0.5), name=name, xml=xml)
    (folder / "vhr" / "other.xml").write_text("<Something/>")
    eopatch = read(folder)
    assert np.allclose(radiance(eopatch), np.moveaxis(counts(), 0, -1) / 9.5 + 0.5, atol=0.00501)
    assert eopatch.get_timestamps() == [dt.datetime(2017, 4, 15, 10, 53, 20)]
    assert eopatch.meta_info["sun"] == [[151.0, 56.0]]  # at the centre
    assert eopatch.meta_info["incidence_deg"] == [9.0]


@pytest.mark.parametrize(
    ("unit", "factor"),
    [
        ("mW/cm2/sr/um", 10.0),
        ("W m-2 sr-1 nm-1", 1000.0),
        ("W.M-2.ST-1.uM-1", 1.0),
        ("watt/m2/steradians/micrometers", 1),
    ],
)
def test_units(tmp_path: Path, unit: str, factor: float) -> None:
    gain = dict.fromkeys(BANDS, 0.1 / factor)
    found = read(vendor(tmp_path, counts()[::-1], deimos_2(gain=gain, unit=unit)))
    assert np.allclose(radiance(found), np.moveaxis(counts(), 0, -1) * 0.1, atol=0.00501)


def test_reflectance_at_the_top_of_the_atmosphere() -> None:
    """pi L d^2 / (ESUN sin(elevation)); by hand for 4 January, d = 1 - 0.01672, and the sun at 30 degrees."""
    found = toa_reflectance(np.array([100.0]), 1960.0, 30.0, dt.date(2017, 1, 4))
    assert found[0] == pytest.approx(np.pi * 100 * 0.98328**2 / (1960 * 0.5), rel=1e-6)


@pytest.mark.parametrize("gain", ["divide", "multiply"])
def test_a_gain_the_other_way_round(tmp_path: Path, gain: str) -> None:
    """The convention may be given; the wrong one is noticed, because nothing on Earth is that bright or dark."""
    image = counts()
    document = deimos_2() if gain == "divide" else spot(gain=dict.fromkeys(BANDS, 12.0))
    folder = vendor(tmp_path, image[::-1] if gain == "divide" else image, document)
    right = "multiply" if gain == "divide" else "divide"
    assert np.array_equal(read(folder).data["BANDS"], read(folder, vhr_gain=right).data["BANDS"])
    with pytest.raises(DataError, match=rf"{IMAGE}, by .*\.dim .*the median blue radiance is .* See source\.vhr_gain"):
        read(folder, vhr_gain=gain)


def test_factors_instead_of_metadata(tmp_path: Path) -> None:
    folder = vendor(tmp_path, counts())
    assert np.allclose(
        radiance(read(folder, vhr_radiance_per_dn=0.1)), np.moveaxis(counts(), 0, -1) * 0.1, atol=0.00501
    )
    factors = {"blue": 0.1, "green": 0.2, "red": 0.11, "nir": 0.05}
    found = read(folder, vhr_radiance_per_dn=factors)
    assert np.allclose(radiance(found), np.moveaxis(counts(), 0, -1) * list(factors.values()), atol=0.00501)
    assert "sun" not in found.meta_info
    assert found.get_timestamps() == [dt.datetime(2017, 4, 15)]


def test_counts_without_metadata_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=rf"{IMAGE}: nothing says what its values are: .*source\.vhr_radiance_per_dn"):
        read(vendor(tmp_path, counts()))


def test_counts_taken_for_radiance(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"by source\.vhr_radiance_per_dn = 1: the median blue radiance is 4\d{3}"):
        read(vendor(tmp_path, counts() * 6), vhr_radiance_per_dn=1)


def test_metadata_of_another_image_are_not_taken(tmp_path: Path) -> None:
    folder = vendor(tmp_path, counts()[::-1], deimos_2(image="other.tif"), xml="metadata.xml")
    with pytest.raises(SourceError, match="nothing says what its values are"):
        read(folder)


def test_the_only_metadata_of_a_folder_of_one_image(tmp_path: Path) -> None:
    folder = vendor(tmp_path, counts()[::-1], deimos_2(), xml="metadata.xml")
    read(folder)
    write_tiff(folder / "vhr" / "second_20170416.tif", counts(), gsd=2.5)
    with pytest.raises(SourceError, match="nothing says what its values are"):
        read(folder)


# --- bands, nodata, alpha ------------------------------------------------------------------------------------------


def test_tiles_of_one_delivery(tmp_path: Path) -> None:
    """Two tiles of one acquisition, and two folders with files of one name: an acquisition each, none alike."""
    for folder, x in (("west_20170415", WEST - SIDE / 2), ("east_20170415", WEST + SIDE / 2)):
        vendor(tmp_path, counts(), name=f"{folder}/image.tif", origin=(x, NORTH))
    found = read(tmp_path, vhr_radiance_per_dn=0.1)
    assert found.meta_info["tile_ids"] == ["east_20170415_image", "west_20170415_image"]
    assert found.get_timestamps() == [dt.datetime(2017, 4, 15)] * 2
    assert np.array_equal(found.mask["VALID"][0, 0, :, 0], np.arange(PX) >= PX // 2)
    assert np.array_equal(found.mask["VALID"].sum(axis=0), np.ones((PX, PX, 1)))
    save_part(found, tmp_path / "out" / "vhr")
    assert np.array_equal(load_part(tmp_path / "out" / "vhr").data["BANDS"], found.data["BANDS"])


def test_bands_of_another_vendor(tmp_path: Path) -> None:
    """Eight bands, of which 2, 3, 5 and 7 are wanted."""
    image = np.zeros((8, PX, PX), np.uint16) + np.uint16(7)
    image[[1, 2, 4, 6]] = counts()
    folder = vendor(tmp_path, image)
    bands = {"blue": 2, "green": 3, "red": 5, "nir": 7}
    found = read(folder, vhr_bands=bands, vhr_radiance_per_dn=0.1)
    assert np.allclose(radiance(found), np.moveaxis(counts(), 0, -1) * 0.1, atol=0.00501)
    with pytest.raises(SourceError, match=r"found 8 band\(s\) .*or source\.vhr_bands"):
        read(folder, vhr_radiance_per_dn=0.1)
    with pytest.raises(SourceError, match=r"has 8 band\(s\), but its bands are \{.*'nir': 9\}"):
        read(folder, vhr_bands=bands | {"nir": 9}, vhr_radiance_per_dn=0.1)


def test_bands_by_the_names_in_the_file(tmp_path: Path) -> None:
    folder = vendor(tmp_path, counts()[[3, 2, 1, 0]])
    with rasterio.open(folder / "vhr" / IMAGE, "r+") as dataset:
        dataset.descriptions = ("Near Infrared (770-890 nm)", "Red", "Green", None)
        dataset.update_tags(4, BAND_NAME="Blue")
    found = read(folder, vhr_radiance_per_dn=0.1)
    assert np.allclose(radiance(found), np.moveaxis(counts(), 0, -1) * 0.1, atol=0.00501)


def test_red_first_is_not_taken_for_blue(tmp_path: Path) -> None:
    folder = vendor(tmp_path, counts()[[2, 1, 0, 3]], photometric="RGB")
    with pytest.raises(SourceError, match=r"its colours are red, green, blue.* or source\.vhr_bands"):
        read(folder, vhr_radiance_per_dn=0.1)
    given = {"blue": 3, "green": 2, "red": 1, "nir": 4}
    assert radiance(read(folder, vhr_radiance_per_dn=0.1, vhr_bands=given))[0, 0, 0] == counts()[0, 0, 0] / 10


@pytest.mark.parametrize("bands", [{"blue": 1, "green": 2, "red": 3}, {"blue": 0, "green": 2, "red": 3, "nir": 4}])
def test_bands_that_are_none(tmp_path: Path, bands: dict) -> None:
    raw = {"name": "x", "source": {"kind": "files", "path": "s2", "vhr_bands": bands}}
    with pytest.raises(ConfigError, match="vhr_bands"):
        parse_config(raw)


@pytest.mark.parametrize("how", ["nodata", "alpha", "mask", "dimap"])
def test_pixels_without_data(tmp_path: Path, how: str) -> None:
    hidden = np.zeros((PX, PX), bool)
    hidden[10:14, 20:28] = True
    image = counts()
    if how == "alpha":
        folder = vendor(tmp_path, np.concatenate([image, np.where(hidden, 0, 65535)[None].astype(np.uint16)]))
        with rasterio.open(folder / "vhr" / IMAGE, "r+") as dataset:
            dataset.colorinterp = [ColorInterp.gray] * 4 + [ColorInterp.alpha]
    elif how == "mask":
        folder = vendor(tmp_path, image)
        with rasterio.open(folder / "vhr" / IMAGE, "r+") as dataset:
            dataset.write_mask(~hidden)
    else:
        image[:, hidden] = 4000
        document = pleiades(IMAGE, nodata=4000, order=("B0", "B1", "B2", "B3")) if how == "dimap" else ""
        folder = vendor(tmp_path, image, document, **({"nodata": 4000} if how == "nodata" else {}))
    found = read(folder, **({} if how == "dimap" else {"vhr_radiance_per_dn": 0.1}))
    assert np.array_equal(found.mask["VALID"][0, ..., 0], ~hidden)
    assert not found.data["BANDS"][0][hidden].any() and found.data["BANDS"][0][~hidden].all()


# --- other grids ---------------------------------------------------------------------------------------------------


def test_finer_pixels_become_area_means(tmp_path: Path) -> None:
    """1 m: a pixel of 2.5 m is two whole and one half pixel wide; means worked out on half metres."""
    image = counts(SIDE)
    found = radiance(read(vendor(tmp_path, image, gsd=1.0), vhr_radiance_per_dn=0.1))
    half = (image * 0.1).repeat(2, axis=1).repeat(2, axis=2)
    expected = half.reshape(4, PX, 5, PX, 5).mean(axis=(2, 4))
    assert np.allclose(found, np.moveaxis(expected, 0, -1), atol=0.006)


def test_a_mean_needs_all_its_pixels(tmp_path: Path) -> None:
    image = counts(SIDE)
    image[:, 7, 9] = 0
    valid = read(vendor(tmp_path, image[:, :, : SIDE - 1], gsd=1.0), vhr_radiance_per_dn=0.1).mask["VALID"][0, ..., 0]
    lacking = np.zeros((PX, PX), bool)
    lacking[7 * 2 // 5 : -(-8 * 2 // 5), 9 * 2 // 5 : -(-10 * 2 // 5)] = True
    lacking[:, -1] = True
    assert np.array_equal(valid, ~lacking)


def plane(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Counts that grow evenly southward and eastward, in metres from the corner."""
    return 600 + 0.6 * rows + 0.3 * columns


def test_coarser_pixels_become_bicubic(tmp_path: Path) -> None:
    """3 m: bicubic convolution gives a plane back, half a pixel of shift would be 1.1 counts."""
    rows, columns = np.mgrid[-30 : SIDE + 30 : 3, -30 : SIDE + 30 : 3] + 1.5
    image = np.stack([plane(rows, columns)] * 4).astype(np.float32)
    folder = vendor(tmp_path, image, gsd=3.0, origin=(WEST - 30, NORTH + 30))
    found = read(folder, vhr_radiance_per_dn=0.1)
    fine_rows, fine_columns = np.mgrid[0:PX, 0:PX] * 2.5 + 1.25
    assert found.mask["VALID"].all()
    assert np.allclose(radiance(found)[..., 0], plane(fine_rows, fine_columns) * 0.1, atol=0.0051)


def test_bicubic_keeps_away_from_nodata(tmp_path: Path) -> None:
    image = counts(70)
    image[:, 30, 30] = 0
    valid = read(vendor(tmp_path, image, gsd=3.0), vhr_radiance_per_dn=0.1).mask["VALID"][0, ..., 0]
    reach = np.abs(np.add.outer(np.arange(PX) * 2.5 + 1.25, np.zeros(PX)) - 91.5) < 7.5  # five pixels of 3 m
    assert np.array_equal(~valid[6:-6, 6:-6], (reach & reach.T)[6:-6, 6:-6])


def test_a_grid_that_is_shifted(tmp_path: Path) -> None:
    rows, columns = np.mgrid[0:80, 0:80] * 2.5 - 20.0 + 1.25
    image = np.stack([plane(rows + 0.7, columns + 1.1)] * 4).astype(np.float32)
    folder = vendor(tmp_path, image, origin=(WEST - 20 + 1.1, NORTH + 20 - 0.7))
    found = radiance(read(folder, vhr_radiance_per_dn=0.1))
    fine_rows, fine_columns = np.mgrid[0:PX, 0:PX] * 2.5 + 1.25
    assert np.allclose(found[..., 0], plane(fine_rows, fine_columns) * 0.1, atol=0.0051)


@pytest.mark.parametrize(("crs", "gsd"), [("EPSG:32632", 1.0), ("EPSG:4326", 2.5), ("EPSG:32632", 2.5)])
def test_another_reference_system(tmp_path: Path, crs: str, gsd: float) -> None:
    """A smooth scene brought to another system and back lies where it lay, to a tenth of a pixel and half a percent."""
    step = 0.5
    side = int((SIDE + 200) / step)
    rows, columns = np.mgrid[0:side, 0:side] * step - 100 + step / 2
    scene = 700 + 100 * np.sin(rows / 9) + 100 * np.cos(columns / 11)
    grid = rasterio.Affine(step, 0, WEST - 100, 0, -step, NORTH + 100)
    bounds = (WEST - 100, NORTH - SIDE - 100, WEST + SIDE + 100, NORTH + 100)
    transform, width, height = calculate_default_transform("EPSG:32631", crs, side, side, *bounds)
    scaled = transform @ rasterio.Affine.scale(gsd / step)
    there = np.zeros((int(height * step / gsd), int(width * step / gsd)), np.float64)
    reproject(scene, there, src_transform=grid, src_crs="EPSG:32631", dst_transform=scaled, dst_crs=crs,
              resampling=Resampling.average)  # fmt: skip
    image = np.stack([there] * 4).astype(np.float32)
    vendor(tmp_path, image)
    with rasterio.open(tmp_path / "vhr" / IMAGE, "w", driver="GTiff", count=4, height=there.shape[0],
                       width=there.shape[1], dtype="float32", crs=crs, transform=scaled) as dataset:  # fmt: skip
        dataset.write(image)
    found = read(tmp_path, vhr_radiance_per_dn=0.1)
    assert found.mask["VALID"].all()
    inner = scene[200:-200, 200:-200].reshape(PX, 5, PX, 5).mean(axis=(1, 3)) * 0.1
    assert np.abs(radiance(found)[..., 0] - inner).max() < 0.005 * 70


def test_pixels_too_large(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=rf"{IMAGE}: found pixels of 5 m; expected at most 4 m"):
        read(vendor(tmp_path, counts(40), gsd=5.0), vhr_radiance_per_dn=0.1)


def test_no_georeference(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=rf"{IMAGE}: has no georeference .*orthorectif"):
        read(vendor(tmp_path, counts(), crs=None), vhr_radiance_per_dn=0.1)


def test_files_elsewhere_and_out_of_the_period(tmp_path: Path) -> None:
    folder = vendor(tmp_path, counts(), origin=(WEST + 5000, NORTH))
    opened = source(folder, vhr_radiance_per_dn=0.1)
    assert opened.vhr(PATCH, None) is None
    east = make_patch("area", 32631, (WEST + 4920, NORTH - 160, WEST + 5080, NORTH), 0)
    assert opened.vhr(east, (dt.date(2018, 1, 1), dt.date(2018, 12, 31))) is None
    found = opened.vhr(east, None)
    assert found is not None and found.mask["VALID"].sum() == 64 * 32
    assert np.array_equal(found.data["BANDS"][0, :, 32:, 0], counts()[0, :, :32] * 10)


# --- metadata that cannot be used ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (deimos_2()[:700], r"not readable as XML, it may be truncated"),
        (deimos_2().replace("<PHYSICAL_GAIN>0.1</PHYSICAL_GAIN>", "", 1), r"PHYSICAL_GAIN of band 1 is ''"),
        (deimos_2(gain=dict.fromkeys(BANDS, 0.0)), r"the gain of band 1 is 0; expected a positive number"),
        (deimos_2(unit="N/A"), r"the unit of the gain is 'N/A'; .*source\.vhr_radiance_per_dn"),
        (deimos_2(order=("nir", "red", "green")), r"found gain and bias of bands \[1, 2, 3\]; expected them of band 4"),
        (deimos_2(time="<START_TIME>15/04/2017</START_TIME>"), r"the acquisition's time is '15/04/2017'"),
        (deimos_2().replace(">52.25<", ">-3<"), r".* its elevation -3; expected degrees, the sun above the horizon"),
        (pleiades(IMAGE, processing="REFLECTANCE"), r"RADIOMETRIC_PROCESSING is REFLECTANCE; expected BASIC"),
        (pleiades(IMAGE, indices=False), r"Raster_Index_List does not say which band of the file is B0"),
        ("<Dimap_Document></Dimap_Document>", r"found no Spectral_Band_Info; expected gain and bias"),
    ],
)
def test_metadata_that_cannot_be_used(tmp_path: Path, document: str, message: str) -> None:
    with pytest.raises(SourceError, match=rf"DE2_PSH_L1C_20170415\.dim: {message}"):
        read(vendor(tmp_path, counts(), document))


def test_an_image_cut_short(tmp_path: Path) -> None:
    folder = vendor(tmp_path, counts()[::-1], deimos_2())
    with (folder / "vhr" / IMAGE).open("r+b") as file:
        file.truncate(file.seek(0, 2) - 2000)
    with pytest.raises(SourceError, match=rf"{IMAGE}: band \d cannot be read, the file may be truncated"):
        read(folder)


def test_solar_irradiance_that_is_not_known(tmp_path: Path) -> None:
    """Some DIMAP v2 files hold 999 there."""
    document = pleiades(IMAGE, order=("B0", "B1", "B2", "B3")).replace(f"<VALUE>{ESUN['nir']}", "<VALUE>999")
    found = read(vendor(tmp_path, counts(), document))
    assert "solar_irradiance" not in found.meta_info and "sun" in found.meta_info
    dimap = find_dimap(tmp_path / "vhr" / IMAGE)
    assert dimap is not None and dimap.calibrations[4].irradiance is None and dimap.gain == "divide"
