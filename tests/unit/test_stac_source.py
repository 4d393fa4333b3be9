"""The STAC source: the real clients, against a server of this machine, give the files' pixels, also after faults."""

import datetime as dt
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pyproj
import pytest
import rasterio
from numpy.typing import NDArray

from sr_core.config import FilesSource, StacSource
from sr_core.errors import DataError, SourceError
from sr_core.patches import Patch, make_patch
from sr_core.sources.files import FileSeries
from sr_core.sources.stac import StacCatalogue, offset_in_pixels
from tests.servers.stac import Fault, StacServer, serve, write_catalogue, write_cog, write_item
from tests.unit.geotiffs import NORTH_WEST, field, write_product

SIDE = 256
EPSG = 32631
DAYS = (dt.date(2021, 5, 1), dt.date(2021, 5, 6), dt.date(2021, 5, 11), dt.date(2021, 5, 16))
PERIOD = (dt.date(2021, 5, 1), dt.date(2021, 5, 31))
WEST, NORTH = NORTH_WEST
PATCH = make_patch("field", EPSG, (WEST + 400, NORTH - 1600, WEST + 1600, NORTH - 400), 80)
LASTING = 1000


def product(day: dt.date, baseline: str = "0300", tile: str = "T31UFS") -> str:
    return f"S2A_MSIL2A_{day:%Y%m%d}T104021_N{baseline}_R008_{tile}_{day:%Y%m%d}T120000"


def scene(day: dt.date) -> NDArray[np.uint16]:
    """Farmland (4, SIDE, SIDE), its noise new each day, with a corner that the swath did not reach."""
    image = field(SIDE, seed=3) + np.random.default_rng(day.toordinal()).integers(0, 60, (4, SIDE, SIDE))
    image[:, :60, :60] = 0
    return image.astype(np.uint16)


