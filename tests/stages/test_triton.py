"""The way out of TorchServe: the same core behind Triton's Python backend.

No Triton runs here. What it would do is stood in for by the few classes of its Python interface that the model uses.
"""

import importlib.util
import re
import shutil
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving import core
from tests.conftest import REPOSITORY
from tests.served import stack, write_archive, write_bundle

EXAMPLE = REPOSITORY / "examples" / "triton" / "subpixel"
TYPES = {"TYPE_UINT16": np.uint16, "TYPE_BOOL": np.bool_, "TYPE_FP64": np.float64, "TYPE_FP32": np.float32}


class Tensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        self.name, self.array = name, array

    def as_numpy(self) -> np.ndarray:
        return self.array


class Request:
    def __init__(self, outputs: tuple[str, ...] = ("sr",), **arrays: np.ndarray) -> None:
        self.tensors, self.outputs = {name: Tensor(name, array) for name, array in arrays.items()}, outputs

    def requested_output_names(self) -> tuple[str, ...]:
        return self.outputs


class Response:
    def __init__(self, tensors: Any = (), error: Any = None) -> None:
        self.arrays, self.error = {tensor.name: tensor.array for tensor in tensors}, error


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's folder of a Triton repository, laid out as docs/serving.md says."""
    folder = tmp_path_factory.mktemp("triton")
    shutil.copytree(EXAMPLE, folder / "subpixel")
    archive = write_archive(write_bundle(folder / "bundle"), folder / "archive")
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(folder / "subpixel" / "1")
    return folder / "subpixel"


@pytest.fixture
def model(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    backend = types.ModuleType("triton_python_backend_utils")
    backend.__dict__.update(
        Tensor=Tensor,
        InferenceResponse=Response,
        TritonError=RuntimeError,
        get_input_tensor_by_name=lambda request, name: request.tensors.get(name),
    )
    monkeypatch.setitem(sys.modules, backend.__name__, backend)
    monkeypatch.setattr(sys, "path", [*sys.path])
    spec = importlib.util.spec_from_file_location("triton_model", repository / "1" / "model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.TritonPythonModel()
    made.initialize({"model_instance_kind": "CPU", "model_instance_device_id": "0"})
    return made


def test_a_batch_of_different_requests_is_answered_as_by_the_core(model: Any, repository: Path) -> None:
    program = core.load_program(repository / "1")
    images, clear = stack(2, 20, 33)
    shifts = np.full((2, 2), 0.25, np.float32)
    requests = [
        Request(frames=stack(5)[0]),
        Request(("sr", "uncertainty", "consistency"), frames=images, clear=clear, shifts=shifts),
        Request(frames=images[:, :3]),
    ]

    alone, asked, wrong = model.execute(requests)

    np.testing.assert_array_equal(alone.arrays["sr"], core.super_resolve(program, core.Request(stack(5)[0])).sr)
    expected = core.super_resolve(program, core.Request(images, clear, shifts=shifts, uncertainty=True))
    for name in ("sr", "uncertainty", "consistency"):
        np.testing.assert_array_equal(asked.arrays[name], getattr(expected, name))
    assert set(alone.arrays) == {"sr"}
    assert "expected (T, 4, H, W)" in str(wrong.error)


def test_the_configuration_names_what_the_model_reads_and_writes(model: Any) -> None:
    config = (EXAMPLE / "config.pbtxt").read_text(encoding="utf-8")
    inputs, _, outputs = config.partition("output [")
    declared = {
        kind: {name: (TYPES[dtype], dims.count(",") + 1) for name, dtype, dims in re.findall(PATTERN, text)}
        for kind, text in (("in", inputs), ("out", outputs))
    }
    images, clear = stack(2, 20, 33)
    given = {"frames": images, "clear": clear, "mean": np.full(4, 0.1), "std": np.full(4, 0.1)}
    given["shifts"] = np.zeros((2, 2), np.float32)
    (answer,) = model.execute([Request(tuple(declared["out"]), **given)])
    for kind, arrays in (("in", given), ("out", answer.arrays)):
        assert declared[kind] == {name: (array.dtype.type, array.ndim) for name, array in arrays.items()}


PATTERN = r'name: "(\w+)"\s+data_type: (\w+)\s+dims: \[([^]]*)\]'
