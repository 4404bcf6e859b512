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
from wshare.tasks.task import Task

# Divergence, in nats, of outputs that are the same but for the errors of float32.
SAME = 1e-6


def output_layer(task: Task, model: nn.Module, layers: Sequence[str], sample: torch.Tensor) -> str | None:
    """The layer by which a network's outputs can be multiplied, by its name; None if there is none among `layers`.

    With a share of its weight and bias, what the network gives for the sample [N, ...] has to be that share, as far as
    the task can tell. It is the last one called, or none: behind it come at most sums, means, changes of shape, and a
    softmax.
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
    # Between 1 and -1 at most, no probability is so near to 0 that it hides what a logit is.
    share = np.float32(1 / max(2, 2 * np.abs(before).max()))
    less = {layer.tensor: share * layer.weight.numpy(force=True)} | ({} if bias is None else {layer.bias: share * bias})
    with replaced(model, less):
        after = forward(model, sample)
    return layer.name if task.score(after, share * before, None).kl < SAME else None
