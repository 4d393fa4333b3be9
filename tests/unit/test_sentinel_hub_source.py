"""The real client against a server that speaks Sentinel Hub's protocol, pixel by pixel."""

import datetime as dt

import numpy as np
import pytest

from sr_core.config import FilesSource, SentinelHubSource
from sr_core.patches import make_patch
from sr_core.sources.files import FileSeries
from sr_core.sources.sentinel_hub import SentinelHub
from tests.servers.sentinel_hub import CLIENT_ID, CLIENT_SECRET, okavango, serve

SECRETS = {"SH_CLIENT_ID": CLIENT_ID, "SH_CLIENT_SECRET": CLIENT_SECRET}
PERIOD = (dt.date(2017, 4, 1), dt.date(2017, 5, 31))
PATCH = make_patch("okavango", 32734, (700_200.0, 7_898_400.0, 700_600.0, 7_898_800.0), 40.0)


def source(server, secrets=SECRETS, **changes) -> SentinelHub:
    known = {"base_url": server.url, "token_url": server.token_url, "requests_per_minute": 60_000}
    return SentinelHub(SentinelHubSource(kind="sentinelhub", level="L1C", **(known | changes)), secrets)


@pytest.fixture
def delta(sample_data):
    with serve({"sentinel-2-l1c": okavango(sample_data / "okavango")}) as server:
        yield server


@pytest.mark.realdata
def test_pixels_are_those_of_the_files(delta, sample_data):
    files = FileSeries(FilesSource(kind="files", path=sample_data / "okavango")).s2(PATCH, PERIOD)

    found = source(delta).s2(PATCH, PERIOD)

    assert found.timestamps == files.timestamps
    np.testing.assert_array_equal(found.data["BANDS"], files.data["BANDS"])
    np.testing.assert_array_equal(found.mask["VALID"], files.mask["VALID"])
    for key in ("product_ids", "processing_baselines", "level", "gsd_m"):
        assert found.meta_info[key] == files.meta_info[key]
