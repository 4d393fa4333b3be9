"""The real client against a server that speaks Sentinel Hub's protocol, compared pixel by pixel."""

import datetime as dt
import gzip
import io
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rasterio.transform import Affine
from scipy.ndimage import map_coordinates
from typer.testing import CliRunner

from components.stage import STAGES, main
from sr_core.config import FilesSource, SentinelHubSource, load_config
from sr_core.errors import ConfigError, DataError, SourceError
from sr_core.masks.s2cloudless import S2CLOUDLESS_BANDS
from sr_core.patches import load_part, make_patch, read_index
from sr_core.sources import sentinel_hub
from sr_core.sources.files import FileSeries
from sr_core.sources.sentinel_hub import Expected, SentinelHub, read_credentials
from sr_core.sources.sentinel_hub_client import RateLimit, TemporaryError
from subpixel.cli import app
from tests.conftest import REPOSITORY
from tests.servers.sentinel_hub import (
    CLIENT_ID,
    CLIENT_SECRET,
    Fault,
    Item,
    Raster,
    geotiff,
    okavango,
    serve,
    tar_of,
)
from tests.unit.geotiffs import write_tiff

SECRETS = {"SH_CLIENT_ID": CLIENT_ID, "SH_CLIENT_SECRET": CLIENT_SECRET}
PERIOD = (dt.date(2017, 4, 1), dt.date(2017, 5, 31))
PATCH = make_patch("okavango", 32734, (700_200.0, 7_898_640.0, 700_360.0, 7_898_800.0), 40.0)  # 24 x 24 pixels
NORTH_WEST = (700_160.0, 7_898_840.0)


def source(server, secrets=SECRETS, **changes) -> SentinelHub:
    known = {"base_url": server.url, "token_url": server.token_url, "requests_per_minute": 60_000, "level": "L1C"}
    return SentinelHub(SentinelHubSource(kind="sentinelhub", **(known | changes)), secrets)


@pytest.fixture
def delta(sample_data):
    with serve({"sentinel-2-l1c": okavango(sample_data / "okavango")}) as server:
        yield server


