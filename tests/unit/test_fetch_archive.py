"""What the init container of the serving pods does: the archive that a store names, verified, or none."""

import json

import pytest

from components.publish.main import INDEX, LATEST
from components.stage import STAGES, run
from serving.fetch_archive import fetch, main
from sr_core.errors import ArtifactError, StorageError
from sr_core.storage import sha256, storage_for
from tests.seaweed import BUCKET, seaweed
from tests.stages.test_publish import configuration, trained

FIRST, SECOND = "1.0-aaaaaaaa", "1.0-bbbbbbbb"


@pytest.fixture
def models(tmp_path):
    """A model store with two versions, written by the publish stage."""
    publish(tmp_path, str(tmp_path / "models"))
    return tmp_path / "models"


def publish(folder, store: str) -> None:
    for key, weights in (("aaaaaaaa11", b"first"), ("bbbbbbbb22", b"second")):
        run(STAGES["publish"], configuration(store), str(trained(folder / key, key, weights)))


def test_the_latest_or_the_version_that_is_named(models, tmp_path):
    store = storage_for(str(models / "fields"))
    assert fetch(store, "fields.mar", tmp_path / "pod").read_bytes() == b"archive of second"
    assert fetch(store, "fields.mar", tmp_path / "other", FIRST).read_bytes() == b"archive of first"


def test_a_pod_that_starts_again_takes_over_what_has_changed(models, tmp_path):
    store, pod = storage_for(str(models / "fields")), tmp_path / "pod"
    path = fetch(store, "fields.mar", pod, FIRST)
    written = path.stat().st_ino
    assert fetch(store, "fields.mar", pod, FIRST).stat().st_ino == written
    assert fetch(store, "fields.mar", pod, SECOND).read_bytes() == b"archive of second"


def test_an_archive_that_was_tampered_with_never_gets_its_name(models, tmp_path):
    (models / "fields" / SECOND / "fields.mar").write_bytes(b"archive of secret")
    with pytest.raises(ArtifactError, match=r"fields\.mar: found SHA-256 [0-9a-f]{64}, expected [0-9a-f]{64} as 1\.0"):
        fetch(storage_for(str(models / "fields")), "fields.mar", tmp_path / "pod")
    assert list((tmp_path / "pod").iterdir()) == []


def test_a_pinned_digest_holds_against_the_store_itself(models, tmp_path):
    store = storage_for(str(models / "fields"))
    pinned = sha256(models / "fields" / FIRST / "fields.mar")
    assert fetch(store, "fields.mar", tmp_path / "pod", FIRST, pinned).is_file()
    with pytest.raises(ArtifactError, match="as configured"):
        fetch(store, "fields.mar", tmp_path / "other", SECOND, pinned)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (LATEST, None, r"latest\.json: missing; expected what the publish stage writes"),
        (LATEST, b"{", r"latest\.json: expected JSON, found b'{'"),
        (LATEST, b"[]", r"latest\.json: expected the key version, found no 'version'"),
        (f"{SECOND}/{INDEX}", None, r"index\.json: missing"),
        (f"{SECOND}/{INDEX}", b'{"files": {}}', r"expected the key files\.fields\.mar\.sha256, found no 'fields\.mar'"),
    ],
)
def test_a_store_that_is_not_whole_is_named(models, tmp_path, name, content, message):
    place = models / "fields" / name
    place.unlink()
    if content is not None:
        place.write_bytes(content)
    with pytest.raises(ArtifactError, match=message):
        fetch(storage_for(str(models / "fields")), "fields.mar", tmp_path / "pod")


def test_a_version_that_is_not_there(models, tmp_path, capsys):
    assert main([str(models), "fields", str(tmp_path / "pod"), "--version", "9.9-99999999"]) == 1
    assert "9.9-99999999/index.json: missing" in capsys.readouterr().err


def test_from_s3_and_without_the_right_to(tmp_path, monkeypatch, capsys):
    place = f"s3://{BUCKET}/models"
    with seaweed(tmp_path / "s3") as s3:
        for name, value in s3.environment.items():
            monkeypatch.setenv(name, value)
        publish(tmp_path, place)
        assert main([place, "fields", str(tmp_path / "pod"), "--addressing-style=path", f"--version={FIRST}"]) == 0
        assert (tmp_path / "pod" / "fields.mar").read_bytes() == b"archive of first"
        index = json.loads(storage_for(f"{place}/fields").read(f"{FIRST}/{INDEX}"))
        assert index["files"]["fields.mar"]["sha256"] in capsys.readouterr().out
        s3.client().delete_object(Bucket=BUCKET, Key=f"models/fields/{SECOND}/fields.mar")
        with pytest.raises(StorageError, match=r"1\.0-bbbbbbbb/fields\.mar"):
            fetch(storage_for(f"{place}/fields"), "fields.mar", tmp_path / "other")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        assert main([place, "fields", str(tmp_path / "pod")]) == 1
        told = capsys.readouterr().err
        assert "the secret key is wrong" in told
