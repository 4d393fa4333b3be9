"""The convolutions of HighRes-Net: 3 x 3, edges replicated, in whatever way is fastest on the device."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sr_core.models import winograd


class Conv3(nn.Conv2d):
    """A 3 x 3 convolution that keeps height and width; edges are replicated, so that none is darkened."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3)

    def forward(self, x: Tensor) -> Tensor:
        return convolve(x, self)


class Layers(nn.Sequential):
    """Layers one after the other; a convolution and the PReLU after it are one operation where the device has it."""

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """The result, plus `skip`."""
        layers = list(self)
        while layers:
            layer = layers.pop(0)
            if isinstance(layer, Conv3):
                prelu = cast(nn.PReLU, layers.pop(0)) if layers and isinstance(layers[0], nn.PReLU) else None
                x = convolve(x, layer, prelu, None if layers else skip)
                skip = skip if layers else None
            else:
                x = layer(x)
        return x if skip is None else skip + x


def convolve(x: Tensor, layer: Conv3, prelu: nn.PReLU | None = None, skip: Tensor | None = None) -> Tensor:
    """skip + prelu(layer(x)), of which the outer two may be missing. x (N,C,H,W), skip as the result."""
    kind = x.device.type
    autocast = torch.is_autocast_enabled(kind)
    if autocast:
        x = x.to(torch.get_autocast_dtype(kind))
    with torch.autocast(kind, enabled=False) if autocast else nullcontext():
        if not torch.compiler.is_compiling() and winograd.can_convolve(x, layer.weight):
            slope = None if prelu is None else prelu.weight
            parts = x, layer.weight, cast(Tensor, layer.bias), slope, skip
            if torch.is_grad_enabled():
                return cast(Tensor, _Convolution.apply(*parts))  # type: ignore[no-untyped-call]
            return winograd.convolve(*parts)
        # PyTorch's own padding_mode="replicate" pads in float32 under autocast, which takes longer than the convolution
        x = replicate_edges(x)
    x = F.conv2d(x, layer.weight, layer.bias)
    if prelu is not None:
        x = prelu(x)
    return x if skip is None else skip + x


def replicate_edges(x: Tensor) -> Tensor:
    """(N,C,H,W), channels last, with a pixel more at each side."""
    if torch.is_grad_enabled() and x.requires_grad:
        return cast(Tensor, _ReplicatedEdges.apply(x))  # type: ignore[no-untyped-call]
    # as a volume of H x W x C, so that PyTorch keeps the channels last on every device
    volume = F.pad(x.permute(0, 2, 3, 1).unsqueeze(1), (0, 0, 1, 1, 1, 1), mode="replicate")
    return volume.squeeze(1).permute(0, 3, 1, 2)


def fold_edges(gradient: Tensor) -> Tensor:
    """The gradient (N,C,H,W) of what was given to `replicate_edges`, from that of its result."""
    inner = gradient[:, :, 1:-1, 1:-1].clone(memory_format=torch.channels_last)
    for edge in (0, -1):
        inner[:, :, edge] += gradient[:, :, edge, 1:-1]
        inner[:, :, :, edge] += gradient[:, :, 1:-1, edge]
        for corner in (0, -1):
            inner[:, :, edge, corner] += gradient[:, :, edge, corner]
    return inner


class _ReplicatedEdges(torch.autograd.Function):
    """With a gradient of its own: PyTorch's adds atomically on a GPU, in an order that is never the same."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return replicate_edges(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return fold_edges(gradient)


class _Convolution(torch.autograd.Function):
    """`winograd.convolve`, whose gradient is one as well for the input; that of the weights is PyTorch's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor | None, skip: Tensor | None) -> Tensor:
        before = None if slope is None else winograd.images_like(x, len(weight), *x.shape[2:])
        ctx.save_for_backward(x, weight, slope, before)
        return winograd.convolve(x, weight, bias, slope, skip, before)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, slope, before = ctx.saved_tensors
        gradient = of_skip = gradient.contiguous(memory_format=torch.channels_last)
        of_slope = of_x = None
        if slope is not None:
            gradient, of_slope = winograd.prelu_backward(gradient, before, slope)
        if ctx.needs_input_grad[0]:
            of_x = fold_edges(winograd.transposed_convolve(gradient, weight))
        settings = ([len(weight)], (1, 1), (0, 0), (1, 1), False, (0, 0), 1, (False, True, True))
        _, of_weight, of_bias = torch.ops.aten.convolution_backward(
            gradient, replicate_edges(x), weight.to(x.dtype), *settings
        )
        return of_x, of_weight.float(), of_bias.float(), of_slope, of_skip if ctx.needs_input_grad[4] else None
