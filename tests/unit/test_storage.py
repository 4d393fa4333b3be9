"""Storage, local and on a real S3 server (SeaweedFS)."""

import datetime as dt
import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from components import stage as runtime
from sr_core.config import Config, StorageSettings, parse_config
from sr_core.errors import ArtifactError, StorageError
from sr_core.storage import S3Storage, storage_for
from tests.seaweed import BUCKET, S3Server, seaweed
from tests.servers.s3_proxy import S3Proxy, s3_proxy


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with seaweed(tmp_path_factory.mktemp("seaweed")) as running:
        yield running


@pytest.fixture
def s3(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    server.empty()
    return server


@pytest.fixture
def proxy(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Proxy]:
    """The same server behind a proxy, which notes what is asked."""
    with s3_proxy(s3) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.endpoint)
        yield running


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    folder = tmp_path / "artifact"
    (folder / "region" / "patch").mkdir(parents=True)
    (folder / "a.json").write_text("{}")
    (folder / "region" / "patch" / "bands.npy").write_bytes(os.urandom(9 << 20))  # more than one part
    (folder / "run.json").write_text('{"key": "1"}')
    (folder / ".key").write_text("1")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("where", ["local", "s3"])
def test_a_folder_comes_back_as_it_went(where: str, s3: S3Server, artifact: Path, tmp_path: Path) -> None:
    store = storage_for(f"s3://{BUCKET}/runs/one" if where == "s3" else str(tmp_path / "root"))

    store.upload(artifact, "patches", last="run.json")
    store.download("patches", tmp_path / "back")

    expected = contents(artifact)
    del expected[".key"]  # hidden files are a stage's own
    assert contents(tmp_path / "back") == expected
    assert sorted(store.names("patches")) == sorted(f"patches/{name}" for name in expected)
    assert store.read("patches/a.json") == b"{}"
    assert store.read("patches/nothing") is None
    assert list(store.names("patch")) == []  # a prefix is a folder, not the beginning of a name


@pytest.mark.parametrize("where", ["local", "s3"])
def test_an_upload_replaces_the_artifact_before_it(where: str, s3: S3Server, artifact: Path, tmp_path: Path) -> None:
    store = storage_for(f"s3://{BUCKET}/runs/one" if where == "s3" else str(tmp_path / "root"))
    store.upload(artifact, "patches", last="run.json")
    store.upload(artifact, "masks", last="run.json")

    (artifact / "a.json").rename(artifact / "b.json")
    store.upload(artifact, "patches", last="run.json")

    names = ["b.json", "region/patch/bands.npy", "run.json"]
    assert sorted(store.names("patches")) == [f"patches/{name}" for name in names]
    assert "masks/a.json" in store.names("masks")


@pytest.mark.parametrize("where", ["local", "s3"])
def test_what_is_there_already_is_kept(where: str, s3: S3Server, artifact: Path, tmp_path: Path) -> None:
    store = storage_for(f"s3://{BUCKET}/runs/kept" if where == "s3" else str(tmp_path / "root"))
    assert store.upload(artifact, "patches", last="run.json") == 3
    assert store.upload(artifact, "patches", last="run.json") == 0
    (artifact / "new.json").write_text("[]")
    before = {entry.name: entry.modified for entry in store.entries("patches")}
    assert store.upload(artifact, "patches") == 1
    after = {entry.name: entry.modified for entry in store.entries("patches")}
    assert {name: after[name] for name in before} == before
    assert store.folders() == ["patches"] and store.folders("patches") == ["region"] and store.folders("no") == []


def test_the_record_goes_first_and_comes_last_where_objects_change(proxy: S3Proxy, artifact: Path) -> None:
    store = storage_for(f"s3://{BUCKET}/run")
    store.upload(artifact, "patches", last="run.json")
    (artifact / "a.json").rename(artifact / "b.json")
    (artifact / "region" / "patch" / "bands.npy").write_bytes(b"other")
    proxy.requests.clear()

    store.upload(artifact, "patches", last="run.json")

    changes = [(method, path.partition("?")[0]) for method, path in proxy.requests if method in ("PUT", "DELETE")]
    place = f"/{BUCKET}/run/patches"
    assert changes[0] == ("DELETE", f"{place}/run.json")
    assert sorted(changes[1:3]) == [("PUT", f"{place}/b.json"), ("PUT", f"{place}/region/patch/bands.npy")]
    assert changes[3:] == [("DELETE", f"{place}/a.json"), ("PUT", f"{place}/run.json")]


def test_objects_that_are_added_leave_the_record_in_place_until_its_successor(proxy: S3Proxy, artifact: Path) -> None:
    store = storage_for(f"s3://{BUCKET}/run")
    store.upload(artifact, "patches", last="run.json")
    (artifact / "b.json").write_text("{}")
    (artifact / "run.json").write_text('{"key": "2"}')
    proxy.requests.clear()
    store.upload(artifact, "patches", last="run.json")
    assert proxy.calls("DELETE") == []
    assert proxy.calls("PUT") == ["run/patches/b.json", "run/patches/run.json"]


