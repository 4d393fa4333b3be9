"""Storage, local and on a real S3 server (SeaweedFS)."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from components import stage as runtime
from sr_core.config import Config, parse_config
from sr_core.errors import ArtifactError, StorageError
from sr_core.storage import S3Storage, storage_for
from tests.seaweed import BUCKET, S3Server, seaweed


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


class Recorder:
    """Notes what is asked of the S3 client, in order."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.calls: list[tuple[str, str]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)

    def upload_file(self, path: str, bucket: str, key: str, **options: Any) -> None:
        self.calls.append(("put", key))
        self.client.upload_file(path, bucket, key, **options)

    def delete_object(self, **options: Any) -> None:
        self.calls.append(("delete", options["Key"]))
        self.client.delete_object(**options)

    def download_file(self, bucket: str, key: str, path: str) -> None:
        self.calls.append(("get", key))
        self.client.download_file(bucket, key, path)


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


def test_the_record_goes_first_and_comes_last(s3: S3Server, artifact: Path) -> None:
    client = Recorder(s3.client())
    store = S3Storage(f"s3://{BUCKET}/run", client)
    store.upload(artifact, "patches", last="run.json")
    (artifact / "a.json").rename(artifact / "b.json")
    client.calls.clear()

    store.upload(artifact, "patches", last="run.json")

    assert client.calls == [
        ("delete", "run/patches/run.json"),
        ("put", "run/patches/b.json"),
        ("put", "run/patches/region/patch/bands.npy"),
        ("delete", "run/patches/a.json"),
        ("put", "run/patches/run.json"),
    ]


def test_an_upload_that_breaks_leaves_no_record(s3: S3Server, artifact: Path) -> None:
    class Breaking(Recorder):
        def upload_file(self, path: str, bucket: str, key: str, **options: Any) -> None:
            if key.endswith("bands.npy"):
                raise ConnectionResetError("the line went dead")
            super().upload_file(path, bucket, key, **options)

    store = S3Storage(f"s3://{BUCKET}/run")
    store.upload(artifact, "patches", last="run.json")
    with pytest.raises(ConnectionResetError):
        S3Storage(f"s3://{BUCKET}/run", Breaking(s3.client())).upload(artifact, "patches", last="run.json")
    assert store.read("patches/run.json") is None


def test_a_truncated_download_is_never_seen(s3: S3Server, artifact: Path, tmp_path: Path) -> None:
    class Truncating(Recorder):
        def download_file(self, bucket: str, key: str, path: str) -> None:
            super().download_file(bucket, key, path)
            os.truncate(path, Path(path).stat().st_size - 1)

    S3Storage(f"s3://{BUCKET}/run").upload(artifact, "patches", last="run.json")
    with pytest.raises(StorageError, match=r"run/patches/a\.json: expected 2 bytes, got 1"):
        S3Storage(f"s3://{BUCKET}/run", Truncating(s3.client())).download("patches", tmp_path / "back")
    assert contents(tmp_path / "back") == {}


def test_only_what_changed_is_downloaded_again(s3: S3Server, artifact: Path, tmp_path: Path) -> None:
    client = Recorder(s3.client())
    store = S3Storage(f"s3://{BUCKET}/run", client)
    store.upload(artifact, "patches")
    store.download("patches", tmp_path / "back")
    os.utime(tmp_path / "back" / "a.json", (0, 0))  # as if the object were newer, and of the same size
    client.calls.clear()

    store.download("patches", tmp_path / "back")

    assert client.calls == [("get", "run/patches/a.json")]


def test_names_that_lead_out_of_the_folder_are_refused(s3: S3Server, tmp_path: Path) -> None:
    class Hostile(Recorder):
        def get_paginator(self, name: str) -> Any:
            return self

        def paginate(self, **options: Any) -> Iterator[dict[str, Any]]:
            yield {"Contents": [{"Key": "run/patches/../../escaped", "Size": 1}]}

    with pytest.raises(StorageError, match="leads out of the folder"):
        S3Storage(f"s3://{BUCKET}/run", Hostile(s3.client())).download("patches", tmp_path / "a" / "b")


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


def test_a_server_that_does_not_answer_is_named(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match=rf"s3://{BUCKET}/run/run.json: Could not connect .*127.0.0.1:9"):
        storage_for(f"s3://{BUCKET}/run").read("run.json")


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
