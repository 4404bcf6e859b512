"""Outputs of a network on many images."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from wshare.data.images import Images
from wshare.errors import UserError, one_line
from wshare.models.forward import forward
from wshare.models.fusion import fused

T = TypeVar("T")


def predict(model: nn.Module, images: Images, threads: int = 1, float16: bool = False) -> np.ndarray:
    """Outputs, float32 [N, ...]; model and images are on one device.

    Batches run side by side on `threads` threads, each on one core: the result does not depend on
    their number, unlike that of torch's own parallel sums. `float16` computes in that type, for GPUs alone.
    """
    first = images.batch(0)
    network = fused(model, first[:2])

    def outputs(start: int) -> np.ndarray:
        batch = images.batch(start) if start else first
        try:
            return _forward_float16(network, batch) if float16 else forward(network, batch)
        except RuntimeError as error:
            sizes = [list(part.shape[1:]) for part in (batch, first)]
            if sizes[0] == sizes[1]:
                raise
            raise UserError(
                f"the network fails on an image {sizes[0]} ({one_line(error)}), and not on {sizes[1]}; give images of "
                "one size (preprocessing.crop)"
            ) from error

    found = side_by_side(outputs, images.starts(), first, threads)
    shapes = sorted({output.shape[1:] for output in found})
    if len(shapes) > 1:
        raise UserError(
            f"the outputs have different shapes, such as {list(shapes[0])} and {list(shapes[-1])}; give images of one "
            "size (preprocessing.crop)"
        )
    return np.concatenate(found)


def side_by_side(each: Callable[[int], T], starts: Sequence[int], first: torch.Tensor, threads: int) -> list[T]:
    """What a function gives for each batch, by its start; `first` is a batch, or a part of one."""
    # A GPU takes one batch at a time, and more of them would only take its memory.
    with ThreadPoolExecutor(1 if first.is_cuda else threads) as pool:
        return list(pool.map(each, starts))


def _forward_float16(model: nn.Module, batch: torch.Tensor) -> np.ndarray:
    # Tensor cores take the channels of a pixel in a row.
    order = torch.channels_last if batch.ndim == 4 else torch.contiguous_format
    with torch.autocast(batch.device.type, torch.float16):
        return forward(model, batch.contiguous(memory_format=order))
