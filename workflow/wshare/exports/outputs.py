"""What a network gives, for graphs, whose outputs are tensors with names."""

import re

import torch
from torch import Tensor, nn

from wshare.models.outputs import tensors_in

# Of a network that gives one plain tensor.
ONE = "logits"
INPUT = "images"


def named_outputs(network: nn.Module, example: Tensor) -> dict[str, Tensor]:
    """The tensors that a network gives for an example [N, C, H, W], in order, by names for a graph.

    One plain tensor is `logits`. Others are called by the keys that lead to them, such as `boxes`, `levels_0`, or
    `output_0` for the first of a tuple; one that is given twice by the first. From now on the network gives a tuple of
    them, or the one.
    """
    with torch.no_grad():
        # A copy: a network may write into its input.
        found = _distinct(network(example.clone()))
    network.register_forward_hook(_tensors)
    names: dict[str, Tensor] = {}
    for path, tensor in found.items():
        name = re.sub(r"\W", "_", path, flags=re.ASCII) or ONE
        name = f"output_{name}" if name[0].isdigit() or name == INPUT else name
        while name in names:
            name += "_"
        names[name] = tensor
    return names


def _tensors(module: nn.Module, inputs: tuple, output: object) -> Tensor | tuple[Tensor, ...]:
    found = tuple(_distinct(output).values())
    return found[0] if len(found) == 1 else found


def _distinct(output: object) -> dict[str, Tensor]:
    """Tensors by path; of one that is given twice, which Core ML has one name for, the first."""
    found: dict[str, Tensor] = {}
    for path, tensor in tensors_in(output):
        if not any(tensor is other for other in found.values()):
            found[path] = tensor
    return found
