"""The client, against a real TorchServe and against a server that misbehaves."""

import io
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from serving.local import Server, find_java, serve
from sr_core.errors import ServiceError
from sr_core.models.bundle import load_bundle
from sr_core.models.normalization import Normalization
from subpixel.client import Client
from tests.served import stack, write_archive, write_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle") / "model")


@pytest.fixture(scope="module")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if find_java() is None:
        pytest.skip("java not found: TorchServe cannot run")
    with serve(write_archive(bundle, tmp_path_factory.mktemp("archive"))) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Client:
    return Client(server.url.partition("/predictions/")[0], "small")


def test_arrays_come_back_as_the_bundle_super_resolves_them(client: Client, bundle: Path) -> None:
    images, clear = stack()
    shifts = np.random.default_rng(1).normal(0, 0.3, (len(images), 2)).astype(np.float32)
    place = Normalization((0.08, 0.1, 0.12, 0.3), (0.05, 0.06, 0.07, 0.1))

    answer = client.predict(images, clear, mean=np.array(place.mean), std=np.array(place.std), shifts=shifts)

    expected = load_bundle(bundle).predict(images, clear, place, shifts=shifts) * 10_000
    known = answer.sr.all(axis=0)
    assert known.mean() > 0.7
    assert np.abs(answer.sr - np.clip(expected, 1, 65535))[:, known].max() <= 2
    assert answer.uncertainty is None and answer.consistency is None


def test_threads_share_a_client_and_get_their_own_answers(client: Client) -> None:
    requests = [stack(seed=seed)[0] for seed in range(6)]
    alone = [client.predict(frames).sr for frames in requests]
    with ThreadPoolExecutor(6) as threads:
        together = list(threads.map(lambda frames: client.predict(frames).sr, requests))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)
    assert (alone[0] != alone[1]).any()


def test_a_refusal_is_the_server_s_sentence(client: Client) -> None:
    with pytest.raises(ServiceError, match=r"predictions/small: 4\d\d: .*shape \(4, 3, 30, 41\); expected"):
        client.predict(stack()[0][:, :3])


def test_a_model_that_is_not_there(client: Client, server: Server) -> None:
    with pytest.raises(ServiceError, match=r"predictions/other: 404: Model not found: other"):
        Client(client.server, "other").predict(stack()[0])


def test_a_server_that_is_not_there() -> None:
    nobody = Client("http://127.0.0.1:9", retries=0)
    assert not nobody.healthy()
    with pytest.raises(ServiceError, match=r"127.0.0.1:9/predictions/subpixel: no answer: .*does the server run"):
        nobody.predict(stack()[0])


def test_health(client: Client) -> None:
    assert client.healthy()


@pytest.mark.parametrize("address", ["sr.example.org", "ftp://sr.example.org", "https://"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(ServiceError, match="expected an address such as"):
        Client(address)


def test_a_token_is_not_sent_in_clear_text_over_a_network() -> None:
    with pytest.raises(ServiceError, match="over https only") as refused:
        Client("http://sr.example.org", token="very-secret")
    assert "very-secret" not in str(refused.value)


# A fault is what a handler does instead of answering.


def busy(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    handler.send_response(503)
    handler.send_header("Retry-After", "0")
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def cut_short(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body[: len(body) // 2])
    handler.close_connection = True


def hang_up(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    handler.close_connection = True


def elsewhere(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    handler.send_response(302)
    handler.send_header("Location", "http://127.0.0.1:9/")
    handler.send_header("Content-Length", "0")
    handler.end_headers()


Fault = Callable[[BaseHTTPRequestHandler, bytes], None]


@contextmanager
def misbehaving(
    faults: list[Fault], answer: bytes, kind: str = "application/x-npz"
) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A server that answers 200 with `answer` after its faults; its address, and the headers of its requests."""
    seen: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            seen.append({name.lower(): value for name, value in self.headers.items()})
            if faults:
                faults.pop(0)(self, answer)
                return
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_port}", seen
    finally:
        running.shutdown()
        running.server_close()
        thread.join()


def npz(sr: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, sr=sr)
    return buffer.getvalue()


@pytest.mark.parametrize("fault", [busy, cut_short, hang_up])
def test_it_asks_again(fault: Fault) -> None:
    image = np.arange(4 * 32 * 32, dtype=np.uint16).reshape(4, 32, 32)
    with misbehaving([fault, fault], npz(image)) as (address, seen):
        answer = Client(address, token="very-secret").predict(stack()[0])
    np.testing.assert_array_equal(answer.sr, image)
    assert len(seen) == 3
    assert {request["authorization"] for request in seen} == {"Bearer very-secret"}


def test_it_does_not_ask_for_ever() -> None:
    with (
        misbehaving([busy] * 3, npz(np.ones((4, 8, 8), np.uint16))) as (address, seen),
        pytest.raises(ServiceError, match="503: no reason given"),
    ):
        Client(address, retries=2).predict(stack()[0])
    assert len(seen) == 3


def test_a_redirection_is_not_followed_with_the_token() -> None:
    with misbehaving([elsewhere], b"") as (address, seen), pytest.raises(ServiceError, match="302"):
        Client(address, token="very-secret").predict(stack()[0])
    assert len(seen) == 1


def test_another_answer_than_an_image() -> None:
    page = b"<html>a gateway's page</html>"
    for kind, sentence in (
        ("text/html", "found an answer of text/html, expected application/x-npz"),
        ("application/x-npz", r"the answer is not an .npz with the array `sr`"),
    ):
        with misbehaving([], page, kind) as (address, _), pytest.raises(ServiceError, match=sentence):
            Client(address).predict(stack()[0])
