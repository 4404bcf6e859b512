"""The weights of a network: checked, filled in, and taken out."""

import itertools
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from wshare.errors import UserError

CPU = torch.device("cpu")


def fast(model: nn.Module, device: torch.device = CPU) -> nn.Module:
    """The model on a device, with its convolutions in the order in which float32 kernels are fastest there.

    On a CPU that is channels_last for images, about twice as fast; on a GPU the usual one, by up to a sixth. Every
    evaluation uses it, since the order of sums differs between the two. Sequences and volumes keep the usual order.
    """
    model.to(device)
    order, ranks = (torch.contiguous_format, (4, 5)) if device.type == "cuda" else (torch.channels_last, (4,))
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        if tensor.is_floating_point() and tensor.ndim in ranks:
            tensor.data = tensor.data.to(memory_format=order)
    return model


def check_finite(module: nn.Module, origin: str) -> None:
    """UserError, opening with `origin`, if a parameter or a statistic is not finite."""
    for name, value in module.state_dict().items():
        # Quantized modules of a user keep other things than tensors; `state_of` tells.
        wrong = value.numel() - int(torch.isfinite(value).sum()) if isinstance(value, Tensor) else 0
        if wrong:
            raise UserError(
                f"{origin}: {name} holds {wrong} NaN or infinite values of {value.numel()}; get the weights again"
            )


def load_state(module: nn.Module, weights: Mapping[str, Tensor], origin: str) -> None:
    """Fill `module` with `weights`, strictly; UserError, opening with `origin`, if they do not fit it.

    A name that is tied to another in `module` is filled from it if `weights` has only the other.
    """
    own = module.state_dict(keep_vars=True)
    weights = dict(weights)
    for names in tied(own):
        present = next((name for name in names if name in weights), None)
        if present is not None:
            weights |= {name: weights[present] for name in names if name not in weights}
    try:
        # Not strict: modules may rename old keys while they load, so only the result tells what is missing.
        result = module.load_state_dict(weights, strict=False)
    except RuntimeError:
        misshaped = [
            f"{name} {list(weights[name].shape)} where the network has {list(own[name].shape)}"
            for name in own
            if name in weights and weights[name].shape != own[name].shape
        ]
        if not misshaped:
            raise
        raise UserError(
            f"{origin}: weights of another shape: {_few(misshaped)}; check architecture, arguments and classes"
        ) from None
    problems = [
        f"{label} {_few(names)}"
        for label, names in (("missing", result.missing_keys), ("unexpected", result.unexpected_keys))
        if names
    ]
    if problems:
        raise UserError(
            f"{origin}: weights do not fit the architecture: {'; '.join(problems)}; check architecture and arguments"
        )


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Contiguous copies in CPU memory of all parameters and buffers; of tied tensors under their first name only.

    No two share memory, so safetensors can save them; `load` fills the other names of tied tensors again.
    """
    own = module.state_dict(keep_vars=True)
    for name, value in own.items():
        if not isinstance(value, Tensor):
            raise UserError(
                f"{name}: the network keeps a {type(value).__name__} in its state; only tensors can be saved"
            )
    aliases = {name for names in tied(own) for name in names[1:]}
    return {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in own.items()
        if name not in aliases
    }


def tied(state: Mapping[str, object]) -> list[list[str]]:
    """Groups of names that stand for one tensor, each in the order of the state dict (taken with keep_vars)."""
    groups: dict[int, list[str]] = {}
    for name, value in state.items():
        groups.setdefault(id(value), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def shared_memory(module: nn.Module, where: str) -> list[list[str]]:
    """Names of parameters that are different objects over the same numbers, to be made one with `tie`.

    UserError, opening with `where`, if a parameter shares some of its memory with another tensor in any other way: a
    copy of the module, or a file, would hold both, and could give them different values.
    """
    groups: dict[tuple, dict[int, Tensor]] = {}
    names: dict[int, list[str]] = {}
    for name, tensor in [*module.named_parameters(remove_duplicate=False), *module.named_buffers()]:
        # Other kinds of tensors, such as quantized ones, keep their numbers in ways of their own.
        plain = not nn.parameter.is_lazy(tensor) and type(tensor.data) is Tensor and tensor.layout == torch.strided
        if plain and tensor.numel():
            names.setdefault(id(tensor), []).append(name)
            memory = (tensor.device, tensor.untyped_storage().data_ptr())
            groups.setdefault(memory, {})[id(tensor)] = tensor
    found: dict[int, list[str]] = {}
    for (_, address), tensors in groups.items():
        # Tensors without memory, of the device meta, have the address 0.
        for one, other in itertools.combinations(tensors.values() if address else (), 2):
            if not isinstance(one, nn.Parameter) or not _overlap(one, other):
                continue
            first, second = names[id(one)][0], names[id(other)][0]
            if not isinstance(other, nn.Parameter) or _view(one) != _view(other):
                raise UserError(
                    f"{where}: {second} {list(other.shape)} is another view of the memory of {first} "
                    f"{list(one.shape)}, so that one cannot change without the other; use {first} itself in forward "
                    "(as it is, or transposed there), or give each a copy (.clone())"
                )
            if id(other) not in found:
                found[id(other)] = found.setdefault(id(one), list(names[id(one)]))
                found[id(one)] += names[id(other)]
    return list({id(group): group for group in found.values()}.values())


def tie(module: nn.Module, groups: Iterable[Sequence[str]]) -> None:
    """Make the parameters of each group, as `shared_memory` gives them, one object under all their names."""
    for first, *others in groups:
        parameter = module.get_parameter(first)
        for name in others:
            parent, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(parent), leaf, parameter)


def _view(tensor: Tensor) -> tuple:
    """What tells apart two views of one memory; the stride along an axis of length one means nothing."""
    axes = [axis for axis in zip(tensor.shape, tensor.stride(), strict=True) if axis[0] > 1]
    return tensor.dtype, tensor.shape, tensor.storage_offset(), axes


def _overlap(one: Tensor, other: Tensor) -> bool:
    """Whether two views of one memory have a number in common."""
    places = [_places(tensor) for tensor in (one, other)]
    (start, stop), (other_start, other_stop) = places
    if stop <= other_start or other_stop <= start:
        return False
    if _view(one) == _view(other) or one.element_size() != other.element_size():
        return True
    # Columns of one matrix lie between each other, and share nothing.
    taken = torch.zeros(max(stop, other_stop) // one.element_size(), dtype=torch.bool)
    taken.as_strided(one.shape, one.stride(), one.storage_offset())[...] = True
    return bool(taken.as_strided(other.shape, other.stride(), other.storage_offset()).any())


def _places(tensor: Tensor) -> tuple[int, int]:
    """First byte of a view in its memory, and the one behind its last."""
    last = sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.storage_offset()
    return start * tensor.element_size(), (start + last + 1) * tensor.element_size()


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
