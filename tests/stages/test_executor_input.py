"""A stage called by Kubeflow with `{{$}}` does what it does when called by hand, and says where its output is."""

import gzip
import importlib
import json
from pathlib import Path

import pytest
from kfp import dsl

from components.plan_shards.main import main as plan_shards
from components.stage import STAGES, main
from sr_core.config import load_config
from tests.stages.tiny import TINY, write_config

TWO_SHARDS = "preparation: {workers: 1, patches_per_shard: 3, max_shards: 2}\n"


def message_for(component: str, folder: Path, **parameters: str) -> dict:
    """The ExecutorInput that Kubeflow makes of a component's interface."""
    interface = getattr(importlib.import_module(f"components.{component}.component"), component)
    artifacts, values = {}, {}
    for name, output in interface.component_spec.outputs.items():
        if not output.type.startswith("system."):
            values[name] = {"outputFile": str(folder / component / "parameters" / name)}
            continue
        kind = {"schemaTitle": output.type.split("@")[0], "schemaVersion": "0.0.1"}
        artifacts[name] = {"artifacts": [{"name": name, "uri": str(folder / component / name), "type": kind}]}
    outputs = {"artifacts": artifacts, "parameters": values, "outputFile": str(folder / component / "output.json")}
    return {"inputs": {"parameterValues": parameters}, "outputs": outputs}


@pytest.fixture(scope="module")
def roots(tmp_path_factory) -> dict[str, Path]:
    """All stages, each called by hand below one root and by Kubeflow below another; and Kubeflow's messages."""
    folder = tmp_path_factory.mktemp("both")
    text = TINY + f"package: {{publish_to: {folder}/models}}\n"
    config = write_config(folder, text)
    kubeflow = load_config(config).model_dump_json()
    for name, stage in STAGES.items():
        assert main(stage, ["--config", str(config), "--root", str(folder / "hand")]) == 0
        message = message_for(name, folder / "messages", config=kubeflow, root=str(folder / "kubeflow"))
        assert main(stage, ["--executor-input", json.dumps(message)]) == 0
    return {name: folder / name for name in ("hand", "kubeflow", "messages", "models")}


def told(roots: dict[str, Path], stage: str) -> dict[str, dict]:
    """What a stage told Kubeflow of its artifacts."""
    said = json.loads((roots["messages"] / stage / "output.json").read_text())["artifacts"]
    return {name: listed["artifacts"][0] for name, listed in said.items()}


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_by_hand_and_by_kubeflow_are_the_same(roots, stage):
    hand, kubeflow = (roots[name] / STAGES[stage].folder for name in ("hand", "kubeflow"))
    records = [json.loads((folder / "run.json").read_text()) for folder in (hand, kubeflow)]
    for record in records:
        record["counts"].pop("bytes", None)  # of an archive, in which times are packed
    for key in ("key", "inputs", "counts", "metrics", "outputs", "parameters", "skipped"):
        assert records[0][key] == records[1][key], key
    files = [{path.relative_to(folder) for path in folder.rglob("*") if is_result(path)} for folder in (hand, kubeflow)]
    assert files[0] == files[1]
    for path in files[0]:
        if path.name.endswith(".npy.gz"):  # gzip writes down when
            assert gzip.decompress((hand / path).read_bytes()) == gzip.decompress((kubeflow / path).read_bytes()), path
        elif path.suffix in (".safetensors", ".png", ".tif"):
            assert (hand / path).read_bytes() == (kubeflow / path).read_bytes(), path


def is_result(path: Path) -> bool:
    """Whether a file is named by what is in it, not by when or by whom it was made."""
    return path.is_file() and not {"wandb", "data_docs"} & set(path.parts) and not path.name.startswith(".")


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_kubeflow_learns_where_the_output_is_and_what_it_is(roots, stage):
    record = json.loads((roots["kubeflow"] / STAGES[stage].folder / "run.json").read_text())
    text = (roots["messages"] / stage / "output.json").read_text()
    assert not {"NaN", "Infinity"} & set(text.replace(",", " ").replace("}", " ").split())
    for name, artifact in told(roots, stage).items():
        if name == "metrics":
            assert artifact["metadata"]
            assert not record["metrics"] or artifact["metadata"] == record["metrics"]
        elif "Classification" not in artifact["type"]["schemaTitle"]:
            assert artifact["metadata"]["key"] == record["key"]
    for name, value in record["outputs"].items():
        assert (roots["messages"] / stage / "parameters" / name).read_text() == value


@pytest.mark.slow
def test_pages_models_and_verdicts_are_told(roots):
    for stage, place in (("report", "report.html"), ("quality_gate", "samples/gate.html")):
        assert told(roots, stage)["page"]["metadata"]["place"] == f"{roots['kubeflow']}/{place}"
        assert (roots["messages"] / stage / "page").read_text() == (roots["kubeflow"] / place).read_text()
    model = told(roots, "train_hrn")["model"]["metadata"]
    assert (model["framework"], model["frames"], model["gsd_m"]) == ("PyTorch", 4, 10.0)
    assert told(roots, "download")["patches"]["metadata"]["source"] == "simulated"
    evaluation = told(roots, "evaluate")["evaluation"]["metadata"]
    assert evaluation["verdict"] == "better" and evaluation["gain_db"] >= evaluation["min_gain_db"]


@pytest.mark.slow
@pytest.mark.parametrize("head", ["extent", "boundary"])
def test_the_classification_is_what_kubeflow_would_make_of_it(roots, head):
    """The same as kfp's own class makes of the same counts."""
    found = json.loads((roots["kubeflow"] / "delineation" / "metrics.json").read_text())["pixels"]["sr"][head]
    expected = dsl.ClassificationMetrics()
    expected.log_confusion_matrix([head, f"no {head}"], [[found["tp"], found["fn"]], [found["fp"], found["tn"]]])
    for point in found["roc"]:
        expected.log_roc_data_point(point["false_positive_rate"], point["true_positive_rate"], point["threshold"])
    assert len(found["roc"]) == 20
    assert told(roots, "delineate")[head]["metadata"] == expected.metadata


def test_shards_are_planned_the_same_by_hand_and_by_kubeflow(tmp_path, capsys):
    config = write_config(tmp_path, TINY.replace("preparation: {workers: 1}\n", "") + TWO_SHARDS)
    assert plan_shards(["--config", str(config)]) == 0
    assert json.loads(capsys.readouterr().out) == ["1/2", "2/2"]
    message = message_for("plan_shards", tmp_path, config=load_config(config).model_dump_json())
    assert plan_shards(["--executor-input", json.dumps(message)]) == 0
    assert json.loads((tmp_path / "plan_shards" / "parameters" / "shards").read_text()) == ["1/2", "2/2"]
    said = json.loads((tmp_path / "plan_shards" / "output.json").read_text())
    assert said["parameterValues"] == {"shards": ["1/2", "2/2"]}


@pytest.mark.parametrize("settings", ["{}", "{patches_per_shard: 1, executor: ray}"])
def test_few_patches_and_ray_need_no_shards(tmp_path, capsys, settings):
    config = write_config(tmp_path, TINY.replace("preparation: {workers: 1}\n", "") + f"preparation: {settings}\n")
    assert plan_shards(["--config", str(config)]) == 0
    assert json.loads(capsys.readouterr().out) == ["1/1"]


def test_a_single_shard_is_left_to_the_stage(tmp_path, capsys):
    config = write_config(tmp_path)
    assert main(STAGES["download"], ["--config", str(config), "--root", str(tmp_path / "run"), "--shard", "1/1"]) == 0
    assert "left to the stage" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
