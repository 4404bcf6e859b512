"""The kinds of layers that can be shared, a new one is a module and a row here; and the layers of a network."""

from dataclasses import dataclass
from operator import attrgetter

from torch import Tensor, nn

from wshare.models.kinds import attention, convolution, linear, recurrent, transposed
from wshare.models.kinds.kind import Kind
from wshare.names import layer_of_tensor
from wshare.quantize.codebooks import Layout

# A module's weights may be of several kinds.
KINDS: list[Kind] = [convolution.KIND, transposed.KIND, linear.KIND, *recurrent.KINDS, *attention.KINDS]


@dataclass(frozen=True)
class Layer:
    """One weight of a network that can be shared.

    `tensor` is its name in the state dict; a call of `module` uses it, where it is called `leaf`.
    """

    tensor: str
    module: nn.Module
    leaf: str
    kind: Kind

    @property
    def name(self) -> str:
        """The tensor's name, without `.weight` at its end."""
        return layer_of_tensor(self.tensor)

    @property
    def weight(self) -> Tensor:
        """The tensor."""
        return attrgetter(self.leaf)(self.module)

    @property
    def layout(self) -> Layout:
        """How its axes are laid out."""
        return self.kind.layout(self.module)

    @property
    def bias(self) -> str | None:
        """Name of its bias in the state dict; None if it has none."""
        leaf = self.kind.weights(self.module)[self.leaf]
        if leaf is None:
            return None
        path, _, own = leaf.rpartition(".")
        # A kind of layer may have no such parameter at all.
        there = getattr(self.module.get_submodule(path), own, None) is not None
        return self.tensor.removesuffix(self.leaf) + leaf if there else None


def layers_of(model: nn.Module) -> list[Layer]:
    """All layers of a network that can be shared, in its order."""
    found: dict[str, Layer] = {}
    for path, module in model.named_modules():
        for kind in kinds_of(module):
            for leaf in kind.weights(module):
                tensor = f"{path}.{leaf}" if path else leaf
                # An attention uses its projection, a dense layer, without calling it: what holds a layer comes first.
                found.setdefault(tensor, Layer(tensor, module, leaf, kind))
    return list(found.values())


def shareable(model: nn.Module) -> list[str]:
    """Names of all layers that can be shared, in the network's order."""
    return [layer.name for layer in layers_of(model)]


def layer_of(model: nn.Module, name: str) -> Layer:
    """A layer by name; KeyError if there is none."""
    layer = layer_with(model, f"{name}.weight") or layer_with(model, name)
    if layer is None:
        raise KeyError(name)
    return layer


def layer_with(model: nn.Module, tensor: str) -> Layer | None:
    """The layer whose weight has this name in the state dict; None if it is no such weight."""
    parts = tensor.split(".")
    module: nn.Module | None = model
    for place, part in enumerate(parts):
        leaf = ".".join(parts[place:])
        for kind in kinds_of(module):
            if leaf in kind.weights(module):
                return Layer(tensor, module, leaf, kind)
        module = module._modules.get(part)
        if module is None:
            return None
    return None


def kinds_of(module: nn.Module) -> list[Kind]:
    """The kinds of a module's weights; none for a module whose weights are not shared."""
    return [kind for kind in KINDS if isinstance(module, kind.types) and kind.weights(module)]


def type_names() -> str:
    """Names of all types of layers that can be shared."""
    return ", ".join(dict.fromkeys(covered.__name__ for kind in KINDS for covered in kind.types))
