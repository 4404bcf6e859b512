"""Two-dimensional convolutions: weight [outputs, inputs / groups, height, width]."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from wshare.models.kinds.kind import Kind
from wshare.quantize.codebooks import Layout


def _positions(module: nn.Module, output: Tensor) -> int:
    return output[0].numel() // output.shape[1]


def _inputs(module: nn.Module, inputs: Tensor, output: Tensor, places: Tensor) -> Tensor:
    (high, wide), (step_y, step_x), (gap_y, gap_x) = module.kernel_size, module.stride, module.dilation
    top, bottom = _padding(inputs.shape[2], output.shape[2], high, step_y, gap_y, module.padding, 0)
    left, right = _padding(inputs.shape[3], output.shape[3], wide, step_x, gap_x, module.padding, 1)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = functional.pad(inputs, (left, right, top, bottom), mode=mode) if top + bottom + left + right else inputs
    batch, channels, _, width = padded.shape
    corner = places // output.shape[3] * step_y * width + places % output.shape[3] * step_x
    taps = [corner + y * gap_y * width + x * gap_x for y in range(high) for x in range(wide)]
    # Pixels are rows in memory in the channels_last order, so that a sample is copied as a whole.
    pixels = padded.permute(0, 2, 3, 1).reshape(batch, -1, channels)
    samples = pixels[:, torch.stack(taps, dim=1).ravel()].reshape(batch * len(places), len(taps), module.groups, -1)
    # To [groups, channels of a group x taps, samples].
    return samples.permute(2, 3, 1, 0).reshape(module.groups, -1, batch * len(places))


def _padding(
    size: int, made: int, kernel: int, stride: int, gap: int, declared: tuple | str, axis: int
) -> tuple[int, int]:
    """Padding before and behind; computed from the sizes where a layer pads "same" or inside its own forward."""
    needed = max(0, (made - 1) * stride + gap * (kernel - 1) + 1 - size)
    before = declared[axis] if not isinstance(declared, str) and declared[axis] else needed // 2
    return before, max(0, needed - before)


KIND = Kind((nn.Conv2d,), lambda module: Layout(0, module.groups), _positions, _inputs)