def classes(day: dt.date) -> NDArray[np.uint8]:
    """SCL (SIDE/2, SIDE/2): vegetation, with a cloud that moves."""
    scl = np.full((SIDE // 2, SIDE // 2), 4, np.uint8)
    scl[day.day + 20 : day.day + 30, 40:60] = 9
    scl[:30, :30] = 0
    return scl


@pytest.fixture(scope="module")
def products(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same four dates as a folder of GeoTIFFs and as a static catalogue."""
    files, stac = tmp_path_factory.mktemp("files"), tmp_path_factory.mktemp("stac")
    items = []
    for day in DAYS:
        name = product(day)
        write_product(files, name, scene(day))
        when = dt.datetime(day.year, day.month, day.day, 10, 46, 30, tzinfo=dt.UTC)
        said = {"s2:processing_baseline": "03.00", "s2:product_uri": f"{name}.SAFE"}
        items.append(
            write_item(
                stac,
                f"S2A_31UFS_{day:%Y%m%d}_0_L2A",
                scene(day),
                classes(day),
                EPSG,
                NORTH_WEST,
                when=when,
                properties=said,
            )
        )
    write_catalogue(stac, items)
    return files, stac


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sr_core.sources.stac.FIRST_PAUSE_S", 0.02)


@pytest.fixture
def server(products: tuple[Path, Path]) -> Iterator[StacServer]:
    with serve(products[1]) as running:
        yield running


def catalogue(place: str | Path, **changes: object) -> StacCatalogue:
    return StacCatalogue(StacSource(kind="stac", catalog=str(place), **{"timeout_s": 5, **changes}))


def assert_same_as_files(stac: StacCatalogue, files: Path, patch: Patch = PATCH) -> None:
    """All that both sources know of a patch is equal, to the bit."""
    expected = FileSeries(FilesSource(kind="files", path=files)).s2(patch, PERIOD)
    found = stac.s2(patch, PERIOD)
    unclassified = np.stack([np.repeat(np.repeat(classes(day), 2, 0), 2, 1) == 0 for day in DAYS])
    rows, columns = round((NORTH - patch.bounds[3]) / 10), round((patch.bounds[0] - WEST) / 10)
    window = (slice(None), slice(rows, rows + patch.shape[0]), slice(columns, columns + patch.shape[1]))
    valid = expected.mask["VALID"] & ~unclassified[window][..., None]
    np.testing.assert_array_equal(found.data["BANDS"], np.where(valid, expected.data["BANDS"], 0))
    np.testing.assert_array_equal(found.mask["VALID"], valid)
    assert found.data["BANDS"].dtype == np.uint16
    assert found.get_timestamps() == expected.get_timestamps()
    assert found.meta_info["product_ids"] == expected.meta_info["product_ids"]


@pytest.mark.parametrize("place", ["folder", "static", "api"])
def test_pixels_equal_those_of_the_files(products: tuple[Path, Path], server: StacServer, place: str) -> None:
    address = {"folder": products[1] / "catalog.json", "static": server.static, "api": server.api}[place]
    assert_same_as_files(catalogue(address), products[0])


def test_clouds_are_those_of_scl(server: StacServer) -> None:
    found = catalogue(server.api).s2(PATCH, PERIOD)
    fine = np.stack([np.repeat(np.repeat(classes(day), 2, 0), 2, 1) for day in DAYS])
    rows, columns = round((NORTH - PATCH.bounds[3]) / 10), round((PATCH.bounds[0] - WEST) / 10)
    expected = fine[:, rows : rows + PATCH.shape[0], columns : columns + PATCH.shape[1]] == 9
    np.testing.assert_array_equal(found.mask["CLM"][..., 0], expected)
    assert found.meta_info["mask_kind"] == "scl"
    assert found.meta_info["level"] == "L2A"


def test_search_is_paged_shared_by_neighbours_and_filtered(server: StacServer) -> None:
    source = catalogue(server.api)
    assert len(source.s2(PATCH, PERIOD).get_timestamps()) == len(DAYS)  # the server gives three a page
    source.s2(make_patch("field", EPSG, (WEST + 800, NORTH - 1600, WEST + 1600, NORTH - 800), 0), PERIOD)
    assert [path for _, path in server.requests].count("/api/search") == 2
    short = source.s2(PATCH, (DAYS[1], DAYS[2]))
    assert [time.date() for time in short.get_timestamps()] == list(DAYS[1:3])
    with pytest.raises(
        DataError, match=r"no item of 2021-05-01 to 2021-05-31 with at most source.max_cloud_cover = 0.05"
    ):
        catalogue(server.api, max_cloud_cover=0.05).s2(PATCH, PERIOD)


@pytest.mark.parametrize("kind", ["429", "500", "403", "404", "drop", "truncate", "short", "slow", "no-range"])
def test_a_passing_fault_of_a_file_costs_time_and_no_pixel(
    products: tuple[Path, Path], server: StacServer, kind: str
) -> None:
    """Each of these files fails once, in its header or in one of the ranges of its pixels."""
    seconds = 1.2 if kind == "slow" else 0
    server.faults += [
        Fault(kind, "20210501_0_L2A/scl.tif", skip=0, seconds=seconds),
        Fault(kind, "20210506_0_L2A/blue.tif", skip=0, seconds=seconds),
        Fault(kind, "20210511_0_L2A/nir.tif", skip=1, seconds=seconds),
        Fault(kind, "20210516_0_L2A/red.tif", skip=2, seconds=seconds),
    ]
    assert_same_as_files(catalogue(server.api, timeout_s=1), products[0])
    assert not any(fault.times for fault in server.faults), "a fault has not happened"


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("429", "the server answers 429"),
        ("500", "the server answers 500"),
        ("403", "the server answers 403 Forbidden; this file needs an account"),
        ("404", "the server answers 404"),
        ("drop", "no answer from the server"),
        ("truncate", "the body may be truncated"),
        ("short", "the body may be truncated"),
        ("slow", "source.timeout_s is 1"),
    ],
)
def test_a_lasting_fault_is_an_error_that_names_the_file(server: StacServer, kind: str, told: str) -> None:
    server.faults.append(Fault(kind, "20210511_0_L2A/red.tif", times=LASTING, seconds=1.2 if kind == "slow" else 0))
    with pytest.raises(SourceError, match=told) as caught:
        catalogue(server.api, timeout_s=1, max_retries=1).s2(PATCH, PERIOD)
    assert f"{server.url}/S2A_31UFS_20210511_0_L2A/red.tif" in str(caught.value)


@pytest.mark.parametrize("kind", ["429", "500", "drop", "truncate", "slow"])
def test_a_passing_fault_of_the_search_loses_no_date(
    products: tuple[Path, Path], server: StacServer, kind: str
) -> None:
    """The landing page fails once, and the search on its second page."""
    server.faults += [
        Fault(kind, path, skip=skip, seconds=1.2 if kind == "slow" else 0)
        for path, skip in (("/api", 0), ("/api/search", 1))
    ]
    assert_same_as_files(catalogue(server.api, timeout_s=1), products[0])
    assert not any(fault.times for fault in server.faults), "a fault has not happened"


@pytest.mark.parametrize("kind", ["500", "drop", "truncate", "404"])
def test_a_lasting_fault_of_the_search_is_an_error(server: StacServer, kind: str) -> None:
    server.faults.append(Fault(kind, "/api/search", times=LASTING))
    with pytest.raises(SourceError, match=f"{server.api}: the catalogue cannot be read"):
        catalogue(server.api, max_retries=1).s2(PATCH, PERIOD)


def test_retry_after_is_waited_for(server: StacServer) -> None:
    server.faults.append(Fault("429", "20210501_0_L2A/red.tif", times=2, seconds=2))
    start = dt.datetime.now()
    catalogue(server.api).s2(PATCH, (DAYS[0], DAYS[0]))
    assert dt.datetime.now() - start >= dt.timedelta(seconds=2)


def test_a_server_without_ranges_gives_the_pixels_or_an_error(products: tuple[Path, Path], server: StacServer) -> None:
    server.faults.append(Fault("no-range", "red.tif", times=LASTING))
    try:
        assert_same_as_files(catalogue(server.api, max_retries=1), products[0])
    except SourceError as error:
        assert "the server ignores range requests" in str(error)


# tiles


def tile(folder: Path, name: str, image: NDArray, epsg: int, north_west: tuple[float, float], minute: int = 0):
    when = dt.datetime(2021, 5, 1, 10, 46 + minute, tzinfo=dt.UTC)
    scl = np.full((image.shape[1] // 2, image.shape[2] // 2), 4, np.uint8)
    return write_item(folder, name, image, scl, epsg, north_west, when=when, properties={"processing:version": "03.00"})


def test_tiles_of_a_pass_are_put_together(tmp_path: Path) -> None:
    ground = field(SIDE, seed=5)
    west, east = ground[..., :160], ground[..., 100:].copy()
    east[:, :, 60:] += 7  # where only the eastern tile sees the ground
    items = [
        tile(tmp_path, "S2A_31UFS", west, EPSG, NORTH_WEST),
        tile(tmp_path, "S2A_31UGS", east, EPSG, (WEST + 1000, NORTH), minute=2),
    ]
    found = catalogue(write_catalogue(tmp_path, items)).s2(PATCH, PERIOD)
    rows, columns = slice(32, 168), slice(32, 168)
    expected = np.concatenate([west, east[:, :, 60:]], axis=2)[:, rows, columns]
    assert [time.minute for time in found.get_timestamps()] == [46]
    assert found.mask["VALID"].all()
    np.testing.assert_array_equal(found.data["BANDS"][0], np.moveaxis(expected, 0, -1))


def test_of_two_processings_of_a_pass_the_newer_is_read(tmp_path: Path) -> None:
    old, new = field(SIDE, seed=5), field(SIDE, seed=6)
    items = [tile(tmp_path, name, image, EPSG, NORTH_WEST) for name, image in (("old", old), ("new", new))]
    items[0].properties["processing:version"] = "02.14"
    found = catalogue(write_catalogue(tmp_path, items)).s2(PATCH, PERIOD)
    assert found.meta_info["product_ids"] == ["new"]
    np.testing.assert_array_equal(found.data["BANDS"][0], np.moveaxis(new[:, 32:168, 32:168], 0, -1))


def test_a_tile_of_the_next_zone_is_resampled_onto_the_patch(tmp_path: Path) -> None:
    """A plane of reflectance, sampled in zone 32, comes out in zone 31 as the same plane of the ground."""
    to_zone_32 = pyproj.Transformer.from_crs(EPSG, 32632, always_xy=True)
    x, y = to_zone_32.transform(WEST + 1000, NORTH - 1000)
    west, north = round(x / 20) * 20 - 1400.0, round(y / 20) * 20 + 1400.0
    step = np.arange(280)
    plane = (1000 + 3 * step[None, :] + 2 * step[:, None]).astype(np.uint16)
    item = tile(tmp_path, "S2A_32ULB", np.stack([plane] * 4), 32632, (west, north))
    found = catalogue(write_catalogue(tmp_path, [item])).s2(PATCH, PERIOD)
    centres = np.meshgrid(
        PATCH.bounds[0] + 10 * np.arange(PATCH.shape[1]) + 5, PATCH.bounds[3] - 10 * np.arange(PATCH.shape[0]) - 5
    )
    east, up = to_zone_32.transform(*centres)
    expected = 1000 + 3 * ((east - west) / 10 - 0.5) + 2 * ((north - up) / 10 - 0.5)
    assert found.mask["VALID"].all()
    assert np.abs(found.data["BANDS"][0, ..., 0] - expected).max() < 2
    assert not found.mask["CLM"].any()


@pytest.mark.parametrize(
    ("names", "given"),
    [
        ({"blue": "B02_10m", "green": "B03_10m", "red": "B04_10m", "nir": "B08_10m", "scl": "SCL_20m"}, False),
        ({"blue": "B02", "green": "B03", "red": "B04", "nir": "B08", "scl": "SCL"}, False),
        ({"blue": "b", "green": "g", "red": "r", "nir": "n", "scl": "s"}, True),
    ],
)
def test_catalogues_name_their_assets_in_their_own_way(tmp_path: Path, names: dict[str, str], given: bool) -> None:
    image = scene(DAYS[0])
    when = dt.datetime(2021, 5, 1, 10, 46, tzinfo=dt.UTC)
    item = write_item(
        tmp_path, product(DAYS[0]), image, classes(DAYS[0]), EPSG, NORTH_WEST, when=when, asset_names=names
    )
    found = catalogue(write_catalogue(tmp_path, [item]), assets=names if given else None).s2(PATCH, PERIOD)
    seen = found.mask["VALID"][0, ..., 0]
    np.testing.assert_array_equal(found.data["BANDS"][0][seen], np.moveaxis(image[:, 32:168, 32:168], 0, -1)[seen])
    assert "CLM" in found.mask


# what cannot be read as it is


def test_wrong_catalogues_and_files_are_named(products: tuple[Path, Path], server: StacServer, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="expected earth-search, copernicus, a URL, or the path"):
        catalogue("earth-serch")
    with pytest.raises(
        SourceError, match=r"no item of source.collection 'landsat'; the catalogue has sentinel-2-c1-l2a"
    ):
        catalogue(server.static, collection="landsat").s2(PATCH, PERIOD)
    with pytest.raises(SourceError, match=r"found the assets blue, .*; expected B02, green, red, nir; name them by"):
        names = {"blue": "B02", "green": "green", "red": "red", "nir": "nir"}
        catalogue(server.api, assets=names).s2(PATCH, PERIOD)
    with pytest.raises(SourceError, match=r"scl.tif: found pixels of 20 x 20; expected 10 m"):
        names = {"blue": "blue", "green": "green", "red": "red", "nir": "scl"}
        catalogue(server.api, assets=names).s2(PATCH, PERIOD)
    item = tile(tmp_path, "floats", field(SIDE), EPSG, NORTH_WEST)
    with rasterio.open(tmp_path / "floats" / "nir.tif") as dataset:
        profile, reflectance = dataset.profile, dataset.read() / 10_000
    with rasterio.open(tmp_path / "floats" / "nir.tif", "w", **{**profile, "dtype": "float32"}) as dataset:
        dataset.write(reflectance.astype(np.float32))
    with pytest.raises(SourceError, match=r"nir.tif: found 1 band\(s\) of float32; expected one band of integers"):
        catalogue(write_catalogue(tmp_path, [item])).s2(PATCH, PERIOD)


def test_a_truncated_file_on_disk_is_an_error(tmp_path: Path) -> None:
    root = write_catalogue(tmp_path, [tile(tmp_path, "cut", scene(DAYS[0]), EPSG, NORTH_WEST)])
    red = tmp_path / "cut" / "red.tif"
    red.write_bytes(red.read_bytes()[:60_000])
    with pytest.raises(SourceError, match=r"red.tif: cannot be read at the first try: the file may be truncated"):
        catalogue(root).s2(PATCH, PERIOD)


# the radiometric offset of processing baseline 04.00


def offset_catalogue(
    folder: Path, stored: list[int], said: list[tuple[bool | None, float | None]], scl: bool = True
) -> Path:
    """Four dates of baseline 05.09 whose pixels hold `stored`, and whose metadata say `said`: Earth Search's flag
    `boa_offset_applied`, and the offset of `raster:bands`."""
    items = []
    for day, kept, (flag, offset) in zip(DAYS, stored, said, strict=True):
        properties = {"s2:processing_baseline": "05.09", "s2:product_uri": product(day, "0509") + ".SAFE"}
        properties |= {} if flag is None else {"earthsearch:boa_offset_applied": flag}
        image = np.where(scene(day) > 0, scene(day) + kept, 0).astype(np.uint16)
        when = dt.datetime(day.year, day.month, day.day, 10, 46, tzinfo=dt.UTC)
        items.append(
            write_item(
                folder,
                f"S2A_31UFS_{day:%Y%m%d}_0_L2A",
                image,
                classes(day) if scl else None,
                EPSG,
                NORTH_WEST,
                when=when,
                properties=properties,
                raster=None if offset is None else {"offset": offset},
            )
        )
    return write_catalogue(folder, items)


def ground() -> NDArray[np.uint16]:
    """What all four dates show of the patch without any offset."""
    return np.stack([np.moveaxis(scene(day)[:, 32:168, 32:168], 0, -1) for day in DAYS])


def assert_ground(bands: NDArray) -> None:
    seen = bands > 0
    assert seen.mean() > 0.8
    np.testing.assert_array_equal(bands[seen], ground()[seen])


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        pytest.param([0, 0, 0, 0], [(True, -0.1)] * 4, id="removed-and-flagged"),
        pytest.param([1000] * 4, [(False, -0.1)] * 4, id="kept-and-said"),
        pytest.param([1000] * 4, [(None, None)] * 4, id="kept-and-only-the-baseline-tells"),
        pytest.param([1000, 1000, 0, 0], [(False, -0.1)] * 4, id="removed-but-not-flagged"),
        pytest.param([0, 1000, 0, 1000], [(True, -0.1)] * 4, id="kept-but-flagged-as-removed"),
        pytest.param([0, 1000, 0, 1000], [(None, 0)] * 4, id="kept-but-said-to-be-zero"),
    ],
)
def test_the_offset_is_what_the_pixels_show(tmp_path: Path, stored: list[int], said: list) -> None:
    found = catalogue(offset_catalogue(tmp_path, stored, said)).s2(PATCH, PERIOD)
    assert found.meta_info["offsets_removed"] == stored
    assert_ground(found.data["BANDS"])


def test_the_offset_is_the_same_for_patches_that_show_nothing(tmp_path: Path) -> None:
    """A patch without vegetation or water takes what the whole product shows."""
    root = offset_catalogue(tmp_path, [0] * 4, [(False, -0.1)] * 4)
    source = catalogue(root)
    for day in DAYS:
        scl = classes(day)
        scl[16:84, 16:84] = 5
        write_cog(tmp_path / f"S2A_31UFS_{day:%Y%m%d}_0_L2A" / "scl.tif", scl, 20, EPSG, NORTH_WEST)
    assert source.s2(PATCH, PERIOD).meta_info["offsets_removed"] == [0] * 4


def test_the_offset_can_be_forced(tmp_path: Path) -> None:
    root = offset_catalogue(tmp_path, [1000, 1000, 0, 0], [(False, -0.1)] * 4)
    metadata = catalogue(root, offset="metadata").s2(PATCH, PERIOD)
    assert metadata.meta_info["offsets_removed"] == [1000] * 4
    none = catalogue(root, offset="none").s2(PATCH, PERIOD)
    assert none.meta_info["offsets_removed"] == [0] * 4
    seen = none.data["BANDS"] > 0
    stored = ground() + np.array([1000, 1000, 0, 0], np.uint16)[:, None, None, None]
    np.testing.assert_array_equal(none.data["BANDS"][seen], stored[seen])


def test_a_jump_that_nothing_explains_is_refused_with_its_dates(tmp_path: Path) -> None:
    """Without SCL the catalogue's word is all there is; where the series contradicts it, nothing is guessed."""
    root = offset_catalogue(tmp_path, [1000, 1000, 0, 0], [(False, -0.1)] * 4, scl=False)
    told = r"jumps by -1000 from 2021-05-01, 2021-05-06 .* to 2021-05-11, 2021-05-16 .*source.offset"
    with pytest.raises(DataError, match=told):
        catalogue(root).s2(PATCH, PERIOD)


@pytest.mark.realdata
def test_vegetation_and_water_show_the_offset_on_real_dates(sample_data: Path) -> None:
    """Belgium, two sites: no date of either is taken for the other kind, and almost all are decided."""
    decided = {0: 0, 1000: 0}
    dates = 0
    for path in sorted((sample_data / "belgium").glob("S2_L2A_10m_*.nc")):
        with h5py.File(path) as fine, h5py.File(path.with_name(path.name.replace("_10m_", "_20m_"))) as coarse:
            red, scl = fine["B04"][:].astype(np.int32), coarse["SCL"][:].repeat(2, 1).repeat(2, 2)
        for layer, codes in zip(red, scl, strict=True):
            if offset_in_pixels(layer, codes) is None and np.isin(codes, (4, 6)).sum() < 200:
                continue
            dates += 1
            for offset in decided:
                seen = offset_in_pixels(np.where(layer > 0, layer + offset, 0), codes)
                assert seen in (offset, None)
                decided[offset] += seen == offset
    assert dates > 90
    assert min(decided.values()) > 0.95 * dates, (decided, dates)