def test_only_what_changed_is_downloaded_again(proxy: S3Proxy, artifact: Path, tmp_path: Path) -> None:
    store = storage_for(f"s3://{BUCKET}/run")
    store.upload(artifact, "patches")
    store.download("patches", tmp_path / "back")
    os.utime(tmp_path / "back" / "a.json", (0, 0))  # as if the object were newer, and of the same size
    proxy.requests.clear()

    store.download("patches", tmp_path / "back")

    assert proxy.calls("HEAD") == ["run/patches/a.json"] * len(proxy.calls("HEAD"))
    assert [key for key in proxy.calls("GET") if key] == ["run/patches/a.json"]


def test_names_that_lead_out_of_the_folder_are_refused(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = S3Storage(f"s3://{BUCKET}/run")
    hostile = {"Key": "run/patches/../../escaped", "Size": 1, "LastModified": dt.datetime.now(dt.UTC)}
    monkeypatch.setattr(store, "_pages", lambda *_: iter([{"Contents": [hostile]}]))  # no server stores such a key
    with pytest.raises(StorageError, match="leads out of the folder"):
        store.download("patches", tmp_path / "a" / "b")


def test_long_listings_are_read_page_by_page(proxy: S3Proxy) -> None:
    client, store = proxy.upstream.client(), storage_for(f"s3://{BUCKET}/many")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: client.put_object(Bucket=BUCKET, Key=f"many/{n:04d}/x", Body=b""), range(1003)))
    assert [*store.names()] == [f"{number:04d}/x" for number in range(1003)]
    assert store.folders() == [f"{number:04d}" for number in range(1003)]
    assert len(proxy.calls("GET")) >= 4
    store.remove("")
    assert not [*store.names()]


def test_a_link_is_read_without_credentials_and_by_ranges_until_it_expires(s3: S3Server, artifact: Path) -> None:
    store = storage_for(f"s3://{BUCKET}/run")
    store.upload(artifact, "patches")
    content = (artifact / "region" / "patch" / "bands.npy").read_bytes()
    link = store.link("patches/region/patch/bands.npy", 60)
    assert requests.get(link, timeout=10).content == content
    part = requests.get(link, headers={"Range": "bytes=100-199"}, timeout=10)
    assert (part.status_code, part.content) == (206, content[100:200])
    assert requests.get(link.partition("?")[0], timeout=10).status_code == 403
    short = store.link("patches/a.json", 1)
    time.sleep(2.5)
    assert requests.get(short, timeout=10).status_code == 403
    with pytest.raises(StorageError, match=r"found 604801 s, expected 1 to 604800 s"):
        store.link("patches/a.json", 604801)


def test_pages_and_pictures_come_with_their_media_types(s3: S3Server, tmp_path: Path) -> None:
    for name in ("index.html", "app.js", "style.css", "sr.tif", "quicklook.png", "catalog.json", "weights.bin"):
        (tmp_path / name).write_bytes(b"x")
    storage_for(f"s3://{BUCKET}/site").upload(tmp_path, "")
    found = {path.name: s3.client().head_object(Bucket=BUCKET, Key=f"site/{path.name}") for path in tmp_path.iterdir()}
    assert {name: answer["ContentType"].partition(";")[0] for name, answer in found.items()} == {
        "index.html": "text/html",
        "app.js": "text/javascript",
        "style.css": "text/css",
        "sr.tif": "image/tiff",
        "quicklook.png": "image/png",
        "catalog.json": "application/json",
        "weights.bin": "application/octet-stream",
    }
    assert {name for name, answer in found.items() if answer.get("CacheControl") == "no-cache"} == {
        "index.html",
        "app.js",
        "style.css",
        "catalog.json",
    }


@pytest.mark.parametrize(
    ("style", "host", "path"),
    [("path", "s3.example.org:8333", "/bucket/run/a"), ("virtual", "bucket.s3.example.org:8333", "/run/a")],
)
def test_endpoint_region_and_addressing_are_settings(s3: S3Server, style: Any, host: str, path: str) -> None:
    settings = StorageSettings(endpoint="https://s3.example.org:8333", region="eu-west-3", addressing_style=style)
    link = urlsplit(storage_for("s3://bucket/run", settings).link("a"))
    assert (link.netloc, link.path) == (host, path)
    assert "eu-west-3%2Fs3%2Faws4_request" in link.query and "AWS4-HMAC-SHA256" in link.query
    anonymous = storage_for("s3://bucket/run", settings.model_copy(update={"anonymous": True})).link("a")
    assert "Signature" not in anonymous


