"""What a network's last operation is: logits, or probabilities whose logarithms are logits."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

# In `outputs` of model.json, as the task describes it: of a softmax, and of sigmoids.
PROBABILITIES, SIGMOID = "probabilities", "sigmoid"
# Of a network that gives them, for the log.
TOLD = {
    PROBABILITIES: "gives probabilities (it ends in softmax); their logarithms are taken for logits",
    SIGMOID: "gives probabilities (it ends in a sigmoid); their log odds are taken for logits",
}
# What reshapes numbers and does not change them, by its name in autograd's graph.
RESHAPES = {"View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Select", "Slice", "Permute", "Transpose"}


def with_logits(model: nn.Module, description: Mapping[str, object]) -> nn.Module:
    """The same module, which gives logits from now on; `description` (model.json) says what it gives by itself.

    Logarithms of probabilities are logits: softmax gives the probabilities back; of sigmoids they are log odds. A hook
    takes them, so names, weights and what is saved stay as they are. Only for networks of our own: never for one that
    a user passes in.
    """
    hook = HOOKS.get(description.get("outputs"))
    if hook and hook not in model._forward_hooks.values():
        model.register_forward_hook(hook)
    return model


def with_same_logits(model: nn.Module, original: nn.Module) -> nn.Module:
    """The module, with the hook that `with_logits` gave the original, and no other of its hooks."""
    for hook in original._forward_hooks.values():
        if hook in HOOKS.values() and hook not in model._forward_hooks.values():
            model.register_forward_hook(hook)
    return model


def ends_in_sigmoid(model: nn.Module, images: Tensor) -> bool:
    """Whether the last thing that the network does to its output is a sigmoid, by autograd's graph.

    Values alone do not tell: logits may lie between 0 and 1 as well. `images` [N, C, H, W] stay as they are.
    """
    with torch.inference_mode(False), torch.enable_grad():
        # A copy: the network may be frozen, so the images must ask for the gradient.
        node = model(images.clone().requires_grad_()).grad_fn
    while node is not None and node.name().rstrip("0123456789").removesuffix("Backward") in RESHAPES:
        node = node.next_functions[0][0]
    return node is not None and node.name().startswith("SigmoidBackward")


def _logarithms(module: nn.Module, images: tuple, output: Tensor) -> Tensor:
    # Of a probability that is too small for float32, the least that is not.
    return output.float().clamp_min(torch.finfo(torch.float32).tiny).log()


def _log_odds(module: nn.Module, images: tuple, output: Tensor) -> Tensor:
    # The nearest to 1 that float32 has; it holds far smaller numbers near 0.
    limits = torch.finfo(torch.float32)
    probability = output.float().clamp(limits.tiny, 1 - limits.eps / 2)
    return probability.log() - torch.log1p(-probability)


HOOKS = {PROBABILITIES: _logarithms, SIGMOID: _log_odds}
