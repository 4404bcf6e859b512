"""The layer that the outputs of a network are multiples of."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from wshare.models.folding import bias_of
from wshare.models.forward import forward
from wshare.models.kinds.attention import called_as_modules
from wshare.models.kinds.table import layer_of
from wshare.models.layers import replaced


def output_layer(model: nn.Module, layers: Sequence[str], sample: torch.Tensor) -> str | None:
    """The layer by which a network's outputs can be multiplied, by its name; None if there is none among `layers`.

    With its weight and bias multiplied by 2, the outputs of the sample [N, ...] have to be the double to the bit. It is
    the last one called, or none: behind it come at most sums, means and changes of shape.
    """
    called: list[str] = []
    hooks = [
        layer_of(model, name).module.register_forward_hook(lambda *_, name=name: called.append(name)) for name in layers
    ]
    try:
        with called_as_modules():
            before = forward(model, sample)
    finally:
        for hook in hooks:
            hook.remove()
    if not called:
        return None
    layer = layer_of(model, called[-1])
    bias = bias_of(model, layer)
    doubled = {layer.tensor: 2 * layer.weight.numpy(force=True)} | ({} if bias is None else {layer.bias: 2 * bias})
    with replaced(model, doubled):
        after = forward(model, sample)
    return layer.name if before.any() and np.array_equal(after, 2 * before) else None
