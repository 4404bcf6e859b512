"""Networks whose shared layers stay compressed in memory and are expanded each time they are used.

For inference: weights carry no gradient, and each forward pass pays for expanding them again.
"""

import functools
import logging
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from wshare.errors import UserError
from wshare.models.kinds.table import layer_with
from wshare.models.plain import plain_copy, unwrapped, without_wrappers
from wshare.models.state import load_state
from wshare.packed.bitfields import fields, widths
from wshare.packed.container import Source, where
from wshare.packed.format import read_shared
from wshare.quantize.codebooks import Shared, row_scale
from wshare.quantize.cost import index_bits

_log = logging.getLogger(__name__)


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


class SharedWeights:
    """What a module becomes: of its own class, but with `leaves` expanded at each use, `weight` from its part `shared`.

    Other leaves have their own: `in_proj_weight` is expanded from `shared_in_proj_weight`.
    """

    leaves: tuple[str, ...]

    def __reduce__(self) -> tuple:
        # Classes made at run time cannot be found by name.
        return _empty, (type(self).__bases__[1], self.leaves), self.__dict__


def compressed(model: nn.Module, packed: Source) -> nn.Module:
    """A copy of `model` with the weights of the packed file, or its content, in which shared layers stay compressed.

    Gives the same outputs, to the bit, as the model with the state dict of `wshare.load_packed`. Layers keep their
    class, and expand `weight` when it is read. Tied layers hold one `SharedTensor`. LSTM, GRU and RNN, which read all
    their weights at once, are expanded here, and the log says so; their cells stay compressed. UserError if the file is
    another network's or shares what is no weight of a layer of a known kind.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"model: a {type(model).__name__}, not an nn.Module; give the model, then the packed file")
    module = unwrapped(model)
    with without_wrappers(module):
        return _compressed(module, packed)


def _compressed(module: nn.Module, packed: Source) -> nn.Module:
    shared, others = read_shared(packed)
    for name, tensor in shared.items():
        _check_layer(module, name, tensor, where(packed))
    # Weights that go away need no copy.
    whole = [name for name in shared if isinstance(layer_with(module, name).module, nn.RNNBase)]
    if whole:
        _log.info("expanded as a whole, since recurrent layers read all weights at once: %s", ", ".join(whole))
    small = {name: tensor for name, tensor in shared.items() if name not in whole}
    given = (_owner(module, name)._parameters.get(name.rpartition(".")[2]) for name in small)
    copied = plain_copy(module, "model", told=False, borrowed=(weight for weight in given if weight is not None))
    made: dict[int, SharedTensor] = {}
    own = {name: torch.from_numpy(shared[name].weight()) for name in whole}
    for name, tensor in small.items():
        owner, leaf = _owner(copied, name), name.rpartition(".")[2]
        if id(tensor) not in made:
            weight = getattr(owner, leaf)
            made[id(tensor)] = SharedTensor(tensor, weight.stride(), weight.dtype)
        delattr(owner, leaf)
        _expand_at_use(owner, leaf, made[id(tensor)])
        start = name.removesuffix(leaf) + _part(leaf)
        own |= {f"{start}.{key}": buffer for key, buffer in made[id(tensor)].state_dict().items()}
    load_state(copied, {name: torch.from_numpy(array) for name, array in others.items()} | own, where(packed))
    return copied


def _check_layer(model: nn.Module, name: str, tensor: Shared, packed: str) -> None:
    """UserError unless `name` is the weight of a layer of the tensor's shape."""
    layer = layer_with(model, name)
    if layer is None:
        raise UserError(f"{packed}: {name!r} is no weight of a layer that can be shared; check the architecture")
    if layer.weight.shape != tensor.indices.shape:
        shapes = f"{list(tensor.indices.shape)} where the network has {list(layer.weight.shape)}"
        raise UserError(f"{packed}: {name!r} is {shapes}; check architecture, arguments and classes")


def _owner(model: nn.Module, tensor: str) -> nn.Module:
    return model.get_submodule(tensor.rpartition(".")[0])


def _part(leaf: str) -> str:
    """Name of the part that a tensor of a module is expanded from."""
    return "shared" if leaf == "weight" else f"shared_{leaf}"


def _expand_at_use(module: nn.Module, leaf: str, tensor: SharedTensor) -> None:
    kind, leaves = type(module), ()
    if isinstance(module, SharedWeights):
        kind, leaves = kind.__bases__[1], module.leaves
    module.__class__ = _class(kind, (*leaves, leaf))
    module.add_module(_part(leaf), tensor)


def _expanded(part: str) -> Callable[[nn.Module], Tensor]:
    return lambda module: module.get_submodule(part)()


@functools.cache
def _class(kind: type[nn.Module], leaves: tuple[str, ...]) -> type[nn.Module]:
    content = {leaf: property(_expanded(_part(leaf))) for leaf in leaves}
    return type(f"Shared{kind.__name__}", (SharedWeights, kind), content | {"leaves": leaves})


def _empty(kind: type[nn.Module], leaves: tuple[str, ...]) -> nn.Module:
    return _class(kind, leaves).__new__(_class(kind, leaves))
