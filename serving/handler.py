"""TorchServe's side of the service: bytes in, bytes out; what happens between is in core.py.

A request is an `.npz` with `frames` uint16 (T,4,H,W), reflectance x 10000, latest first, and optionally `clear` bool
(T,H,W), `mean` and `std` (4,). The answer is an `.npz` with `sr` uint16 (4,4H,4W). A request that cannot be served
is answered with 400 and a sentence.
"""

import json
import logging
from pathlib import Path
from typing import Any

import core  # packed into the archive beside this file
import numpy as np

TOLERANCE = 2
"""Counts by which the stored sample's answer may differ from the packager's: other hardware rounds otherwise."""


class SuperResolution:
    """One worker: a program, checked against its stored sample before it serves."""

    def initialize(self, context: Any) -> None:
        """Load the archive. Raises where the program does not give the answer that was stored with it."""
        folder = Path(context.system_properties["model_dir"])
        gpu = context.system_properties["gpu_id"]
        self.program = core.load_program(folder, "cpu" if gpu is None else f"cuda:{gpu}")
        with np.load(folder / "sample.npz", allow_pickle=False) as sample:
            request = core.Request(sample["frames"], sample["clear"], shifts=sample["shifts"])
            expected = sample["sr"]
        difference = np.abs(core.super_resolve(self.program, request).astype(int) - expected.astype(int)).max()
        if difference > TOLERANCE:
            raise RuntimeError(
                f"{folder}: the answer to sample.npz differs by {difference} counts, expected at most {TOLERANCE}"
            )
        logging.info("sample.npz reproduced within %d counts on %s", difference, self.program.device)

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[bytes]:
        """Answer each request of a batch on its own, so that a bad one does not harm the others."""
        return [self.answer(request, context, index) for index, request in enumerate(data)]

    def answer(self, request: dict[str, Any], context: Any, index: int) -> bytes:
        body = request.get("body", request.get("data"))
        try:
            if not isinstance(body, bytes | bytearray):
                raise ValueError("The request has no body of bytes: send an .npz as application/octet-stream.")
            result: bytes = core.write_answer(core.super_resolve(self.program, core.read_request(bytes(body))))
        except ValueError as error:
            context.set_response_status(400, "Bad Request", index)
            context.set_response_content_type(index, "application/json")
            return json.dumps({"code": 400, "message": str(error)}).encode()
        context.set_response_content_type(index, "application/x-npz")
        return result
