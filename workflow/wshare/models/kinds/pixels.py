"""Pixels, of one axis of places or more, that a position of a convolution's output sums."""

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn


def batched(module: nn.Module, tensor: Tensor) -> Tensor:
    """[N, channels, ...]: what a convolution took or gave, which may have been a single one without the first axis."""
    return tensor[None] if tensor.ndim == len(module.kernel_size) + 1 else tensor


def positions(module: nn.Module, output: Tensor) -> int:
    """Sums of each output in what a convolution gave for one image."""
    return batched(module, output)[0, 0].numel()


def taps(kernel_size: Sequence[int]) -> Tensor:
    """Coordinates of each value of a kernel, in C order: [taps, axes]."""
    return torch.tensor(list(itertools.product(*map(range, kernel_size))))


def unravelled(places: Tensor, sizes: Sequence[int]) -> Tensor:
    """Coordinates of places in C order within an array of these sizes: [P, axes]."""
    return torch.stack(torch.unravel_index(places, tuple(sizes)), dim=1)


def by_place(images: Tensor) -> Tensor:
    """[N, channels, ...] as [N, places, channels]: pixels are rows, so that a sample is copied as a whole."""
    batch, channels = images.shape[:2]
    return images.movedim(1, -1).reshape(batch, -1, channels)


def columns(pixels: Tensor, index: Tensor, groups: int) -> Tensor:
    """[groups, channels of a group x taps, samples] from `by_place` pixels; `index` [P, taps] says which are summed."""
    batch, places, channels = pixels.shape
    count = batch * len(index)
    if channels == groups:
        # Each channel's few places are gathered fastest when they lie together; torch copies a transposed matrix many
        # times as fast as an array of more axes.
        apart = pixels.reshape(-1, groups).t().contiguous().view(groups, batch, places)
        return _taken(apart, index.ravel()).view(groups, count, -1).mT
    samples = pixels[:, index.ravel()]
    return samples.reshape(count, index.shape[1], groups, -1).permute(2, 3, 1, 0).reshape(groups, -1, count)


def _taken(values: Tensor, index: Tensor) -> Tensor:
    """`values[..., index]`, which numpy does in a fourth of the time on a CPU."""
    if values.is_cuda:
        return values[..., index]
    return torch.from_numpy(np.take(values.numpy(), index.numpy(), axis=-1))
