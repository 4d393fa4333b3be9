"""The service's core behind Triton's Python backend; the archive's content lies beside this file.

A request has the tensors of an `.npz` request, and its answer those of that answer (`config.pbtxt`); docs/serving.md
says more.
"""

import sys
from pathlib import Path

import triton_python_backend_utils as pb_utils

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from serving import core  # noqa: E402  (what the archive brings)

OPTIONAL = ("clear", "mean", "std", "shifts")


class TritonPythonModel:
    """One instance of the model, on the device that Triton gives it."""

    def initialize(self, args):
        on_gpu = args["model_instance_kind"] == "GPU"
        self.program = core.load_program(HERE, f"cuda:{args['model_instance_device_id']}" if on_gpu else "cpu")

    def execute(self, requests):
        """Answer the requests that Triton has gathered; a bad one gets an error, the others their images."""
        results = core.super_resolve_all(self.program, [self.read(request) for request in requests])
        return [self.answer(request, result) for request, result in zip(requests, results, strict=True)]

    def read(self, request):
        found = {name: pb_utils.get_input_tensor_by_name(request, name) for name in ("frames", *OPTIONAL)}
        arrays = {name: tensor.as_numpy() for name, tensor in found.items() if tensor is not None}
        return core.Request(**arrays, uncertainty=self.program.uncertain)

    def answer(self, request, result):
        if isinstance(result, core.RequestError):
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(result)))
        made = {"sr": result.sr, "uncertainty": result.uncertainty, "consistency": result.consistency}
        wanted = set(request.requested_output_names())
        tensors = [pb_utils.Tensor(name, array) for name, array in made.items() if name in wanted and array is not None]
        return pb_utils.InferenceResponse(tensors)
