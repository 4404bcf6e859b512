"""Networks whose shared layers stay compressed in memory and are expanded each time they are used.

For inference: weights carry no gradient, and each forward pass pays for expanding them again, but for those that fit in
a budget of memory.
"""

import functools
import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from wshare.errors import UserError
from wshare.files.sizes import parse_size
from wshare.models.kinds.table import layer_with
from wshare.models.plain import plain_copy, unwrapped, without_wrappers
from wshare.models.state import load_state
from wshare.packed.bitfields import fields, widths
from wshare.packed.container import Source, where
from wshare.packed.format import read_shared
from wshare.quantize.codebooks import Shared, row_scale
from wshare.quantize.cost import index_bits

_log = logging.getLogger(__name__)

# Weights expanded at a time, a multiple of 8, so that fields start at whole bytes. Indices of so many stay in a core's
# cache: EfficientNet-Lite0 took 17 to 21 ms with 2**15 and more, 35 ms with 2**13, on an x86-64 CPU with 2 MB of it.
BLOCK = 2**16
# What an expansion costs whatever its size, as bytes of float32 that expand in that time: 50 microseconds beside 0.6
# nanoseconds a byte, in the layers of EfficientNet-Lite0.
CALL = 80_000
# Integers as wide as all numbers of a byte, one byte each.
WIDE = {4: torch.int16, 2: torch.int32, 1: torch.int64}


@functools.cache
def _table(width: int, place: int) -> np.ndarray:
    """What each byte holds of a field of 1 to 4 bits, moved up by `place` bits: uint8 [256, 8 / `width`]."""
    numbers = np.arange(256, dtype=np.uint8)[:, None] >> np.arange(0, 8, width, dtype=np.uint8) & (1 << width) - 1
    return (numbers << place).astype(np.uint8)


def _unpacked(field: Tensor, width: int, place: int) -> Tensor:
    """The numbers of a field, uint8 [8 / `width` a byte], by one look at a table for all shifts and masks of a byte."""
    table = torch.from_numpy(_table(width, place)).to(field.device)
    if torch.jit.is_tracing():
        # TorchScript has no view as another type; rows of bytes take four times as long.
        return table.index_select(0, field.int()).reshape(-1)
    return table.view(WIDE[width]).reshape(-1).index_select(0, field.int()).view(torch.uint8)


