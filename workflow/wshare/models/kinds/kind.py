"""What a kind of layer has to tell, so that its weights can be shared."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from wshare.quantize.codebooks import Layout


def _only_weight(module: nn.Module) -> Mapping[str, str | None]:
    return {"weight": "bias"}


def _as_called(module: nn.Module, leaf: str, arguments: tuple, named: dict, output: Any) -> tuple[Any, Any]:
    return arguments[0] if arguments else named["input"], output


@dataclass(frozen=True)
class Kind:
    """A kind of layer: each output is a sum of inputs weighted by one parameter, plus a bias if there is one.

    `types`: the module classes that it covers, subclasses included.
    `layout(module)`: which axis of the weight counts outputs, and the groups.
    `positions(module, output)`: how many sums of each output there are in what the module gave for one image.
    `inputs(module, inputs, output, places)`: what was summed, [groups, columns, samples], at the positions `places`,
    integers [P], of all images: columns in the order of `layout(module).to_matrix`, `inputs` and `output` what the
    module took and gave.
    `weights(module)`: names of such parameters in the module, each with that of its bias, None for one without; what is
    not the parameter `weight` is a layer of its own.
    `sums(module, leaf, arguments, named, output)`: the `inputs` and `output` of the two functions above for the weight
    `leaf`, from a call's arguments by place and by name and what it gave; by default the first one, and what it gave.
    """

    types: tuple[type[nn.Module], ...]
    layout: Callable[[nn.Module], Layout]
    positions: Callable[[nn.Module, Any], int]
    inputs: Callable[[nn.Module, Any, Any, Tensor], Tensor]
    weights: Callable[[nn.Module], Mapping[str, str | None]] = _only_weight
    sums: Callable[[nn.Module, str, tuple, dict, Any], tuple[Any, Any]] = _as_called


def runs_as(module: nn.Module, types: tuple[type[nn.Module], ...]) -> bool:
    """Whether the module has the `forward` of one of these classes: a subclass may use its weights in other ways."""
    return any(getattr(module.forward, "__func__", None) is kind.forward for kind in types)


def altered(module: nn.Module, **attributes: object) -> nn.Module:
    """A module with the same parameters and no hooks, in which some attributes are others."""
    made = object.__new__(type(module))
    made.__dict__ = module.__dict__ | attributes
    return made
