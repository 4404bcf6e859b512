"""What a kind of layer has to tell, so that its weights can be shared."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from wshare.quantize.codebooks import Layout


@dataclass(frozen=True)
class Kind:
    """A kind of layer: each output is a sum of inputs weighted by the parameter `weight`, plus `bias` if there is one.

    `types`: the module classes that it covers, subclasses included.
    `layout(module)`: which axis of the weight counts outputs, and the groups.
    `positions(module, output)`: how many sums of each output there are in what the module gave for one image.
    `inputs(module, inputs, output, places)`: what was summed, [groups, columns, samples], at the positions `places`,
    integers [P], of all images: columns in the order of `layout(module).to_matrix`, `inputs` and `output` what the
    module took and gave.
    """

    types: tuple[type[nn.Module], ...]
    layout: Callable[[nn.Module], Layout]
    positions: Callable[[nn.Module, Tensor], int]
    inputs: Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]
