"""The kinds of layers that can be shared; a new one is a module and a row here."""

from torch import nn

from wshare.models.kinds import convolution, linear, transposed
from wshare.models.kinds.kind import Kind
from wshare.quantize.codebooks import Layout

KINDS: list[Kind] = [convolution.KIND, transposed.KIND, linear.KIND]


def kind_of(module: nn.Module) -> Kind | None:
    """The kind of a layer; None for a module whose weights are not shared."""
    return next((kind for kind in KINDS if isinstance(module, kind.types)), None)


def layout_of(module: nn.Module) -> Layout:
    """Layout of the weight of a layer that can be shared."""
    return kind_of(module).layout(module)


def shareable(model: nn.Module) -> list[str]:
    """Names of all layers that can be shared, in the network's order."""
    return [name for name, module in model.named_modules() if kind_of(module) is not None]


def type_names() -> str:
    """Names of all types of layers that can be shared."""
    return ", ".join(covered.__name__ for kind in KINDS for covered in kind.types)