class SharedTensor(nn.Module):
    """A shared tensor as buffers: `codebook` float32 [k], `scale` float32 [outputs] if there is one, and `field<i>`.

    A field holds some bits of all indices, uint8, as `wshare.packed.bitfields` cuts them: ceil(log2 k) bits an index in
    all. Calling it gives the tensor, the same to the bit as `wshare.load_packed`, with `strides` (of C order by
    default), in the type of the network: `dtype`, or what the module is moved to, such as by `half()`. After `hold()`
    that is one tensor, kept until a buffer changes.
    """

    held: tuple[Tensor, list[tuple[Tensor, int | None]]] | None = None

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

    @property
    def nbytes(self) -> int:
        """Bytes of the expanded tensor."""
        return math.prod(self.shape) * self.like.element_size()

    def forward(self) -> Tensor:
        """The tensor in the network's type."""
        # Buffers may have been written to, or be others for one call, as of torch.func.functional_call.
        if self.held is not None and _same(self.held[1], self._made_from()):
            return self.held[0]
        return self._expand()

    def hold(self) -> None:
        """Keep the tensor expanded from now on. Copies, files and state dicts hold no more than before."""
        # A tensor made in inference mode is of no use outside of it.
        with torch.inference_mode(False), torch.no_grad():
            self.held = self._expand(), self._made_from()

    def _made_from(self) -> list[tuple[Tensor, int | None]]:
        buffers = [buffer for buffer in self._buffers.values() if buffer is not None]
        return [(buffer, None if buffer.is_inference() else buffer._version) for buffer in buffers]

    def _expand(self) -> Tensor:
        weight = self._values().reshape(self.shape)
        if self.scale is not None:
            # The groups as an axis of their own, where a scale stands for the outputs of each.
            wide = weight.view(self.layout.split(self.shape))
            column = self.scale.reshape(self.layout.column(self.shape))
            # ONNX files lose what is written to a view.
            weight = (wide * column if torch.jit.is_tracing() else wide.mul_(column)).view(self.shape)
        weight = weight.to(self.like.dtype)
        # Strides choose the kernel, even where axes of length 1 leave the order in memory the same.
        strides = self.strides or weight.stride()
        if strides == weight.stride():
            return weight
        axes = zip(self.shape, weight.stride(), strides, strict=True)
        if all(own == other for length, own, other in axes if length != 1):
            return weight.as_strided(self.shape, strides)
        return weight.new_empty_strided(self.shape, strides).copy_(weight)

    def _values(self) -> Tensor:
        """The shared value of each weight."""
        count = math.prod(self.shape)
        if torch.jit.is_tracing():
            # What is written to a part of a tensor is lost in ONNX files.
            return self.codebook.index_select(0, self._indices(0, count))
        values = self.codebook.new_empty(count)
        for first in range(0, count, BLOCK):
            last = min(first + BLOCK, count)
            torch.index_select(self.codebook, 0, self._indices(first, last), out=values[first:last])
        return values

    def _indices(self, first: int, last: int) -> Tensor:
        """Indices, int32, of the weights from `first`, a multiple of 8, up to `last`."""
        octets, place = [], 0
        for i, width in enumerate(widths(self.bits)):
            part = self.get_buffer(f"field{i}")[first * width // 8 : -(-last * width // 8)]
            if width < 8:
                part = _unpacked(part, width, place % 8)[: last - first]
            if place % 8:
                octets[-1] = octets[-1] + part
            else:
                octets.append(part)
            place += width
        if not octets:
            return torch.zeros(last - first, dtype=torch.int32, device=self.codebook.device)
        indices = octets[0].int()
        for high in octets[1:]:
            indices = indices + high.int() * 256
        return indices

    def _apply(self, move: Callable[[Tensor], Tensor], recurse: bool = True) -> "SharedTensor":
        stored = {name: self._buffers[name] for name in ("codebook", "scale") if self._buffers[name] is not None}
        super()._apply(move, recurse)
        for name, tensor in stored.items():
            self._buffers[name] = tensor.to(self._buffers[name].device)
        self._hold_again()
        return self

    def _load_from_state_dict(self, *arguments, **named) -> None:
        super()._load_from_state_dict(*arguments, **named)
        self._hold_again()

    def __getstate__(self) -> dict:
        return self.__dict__ | {"held": None, "holds": self.held is not None}

    def __setstate__(self, state: dict) -> None:
        holds = state.pop("holds", False)
        super().__setstate__(state)
        if holds:
            self.hold()

    def _hold_again(self) -> None:
        if self.held is not None:
            self.hold()

    def extra_repr(self) -> str:
        return f"{list(self.shape)}, k={len(self.codebook)}, {self.bits} bits an index"


def _same(some: list[tuple[Tensor, int | None]], others: list[tuple[Tensor, int | None]]) -> bool:
    pairs = zip(some, others, strict=True)
    return all(one is other and version == now for (one, version), (other, now) in pairs)


class SharedWeights:
    """What a module becomes: of its own class, but with `leaves` expanded at each use, `weight` from its part `shared`.

    Other leaves have their own: `in_proj_weight` is expanded from `shared_in_proj_weight`.
    """

    leaves: tuple[str, ...]

    def __reduce__(self) -> tuple:
        # Classes made at run time cannot be found by name.
        return _empty, (type(self).__bases__[1], self.leaves), self.__dict__


def compressed(model: nn.Module, packed: Source, budget: int | str | None = None) -> nn.Module:
    """A copy of `model` with the weights of the packed file, or its content, in which shared layers stay compressed.

    Gives the same outputs, to the bit, as the model with the state dict of `wshare.load_packed`. Layers keep their
    class, and expand `weight` when it is read. Tied layers hold one `SharedTensor`. LSTM, GRU and RNN, which read all
    their weights at once, are expanded here, and the log says so; their cells stay compressed.

    `budget`, bytes or text such as "20 MB" or "512 KiB", lets layers whose expanded weights fit in it stay expanded, so
    that passes take less time; without one none does. It counts these weights alone, in the type that the network has
    now, and not the compressed ones, nor those of the layer in use. `stay_expanded` chooses.

    UserError if the file is another network's or shares what is no weight of a layer of a known kind, or if the budget
    is no size or does not hold the layers that are expanded here.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"model: a {type(model).__name__}, not an nn.Module; give the model, then the packed file")
    room = None if budget is None else parse_size(budget, "budget")
    module = unwrapped(model)
    with without_wrappers(module):
        return _compressed(module, packed, room)


def stay_expanded(sizes: Sequence[int], uses: Sequence[int], budget: int) -> list[int]:
    """Places of the tensors that stay expanded: about those that save most time.

    `sizes` are bytes, and `uses` says how often a pass uses each. It uses all in turn, so that a cache of those used
    last would miss each time, were it smaller than all together; what helps is to keep the same ones for good. An
    expansion takes a fixed time, `CALL`, and time for each byte, so few large tensors are left out rather than many
    small ones: the largest, until the excess is no more than a single tensor, then the smallest that is enough. What is
    used more often counts as often.
    """
    costs = [times * (CALL + size) for size, times in zip(sizes, uses, strict=True)]
    staying, excess = set(range(len(sizes))), sum(sizes) - budget
    while excess > 0:
        enough = [place for place in staying if sizes[place] >= excess]
        if enough:
            out = min(enough, key=lambda place: (costs[place], place))
        else:
            out = min(staying, key=lambda place: (costs[place] / max(sizes[place], 1), place))
        staying.remove(out)
        excess -= sizes[out]
    return sorted(staying)


def _compressed(module: nn.Module, packed: Source, budget: int | None) -> nn.Module:
    shared, others = read_shared(packed)
    for name, tensor in shared.items():
        _check_layer(module, name, tensor, where(packed))
    # Weights that go away need no copy.
    whole = [name for name in shared if isinstance(layer_with(module, name).module, nn.RNNBase)]
    if whole:
        _log.info("expanded as a whole, since recurrent layers read all weights at once: %s", ", ".join(whole))
    if budget is not None:
        budget -= _expanded_here(module, whole, budget)
    small = {name: tensor for name, tensor in shared.items() if name not in whole}
    given = (_owner(module, name)._parameters.get(name.rpartition(".")[2]) for name in small)
    copied = plain_copy(module, "model", told=False, borrowed=(weight for weight in given if weight is not None))
    own = {name: torch.from_numpy(shared[name].weight()) for name in whole}
    parts = _with_parts(copied, small)
    for name, part in parts.items():
        leaf = name.rpartition(".")[2]
        start = name.removesuffix(leaf) + _part(leaf)
        own |= {f"{start}.{key}": buffer for key, buffer in part.state_dict().items()}
    load_state(copied, {name: torch.from_numpy(array) for name, array in others.items()} | own, where(packed))
    if budget is not None:
        _hold(list(parts.values()), budget)
    return copied


def _expanded_here(module: nn.Module, whole: Sequence[str], budget: int) -> int:
    """Bytes of the weights that are expanded whatever the budget; UserError if it does not hold them."""
    weights = {id(weight): weight for name in whole for weight in [layer_with(module, name).weight]}
    needed = sum(weight.nbytes for weight in weights.values())
    if needed > budget:
        raise UserError(
            f"budget: {budget:,} bytes do not hold {', '.join(whole)}, which are always expanded, since recurrent "
            f"layers read all weights at once; give {needed:,} or more, or none"
        )
    return needed


def _with_parts(module: nn.Module, shared: Mapping[str, Shared]) -> dict[str, SharedTensor]:
    """Put a part in place of each shared tensor, one for all that are tied: the part of each."""
    made: dict[int, SharedTensor] = {}
    parts = {}
    for name, tensor in shared.items():
        owner, leaf = _owner(module, name), name.rpartition(".")[2]
        if id(tensor) not in made:
            weight = getattr(owner, leaf)
            made[id(tensor)] = SharedTensor(tensor, weight.stride(), weight.dtype)
        delattr(owner, leaf)
        parts[name] = made[id(tensor)]
        _expand_at_use(owner, leaf, parts[name])
    return parts


def _hold(parts: Sequence[SharedTensor], budget: int) -> None:
    """Hold of these parts, each as often as it is used, what the budget lets stay expanded."""
    uses = Counter(parts)
    single = list(uses)
    staying = [single[i] for i in stay_expanded([part.nbytes for part in single], list(uses.values()), budget)]
    for part in staying:
        part.hold()
    _log.info(
        "budget: of %d shared tensors %d stay expanded, %d of %d bytes; the largest of the others has %d",
        *(len(single), len(staying), sum(part.nbytes for part in staying), sum(part.nbytes for part in single)),
        max((part.nbytes for part in single if part.held is None), default=0),
    )


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
