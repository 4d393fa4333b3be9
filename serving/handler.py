"""TorchServe's side of the service: its requests and answers, metrics and log. All else is in the package beside it.

A request that cannot be served is answered with 4xx and {"code", "message"}; the worker lives on.
"""

import json
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ts.metrics.metric_type_enum import MetricTypes

from serving import core, formats, objects
from serving.busy import busy

TOLERANCE = {"float32": 2, "bfloat16": 40}
"""Counts by which the stored sample's answer may differ from the packager's: other hardware rounds otherwise."""
COUNTERS = ("frames", "windows", "pixels")
log = logging.getLogger("subpixel")


class SuperResolution:
    """One worker: a program, checked against its stored sample before it serves."""

    def initialize(self, context: Any) -> None:
        """Load the archive. Raises where the program does not give the answer that was stored with it."""
        folder = Path(context.system_properties["model_dir"])
        gpu = context.system_properties["gpu_id"]
        wanted = (context.model_yaml_config or {}).get("handler", {}).get("precision", "auto")
        program = core.load_program(folder, "cpu" if gpu is None else f"cuda:{gpu}")
        self.program = program if wanted == "auto" else replace(program, precision=wanted)
        self.objects = objects.Objects(os.environ.get(objects.VARIABLE, ""))
        if not self.objects.prefixes:
            for name in [name for name in os.environ if name.startswith("AWS_")]:
                del os.environ[name]
        with np.load(folder / "sample.npz", allow_pickle=False) as sample:
            request = core.Request(sample["frames"], sample["clear"], shifts=sample["shifts"])
            expected = sample["sr"].astype(int)
        found = {}
        for precision in {"float32", self.program.precision}:
            answer = core.super_resolve(replace(self.program, precision=precision), request).sr
            found[precision] = int(np.abs(answer - expected).max())
            if found[precision] > TOLERANCE[precision]:
                raise RuntimeError(
                    f"{folder}: the answer to sample.npz differs by {found[precision]} counts in {precision},"
                    f" expected at most {TOLERANCE[precision]}"
                )
        kinds = {f"subpixel_{name}_total": MetricTypes.COUNTER for name in COUNTERS}
        kinds |= {"subpixel_consistency_reflectance": MetricTypes.GAUGE}
        kinds |= {"subpixel_inference_seconds": MetricTypes.HISTOGRAM}
        add = context.metrics.add_metric_to_cache
        self.metrics = {name: add(name, "count", ["ModelName"], kind) for name, kind in kinds.items()}
        self.answered = add("subpixel_requests_total", "count", ["ModelName", "code"], MetricTypes.COUNTER)
        self.model = context.model_name
        say("loaded", "", model=self.model, device=str(self.program.device), sample_differs_by_counts=found)

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[bytes]:
        """Answer each request of a batch; a bad one does not harm the others."""
        with busy():
            return self.answer(data, context)

    def answer(self, data: list[dict[str, Any]], context: Any) -> list[bytes]:
        answers = [b""] * len(data)
        orders: dict[int, formats.Order] = {}
        began = time.perf_counter()
        for index, fields in enumerate(data):
            with self.faults(context, index, answers):
                headers = context.get_all_request_header(index)
                plain = {name.lower(): value for name, value in headers.items() if isinstance(value, str)}
                orders[index] = formats.read_order(plain, fields, self.objects, self.program.halo + core.BLUR_PX)
        read = time.perf_counter()
        results = self.compute([order.request for order in orders.values()])
        computed = time.perf_counter()
        for (index, order), result in zip(orders.items(), results, strict=True):
            with self.faults(context, index, answers):
                if isinstance(result, Exception):
                    raise result
                answers[index] = formats.write_answer(order, result, self.objects)
                context.set_response_content_type(index, order.answer)
                self.note(context, index, order, result, len(orders), read - began, computed - read)
        return answers

    def compute(self, requests: list[core.Request]) -> list[core.Result | Exception]:
        """Results or what went wrong. A batch that fails as a whole is done again one by one."""
        try:
            return list(core.super_resolve_all(self.program, requests))
        except Exception as error:
            if self.program.device.type == "cuda":
                torch.cuda.empty_cache()
            if len(requests) == 1:
                return [error]
            return [result for request in requests for result in self.compute([request])]

    @contextmanager
    def faults(self, context: Any, index: int, answers: list[bytes]) -> Iterator[None]:
        """Turns what goes wrong with one request into its answer."""
        identity = context.get_request_id(index)
        try:
            yield
            return
        except core.RequestError as error:
            status, message = HTTPStatus(error.status), str(error)
        except Exception as error:
            log.exception("request %s failed", identity)
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            if isinstance(error, MemoryError | torch.OutOfMemoryError):
                status = HTTPStatus.INSUFFICIENT_STORAGE
            message = f"The service failed at this request; its log says why under {identity}."
        context.set_response_status(status.value, status.phrase, index)
        context.set_response_content_type(index, formats.JSON)
        answers[index] = json.dumps({"code": status.value, "message": message}).encode()
        self.answered.add_or_update(1, [self.model, str(status.value)])
        say("refused", identity, model=self.model, code=status.value, message=message, **_sender(context, index))

    def note(
        self,
        context: Any,
        index: int,
        order: formats.Order,
        result: core.Result,
        together: int,
        reading_s: float,
        inference_s: float,
    ) -> None:
        """Metrics and a line of log for an answered request; times are those of its batch."""
        frames, pixels, agreed = len(order.request.frames), result.sr[0].size, result.consistency_mae
        values = {"frames_total": frames, "windows_total": result.windows, "pixels_total": pixels}
        values["inference_seconds"] = round(inference_s, 4)
        if agreed is not None:
            values["consistency_reflectance"] = round(agreed, 6)
        for name, value in values.items():
            self.metrics[f"subpixel_{name}"].add_or_update(value, [self.model])
        self.answered.add_or_update(1, [self.model, "200"])
        times = {"reading_seconds": round(reading_s, 4), "valid_share": round(result.valid_share, 4)}
        identity = context.get_request_id(index)
        say("answered", identity, model=self.model, batch=together, **values, **times, **_sender(context, index))


def say(event: str, request_id: str, **facts: Any) -> None:
    """A line of JSON in the log: no body, no header but the sender's own id, no key."""
    log.info(json.dumps({"event": event, "request_id": request_id, **facts}))


def _sender(context: Any, index: int) -> dict[str, str]:
    """The id by which the sender, or a gateway before us, knows the request."""
    headers = context.get_all_request_header(index)
    given = next((value for name, value in headers.items() if name.lower() == "x-request-id"), None)
    return {"client_request_id": given} if isinstance(given, str) and re.fullmatch(r"[\w.:-]{1,128}", given) else {}
