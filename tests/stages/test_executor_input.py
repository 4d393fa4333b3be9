"""A stage called by Kubeflow with `{{$}}` does what it does when called by hand, and says where its output is."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from kfp.dsl import Artifact

from components.stage import mounted
from tests.stages.tiny import TINY, write_config

SMALL = TINY.replace("bbox: [682240, 6134400, 684160, 6135680]", "bbox: [682240, 6134400, 682880, 6135040]")


def call(*arguments: str) -> None:
    command = [sys.executable, "-m", "components.download", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_by_hand_and_by_kubeflow_are_the_same(tmp_path):
    config = write_config(tmp_path, SMALL)
    call("--config", str(config), "--root", str(tmp_path / "hand"))

    from sr_core.config import load_config

    root, output = tmp_path / "kubeflow", tmp_path / "messages" / "executor_output.json"
    artifact = {
        "name": "patches",
        "uri": str(tmp_path / "artifacts" / "patches"),
        "type": {"schemaTitle": "system.Dataset"},
    }
    metrics = {"name": "metrics", "uri": str(tmp_path / "metrics"), "type": {"schemaTitle": "system.Metrics"}}
    message = {
        "inputs": {"parameterValues": {"config": load_config(config).model_dump_json(), "root": str(root)}},
        "outputs": {
            "artifacts": {"patches": {"artifacts": [artifact]}, "metrics": {"artifacts": [metrics]}},
            "outputFile": str(output),
        },
    }
    call("--executor-input", json.dumps(message))

    hand, kubeflow = (
        json.loads((tmp_path / name / "patches" / "run.json").read_text()) for name in ("hand", "kubeflow")
    )
    assert hand["key"] == kubeflow["key"] and hand["counts"] == kubeflow["counts"]
    files = {path.relative_to(tmp_path / "hand") for path in (tmp_path / "hand" / "patches").rglob("*.npy.gz")}
    assert files and all((root / path).is_file() for path in files)
    said = json.loads(output.read_text())["artifacts"]["patches"]["artifacts"][0]
    assert said["uri"] == artifact["uri"], "Kubeflow uploads what is there, and nowhere else"
    assert said["metadata"]["place"] == f"{root}/patches" and said["metadata"]["key"] == kubeflow["key"]
    assert json.loads((tmp_path / "artifacts" / "patches").read_text()) == {"place": f"{root}/patches"}


@pytest.mark.parametrize(
    ("uri", "path"),
    [("s3://b/k", "/s3/b/k"), ("minio://b/k", "/minio/b/k"), ("gs://b/k", "/gcs/b/k"), ("/here/k", "/here/k")],
)
def test_an_artifact_lies_where_the_launcher_of_kubeflow_mounts_it(uri, path):
    assert mounted(uri) == Path(path) == Path(Artifact(uri=uri).path)
