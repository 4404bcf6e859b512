"""Transposed convolutions of one, two and three dimensions: weight [inputs, outputs / groups, *kernel]."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from wshare.models.kinds.kind import Kind
from wshare.models.kinds.pixels import batched, by_place, columns, positions, taps, unravelled
from wshare.quantize.codebooks import Layout


def _inputs(module: nn.Module, inputs: Tensor, output: Tensor, places: Tensor) -> Tensor:
    images, made = batched(module, inputs), batched(module, output).shape[2:]
    stride, sizes = torch.tensor(module.stride), images.shape[2:]
    # Input i reaches output i stride - padding + tap dilation: the other way round, at most one input for each tap.
    reached = (unravelled(places, made) + torch.tensor(module.padding))[:, None]
    reached = reached - taps(module.kernel_size) * torch.tensor(module.dilation)
    pixel = reached // stride
    inside = ((reached % stride == 0) & (pixel >= 0) & (pixel < torch.tensor(sizes))).all(2)
    apart = torch.tensor([math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))])
    # Where there is none, a pixel of zeros behind the last.
    index = torch.where(inside, (pixel * apart).sum(2), math.prod(sizes))
    return columns(functional.pad(by_place(images), (0, 0, 0, 1)), index, module.groups)


KIND = Kind(
    (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    lambda module: Layout(1, module.groups),
    positions,
    _inputs,
)
