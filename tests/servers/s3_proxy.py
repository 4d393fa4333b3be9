"""A proxy before an S3 server that misbehaves as networks and overloaded services do.

It forwards requests as they are (the signature covers the Host header, which the upstream server therefore gets too),
notes them, and does to some of them what `Fault` says. Faults are given by name and place, or `storm` throws them at
random.
"""

import http.client
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import unquote, urlsplit

from tests.seaweed import S3Server

Kind = Literal["timeout", "500", "503", "drop", "drop-answer", "truncate-answer", "truncate-request", "damage-answer"]
KINDS: tuple[Kind, ...] = ("timeout", "500", "503", "drop", "drop-answer", "truncate-answer", "truncate-request")
"""All that a transport can notice; `damage-answer` only a checksum can."""
PASSED_ON = {"connection", "keep-alive", "transfer-encoding", "expect", "content-length"}


@dataclass
class Fault:
    """What happens to the next `times` requests of a method whose path contains a text.

    timeout: no answer for `seconds`, then none at all; 500, 503: S3's InternalError and SlowDown, nothing forwarded;
    drop: the connection ends before the request is forwarded; drop-answer: after it has taken effect; truncate-answer
    and truncate-request: half of the body arrives; damage-answer: one bit of it is wrong. `reply` is an answer of one's
    own: status, code and headers.
    """

    kind: Kind | Literal["reply"]
    method: str = ""
    path: str = ""
    times: int = 1
    seconds: float = 3.0
    reply: tuple[int, str, dict[str, str]] = (400, "InvalidRequest", {})


@dataclass
class S3Proxy:
    """A running proxy: its address, what it has seen, and what it has yet to do."""

    endpoint: str
    upstream: S3Server
    faults: list[Fault] = field(default_factory=list)
    storm: float = 0.0
    """Share of requests that a random fault meets."""
    dice: random.Random = field(default_factory=lambda: random.Random(7))
    requests: list[tuple[str, str]] = field(default_factory=list)
    """(method, path and query) in the order in which they came, those of retries included."""
    thrown: list[str] = field(default_factory=list)
    """Kinds of the faults that have happened."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def environment(self) -> dict[str, str]:
        """boto3's settings for the server behind the proxy."""
        return {**self.upstream.environment, "AWS_ENDPOINT_URL": self.endpoint}

    def meets(self, method: str, path: str) -> Fault | None:
        """The fault that meets a request, used up by it."""
        with self.lock:
            self.requests.append((method, path))
            found = next((f for f in self.faults if f.times and f.method in ("", method) and f.path in path), None)
            if found is not None:
                found.times -= 1
            elif self.dice.random() < self.storm:
                found = Fault(self.dice.choice(KINDS), seconds=1.5)
            if found is not None:
                self.thrown.append(found.kind)
            return found

    def calls(self, method: str) -> list[str]:
        """Keys of the requests of a method, in order, without the bucket; queries left out."""
        paths = [unquote(urlsplit(path).path) for made, path in self.requests if made == method]
        return [path.lstrip("/").partition("/")[2] for path in paths]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: S3Proxy

    def log_message(self, format: str, *arguments: object) -> None:
        """Silent."""

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.proxy.meets(self.command, self.path)
        kind = fault.kind if fault else None
        if fault and kind == "timeout":
            time.sleep(fault.seconds)
            return self._break()
        if kind == "drop":
            return self._break()
        if kind in ("500", "503"):
            code = {"500": "InternalError", "503": "SlowDown"}[kind]
            return self._say(int(kind), code, {})
        if fault and kind == "reply":
            return self._say(*fault.reply)
        if kind == "truncate-request" and body:
            self._half_a_request(body)
            return self._break()
        status, headers, answer = self._ask(body)
        if kind == "drop-answer":
            return self._break()
        if kind == "damage-answer" and answer:
            answer = answer[:-1] + bytes([answer[-1] ^ 1])
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in PASSED_ON:
                self.send_header(name, value)
        length = {name.lower(): value for name, value in headers}.get("content-length")
        self.send_header("Content-Length", length if self.command == "HEAD" and length else str(len(answer)))
        self.end_headers()
        if self.command == "HEAD":
            return None
        if kind == "truncate-answer" and answer:
            self.wfile.write(answer[: len(answer) // 2])
            return self._break()
        self.wfile.write(answer)
        return None

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _forward  # noqa: N815

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        upstream = http.client.HTTPConnection(urlsplit(self.proxy.upstream.endpoint).netloc, timeout=60)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
            upstream.request(self.command, self.path, body, headers)
            answer = upstream.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            upstream.close()

    def _half_a_request(self, body: bytes) -> None:
        """Half of a body reaches the server, which has been promised all of it."""
        place = urlsplit(self.proxy.upstream.endpoint)
        with socket.create_connection((place.hostname or "", place.port or 80), timeout=10) as upstream:
            lines = [f"{self.command} {self.path} HTTP/1.1"]
            lines += [f"{name}: {value}" for name, value in self.headers.items() if name.lower() != "expect"]
            upstream.sendall("\r\n".join([*lines, "", ""]).encode() + body[: len(body) // 2])

    def _say(self, status: int, code: str, headers: dict[str, str]) -> None:
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>by the proxy</Message></Error>".encode()
        self.send_response_only(status)
        for name, value in {"Content-Type": "application/xml", **headers, "Content-Length": str(len(text))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def _break(self) -> None:
        """End the connection without a further word."""
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """Broken connections are what this is for."""


@contextmanager
def s3_proxy(upstream: S3Server) -> Iterator[S3Proxy]:
    """Run a proxy before a server until the block ends."""
    handler = type("Handler", (_Handler,), {})
    server = _Server(("127.0.0.1", 0), handler)
    handler.proxy = S3Proxy(f"http://127.0.0.1:{server.server_port}", upstream)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield handler.proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