def scene(day: str, level="L2A", baseline="0204", tile="T34KGD", seed=0, side=24, origin=NORTH_WEST, **more):
    """A product of random reflectance, `more` bands in place of its own."""
    rng = np.random.default_rng(seed)
    names = ("B02", "B03", "B04", "B08")
    bands = {name: Raster(rng.integers(1, 4000, (side, side), np.uint16), 10.0, origin) for name in names}
    if level == "L2A":
        bands["SCL"] = Raster(rng.integers(0, 12, (side // 2, side // 2), np.uint8), 20.0, origin)
    name = f"S2A_MSI{level}_{day}T082001_N{baseline}_R121_{tile}_{day}T090000"
    clouds = more.pop("cloud_cover", 0.0)
    sensed = dt.datetime.strptime(day, "%Y%m%d") + dt.timedelta(hours=8, minutes=25, seconds=more.pop("second", 0))
    return Item(name, sensed, 32734, bands | more, clouds)


def stack(item: Item) -> np.ndarray:
    return np.stack([item.bands[name].values for name in ("B02", "B03", "B04", "B08")], axis=-1)


# --- pixels -----------------------------------------------------------------------------------------------------------


@pytest.mark.realdata
def test_pixels_are_those_of_the_files(delta, sample_data):
    delta.page = 3  # the Catalog answers in pages
    files = FileSeries(FilesSource(kind="files", path=sample_data / "okavango")).s2(PATCH, PERIOD)

    found = source(delta).s2(PATCH, PERIOD)

    assert found.timestamps == files.timestamps
    np.testing.assert_array_equal(found.data["BANDS"], files.data["BANDS"])
    np.testing.assert_array_equal(found.mask["VALID"], files.mask["VALID"])
    assert found.data["BANDS"].dtype == files.data["BANDS"].dtype == np.uint16
    for key in ("product_ids", "processing_baselines", "level", "gsd_m"):
        assert found.meta_info[key] == files.meta_info[key]
    assert delta.count("process") == 2 * len(found.timestamps)  # 10 m, and the bands of s2cloudless at 60 m


@pytest.mark.realdata
def test_the_bands_of_s2cloudless_come_at_60_m_from_the_north_west_corner(delta):
    found = source(delta).s2(PATCH, (dt.date(2017, 4, 1), dt.date(2017, 4, 1)))

    (item,) = [item for item in delta.collections["sentinel-2-l1c"] if "20170401T" in item.id]
    x, y = NORTH_WEST[0] + 60 * (np.arange(4) + 0.5), NORTH_WEST[1] - 60 * (np.arange(4) + 0.5)
    assert found.data["CLOUD_BANDS"].shape == (1, 4, 4, 10)
    for index, name in enumerate(S2CLOUDLESS_BANDS):
        band = item.bands[name]
        rows, columns = (band.origin[1] - y) / band.gsd - 0.5, (x - band.origin[0]) / band.gsd - 0.5
        at = np.meshgrid(rows, columns, indexing="ij")
        interpolated = map_coordinates(band.values.astype(float), at, order=1)
        np.testing.assert_allclose(found.data["CLOUD_BANDS"][0, ..., index], interpolated, atol=0.500001)


@pytest.mark.realdata
def test_cloudy_blocks_of_clm_are_cloud(delta):
    found = source(delta).s2(PATCH, (dt.date(2017, 3, 2), dt.date(2017, 3, 2)))

    (item,) = [item for item in delta.collections["sentinel-2-l1c"] if "20170302T" in item.id]
    clm, clp = item.bands["CLM"], item.bands["CLP"]
    rows = ((clm.origin[1] - (NORTH_WEST[1] - 10 * (np.arange(24) + 0.5))) // 160).astype(int)
    columns = ((NORTH_WEST[0] + 10 * (np.arange(24) + 0.5) - clm.origin[0]) // 160).astype(int)
    np.testing.assert_array_equal(found.mask["CLM"][0, ..., 0], clm.values[np.ix_(rows, columns)] == 1)
    np.testing.assert_array_equal(found.data["CLP"][0, ..., 0], clp.values[np.ix_(rows, columns)])
    assert found.mask["CLM"].any() and not found.mask["CLM"].all()
    assert found.meta_info["mask_kind"] == "clm"


def test_where_clm_has_no_data_it_is_not_clear():
    clm = np.array([[0, 1], [255, 0]], np.uint8)
    more = {"CLM": Raster(clm, 120.0, NORTH_WEST), "CLP": Raster(clm, 120.0, NORTH_WEST)}
    cloud_bands = {name: Raster(np.full((24, 24), 1500, np.uint16), 10.0, NORTH_WEST) for name in S2CLOUDLESS_BANDS}
    with serve({"sentinel-2-l1c": [scene("20170401", "L1C", **(cloud_bands | more))]}) as server:
        found = source(server).s2(PATCH, PERIOD)
    np.testing.assert_array_equal(found.mask["CLM"][0, ::12, ::12, 0], [[False, True], [True, False]])


def test_scene_classes_make_the_mask_of_l2a():
    item = scene("20170401")
    with serve({"sentinel-2-l2a": [item]}) as server:
        found = source(server, level="L2A").s2(PATCH, PERIOD)

    classes = item.bands["SCL"].values.repeat(2, 0).repeat(2, 1)
    valid = ~np.isin(classes, (0, 1))
    np.testing.assert_array_equal(found.mask["VALID"][0, ..., 0], valid)
    np.testing.assert_array_equal(found.mask["CLM"][0, ..., 0], np.isin(classes, (3, 8, 9, 10, 11)))
    np.testing.assert_array_equal(found.data["BANDS"][0], np.where(valid[..., None], stack(item), 0))
    assert (found.meta_info["mask_kind"], found.meta_info["level"]) == ("scl", "L2A")
    assert "CLOUD_BANDS" not in found.data
    assert server.count("process") == 1


def test_the_copernicus_data_space_is_not_asked_for_masks_it_has_not():
    cloud_bands = {name: Raster(np.full((24, 24), 1500, np.uint16), 10.0, NORTH_WEST) for name in S2CLOUDLESS_BANDS}
    with serve({"sentinel-2-l1c": [scene("20170401", "L1C", **cloud_bands)]}) as server:
        found = source(server, service="copernicus").s2(FIELD, PERIOD)
    assert "CLM" not in found.mask
    assert found.data["CLOUD_BANDS"].shape == (1, 3, 3, 10)  # 160 m, and what is left of the last pixels
    assert (found.data["CLOUD_BANDS"] == 1500).all()


def test_ground_outside_the_product_is_not_valid():
    item = scene("20170401", side=12)  # the north-west quarter
    with serve({"sentinel-2-l2a": [item]}) as server:
        found = source(server, level="L2A").s2(PATCH, PERIOD)
    assert not found.mask["VALID"][0, 12:].any() and not found.mask["VALID"][0, :, 12:].any()
    assert not found.data["BANDS"][0, 12:].any()
    assert found.mask["VALID"][0, :12, :12].any()


def test_the_offset_of_baseline_04_is_removed_once():
    before = scene("20170401", seed=1)
    raised = {name: Raster(before.bands[name].values + 1000, 10.0, NORTH_WEST) for name in ("B02", "B03", "B04", "B08")}
    after = scene("20170411", baseline="0500", **(raised | {"SCL": before.bands["SCL"]}))
    with serve({"sentinel-2-l2a": [before, after]}) as server:
        found = source(server, level="L2A").s2(PATCH, PERIOD)
        assert found.meta_info["processing_baselines"] == ["02.04", "05.00"]
        np.testing.assert_array_equal(found.data["BANDS"][0], found.data["BANDS"][1])

        server.harmonizes = False
        with pytest.raises(DataError, match=r"jumps by \+1000 from 2017-04-01 .* to 2017-04-11"):
            source(server, level="L2A").s2(PATCH, PERIOD)


def test_a_patch_larger_than_a_request_is_asked_for_in_blocks(monkeypatch):
    item = scene("20170401")
    with serve({"sentinel-2-l2a": [item]}) as server:
        whole = source(server, level="L2A").s2(PATCH, PERIOD)
        monkeypatch.setattr(sentinel_hub, "LARGEST_SIDE", 10)
        blocks = source(server, level="L2A").s2(PATCH, PERIOD)
        assert server.count("process") == 1 + 9
    np.testing.assert_array_equal(blocks.data["BANDS"], whole.data["BANDS"])
    np.testing.assert_array_equal(blocks.mask["CLM"], whole.mask["CLM"])


# --- which acquisitions -----------------------------------------------------------------------------------------------


def test_tiles_of_one_pass_are_one_date():
    """The east of the patch lies on another tile, which was sensed four seconds later."""
    east_corner = (NORTH_WEST[0] + 140.0, NORTH_WEST[1])
    west = scene("20170401", seed=1)
    cut = {name: replace(band, values=band.values[:, : int(140 // band.gsd)]) for name, band in west.bands.items()}
    west = replace(west, bands=cut)
    east = scene("20170401", tile="T34KHD", seed=2, origin=east_corner, second=4)
    with serve({"sentinel-2-l2a": [west, east]}) as server:
        found = source(server, level="L2A").s2(PATCH, PERIOD)

    assert found.timestamps == [dt.datetime(2017, 4, 1, 8, 20, 1)]
    assert found.meta_info["product_ids"] == [west.id]  # it shows most of the patch
    valid = found.mask["VALID"][0, ..., 0]
    np.testing.assert_array_equal(found.data["BANDS"][0, :, :14][valid[:, :14]], stack(west)[valid[:, :14]])
    np.testing.assert_array_equal(found.data["BANDS"][0, :, 14:][valid[:, 14:]], stack(east)[:, :10][valid[:, 14:]])


def test_of_two_products_of_a_pass_that_show_all_the_newer_one_is_taken():
    old, new = scene("20170401", seed=1, second=30), scene("20170401", baseline="0301", seed=2)
    with serve({"sentinel-2-l2a": [old, new]}) as server:
        found = source(server, level="L2A").s2(PATCH, PERIOD)
    assert found.meta_info["product_ids"] == [new.id]
    valid = found.mask["VALID"][0, ..., 0]
    np.testing.assert_array_equal(found.data["BANDS"][0][valid], stack(new)[valid])


def test_cloudy_tiles_are_not_asked_for():
    clear, cloudy = scene("20170401", cloud_cover=79.9), scene("20170411", cloud_cover=80.1)
    with serve({"sentinel-2-l2a": [clear, cloudy]}) as server:
        assert source(server, level="L2A").s2(PATCH, PERIOD).meta_info["product_ids"] == [clear.id]
        assert server.count("process") == 1
        with pytest.raises(DataError, match=r"2017-04-11 to 2017-05-31 .*max_cloud_cover = 0.8"):
            source(server, level="L2A").s2(PATCH, (dt.date(2017, 4, 11), PERIOD[1]))


# --- VHR --------------------------------------------------------------------------------------------------------------

VHR_DAY = dt.datetime(2017, 5, 2, 8, 40, 11)
VHR_BANDS = ("MS1", "MS2", "MS3", "MS4")
BYOC = {
    "byoc_collection": "a1b2",
    "byoc_bands": dict(zip(("blue", "green", "red", "nir"), VHR_BANDS, strict=True)),
    "byoc_radiance_scale": 100.0,
}
FIELD = make_patch("okavango", 32734, (700_200.0, 7_898_720.0, 700_280.0, 7_898_800.0), 40.0)  # 64 x 64 pixels of VHR


def vhr_item(bands_gsd: float = 2.5, side_m: float = 160.0, levels: int = 300) -> Item:
    """Four bands and a panchromatic one, radiance x 100; the first rows without data."""
    rng = np.random.default_rng(3)
    side, fine = round(side_m / bands_gsd), round(side_m / 2.5)
    values = (2000 + 60 * rng.integers(0, levels, (5, fine, fine))).astype(np.uint16)
    bands = {name: Raster(values[i, :side, :side], bands_gsd, NORTH_WEST) for i, name in enumerate(VHR_BANDS)}
    mask = np.ones((fine, fine), np.uint8)
    mask[:16] = 0
    more = {"PAN": Raster(values[4], 2.5, NORTH_WEST), "dataMask": Raster(mask, 2.5, NORTH_WEST)}
    return Item("spot-20170502", VHR_DAY, 32734, bands | more)


def test_vhr_is_that_of_the_files(tmp_path):
    item = vhr_item()
    image = np.stack([item.bands[name].values for name in VHR_BANDS])
    image[:, :16] = 0
    write_tiff(tmp_path / "vhr" / "spot_20170502T084011.tif", image, gsd=2.5, epsg=32734, origin=NORTH_WEST)
    write_tiff(tmp_path / "s2" / "20170401.tif", image[:, ::4, ::4], epsg=32734, origin=NORTH_WEST)
    folders = {"path": tmp_path / "s2", "vhr_path": tmp_path / "vhr"}
    expected = FileSeries(FilesSource(kind="files", vhr_radiance_per_dn=0.01, **folders)).vhr(FIELD, PERIOD)
    with serve({"byoc-a1b2": [item]}) as server:
        found = source(server, **BYOC).vhr(FIELD, PERIOD)
        assert source(server, **BYOC).vhr(FIELD, (PERIOD[0], PERIOD[0])) is None
        assert source(server).vhr(FIELD, PERIOD) is None

    assert found.timestamps == expected.timestamps == [VHR_DAY]
    np.testing.assert_array_equal(found.data["BANDS"], expected.data["BANDS"])
    np.testing.assert_array_equal(found.mask["VALID"], expected.mask["VALID"])
    assert found.meta_info["radiance_scale"] == expected.meta_info["radiance_scale"] == 100.0
    assert found.meta_info["tile_ids"] == ["spot-20170502"]


def test_a_panchromatic_band_sharpens_the_others():
    item = vhr_item()
    with serve({"byoc-a1b2": [item]}) as server:
        found = source(server, **BYOC, byoc_pan="PAN").vhr(FIELD, PERIOD)
    image = np.stack([item.bands[name].values for name in VHR_BANDS], axis=-1).astype(float)
    sharp = np.floor(image * item.bands["PAN"].values[..., None] / image.mean(axis=-1, keepdims=True) + 0.5)
    np.testing.assert_array_equal(found.data["BANDS"][0, 16:], np.maximum(sharp, 1)[16:])
    assert not found.data["BANDS"][0, :16].any()


def test_coarser_bands_are_interpolated_to_2_5_m_before_they_are_sharpened():
    item = vhr_item(bands_gsd=10.0)
    with serve({"byoc-a1b2": [item]}) as server:
        found = source(server, **BYOC, byoc_pan="PAN").vhr(FIELD, PERIOD)
    place = (np.arange(64) + 0.5) / 4 - 0.5
    at = np.meshgrid(place, place, indexing="ij")
    image = np.stack(
        [map_coordinates(item.bands[n].values.astype(float), at, order=1, mode="nearest") for n in VHR_BANDS], axis=-1
    )
    sharp = image * item.bands["PAN"].values[..., None] / image.mean(axis=-1, keepdims=True)
    assert found.mask["VALID"][0, 16:].all()
    np.testing.assert_allclose(found.data["BANDS"][0, 16:], np.maximum(sharp, 1)[16:], atol=0.500001)


def test_a_pixel_too_bright_for_radiance_is_not_data_and_many_are_an_error():
    item = vhr_item()
    item.bands["MS1"].values[40, 40] = 40_000
    with serve({"byoc-a1b2": [item]}) as server:
        brighter = BYOC | {"byoc_radiance_scale": 50.0}
        found = source(server, **brighter).vhr(FIELD, PERIOD)
        assert not found.mask["VALID"][0, 40, 40, 0] and found.mask["VALID"][0, 40, 41, 0]
        assert found.data["BANDS"][0, 40, 41, 0] == 2 * item.bands["MS1"].values[40, 41]

        with pytest.raises(DataError, match=r"above 655.35 W .* source.byoc_radiance_scale = 0.25"):
            source(server, **(BYOC | {"byoc_radiance_scale": 0.25})).vhr(FIELD, PERIOD)


def test_a_band_that_the_collection_lacks_is_told_in_the_services_words():
    with serve({"byoc-a1b2": [vhr_item()]}) as server, pytest.raises(SourceError, match=r"HTTP 400 .*PANCHRO"):
        source(server, **BYOC, byoc_pan="PANCHRO").vhr(FIELD, PERIOD)


# --- faults -----------------------------------------------------------------------------------------------------------

FAULTS = {
    "rate limit": Fault("429", retry_after="900"),
    "rate limit without a word": Fault("429"),
    "rate limit of the catalogue": Fault("429", path="/catalog", retry_after="100"),
    "server error": Fault("500", times=2),
    "server error with a pause": Fault("503", retry_after="1"),
    "server error of the catalogue": Fault("502", path="/catalog"),
    "server error of the token": Fault("500", path="/auth"),
    "expired token": Fault("expired"),
    "expired token at the catalogue": Fault("expired", path="/catalog"),
    "truncated archive": Fault("changed", change=lambda body: body[:700]),
    "truncated image": Fault("changed", change=lambda body: body[: len(body) // 2]),
    "empty answer": Fault("changed", change=lambda body: b""),
    "a file lost": Fault("changed", change=lambda body: body[:512] + bytes(len(body) - 512)),
    "truncated page": Fault("changed", path="/catalog", change=lambda body: body[:-20]),
    "truncated token": Fault("changed", path="/auth", change=lambda body: body[:-20]),
    "broken connection": Fault("broken"),
    "slow answer": Fault("slow"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_pixels_are_right_after(name, monkeypatch):
    monkeypatch.setattr("sr_core.sources.sentinel_hub_client.FIRST_PAUSE_S", 0.02)
    items = [scene("20170401", seed=1), scene("20170411", seed=2)]
    fault = Fault(**vars(FAULTS[name]))
    with serve({"sentinel-2-l2a": items}, faults=[fault]) as server:
        timeout = 1.0 if fault.kind == "slow" else 20.0
        found = source(server, level="L2A", timeout_s=timeout).s2(PATCH, PERIOD)
        assert fault.times == 0
    valid = found.mask["VALID"][..., 0]
    np.testing.assert_array_equal(found.data["BANDS"], np.where(valid[..., None], np.stack([*map(stack, items)]), 0))
    assert valid.mean() > 0.7
    if fault.retry_after == "900":  # milliseconds, and for all requests
        times = [came for came, path, _ in server.log if "process" in path]
        refused = next(came for came, path, status in server.log if status == 429)
        assert all(came >= refused + 0.88 for came in times if came > refused + 0.1)


def test_a_body_cut_anywhere_is_never_data():
    rng = np.random.default_rng(0)
    transform = Affine(10, 0, NORTH_WEST[0], 0, -10, NORTH_WEST[1])
    bands = geotiff(rng.integers(0, 4000, (24, 24, 4), np.uint16), 32734, transform)
    masks = geotiff(np.ones((24, 24, 1), np.uint8), 32734, transform)
    body = tar_of({"bands.tif": bands, "masks.tif": masks})
    expected = Expected("here", 32734, PATCH.bounds, (24, 24), {"bands": 4, "masks": 1})
    whole = expected.read(body)
    needed = max(start + size for start, size in members(body))
    for cut in [*range(0, needed, 397), needed - 1]:
        with pytest.raises(TemporaryError):
            expected.read(body[:cut])
    for content in (bands[:cut] for cut in range(0, len(bands), 997)):
        with pytest.raises(TemporaryError):
            expected.read(tar_of({"bands.tif": content, "masks.tif": masks}))
    np.testing.assert_array_equal(expected.read(body)["bands"], whole["bands"])


def members(body: bytes):
    with tarfile.open(fileobj=io.BytesIO(body)) as tar:
        return [(member.offset_data, member.size) for member in tar.getmembers()]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"dtype": np.uint8}, r"4 x 24 x 24 uint8 .*expected 4 x 24 x 24 uint16"),
        ({"count": 3}, r"3 x 24 x 24 uint16 .*expected 4 x 24"),
        ({"side": 23}, r"4 x 23 x 23 .*expected 4 x 24 x 24"),
        ({"epsg": 32735}, r"EPSG:32735; expected .*EPSG:32734"),
        ({"east": 10.0}, r"covers \(700170.*expected \(700160"),
        ({"gsd": 20.0}, r"covers .*expected \(700160"),
        ({"extra": "rogue.tif"}, r"'rogue.tif'.*expected"),
    ],
)
def test_an_answer_that_is_something_else_is_an_error_and_not_asked_for_again(wrong, message):
    def change(_: bytes) -> bytes:
        side, gsd = wrong.get("side", 24), wrong.get("gsd", 10.0)
        transform = Affine(gsd, 0, NORTH_WEST[0] + wrong.get("east", 0.0), 0, -gsd, NORTH_WEST[1])
        pixels = np.ones((side, side, wrong.get("count", 4)), wrong.get("dtype", np.uint16))
        masks = geotiff(np.ones((side, side, 2), np.uint8), 32734, transform)
        files = {"bands.tif": geotiff(pixels, wrong.get("epsg", 32734), transform), "masks.tif": masks}
        return tar_of(files | ({wrong["extra"]: masks} if "extra" in wrong else {}))

    faults = [Fault("changed", change=change)]
    with serve({"sentinel-2-l2a": [scene("20170401")]}, faults=faults) as server:
        with pytest.raises(SourceError, match=message) as error:
            source(server, level="L2A").s2(PATCH, PERIOD)
        assert server.count("process") == 1
    assert PATCH.id in str(error.value)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault("500", times=99), r"/process: HTTP 500 .*gave up after 3 attempts \(source.max_retries = 2\)"),
        (Fault("429", times=99, retry_after="1"), r"rate limit is reached; gave up after 3 attempts"),
        (Fault("429", retry_after="3600000"), r"asks to wait 3600 s; expected at most 600 s"),
        (Fault("broken", times=99), r"broke off after 256 bytes; gave up"),
        (Fault("slow", times=99), r"no complete answer within source.timeout_s = 0.3 s"),
        (Fault("expired", times=99), r"a new token is refused as well"),
        (Fault("quota"), r"processing units or requests are used up"),
        (Fault("changed", times=99, change=lambda body: body[:100]), r"not a whole tar archive"),
        (Fault("quota", path="/catalog"), r"/search: HTTP 403 .*used up"),
        (Fault("500", path="/auth", times=99), r"no token: .*/auth/token: HTTP 500"),
        (Fault("changed", path="/catalog", change=lambda body: body.replace(b'"datetime"', b'"x"')), r"'datetime'"),
    ],
)
def test_faults_that_stay_end_in_an_error(fault, message, monkeypatch):
    monkeypatch.setattr("sr_core.sources.sentinel_hub_client.FIRST_PAUSE_S", 0.01)
    items = [scene("20170401"), scene("20170411")]
    with serve({"sentinel-2-l2a": items}, faults=[Fault(**vars(fault))]) as server:
        with pytest.raises(SourceError, match=message) as error:
            timeout = 0.3 if fault.kind == "slow" else 20.0
            source(server, level="L2A", max_retries=2, timeout_s=timeout).s2(PATCH, PERIOD)
        assert server.count("process") <= 2 * 3
    assert server.url in str(error.value)


def test_a_server_that_is_not_there_is_named():
    with serve({}) as server:
        pass
    with pytest.raises(SourceError, match=rf"{server.url}.*no connection .*gave up after 1 attempt "):
        source(server, max_retries=0).s2(PATCH, PERIOD)


# --- credentials ------------------------------------------------------------------------------------------------------


def test_wrong_credentials_are_refused_once_and_not_repeated_in_the_error():
    with serve({"sentinel-2-l1c": []}) as server:
        secrets = {"SH_CLIENT_ID": CLIENT_ID, "SH_CLIENT_SECRET": "mistyped-secret"}
        with pytest.raises(
            SourceError, match=r"HTTP 401 \(invalid_client .*SH_CLIENT_ID and SH_CLIENT_SECRET"
        ) as error:
            source(server, secrets).s2(PATCH, PERIOD)
        assert server.count("/auth") == 1
    assert "mistyped" not in str(error.value) and CLIENT_ID not in str(error.value)


@pytest.mark.parametrize("path", ["/auth", "/catalog"])
def test_an_answer_that_repeats_what_was_sent_shows_no_secret(path):
    with serve({"sentinel-2-l1c": []}, faults=[Fault("echo", path=path)]) as server:
        with pytest.raises(SourceError, match=r"HTTP 400 \(.*refused") as error:
            source(server).s2(PATCH, PERIOD)
        told = str(error.value)
        assert "***" in told
        assert not [secret for secret in (CLIENT_ID, CLIENT_SECRET, *server.tokens) if secret in told]


def test_credentials_come_from_the_mounted_file(tmp_path):
    file = tmp_path / "credentials"
    file.write_text(f"# OAuth client\nexport SH_CLIENT_ID='{CLIENT_ID}'\nSH_CLIENT_SECRET={CLIENT_SECRET}\n")
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    for name, value in SECRETS.items():
        (mounted / name).write_text(value + "\n")
    for path in (file, mounted):
        assert read_credentials(path, {"SH_CLIENT_ID": "other"}) == (CLIENT_ID, CLIENT_SECRET)


def test_missing_credentials_are_named(tmp_path):
    file = tmp_path / "credentials"
    file.write_text("SH_CLIENT_ID=abc\nSH_CLIENT_SECRET=\n")
    with pytest.raises(SourceError, match=rf"^SH_CLIENT_SECRET: not in source.credentials {file}"):
        read_credentials(file, SECRETS)
    with pytest.raises(SourceError, match=r"^SH_CLIENT_ID and SH_CLIENT_SECRET: not in the environment"):
        read_credentials(None, {})
    with pytest.raises(SourceError, match=r"nowhere: cannot be read .*SH_CLIENT_ID=\.\.\."):
        read_credentials(tmp_path / "nowhere", SECRETS)


def test_credentials_go_nowhere_in_the_clear():
    with pytest.raises(ConfigError, match=r"source.token_url: found 'http://hub.example/token'; expected https"):
        SentinelHub(SentinelHubSource(kind="sentinelhub", token_url="http://hub.example/token"), SECRETS)


# --- rate limit -------------------------------------------------------------------------------------------------------


def test_requests_are_spaced_and_a_pause_holds_for_all_who_share_the_file(tmp_path):
    one, other = (RateLimit(tmp_path / "limit", 1200) for _ in range(2))
    start = time.monotonic()
    for _ in range(5):
        one.wait()
        other.wait()
    assert 0.45 <= time.monotonic() - start < 1.5

    other.slow_down(0.3)
    start = time.monotonic()
    one.wait()
    assert time.monotonic() - start >= 0.29


def test_an_account_that_allows_less_is_asked_less(monkeypatch):
    """20 requests of four threads, 600 a second allowed by the configuration and 12 by the account."""
    monkeypatch.setattr("sr_core.sources.sentinel_hub_client.FIRST_PAUSE_S", 0.05)
    items = [scene(f"201704{day:02d}", side=4) for day in range(1, 21)]
    with serve({"sentinel-2-l2a": items}, per_second=12.0) as server:
        found = source(server, level="L2A", requests_per_minute=36_000, max_retries=4).s2(PATCH, PERIOD)
        assert len(found.timestamps) == 20
        refused = sum(status == 429 for _, _, status in server.log)
        assert 0 < refused <= 20


@pytest.mark.parametrize("content", ["9e99 1 0", "nan nan nan", "not a number"])
def test_a_limit_left_by_another_clock_is_not_waited_for(tmp_path, content):
    (tmp_path / "limit").write_text(content)
    RateLimit(tmp_path / "limit", 600).wait()


# --- estimate, and the stage ------------------------------------------------------------------------------------------

CONFIG = """
name: delta
area: {{region: okavango, crs: EPSG:32734, bbox: [700320, 7898240, 701200, 7898400]}}
period: {{start: 2017-04-01, end: 2017-04-15}}
source:
  kind: sentinelhub
  base_url: {url}
  token_url: {url}/auth/token
  level: L1C
  byoc_collection: a1b2
  byoc_bands: {{blue: MS1, green: MS2, red: MS3, nir: MS4}}
  byoc_radiance_scale: 100
  requests_per_minute: {rate}
  max_processing_units: {most}
grid: {{cell_m: 480, buffer_m: 40}}
preparation: {{workers: 2}}
"""


@pytest.fixture
def hub(sample_data):
    vhr = vhr_item(side_m=480.0, levels=3)
    days = [dt.datetime(2017, 4, day, 8, 40) for day in (2, 12)]
    items = [Item(f"spot-{day:%Y%m%d}", day, vhr.epsg, vhr.bands) for day in days]
    with serve({"sentinel-2-l1c": okavango(sample_data / "okavango"), "byoc-a1b2": items}) as server:
        yield server


@pytest.fixture
def account(monkeypatch, tmp_path):
    """Credentials in the environment, and a home that must stay empty."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    return home


def write_config(folder: Path, server, rate=60_000, most=1000) -> Path:
    path = folder / "delta.yaml"
    path.write_text(CONFIG.format(url=server.url, rate=rate, most=most), encoding="utf-8")
    return path


@pytest.mark.realdata
def test_the_stage_fetches_with_two_workers_what_was_estimated(hub, account, tmp_path, sample_data, capfd):
    config = write_config(tmp_path, hub, rate=600)
    dry = CliRunner().invoke(app, ["download", "--dry-run", str(config)])
    assert hub.count("process") == 0
    hub.log.clear()

    assert main(STAGES["download"], ["--config", str(config), "--root", str(tmp_path / "run")]) == 0

    patches = read_index(tmp_path / "run" / "patches")
    files = FileSeries(FilesSource(kind="files", path=sample_data / "okavango"))
    period = (dt.date(2017, 4, 1), dt.date(2017, 4, 15))
    assert len(patches) == 2
    for patch in patches:
        found = load_part(tmp_path / "run" / "patches" / "okavango" / patch.id / "s2")
        expected = files.s2(patch, period)
        assert list(found.timestamps) == list(expected.timestamps)
        np.testing.assert_array_equal(found.data["BANDS"], expected.data["BANDS"])
        np.testing.assert_array_equal(found.mask["VALID"], expected.mask["VALID"])
    assert sum((tmp_path / "run" / "patches" / "okavango" / patch.id / "vhr").is_dir() for patch in patches) > 0

    # what the server counted is what --dry-run said
    said = capfd.readouterr()
    estimate = said.err + said.out + dry.output
    answered = [came for came, path, _ in hub.log if "/auth" not in path]
    searches_of_the_estimate = 2
    assert f"{len(answered) - searches_of_the_estimate}" in row(estimate, "requests")
    assert f"{hub.processing_units:.2f} of at most 1000" in row(estimate, "processing units")
    # one rate for the stage and its workers, each of which has a token of its own
    assert hub.count("/auth") >= 3
    assert max(answered) - min(answered) >= 0.95 * (len(answered) - 1) * 0.1
    # secrets stay where they were
    assert list(account.iterdir()) == []
    written = [path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()]
    written += [gzip.decompress(content) for content in written if content[:2] == b"\x1f\x8b"]
    for secret in (CLIENT_ID, CLIENT_SECRET, *hub.tokens):
        assert secret not in estimate
        assert not any(secret.encode() in content for content in written)


def row(table: str, label: str) -> str:
    return next(line for line in table.splitlines() if label in line)


@pytest.mark.realdata
def test_a_download_above_the_limit_is_refused_before_a_pixel(hub, account, tmp_path, capfd):
    config = write_config(tmp_path, hub, most=0.1)
    assert CliRunner().invoke(app, ["download", "--dry-run", str(config)]).exit_code == 1
    assert main(STAGES["download"], ["--config", str(config), "--root", str(tmp_path / "run")]) == 1
    assert "expected at most source.max_processing_units = 0.1" in " ".join(capfd.readouterr().err.split())
    assert hub.count("process") == 0


@pytest.mark.realdata
def test_an_estimate_is_what_the_service_charges(hub):
    """Of three dates and two of VHR, some of which show one patch only."""
    patches = [FIELD, make_patch("okavango", 32734, (700_600.0, 7_898_720.0, 700_680.0, 7_898_800.0), 40.0)]
    hubs = source(hub, **BYOC, byoc_pan="PAN")
    estimate = hubs.estimate(patches, PERIOD)
    hub.log.clear()
    read = [(hubs.s2(patch, PERIOD), hubs.vhr(patch, PERIOD)) for patch in patches]
    assert estimate.acquisitions == {
        "s2": sum(len(s2.timestamps) for s2, _ in read),
        "vhr": sum(len(vhr.timestamps) for _, vhr in read if vhr),
    }
    assert estimate.requests == hub.count("process") + hub.count("search")
    assert estimate.processing_units == pytest.approx(hub.processing_units)


def test_processing_units_of_the_documentation():
    """512 x 512 pixels of 3 bands are one, and the area counts as 1 % of it at least: the table of docs/data.md."""
    l1c = SentinelHub(SentinelHubSource(kind="sentinelhub", level="L1C", **BYOC), {})
    l2a = SentinelHub(SentinelHubSource(kind="sentinelhub", level="L2A", **BYOC, byoc_pan="PAN"), {})
    assert l1c.s2_recipe.processing_units(512, 512) == pytest.approx(2.0)
    assert l2a.s2_recipe.processing_units(240, 240) == pytest.approx(0.366, abs=5e-4)
    assert l1c.s2_recipe.processing_units(240, 240) == pytest.approx(0.439, abs=5e-4)
    assert l1c.cloud_recipe.processing_units(40, 40) == pytest.approx(0.033, abs=5e-4)
    assert l1c.vhr_recipe.processing_units(960, 960) == pytest.approx(4.69, abs=5e-3)
    assert l2a.vhr_recipe.processing_units(960, 960) == pytest.approx(5.86, abs=5e-3)


def test_the_example_is_valid_and_goes_where_the_service_is():
    example = load_config(REPOSITORY / "examples" / "sentinel-hub.yaml", {})
    assert SentinelHub(example.source, {}).base_url == "https://services.sentinel-hub.com"
    elsewhere = load_config(
        REPOSITORY / "examples" / "sentinel-hub.yaml", {"SUBPIXEL_SENTINEL_HUB_URL": "https://hub.example/"}
    )
    assert SentinelHub(elsewhere.source, {}).base_url == "https://hub.example"
