"""The OpenAPI description against the server: requests made from it, valid and not, and answers that it must allow."""

import io
from collections.abc import Iterator
from typing import Any

import hypothesis.strategies as st
import numpy as np
import psutil
import pytest
import requests
import schemathesis
import yaml
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from serving import core
from serving.local import Server, find_java, serve
from tests.conftest import REPOSITORY
from tests.served import write_archive, write_bundle

DESCRIPTION = REPOSITORY / "serving" / "openapi.yaml"
VERSION = "1.0"
# whether a stack of valid type can be super-resolved no schema can say: 400 and 422 are allowed
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]


@st.composite
def npz(draw: Any) -> bytes:
    """Requests of every number of frames and of many shapes; every other one is wrong somewhere."""
    frames = draw(st.integers(1, core.MAX_FRAMES))
    bands = draw(st.sampled_from([4, 4, 4, 3]))
    rows, columns = (draw(st.integers(core.MIN_SIDE - 1, 24)) for _ in range(2))
    random = np.random.default_rng(draw(st.integers(0, 9)))
    dtype = draw(st.sampled_from([np.uint16, np.uint16, np.uint16, np.int16, np.float32, np.bool_]))
    arrays: dict[str, Any] = {"frames": random.integers(0, 4000, (frames, bands, rows, columns)).astype(dtype)}
    optional = {
        "clear": random.random((frames, rows, columns)) > draw(st.sampled_from([0.2, 1.0])),
        "mean": np.full(4, draw(st.floats(-1, 3))),
        "std": np.full(draw(st.sampled_from([4, 4, 3])), draw(st.floats(-0.1, 1))),
        "shifts": random.normal(0, 0.5, (frames, 2)),
        "uncertainty": np.array(draw(st.sampled_from([True, False, 1.5]))),
        "consistency": np.array(True),
        "transform": np.array([10.0, 0, 300000, 0, -10, 7000000]),
        "epsg": np.array(draw(st.sampled_from([32734, 32734, 1]))),
        "other": np.zeros(2),
    }
    for name in draw(st.sets(st.sampled_from(sorted(optional)), max_size=5)):
        arrays[name] = optional[name]
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    whole = buffer.getvalue()
    return whole[: draw(st.sampled_from([len(whole), len(whole), len(whole) // 2]))]


for kind in ("application/x-npz", "application/octet-stream"):
    schemathesis.openapi.media_type(kind, npz())
schema = schemathesis.openapi.from_path(str(DESCRIPTION))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if find_java() is None:
        pytest.skip("java not found: TorchServe cannot run")
    bundle = write_bundle(tmp_path_factory.mktemp("bundle") / "model")
    with serve(write_archive(bundle, tmp_path_factory.mktemp("archive"), VERSION)) as running:
        workers = workers_of(running)
        yield running
        assert workers_of(running) == workers, "a request has ended a worker"


def workers_of(server: Server) -> set[int]:
    return {child.pid for child in psutil.Process(server.pid).children(recursive=True)}


def test_the_description_is_valid_openapi() -> None:
    schema.validate()


@schema.parametrize()
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
def test_every_answer_is_described(case: schemathesis.Case, server: Server) -> None:
    if case.path_parameters:  # names of other models are 404, and nothing more is to be learnt
        case.path_parameters.update({"model": "small"} | ({"version": VERSION} if "{version}" in case.path else {}))
    address = server.url.partition("/predictions/")[0]
    answer = case.call(base_url=address, timeout=60)
    # TorchServe's own word for a form that it cannot take apart; such never reach the worker
    undecodable = answer.status_code == 500 and answer.json().get("type") == "ErrorDataDecoderException"
    case.validate_response(answer, checks=[check for check in CHECKS if check != not_a_server_error or not undecodable])
    if answer.headers.get("content-type") == ["application/x-npz"]:
        with np.load(io.BytesIO(answer.content)) as arrays:
            assert arrays["sr"].dtype == np.uint16


@pytest.mark.parametrize("path", ["other", f"other/{VERSION}", "small/7.0"])
def test_other_models_are_not_there(server: Server, path: str) -> None:
    answer = requests.post(f"{server.url.rpartition('/')[0]}/{path}", data=b"", timeout=30)
    assert answer.status_code == 404
    assert {"code", "message"} <= set(answer.json())


def test_the_limits_are_those_of_the_server() -> None:
    """What the description says of frames is what serving/core.py holds to."""
    description = yaml.safe_load(DESCRIPTION.read_text(encoding="utf-8"))
    stored = description["components"]["schemas"]["Stored"]["properties"]
    assert stored["frames"]["maxItems"] == core.MAX_FRAMES
    limit = stored["shifts"]["items"]["items"]
    assert (limit["minimum"], limit["maximum"]) == (-core.MAX_SHIFT, core.MAX_SHIFT)
