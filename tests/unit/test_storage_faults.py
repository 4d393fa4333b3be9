"""Storage on a real S3 server behind a proxy that injects faults: nothing is lost, and nothing is visible half."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sr_core.config import StorageSettings
from sr_core.errors import StorageError
from sr_core.storage import S3Storage, storage_for
from tests.seaweed import BUCKET, S3Server, seaweed
from tests.servers.s3_proxy import Fault, Kind, S3Proxy, s3_proxy

PATIENT = StorageSettings(timeout_s=1.0, max_attempts=10)
HASTY = StorageSettings(max_attempts=1)
LARGE = 9 << 20
"""More than one part."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with seaweed(tmp_path_factory.mktemp("seaweed")) as running:
        yield running


@pytest.fixture
def proxy(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Proxy]:
    server.empty()
    with s3_proxy(server) as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        yield running


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """An artifact of two small files, one of several parts, and the index that names them."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name, size in (("a.tif", 3000), ("b.tif", 70_000), ("large.tif", LARGE)):
        (folder / name).write_bytes(os.urandom(size))
    (folder / "index.json").write_text("{}")
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def untouched(server: S3Server, place: str) -> S3Storage:
    """The same place without the proxy."""
    return S3Storage(f"s3://{BUCKET}/{place}", StorageSettings(endpoint=server.endpoint))


@pytest.mark.parametrize("kind", ["timeout", "500", "503", "drop", "drop-answer", "truncate-request"])
def test_an_upload_survives(kind: Kind, proxy: S3Proxy, run: Path, tmp_path: Path) -> None:
    small, part, index = (Fault(kind, "PUT", path, seconds=1.5) for path in ("a.tif", "partNumber=2", "index.json"))
    proxy.faults += [small, part, index]
    storage_for(f"s3://{BUCKET}/up", PATIENT).upload(run, "", last="index.json")
    assert proxy.thrown == [kind] * 3
    untouched(proxy.upstream, "up").download("", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(run)


@pytest.mark.parametrize("kind", ["timeout", "500", "503", "drop", "truncate-answer", "damage-answer"])
def test_a_download_survives(kind: Kind, proxy: S3Proxy, run: Path, tmp_path: Path) -> None:
    untouched(proxy.upstream, "down").upload(run, "")
    proxy.faults += [Fault(kind, "GET", path, seconds=1.5) for path in ("a.tif", "large.tif")]
    store = storage_for(f"s3://{BUCKET}/down", PATIENT)
    store.download("", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(run)
    proxy.faults.append(Fault(kind, "GET", "b.tif", seconds=1.5))
    assert store.read("b.tif") == (run / "b.tif").read_bytes()
    assert proxy.thrown == [kind] * 3


@pytest.mark.parametrize("kind", ["timeout", "500", "503", "drop", "truncate-answer"])
def test_a_listing_survives(kind: Kind, proxy: S3Proxy, run: Path) -> None:
    untouched(proxy.upstream, "list").upload(run, "")
    proxy.faults.append(Fault(kind, "GET", "list-type=2", seconds=1.5))
    assert [*storage_for(f"s3://{BUCKET}/list", PATIENT).names()] == ["a.tif", "b.tif", "index.json", "large.tif"]
    assert proxy.thrown == [kind]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("timeout", r"Read timeout .* what is finished is kept, and nothing half is visible"),
        ("503", r"S3 answered SlowDown: the server asks for less: try again later, or lower storage\.transfers"),
        ("drop", r"Connection was closed .* try again"),
    ],
)
def test_an_upload_that_fails_in_the_end_shows_no_index_and_is_continued(
    kind: Kind, said: str, proxy: S3Proxy, run: Path
) -> None:
    impatient = HASTY.model_copy(update={"timeout_s": 1.0}) if kind == "timeout" else HASTY
    store = storage_for(f"s3://{BUCKET}/broken", impatient)
    proxy.faults.append(Fault(kind, "PUT", "b.tif", times=100, seconds=1.5))
    with pytest.raises(StorageError, match=said):
        store.upload(run, "", last="index.json")
    assert "index.json" not in untouched(proxy.upstream, "broken").names()

    proxy.faults.clear()
    there = set(untouched(proxy.upstream, "broken").names())
    assert store.upload(run, "", last="index.json") == 4 - len(there)
    assert "index.json" in untouched(proxy.upstream, "broken").names()


def test_an_artifact_that_breaks_while_it_is_replaced_is_not_shown(proxy: S3Proxy, run: Path) -> None:
    store = storage_for(f"s3://{BUCKET}/again", HASTY)
    store.upload(run, "", last="index.json")
    (run / "a.tif").write_bytes(os.urandom(3000))
    proxy.faults.append(Fault("500", "PUT", "a.tif", times=100))
    with pytest.raises(StorageError, match="InternalError: the server has failed"):
        store.upload(run, "", last="index.json")
    assert [*untouched(proxy.upstream, "again").names()] == ["a.tif", "b.tif", "large.tif"]


def test_a_download_that_stays_damaged_leaves_no_file(proxy: S3Proxy, run: Path, tmp_path: Path) -> None:
    untouched(proxy.upstream, "damaged").upload(run, "")
    proxy.faults.append(Fault("damage-answer", "GET", "a.tif", times=100))
    store = storage_for(f"s3://{BUCKET}/damaged", StorageSettings(max_attempts=2))
    with pytest.raises(StorageError, match=r"damaged/a\.tif: "):
        store.fetch("a.tif", tmp_path / "back" / "a.tif")
    assert [*(tmp_path / "back").iterdir()] == []


def test_a_storm_loses_nothing(proxy: S3Proxy, run: Path, tmp_path: Path) -> None:
    """Every eighth request meets a fault of some kind, in both directions."""
    for number in range(20):
        (run / f"{number:02d}.json").write_bytes(os.urandom(2000))
    proxy.storm = 1 / 8
    store = storage_for(f"s3://{BUCKET}/storm", PATIENT)
    store.upload(run, "", last="index.json")
    store.download("", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(run)
    assert len(proxy.thrown) >= 5 and len(set(proxy.thrown)) >= 3, proxy.thrown


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ((403, "AccessDenied", {}), r"AccessDenied: the credentials may not do this: check the bucket's policy"),
        (
            (400, "AuthorizationHeaderMalformed", {"x-amz-bucket-region": "eu-west-1"}),
            r"the bucket is in eu-west-1: set AWS_REGION=eu-west-1 \(or storage\.region\)",
        ),
        ((301, "PermanentRedirect", {}), r"PermanentRedirect: the bucket is in another region: set AWS_REGION"),
        (
            (403, "RequestTimeTooSkewed", {"Date": "Wed, 01 Jan 2020 00:00:00 GMT"}),
            r"this machine's clock is wrong by \d+ s ahead: set it",
        ),
        ((400, "ExpiredToken", {}), r"ExpiredToken: the session has ended: log in again"),
        ((507, "QuotaExceeded", {}), r"QuotaExceeded: the bucket is full: make room"),
        ((418, "Teapot", {}), r"S3 answered Teapot: by the proxy"),
    ],
)
def test_what_s3_refuses_is_said_with_what_to_do(
    reply: tuple[int, str, dict[str, str]], said: str, proxy: S3Proxy, run: Path
) -> None:
    store = storage_for(f"s3://{BUCKET}/refused", HASTY)
    for attempt in (
        lambda: store.read("a.tif"),
        lambda: list(store.names()),
        lambda: store.send(run / "large.tif", "large.tif"),
    ):
        proxy.faults[:] = [Fault("reply", reply=reply, times=2)]
        with pytest.raises(StorageError, match=rf"^s3://{BUCKET}/refused.*: .*{said}"):
            attempt()


def test_without_credentials_it_says_where_they_are_looked_for(
    proxy: S3Proxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StorageError, match=r"no credentials: set AWS_ACCESS_KEY_ID .* or storage\.anonymous"):
        storage_for(f"s3://{BUCKET}/run").read("a")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "not a url")
    with pytest.raises(StorageError, match="expected AWS_ENDPOINT_URL such as https://"):
        storage_for(f"s3://{BUCKET}/run")
