"""Publishing: into a folder and into S3, a place a version, what names the others last."""

import hashlib
import json
import subprocess
from pathlib import Path

import pytest
import yaml

from components.publish.main import INDEX, LATEST, SUMS
from components.stage import STAGES, run
from sr_core.config import Config, parse_config
from sr_core.errors import ArtifactError, ConfigError
from sr_core.storage import storage_for
from tests.seaweed import BUCKET, seaweed
from tests.stages.tiny import TINY

PUBLISH = STAGES["publish"]


def configuration(publish_to: str | None) -> Config:
    return parse_config(yaml.safe_load(TINY) | {"package": {"model_name": "fields", "publish_to": publish_to}})


def trained(root: Path, key: str = "0123456789abcdef", weights: bytes = b"weights") -> Path:
    """A root with what publish reads: a bundle, its archive, and its scores."""
    archive = b"archive of " + weights
    description = {"archive": "fields.mar", "sha256": hashlib.sha256(archive).hexdigest()}
    files = {
        "model/model.safetensors": weights,
        "model/model.json": b"{}",
        "archive/fields.mar": archive,
        "archive/archive.json": json.dumps(description).encode(),
    }
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    for folder, metrics in (("model", {}), ("archive", {}), ("evaluation", {"gain_db": 1.5})):
        (root / folder).mkdir(exist_ok=True)
        (root / folder / "run.json").write_text(json.dumps({"key": key, "metrics": metrics}))
    return root


def test_without_a_place_it_is_skipped(tmp_path):
    record = run(PUBLISH, configuration(None), str(trained(tmp_path)))
    assert record["skipped"] == "package.publish_to is not set"


def test_a_version_is_a_folder_that_checks_itself(tmp_path):
    models = tmp_path / "models"
    record = run(PUBLISH, configuration(str(models)), str(trained(tmp_path / "run")))
    place = models / "fields" / "1.0-01234567"
    assert record["artifacts"]["published"]["place"] == str(place)
    index = json.loads((place / INDEX).read_text())
    assert index["scores"] == {"gain_db": 1.5} and index["lineage"]["train_hrn"] == "0123456789abcdef"
    assert set(index["files"]) == {"fields.mar", "archive.json", "model.safetensors", "model.json"}
    subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=place, check=True, capture_output=True)
    assert json.loads((models / "fields" / LATEST).read_text())["version"] == "1.0-01234567"


def test_versions_stay_and_the_latest_is_named(tmp_path):
    config = configuration(str(tmp_path / "models"))
    for key, weights in (("aaaaaaaa11", b"first"), ("bbbbbbbb22", b"second")):
        run(PUBLISH, config, str(trained(tmp_path / key, key, weights)))
    fields = tmp_path / "models" / "fields"
    assert (fields / "1.0-aaaaaaaa" / "model.safetensors").read_bytes() == b"first"
    assert json.loads((fields / LATEST).read_text())["index"] == f"1.0-bbbbbbbb/{INDEX}"


def test_what_was_published_is_not_written_again(tmp_path):
    config = configuration(str(tmp_path / "models"))
    run(PUBLISH, config, str(trained(tmp_path / "one")))
    index = tmp_path / "models" / "fields" / "1.0-01234567" / INDEX
    before = index.stat().st_mtime_ns
    run(PUBLISH, config, str(trained(tmp_path / "two")))
    assert index.stat().st_mtime_ns == before


def test_a_damaged_archive_is_not_published(tmp_path):
    root = trained(tmp_path / "run")
    (root / "archive" / "fields.mar").write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match=r"found SHA-256 .*, expected"):
        run(PUBLISH, configuration(str(tmp_path / "models")), str(root))
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("place", ["gs://bucket/models", "https://models.example", "s3://"])
def test_other_places_are_refused(place):
    with pytest.raises(ConfigError, match=r"publish_to.*expected a folder or s3://bucket/prefix"):
        configuration(place)


def test_into_s3_with_the_index_after_what_it_names(tmp_path, monkeypatch):
    with seaweed(tmp_path / "weed") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        run(PUBLISH, configuration(f"s3://{BUCKET}/models"), str(trained(tmp_path / "run")))
        store = storage_for(f"s3://{BUCKET}/models/fields")
        assert json.loads(store.read(LATEST))["version"] == "1.0-01234567"
        assert store.read("1.0-01234567/model.safetensors") == b"weights"
        listed = server.client().list_objects_v2(Bucket=BUCKET, Prefix="models/")["Contents"]
        written = {item["Key"].removeprefix("models/fields/"): item["LastModified"] for item in listed}
        others = [written[name] for name in written if name not in (f"1.0-01234567/{INDEX}", LATEST)]
        assert max(others) <= written[f"1.0-01234567/{INDEX}"] <= written[LATEST]
