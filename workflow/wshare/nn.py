"""Networks whose shared layers stay compressed in memory and are expanded each time they are used.

For inference: weights carry no gradient, and each forward pass pays for expanding them again.
"""

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from wshare.errors import UserError
from wshare.models.kinds.table import kind_of
from wshare.models.plain import plain_copy, unwrapped
from wshare.models.state import load_state
from wshare.packed.bitfields import fields, widths
from wshare.packed.container import Source, where
from wshare.packed.format import read_shared
from wshare.quantize.codebooks import Shared, row_scale
from wshare.quantize.cost import index_bits


class SharedTensor(nn.Module):
    """A shared tensor as buffers: `codebook` float32 [k], `scale` float32 [outputs] if there is one, and `field<i>`.

    A field holds some bits of all indices, uint8, as `wshare.packed.bitfields` cuts them: ceil(log2 k) bits an index in
    all. Calling it gives the tensor, the same to the bit as `wshare.load_packed`, with `strides` (of C order by
    default), in the type of the network: `dtype`, or what the module is moved to, such as by `half()`.
    """

    def __init__(self, tensor: Shared, strides: tuple[int, ...] | None = None, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.shape, self.bits, self.strides = tensor.indices.shape, index_bits(len(tensor.codebook)), strides
        self.layout = tensor.layout
        self.register_buffer("codebook", torch.from_numpy(tensor.codebook.copy()))
        scale = None if tensor.exponents is None else torch.from_numpy(row_scale(tensor.exponents))
        self.register_buffer("scale", scale)
        # Of the network's type, which it follows; what is stored stays float32, so that values are rounded but once.
        self.register_buffer("like", torch.empty(0, dtype=dtype), persistent=False)
        for i, packed in enumerate(fields(tensor.indices, self.bits)):
            self.register_buffer(f"field{i}", torch.from_numpy(packed))

    def forward(self) -> Tensor:
        """The tensor in the network's type."""
        weight = self.codebook.index_select(0, self._indices()).reshape(self.shape)
        if self.scale is not None:
            # The groups as an axis of their own, where a scale stands for the outputs of each.
            wide = weight.view(self.layout.split(self.shape))
            wide *= self.scale.reshape(self.layout.column(self.shape))
        weight = weight.to(self.like.dtype)
        # Strides choose the kernel, even where axes of length 1 leave the order in memory the same.
        if self.strides in (None, weight.stride()):
            return weight
        return weight.new_empty_strided(self.shape, self.strides).copy_(weight)

    def _apply(self, move: Callable[[Tensor], Tensor], recurse: bool = True) -> "SharedTensor":
        stored = {name: self._buffers[name] for name in ("codebook", "scale") if self._buffers[name] is not None}
        super()._apply(move, recurse)
        for name, tensor in stored.items():
            self._buffers[name] = tensor.to(self._buffers[name].device)
        return self

    def _indices(self) -> Tensor:
        """Indices, int32 [n]."""
        count, place = math.prod(self.shape), 0
        indices = torch.zeros(count, dtype=torch.int32, device=self.codebook.device)
        for i, width in enumerate(widths(self.bits)):
            field = self.get_buffer(f"field{i}")
            if width < 8:
                places = torch.arange(0, 8, width, dtype=torch.uint8, device=field.device)
                field = (field[:, None] >> places & (1 << width) - 1).reshape(-1)[:count]
            indices |= field.int() << place
            place += width
        return indices

    def extra_repr(self) -> str:
        return f"{list(self.shape)}, k={len(self.codebook)}, {self.bits} bits an index"


class SharedWeight:
    """What a layer becomes: of its own class, but with `weight` expanded from the module `shared` at each use."""

    @property
    def weight(self) -> Tensor:
        return self.shared()

    def __reduce__(self) -> tuple:
        # Classes made at run time cannot be found by name.
        return _empty, (type(self).__bases__[1],), self.__dict__


def compressed(model: nn.Module, packed: Source) -> nn.Module:
    """A copy of `model` with the weights of the packed file, or its content, in which shared layers stay compressed.

    Gives the same outputs, to the bit, as the model with the state dict of `wshare.load_packed`. Layers keep their
    class, and expand `weight` when it is read. Tied layers hold one `SharedTensor`. UserError if the file is another
    network's or shares what is no weight of a layer of a known kind.
    """
    shared, others = read_shared(packed)
    module = unwrapped(model)
    for name, tensor in shared.items():
        _check_layer(module, name, tensor, where(packed))
    # Weights that go away need no copy.
    given = (module.get_submodule(name.removesuffix(".weight"))._parameters.get("weight") for name in shared)
    copied = plain_copy(module, "model", told=False, borrowed=(weight for weight in given if weight is not None))
    made: dict[int, SharedTensor] = {}
    own: dict[str, Tensor] = {}
    for name, tensor in shared.items():
        path = name.removesuffix(".weight")
        layer = copied.get_submodule(path)
        if id(tensor) not in made:
            made[id(tensor)] = SharedTensor(tensor, layer.weight.stride(), layer.weight.dtype)
        del layer.weight
        layer.__class__ = _class(type(layer))
        layer.shared = made[id(tensor)]
        own |= {f"{path}.shared.{leaf}": buffer for leaf, buffer in layer.shared.state_dict().items()}
    load_state(copied, {name: torch.from_numpy(array) for name, array in others.items()} | own, where(packed))
    return copied


def _check_layer(model: nn.Module, name: str, tensor: Shared, packed: str) -> None:
    """UserError unless `name` is the weight of a layer of the tensor's shape."""
    path, _, leaf = name.rpartition(".")
    layer = dict(model.named_modules(remove_duplicate=False)).get(path)
    if leaf != "weight" or kind_of(layer) is None:
        raise UserError(f"{packed}: {name!r} is no weight of a layer that can be shared; check the architecture")
    if layer.weight.shape != tensor.indices.shape:
        shapes = f"{list(tensor.indices.shape)} where the network has {list(layer.weight.shape)}"
        raise UserError(f"{packed}: {name!r} is {shapes}; check architecture, arguments and classes")


@functools.cache
def _class(kind: type[nn.Module]) -> type[nn.Module]:
    return type(f"Shared{kind.__name__}", (SharedWeight, kind), {})


def _empty(kind: type[nn.Module]) -> nn.Module:
    return _class(kind).__new__(_class(kind))
