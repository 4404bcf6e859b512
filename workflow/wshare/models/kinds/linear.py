"""Dense layers: weight [outputs, inputs], on the last axis of their input."""

from torch import Tensor, nn

from wshare.models.kinds.kind import Kind
from wshare.quantize.codebooks import Layout


def _positions(module: nn.Module, output: Tensor) -> int:
    return _batched(output)[0].numel() // output.shape[-1]


def _inputs(module: nn.Module, inputs: Tensor, output: Tensor, places: Tensor) -> Tensor:
    inputs = _batched(inputs)
    samples = inputs.reshape(len(inputs), -1, inputs.shape[-1])[:, places]
    return samples.reshape(1, -1, inputs.shape[-1]).mT.contiguous()


def _batched(tensor: Tensor) -> Tensor:
    """[N, ..., features]: a layer may take a single vector."""
    return tensor[None] if tensor.ndim == 1 else tensor


KIND = Kind((nn.Linear,), lambda module: Layout(), _positions, _inputs)
