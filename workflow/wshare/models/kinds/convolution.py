"""Convolutions of one, two and three dimensions: weight [outputs, inputs / groups, *kernel]."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from wshare.models.kinds.kind import Kind
from wshare.models.kinds.pixels import batched, by_place, columns, positions, taps, unravelled
from wshare.quantize.codebooks import Layout


def _inputs(module: nn.Module, inputs: Tensor, output: Tensor, places: Tensor) -> Tensor:
    made = batched(module, output).shape[2:]
    padded = _padded(module, batched(module, inputs), made)
    # A place is one number: how far apart neighbours along each axis are.
    apart = torch.tensor([math.prod(padded.shape[axis + 1 :]) for axis in range(2, padded.ndim)])
    corner = (unravelled(places, made) * torch.tensor(module.stride) * apart).sum(1)
    offset = (taps(module.kernel_size) * torch.tensor(module.dilation) * apart).sum(1)
    return columns(by_place(padded), corner[:, None] + offset, module.groups)


def _padded(module: nn.Module, inputs: Tensor, made: torch.Size) -> Tensor:
    """The images as the layer pads them; `made` are the sizes of its output."""
    ends = []
    for axis, (size, count) in enumerate(zip(inputs.shape[2:], made, strict=True)):
        # The last axis comes first.
        ends = [*_padding(module, axis, size, count), *ends]
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return functional.pad(inputs, ends, mode=mode) if sum(ends) else inputs


def _padding(module: nn.Module, axis: int, size: int, made: int) -> tuple[int, int]:
    """Padding before and behind; computed from the sizes where a layer pads "same" or inside its own forward."""
    kernel, stride, gap = module.kernel_size[axis], module.stride[axis], module.dilation[axis]
    needed = max(0, (made - 1) * stride + gap * (kernel - 1) + 1 - size)
    declared = 0 if isinstance(module.padding, str) else module.padding[axis]
    before = declared or needed // 2
    return before, max(0, needed - before)


KIND = Kind((nn.Conv1d, nn.Conv2d, nn.Conv3d), lambda module: Layout(0, module.groups), positions, _inputs)
