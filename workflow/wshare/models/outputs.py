"""What a network's last operation is: logits, or probabilities whose logarithms are logits."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

# In `outputs` of model.json, as the task describes it.
PROBABILITIES = "probabilities"
# Of a network that gives them, for the log.
TOLD = "gives probabilities (it ends in softmax); their logarithms are taken for logits"


def with_logits(model: nn.Module, description: Mapping[str, object]) -> nn.Module:
    """The same module, which gives logits from now on; `description` (model.json) says what it gives by itself.

    Logarithms of probabilities are logits: softmax gives the probabilities back. A hook takes them, so names, weights
    and what is saved stay as they are. Only for networks of our own: never for one that a user passes in.
    """
    if description.get("outputs") == PROBABILITIES and not takes_logarithms(model):
        model.register_forward_hook(_logarithms)
    return model


def takes_logarithms(model: nn.Module) -> bool:
    """Whether `with_logits` changed what the network gives."""
    return _logarithms in model._forward_hooks.values()


def _logarithms(module: nn.Module, images: tuple, output: Tensor) -> Tensor:
    # Of a probability that is too small for float32, the least that is not.
    return output.float().clamp_min(torch.finfo(torch.float32).tiny).log()
