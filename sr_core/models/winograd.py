"""Fast 3 x 3 convolutions on the CPU: the library built from winograd.cpp, where it was built and can run.

It is optional: an installation without a C++ compiler, or a processor without AVX-512, does with PyTorch's own.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

LANES = 16
"""Of a vector: numbers of channels must be multiples of it."""
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def can_convolve(x: Tensor, weight: Tensor) -> bool:
    """Whether `convolve` can do it: on this machine, for tensors of this kind."""
    return (
        x.device.type == "cpu"
        and x.dtype in NAMES
        and weight.dtype == torch.float32
        and all(channels % LANES == 0 for channels in weight.shape[:2])
        and x.numel() > 0
        and supported(x.dtype)
    )


@cache
def supported(dtype: torch.dtype) -> bool:
    """Whether the library is there and this processor can run it."""
    library = _library()
    return library is not None and bool(getattr(library, f"supports_{NAMES[dtype]}")())


def has_matrix_unit() -> bool:
    """Whether products in bfloat16 are those of the processor's matrix unit (AMX)."""
    library = _library()
    return library is not None and bool(library.has_matrix_unit())


@contextmanager
def without_matrix_unit() -> Iterator[None]:
    """Products by vectors meanwhile, as on a processor without one: to compare the two."""
    library = _library()
    assert library is not None
    library.allow_matrix_unit(False)
    try:
        yield
    finally:
        library.allow_matrix_unit(True)


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    slope: Tensor | None = None,
    skip: Tensor | None = None,
    before: Tensor | None = None,
) -> Tensor:
    """skip + PReLU(convolution of x with replicated edges); without `slope` there is no PReLU.

    x (N,C,H,W), float32 or bfloat16; weight (K,C,3,3), bias (K) and slope (1) float32; skip and the result (N,K,H,W) as
    x. Into `before`, of the same shape and channels last, goes what PReLU was given. In bfloat16 the error is about
    three times that of a direct convolution: the sums are as exact, but what is multiplied is rounded once more.
    """
    return _convolve(x, weight, bias, slope, skip, before, border=1)


def transposed_convolve(gradient: Tensor, weight: Tensor) -> Tensor:
    """The gradient (N,C,H+2,W+2) of a padded input, from that of the convolution's result (N,K,H,W)."""
    return _convolve(gradient, weight.transpose(0, 1), border=2, turned=True)


def prelu_backward(gradient: Tensor, before: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of what PReLU was given, `before`, and of its slope (1); both inputs channels last."""
    name, library = NAMES[gradient.dtype], _library()
    assert library is not None
    result = torch.empty_like(gradient)
    sums = torch.empty(library.prelu_pieces(gradient.numel()))
    pointers = (part.data_ptr() for part in (gradient, before, slope, result, sums))
    getattr(library, f"prelu_backward_{name}")(*pointers, gradient.numel())
    return result, sums.sum(dim=0, keepdim=True)


def images_like(x: Tensor, channels: int, height: int, width: int) -> Tensor:
    """(N,channels,height,width), channels last, not initialised."""
    return torch.empty((len(x), channels, height, width), dtype=x.dtype, memory_format=torch.channels_last)


def _convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    slope: Tensor | None = None,
    skip: Tensor | None = None,
    before: Tensor | None = None,
    *,
    border: int,
    turned: bool = False,
) -> Tensor:
    """With a border of replicated edges; or of zeros, and the weights turned by half a turn."""
    name, library = NAMES[x.dtype], _library()
    assert library is not None
    x = x.contiguous(memory_format=torch.channels_last)
    if skip is not None:
        skip = skip.to(x.dtype).contiguous(memory_format=torch.channels_last)
    outputs, inputs = weight.shape[:2]
    packed = torch.empty(36 * inputs * outputs, dtype=x.dtype)
    pack = getattr(library, f"pack_{name}")
    pack(weight.data_ptr(), _integers(*weight.stride()), packed.data_ptr(), _integers(inputs, outputs), turned)
    height, width = x.shape[2:]
    result = images_like(x, outputs, height + 2 * (border - 1), width + 2 * (border - 1))
    pointers = (None if part is None else part.data_ptr() for part in (x, packed, bias, slope, skip, before, result))
    sizes = _integers(len(x), height, width, inputs, outputs, border)
    getattr(library, f"convolve_{name}")(*pointers, sizes, turned)
    return result


def _integers(*values: int) -> Any:
    return (ctypes.c_int64 * len(values))(*values)


@cache
def _library() -> ctypes.CDLL | None:
    spec = importlib.util.find_spec("sr_core.models._winograd")
    if spec is None or spec.origin is None:
        return None
    try:
        library = ctypes.CDLL(spec.origin)
    except OSError:  # this PyTorch brings no GNU OpenMP
        return None
    pointer, integer, flag = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    library.allow_matrix_unit.argtypes, library.allow_matrix_unit.restype = [flag], None
    library.prelu_pieces.argtypes, library.prelu_pieces.restype = [integer], integer
    for name in NAMES.values():
        getattr(library, f"pack_{name}").argtypes = [pointer] * 4 + [flag]
        getattr(library, f"convolve_{name}").argtypes = [pointer] * 8 + [flag]
        getattr(library, f"prelu_backward_{name}").argtypes = [pointer] * 5 + [integer]
    return library
