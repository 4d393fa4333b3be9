"""A Kubeflow Pipelines API on this machine: the paths of v2beta1 by which runs are submitted and watched.

What becomes of a run is up to the test: `states` holds one answer after another.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

TOKEN = "a-token-that-must-not-be-printed"
API = "/apis/v2beta1"


@dataclass
class Kubeflow:
    """What the server was asked, and what it answers."""

    states: list[dict[str, Any]] = field(default_factory=lambda: [{"state": "SUCCEEDED"}])
    """Of a run, a poll each; the last one stays. An `http` in it is answered as a status instead."""
    experiments: list[dict[str, Any]] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    refuse_runs: tuple[int, str] | None = None
    url: str = ""


class Handler(BaseHTTPRequestHandler):
    kubeflow: Kubeflow

    def do_GET(self) -> None:
        path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        if not self.admitted():
            return
        if path == f"{API}/healthz":
            self.answer({"multi_user": True})
        elif path == f"{API}/experiments":
            # a filter by name, as kfp's client writes it
            wanted = json.loads(query["filter"][0])["predicates"][0]["stringValue"]
            self.answer(
                {"experiments": [found for found in self.kubeflow.experiments if found["display_name"] == wanted]}
            )
        elif path.startswith(f"{API}/runs/"):
            states = self.kubeflow.states
            state = states.pop(0) if len(states) > 1 else states[0]
            if "http" in state:
                self.answer({"message": "away"}, state["http"])
            else:
                self.answer({"run_id": path.rpartition("/")[2], **state})
        else:
            self.answer({"message": "not found"}, 404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        path = urlsplit(self.path).path
        if not self.admitted():
            return
        if path == f"{API}/experiments":
            made = {**body, "experiment_id": f"experiment-{len(self.kubeflow.experiments)}"}
            self.kubeflow.experiments.append(made)
            self.answer(made)
        elif self.kubeflow.refuse_runs:
            status, message = self.kubeflow.refuse_runs
            self.answer({"message": message}, status)
        else:
            made = {**body, "run_id": f"run-{len(self.kubeflow.runs)}"}
            self.kubeflow.runs.append(made)
            self.answer(made)

    def admitted(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        self.answer({"message": "who are you?"}, 401)
        return False

    def answer(self, content: dict[str, Any], status: int = 200) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing."""


@contextmanager
def serve() -> Iterator[Kubeflow]:
    """Answer on a free port of the loopback until the block ends."""
    kubeflow = Kubeflow()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"kubeflow": kubeflow}))
    kubeflow.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield kubeflow
    finally:
        server.shutdown()
        server.server_close()
