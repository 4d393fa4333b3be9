"""Compiling and submitting, against a server that speaks Kubeflow Pipelines' REST."""

import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import yaml
from typer.testing import CliRunner

from pipelines import submission
from pipelines.platform import Platform, Volume
from pipelines.submission import Endpoint, Run, SubmissionError, check
from serving.local import free_ports
from sr_core.config import Config, load_config
from sr_core.errors import ConfigError
from subpixel.cli import app
from tests.conftest import REPOSITORY
from tests.servers.kubeflow import TOKEN, serve

DEMO = REPOSITORY / "examples" / "demo.yaml"
ROOT = "s3://bucket/demo"


@pytest.fixture
def kubeflow(monkeypatch):
    monkeypatch.setenv(submission.TOKEN, TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serve() as server:
        yield server


def subpixel(*arguments):
    """The program in this process: what it printed with its exit status, its own errors raised."""
    done = CliRunner().invoke(app, [str(part) for part in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def submit(server, *more):
    return subpixel("submit", DEMO, "--endpoint", server.url, "--root", ROOT, *more)


def task(name, state, message=None):
    return {
        "task_id": name,
        "display_name": name,
        "state": state,
        "pod_name": f"pod-of-{name}",
        **({"error": {"code": 1, "message": message}} if message else {}),
    }


def test_compiled_ir_has_the_configuration_as_a_default(tmp_path):
    out = tmp_path / "built" / "graph.yaml"
    subpixel("compile", DEMO, "--graph", "inference", "--root", ROOT, "--out", out)
    inputs = next(yaml.safe_load_all(out.read_text()))["root"]["inputDefinitions"]["parameters"]
    assert Config.model_validate_json(inputs["config"]["defaultValue"]) == load_config(DEMO)
    assert inputs["root"]["defaultValue"] == ROOT
    assert [path.name for path in out.parent.iterdir()] == ["graph.yaml"]


def test_an_unknown_graph_is_refused():
    assert subpixel("compile", DEMO, "--graph", "trainig", "--out", "x.yaml").exit_code == 2


def test_a_run_arrives_with_its_graph_parameters_and_names(kubeflow, tmp_path):
    platform = tmp_path / "platform.yaml"
    platform.write_text("service_account: subpixel\nregistry: registry.example.org")
    done = submit(kubeflow, "--experiment", "fields", "--run", "first", "--namespace", "team", "--platform", platform)
    assert "run run-0" in done.output
    (experiment,) = kubeflow.experiments
    assert (experiment["display_name"], experiment["namespace"]) == ("fields", "team")
    (run,) = kubeflow.runs
    assert (run["experiment_id"], run["display_name"], run["service_account"]) == ("experiment-0", "first", "subpixel")
    assert run["runtime_config"]["pipeline_root"] == f"{ROOT}/.kubeflow"
    given = run["runtime_config"]["parameters"]
    assert given["root"] == ROOT
    assert Config.model_validate_json(given["config"]) == load_config(DEMO)
    executors = run["pipeline_spec"]["pipeline_spec"]["deploymentSpec"]["executors"]
    assert executors["exec-download"]["container"]["image"] == "registry.example.org/subpixel-download:0.1.0"
    assert "kubernetes" in run["pipeline_spec"]["platform_spec"]["platforms"]


def test_an_experiment_that_exists_is_taken(kubeflow):
    submit(kubeflow)
    submit(kubeflow)
    assert len(kubeflow.experiments) == 1
    assert [run["experiment_id"] for run in kubeflow.runs] == ["experiment-0", "experiment-0"]


def test_no_secret_is_in_what_is_sent_or_printed(kubeflow, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "do-not-send-this")
    assert TOKEN not in submit(kubeflow).output
    assert "do-not-send-this" not in json.dumps(kubeflow.runs)
    assert TOKEN not in json.dumps(kubeflow.runs)


def test_waiting_says_how_tasks_change_and_outlives_a_restart_of_the_server(kubeflow):
    kubeflow.states = [
        {"state": "RUNNING", "run_details": {"task_details": [task("download", "RUNNING")]}},
        {"http": 503},
        {"state": "RUNNING", "run_details": {"task_details": [task("download", "RUNNING")]}},
        {"state": "SUCCEEDED", "run_details": {"task_details": [task("download", "SUCCEEDED")]}},
    ]
    said = []
    Endpoint(kubeflow.url).wait(Run("run-0", "link"), said.append, poll_s=0.01)
    assert said == ["download: running", "download: succeeded"]


@pytest.mark.parametrize("state", ["FAILED", "CANCELED"])
def test_a_run_that_does_not_succeed_is_an_error_that_names_the_task(kubeflow, state):
    details = {"task_details": [task("train-hrn", "FAILED", "OOMKilled"), task("report", "SUCCEEDED")]}
    kubeflow.states = [{"state": state, "run_details": details}]
    with pytest.raises(SubmissionError, match=rf"ended {state.lower()}: train-hrn \(OOMKilled\); see http"):
        submit(kubeflow, "--wait")


def test_a_token_is_read_from_a_mounted_file(kubeflow, monkeypatch, tmp_path):
    path = tmp_path / "token"
    path.write_text(TOKEN)
    monkeypatch.delenv(submission.TOKEN)
    monkeypatch.setenv(submission.TOKEN_FILE, str(path))
    submit(kubeflow)
    assert len(kubeflow.runs) == 1


def test_a_token_file_that_is_missing_is_named(kubeflow, monkeypatch):
    monkeypatch.delenv(submission.TOKEN)
    monkeypatch.setenv(submission.TOKEN_FILE, "/nowhere/token")
    with pytest.raises(SubmissionError, match=r"KF_PIPELINES_SA_TOKEN_PATH: found /nowhere/token, which is no file"):
        submit(kubeflow)


def test_without_a_token_it_is_said_where_to_put_one(kubeflow, monkeypatch):
    monkeypatch.delenv(submission.TOKEN)
    with pytest.raises(SubmissionError, match=r"not authorised \(HTTP 401\); set KF_PIPELINES_TOKEN"):
        submit(kubeflow)


def test_an_endpoint_that_cannot_be_reached_is_an_error_at_once():
    (port,) = free_ports(1)
    with pytest.raises(SubmissionError, match=rf"127.0.0.1:{port}: cannot be reached \(ConnectionError\)"):
        Endpoint(f"http://127.0.0.1:{port}")


@pytest.mark.parametrize(("status", "said"), [(302, "not authorised (HTTP 302)"), (200, "no Kubeflow Pipelines API")])
def test_a_login_page_or_another_server_is_no_endpoint(status, said):
    class Page(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.send_header("Location", "/dex/auth")
            self.end_headers()
            self.wfile.write(b"<html>Log in</html>")

        def log_message(self, format, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(SubmissionError, match=re.escape(said)):
            Endpoint(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()


def test_what_the_server_says_against_a_run_is_passed_on(kubeflow):
    kubeflow.refuse_runs = (400, "pipeline root is not allowed")
    with pytest.raises(SubmissionError, match=r"cannot submit: HTTP 400: pipeline root is not allowed"):
        submit(kubeflow)


@pytest.mark.parametrize("root", [None, "artifacts/demo"])
def test_a_root_that_pods_do_not_share_is_refused(root):
    with pytest.raises(ConfigError, match=r"--root: found .*, expected s3://bucket/prefix"):
        check(load_config(DEMO), root, Platform())


def test_files_that_pods_do_not_see_are_refused_unless_a_volume_holds_them(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(DEMO.read_text() + "\nsuper_resolve: {bundle: /data/bundles/best}\n")
    config = load_config(path)
    with pytest.raises(ConfigError, match=r"super_resolve.bundle: found /data/bundles/best, which pods do not see"):
        check(config, ROOT, Platform())
    assert check(config, ROOT + "/", Platform(volumes=(Volume(claim="bundles", mount="/data"),))) == ROOT
