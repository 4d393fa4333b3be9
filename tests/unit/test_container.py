"""The first process of the serving container: configuration, readiness, and when everything is answered."""

import http.client
import json
import socket
import tempfile
import threading
import time
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from serving import container
from serving.busy import anyone_busy, busy
from serving.container import DEFAULTS, INFERENCE, METRICS, MODEL_STORE
from sr_core.errors import ArtifactError, ConfigError
from tests.conftest import REPOSITORY


def lines(text: str) -> set[str]:
    return set(text.splitlines())


def test_the_configuration_is_the_project_s_with_the_addresses_of_the_environment():
    own = (REPOSITORY / "serving" / "config.properties").read_text()
    assert lines(container.configuration(DEFAULTS)) == lines(own)
    opened = container.configuration({**DEFAULTS, INFERENCE: "http://0.0.0.0:8080"})
    assert lines(opened) ^ lines(own) == {
        "inference_address=http://127.0.0.1:8080",
        "inference_address=http://0.0.0.0:8080",
    }
    assert "management_address=http://127.0.0.1:8081" in lines(opened)


@pytest.mark.parametrize("address", ["0.0.0.0:8080", "http://0.0.0.0", "nonsense"])
def test_an_address_that_is_none_is_named(address):
    with pytest.raises(ConfigError, match=rf"{METRICS}: expected http://address:port, found '{address}'"):
        container.configuration({**DEFAULTS, METRICS: address})


def test_without_a_model_nothing_starts(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(MODEL_STORE, str(tmp_path))
    assert container.main([]) == 1
    assert f"{tmp_path}: expected model archives (*.mar), found none" in capsys.readouterr().err
    with pytest.raises(ArtifactError):
        container.models({MODEL_STORE: str(tmp_path)})


@pytest.mark.parametrize("workers", [[], [{"status": "READY"}, {"status": "LOADING"}], None])
def test_not_ready_while_a_worker_is_missing_or_loads(workers, monkeypatch):
    with served(lambda _: (200, json.dumps([{"workers": workers}])) if workers is not None else (404, "{}")) as port:
        monkeypatch.setattr(container, "MANAGEMENT_PORT", port)
        assert not container.ready(["fields"])


def test_ready_when_all_workers_of_all_models_are(monkeypatch):
    with served(lambda _: (200, json.dumps([{"workers": [{"status": "READY"}]}]))) as port:
        monkeypatch.setattr(container, "MANAGEMENT_PORT", port)
        assert container.ready(["fields", "forests"])
    assert not container.ready(["fields"])


def test_drained_when_the_requests_before_are_answered(tmp_path):
    one_at_a_time = threading.Lock()

    def work(path: str) -> tuple[int, str]:
        with one_at_a_time:
            time.sleep(0.05 if path.endswith("empty") else 1.0)
        return 400, "{}"

    with served(work) as port:
        before = threading.Thread(target=lambda: post(port, "/slow"))
        before.start()
        time.sleep(0.2)
        started = time.monotonic()
        assert container.drained(f"http://127.0.0.1:{port}", ["empty"], started + 10, tmp_path)
        assert time.monotonic() - started > 0.7
        before.join(0.5)
        assert not before.is_alive()


def test_not_drained_while_a_worker_has_a_request_in_hand(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    working = threading.Event()

    def work() -> None:
        with busy():
            working.set()
            time.sleep(1.0)

    with served(lambda _: (400, "{}")) as port:
        worker = threading.Thread(target=work)
        worker.start()
        working.wait()
        started = time.monotonic()
        assert anyone_busy(tmp_path)
        assert container.drained(f"http://127.0.0.1:{port}", ["fields"], started + 10, tmp_path)
        assert time.monotonic() - started > 0.9
        worker.join()
        assert not anyone_busy(tmp_path)


def test_not_drained_while_the_queue_is_full_and_not_waited_for_when_the_server_is_gone(tmp_path):
    with served(lambda _: (503, "{}")) as port:
        started = time.monotonic()
        assert not container.drained(f"http://127.0.0.1:{port}", ["fields"], started + 1, tmp_path)
        assert 1 <= time.monotonic() - started < 3
    started = time.monotonic()
    assert not container.drained(f"http://127.0.0.1:{port}", ["fields"], started + 30, tmp_path)
    assert time.monotonic() - started < 2


def test_an_answer_that_its_caller_has_not_taken_counts():
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
        assert not container.unsent(port)
        with closing(socket.create_connection(("127.0.0.1", port))) as caller, closing(server.accept()[0]) as answer:
            answer.setblocking(False)
            sent = answer.send(bytes(50_000_000))
            assert container.unsent(port)
            while sent > 0:
                sent -= len(caller.recv(1 << 20))
            assert not container.unsent(port)


@contextmanager
def served(work):
    """A port that answers with `work(path)`: a status and a body."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            status, body = work(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        do_GET = do_POST = answer  # noqa: N815

        def log_message(self, format: str, *arguments: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


def post(port: int, path: str) -> int:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request("POST", path)
        return connection.getresponse().status
