"""The local runner takes the branch that a condition asks for, also on the named output of a container."""

import pytest
from kfp import dsl

from pipelines.local import StageFailedError, run_locally

MESSAGE = dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER
WRITE = (
    "import json,sys,pathlib; m=json.loads(sys.argv[1]); p=m['inputs']['parameterValues'];"
    "f=pathlib.Path(m['outputs']['parameters']['verdict']['outputFile']); f.parent.mkdir(parents=True);"
    "f.write_text(p['config'])"
)
TOUCH = (
    "import json,sys,pathlib; m=json.loads(sys.argv[1]); pathlib.Path(m['inputs']['parameterValues']['path']).touch()"
)


@dsl.container_component
def judge(config: str, verdict: dsl.OutputPath(str)):
    return dsl.ContainerSpec(image="any", command=["python3", "-c", WRITE], args=[MESSAGE])


@dsl.container_component
def touch(path: str):
    return dsl.ContainerSpec(image="any", command=["python3", "-c", TOUCH], args=[MESSAGE])


@dsl.container_component
def fail():
    return dsl.ContainerSpec(image="any", command=["python3", "-c", "raise SystemExit(7)"])


@dsl.pipeline(name="branches")
def branches(config: str, root: str):
    with dsl.ExitHandler(touch(path=f"{root}/exit")):
        judged = judge(config=config)
        with dsl.If(judged.outputs["verdict"] == "pass"):
            touch(path=f"{root}/passed")
        with dsl.If(judged.outputs["verdict"] != "pass"):
            touch(path=f"{root}/failed")


@dsl.pipeline(name="failing")
def failing(config: str, root: str):
    with dsl.ExitHandler(touch(path=f"{root}/exit")):
        failed = fail()
        touch(path=f"{root}/after").after(failed)


@pytest.mark.parametrize(("verdict", "taken"), [("pass", "passed"), ("fail", "failed")])
def test_both_branches_of_a_condition_are_taken(tmp_path, verdict, taken):
    run_locally(branches, verdict, str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {taken, "exit"}


def test_a_failing_stage_stops_the_run_and_the_exit_handler_still_runs(tmp_path):
    with pytest.raises(StageFailedError, match=r"exit status 7"):
        run_locally(failing, "", str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"exit"}
