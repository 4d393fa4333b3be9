"""The real graphs on the local runner, each stage a process that stands in for the program and notes its call.

What is tested is the order, the branches, the shards, the retries and the exit handler; what the stages do is tested
with the stages.
"""

import json
from collections import Counter

import pytest

from components.stage import STAGES
from pipelines.inference import inference_graph
from pipelines.local import StageFailedError, run_locally
from pipelines.platform import LOCAL, Platform, Retry
from pipelines.training import training_graph

STAND_IN = """
import json, pathlib, sys
stage = sys.argv[0].rpartition("/")[2].removesuffix(".py")
message = json.loads(sys.argv[2])
given, outputs = message["inputs"]["parameterValues"], message["outputs"]
told = json.loads(given["config"])
with open("calls", "a") as calls:
    calls.write(f"{stage} {given.get('shard', '')}\\n")
if open("calls").read().split("\\n").count(f"{stage} {given.get('shard', '')}") <= told["failures"].get(stage, 0):
    sys.exit(3)
for name, place in outputs.get("parameters", {}).items():
    path = pathlib.Path(place["outputFile"])
    path.parent.mkdir(parents=True, exist_ok=True)
    value = told[name] if name in told else told[stage]
    path.write_text(value if isinstance(value, str) else json.dumps(value))
target = pathlib.Path(outputs["outputFile"])
target.parent.mkdir(parents=True, exist_ok=True)
target.write_text(json.dumps({"artifacts": outputs.get("artifacts", {})}))
"""
PREPARATION = ["download", "cloud_shadow_filter", "normalize", "quality_gate"]
TRAINED = ["train_hrn", "evaluate", "delineate"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a graph where `python -m components.<stage>` is the stand-in; what was called, in order."""
    folder = tmp_path / "components"
    folder.mkdir()
    for name in ("__init__", "plan_shards", *STAGES):
        (folder / f"{name}.py").write_text("" if name == "__init__" else STAND_IN)
    monkeypatch.chdir(tmp_path)

    def run_graph(graph=training_graph, platform=LOCAL, gate="pass", verdict="better", shards=("1/1",), failures=None):
        told = {"quality_gate": gate, "evaluate": verdict, "shards": shards, "failures": failures or {}}
        try:
            run_locally(graph(platform), json.dumps(told), str(tmp_path / "root"))
        finally:
            calls[:] = (tmp_path / "calls").read_text().splitlines()
        return calls

    calls = run_graph.calls = []
    return run_graph


def stages(calls):
    """The calls of whole stages, without shards."""
    return [call.strip() for call in calls if call.endswith(" ")]


def test_a_model_better_than_its_baselines_is_packaged_and_published(run):
    assert stages(run()) == ["plan_shards", *PREPARATION, *TRAINED, "package", "publish", "report"]


def test_a_model_that_is_not_better_is_not_promoted(run):
    assert stages(run(verdict="not_better")) == ["plan_shards", *PREPARATION, *TRAINED, "report"]


def test_a_failed_gate_stops_before_training(run):
    assert stages(run(gate="fail")) == ["plan_shards", *PREPARATION, "report"]


def test_each_stage_by_patches_runs_its_shards_before_it_joins_them(run):
    calls = run(shards=["1/3", "2/3", "3/3"])
    for stage in PREPARATION:
        assert {call for call in calls if call.startswith(f"{stage} ") and call[-1] != " "} == {
            f"{stage} {number}/3" for number in (1, 2, 3)
        }
    # the stage before is whole when the first shard begins, and all shards are done when the stage begins
    assert [call.split(" ")[0] for call in calls[1:17]] == [stage for stage in PREPARATION for _ in range(4)]
    assert [calls[index] for index in (4, 8, 12, 16)] == [f"{stage} " for stage in PREPARATION]


def test_inference_makes_products_of_the_masked_patches(run):
    calls = run(inference_graph, shards=["1/2", "2/2"])
    assert stages(calls) == ["plan_shards", "download", "cloud_shadow_filter", "super_resolve", "report"]
    assert Counter(call.split(" ")[0] for call in calls)["download"] == 3


def test_a_stage_that_meets_the_network_is_tried_again_and_the_run_goes_on(run):
    platform = Platform(retry=Retry(attempts=2, backoff_s=0))
    calls = run(platform=platform, failures={"download": 2})
    assert Counter(stages(calls))["download"] == 3
    assert stages(calls)[-2:] == ["publish", "report"]


def test_a_stage_that_fails_every_time_ends_the_run_and_the_report_is_written(run):
    with pytest.raises(StageFailedError, match="stage download ended with exit status 3"):
        run(platform=Platform(retry=Retry(attempts=1, backoff_s=0)), failures={"download": 9})
    # two attempts of the shard; the stage is not begun
    assert run.calls == ["plan_shards ", "download 1/1", "download 1/1", "report "]


def test_a_stage_without_network_is_not_tried_again(run):
    with pytest.raises(StageFailedError, match="stage train_hrn"):
        run(platform=Platform(retry=Retry(attempts=2, backoff_s=0)), failures={"train_hrn": 1})
    assert stages(run.calls)[-2:] == ["train_hrn", "report"]
