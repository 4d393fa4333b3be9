"""The STAC source: the real clients against a server of this machine give the pixels of the files, also after faults."""

import datetime as dt
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray

from sr_core.config import FilesSource, StacSource
from sr_core.errors import DataError, SourceError
from sr_core.patches import Patch, make_patch
from sr_core.sources.files import FileSeries
from sr_core.sources.stac import DARK_PERCENTILE, StacCatalogue, offset_in_pixels
from tests.servers.stac import Fault, StacServer, serve, write_catalogue, write_item
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


@pytest.mark.parametrize("path", ["_0_L2A/blue.tif", "_0_L2A/scl.tif"])
@pytest.mark.parametrize("skip", [0, 2])
@pytest.mark.parametrize("kind", ["429", "500", "403", "404", "drop", "truncate", "short", "slow", "no-range"])
def test_a_passing_fault_of_a_file_costs_time_and_no_pixel(
    products: tuple[Path, Path], server: StacServer, kind: str, skip: int, path: str
) -> None:
    server.faults.append(Fault(kind, path, times=2, skip=skip, seconds=1.5 if kind == "slow" else 1))
    assert_same_as_files(catalogue(server.api, timeout_s=1), products[0])
    assert server.faults[0].times == 0, "the fault has not happened"


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
        ("no-range", "the server ignores range requests"),
    ],
)
def test_a_lasting_fault_is_an_error_that_names_the_file(server: StacServer, kind: str, told: str) -> None:
    server.faults.append(Fault(kind, "20210511_0_L2A/red.tif", times=LASTING, seconds=1.2 if kind == "slow" else 0))
    with pytest.raises(SourceError, match=told) as caught:
        catalogue(server.api, timeout_s=1, max_retries=1).s2(PATCH, PERIOD)
    assert f"{server.url}/S2A_31UFS_20210511_0_L2A/red.tif" in str(caught.value)


@pytest.mark.parametrize("kind", ["429", "500", "drop", "truncate", "slow"])
@pytest.mark.parametrize("path", ["/api", "/api/search"])
def test_a_passing_fault_of_the_search_loses_no_date(
    products: tuple[Path, Path], server: StacServer, kind: str, path: str
) -> None:
    server.faults.append(
        Fault(kind, path, skip=1 if path == "/api/search" else 0, seconds=1.5 if kind == "slow" else 1)
    )
    assert_same_as_files(catalogue(server.api, timeout_s=1), products[0])
    assert server.faults[0].times == 0, "the fault has not happened"


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