@pytest.mark.parametrize(
    ("uri", "setting", "expected"),
    [
        ("s3://no-such-bucket/run", {}, "NoSuchBucket: the bucket does not exist"),
        (f"s3://{BUCKET}/run", {"AWS_ACCESS_KEY_ID": "other"}, "the access key is unknown"),
        (f"s3://{BUCKET}/run", {"AWS_SECRET_ACCESS_KEY": "other"}, "the secret key is wrong"),
    ],
)
def test_what_is_wrong_with_s3_is_said(
    uri: str,
    setting: dict[str, str],
    expected: str,
    s3: S3Server,
    artifact: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in setting.items():
        monkeypatch.setenv(name, value)
    store = storage_for(uri)
    for attempt in (
        lambda: store.read("patches/run.json"),
        lambda: list(store.names("patches")),
        lambda: store.download("patches", tmp_path / "back"),
        lambda: store.upload(artifact, "patches"),
    ):
        with pytest.raises(StorageError, match=expected) as caught:
            attempt()
        assert uri.removeprefix("s3://") in str(caught.value)


def test_a_server_that_does_not_answer_is_named(s3: S3Server) -> None:
    settings = StorageSettings(endpoint="http://127.0.0.1:9", max_attempts=2)
    expected = rf"s3://{BUCKET}/run/run.json: Could not connect .*127.0.0.1:9.*is AWS_ENDPOINT_URL .* right"
    with pytest.raises(StorageError, match=expected):
        storage_for(f"s3://{BUCKET}/run", settings).read("run.json")


@pytest.mark.parametrize("uri", ["gs://bucket/run", "s3:///run"])
def test_other_places_are_refused(uri: str) -> None:
    with pytest.raises(StorageError, match=r"expected .*s3://bucket/prefix"):
        storage_for(uri)


@dataclass(frozen=True)
class Improvised(runtime.Stage):
    """A stage whose work is given instead of read from its program."""

    work: Callable[[runtime.Context], runtime.Result] | None = None

    def program(self) -> Any:
        return SimpleNamespace(work=self.work)


def counting_stage(done: list[str]) -> tuple[runtime.Stage, runtime.Stage]:
    """Two stages, the second reading the first."""

    def download(context: runtime.Context) -> runtime.Result:
        done.append("download")
        (context.output / "patches.json").write_text(f"[{context.config.package.version}]")
        (context.output.parent / "report.html").write_text("<p>")
        return runtime.Result({"patches": 1})

    def package(context: runtime.Context) -> runtime.Result:
        done.append("package")
        (context.output / "copy.json").write_text((context.inputs["download"] / "patches.json").read_text())
        return runtime.Result({"copies": 1})

    return (
        Improvised("download", "patches", ("package",), at_root=("report.html",), work=download),
        Improvised("package", "archive", ("package",), ("download", "train_hrn?"), work=package),
    )


def small_config(version: str = "1.0") -> Config:
    return parse_config({"name": "s3", "source": {"kind": "files", "path": "."}, "package": {"version": version}})


def test_stages_work_on_an_s3_root(s3: S3Server, capfd: pytest.CaptureFixture[str]) -> None:
    done: list[str] = []
    first, second = counting_stage(done)
    root = f"s3://{BUCKET}/team/run"
    store = storage_for(root)

    with pytest.raises(ArtifactError, match=rf"package: {root}/patches is missing or unfinished; run download first"):
        runtime.run(second, small_config(), root)
    runtime.run(first, small_config(), root)
    record = runtime.run(second, small_config(), root)

    assert done == ["download", "package"]
    assert sorted(store.names()) == [
        "archive/copy.json",
        "archive/run.json",
        "patches/patches.json",
        "patches/run.json",
        "report.html",
    ]
    assert json.loads(store.read("archive/run.json") or b"") == record

    capfd.readouterr()
    assert runtime.run(second, small_config(), root) == record
    assert done == ["download", "package"]
    assert "package: kept archive/ (1 copies)" in capfd.readouterr().err

    changed = runtime.run(first, small_config("2.0"), root)
    assert changed["key"] != record["inputs"]["download"]
    assert store.read("patches/patches.json") == b"[2.0]"


def test_a_stage_that_fails_shows_nothing_on_s3(s3: S3Server) -> None:
    def fail(context: runtime.Context) -> runtime.Result:
        (context.output / "half").write_text("")
        raise ValueError("in the middle")

    with pytest.raises(ValueError, match="in the middle"):
        runtime.run(Improvised("download", "patches", (), work=fail), small_config(), f"s3://{BUCKET}/run")
    assert list(storage_for(f"s3://{BUCKET}/run").names()) == []


def test_a_stage_works_in_an_absolute_folder_whatever_it_was_given(tmp_path, monkeypatch):
    """Great Expectations knows no relative paths."""
    monkeypatch.chdir(tmp_path)
    with runtime.working_folder(storage_for("run")) as folder:
        assert folder.is_absolute() and folder == tmp_path.resolve() / "run"
