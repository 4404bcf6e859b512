"""Networks as people bring them: taken out of wrappers, checked, copied, and with weights that are parameters."""

import copy
import inspect
import itertools
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.optim.swa_utils import AveragedModel

from wshare.errors import UserError, one_line
from wshare.models.state import shared_memory, tie

_log = logging.getLogger(__name__)

# Batch norms whose tensors are all buffers: the module and the name of the class.
FROZEN = (("torchvision.ops.misc", "FrozenBatchNorm2d"), ("timm.layers.norm_act", "FrozenBatchNormAct2d"))
WRAPPERS = (nn.DataParallel, DistributedDataParallel, AveragedModel)
# What nn.Module keeps of its own; deepcopy knows how to copy these.
REGISTRIES = ("_parameters", "_buffers", "_modules")


def unwrapped(model: nn.Module, where: str | None = None) -> nn.Module:
    """The module inside torch.compile, DataParallel, DistributedDataParallel and AveragedModel; one of none is itself.

    The log says so, if `where` names the model.
    """
    taken_off = []
    while (inner := _inside(model)) is not None:
        taken_off.append(type(model).__name__)
        model = inner
    if taken_off and where:
        _log.info("%s: the %s inside %s is taken", where, type(model).__name__, ", ".join(taken_off))
    return model


def _inside(model: nn.Module) -> nn.Module | None:
    if isinstance(model, WRAPPERS):
        return model.module
    # The class of compiled modules takes seconds to import.
    return getattr(model, "_orig_mod", None)


@contextmanager
def without_wrappers(module: nn.Module) -> Iterator[None]:
    """Wrappers inside the module are taken off, and are there again at the end."""
    taken = _unwrap_inside(module)
    try:
        yield
    finally:
        for parent, leaf, wrapper in reversed(taken):
            parent._modules[leaf] = wrapper


def _places(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Parent, name and part of all parts of a module, wherever they stand."""
    for parent in module.modules():
        for leaf, part in parent._modules.items():
            if part is not None:
                yield parent, leaf, part


def _unwrap_inside(module: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """Put what is inside of wrappers in their places, below the module: the parents, names and wrappers."""
    found = [place for place in _places(module) if _inside(place[2]) is not None]
    for parent, leaf, wrapper in found:
        parent._modules[leaf] = unwrapped(wrapper)
    return found


def plain_copy(model: nn.Module, where: str, told: bool = True, borrowed: Iterable[Tensor] = ()) -> nn.Module:
    """A copy of the module, out of its wrappers, in which all weights are parameters of the layers.

    weight_norm, spectral_norm, pruning and other parametrizations are folded into the weights that they give in
    evaluation mode, parts are taken out of their wrappers, and frozen batch norms are batch norms, on the copy.
    Parameters that lie in one memory are one there, too: copying would part them. Types, device and modes stay; tensors
    that are `borrowed` are not copied. UserError, opening with `where`, if the model cannot be copied, or parameters
    share memory in another way. The log says what was done, if `told`.
    """
    module = unwrapped(model, where if told else None)
    check_values(module, where)
    shared = shared_memory(module, where)
    made = _copied(module, where, told, borrowed)
    tie(made, shared)
    modes = {part: part.training for part in made.modules()}
    made.eval()
    make_plain(made, where if told else None)
    for part, training in modes.items():
        part.training = training
    return made


def check_network(model: nn.Module, where: str) -> None:
    """UserError, opening with `where`, for a network whose layers cannot be told, or that takes no images alone."""
    module = unwrapped(model)
    for name, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            part_of = f"part {name!r} is " if name else ""
            raise UserError(
                f"{where}: {part_of}a program of torch.jit, scripted or traced, whose layers cannot be told; "
                "pass the module that it was made from, with its weights"
            )
    check_values(module, where)
    for name, tensor in module.state_dict().items():
        if isinstance(tensor, Tensor) and (
            tensor.is_complex() or tensor.is_quantized or tensor.layout != torch.strided
        ):
            raise UserError(
                f"{where}: {name} is {tensor.layout}, {tensor.dtype}, which no packed file holds; keep plain floats "
                "(.to_dense(), .dequantize(), torch.view_as_real)"
            )
    _check_forward(module, where)


def check_values(module: nn.Module, where: str) -> None:
    """UserError, opening with `where`, if a tensor of the module has no values yet."""
    for name, tensor in itertools.chain(module.named_parameters(), module.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise UserError(f"{where}: {name} is lazy and has no shape yet; run the network once, then pass it")
        if tensor.is_meta:
            raise UserError(f"{where}: {name} is on the device meta and has no values; load the weights, then pass it")


def _check_forward(module: nn.Module, where: str) -> None:
    try:
        parameters = list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):
        # Functions in C tell nothing; the first batch will.
        return
    named = [entry for entry in parameters if entry.kind not in (entry.VAR_POSITIONAL, entry.VAR_KEYWORD)]
    required = [entry.name for entry in named if entry.default is entry.empty]
    by_place = any(entry.kind not in (entry.KEYWORD_ONLY, entry.VAR_KEYWORD) for entry in parameters)
    by_name = [entry.name for entry in named if entry.kind is entry.KEYWORD_ONLY and entry.name in required]
    if len(required) > 1 or by_name or not by_place:
        raise UserError(
            f"{where}: forward takes {', '.join(required) or 'no input'}{' by name' if by_name else ''}, but is called "
            "with one tensor of inputs; wrap the network in a module that fills in the rest"
        )


def _copied(module: nn.Module, where: str, told: bool, borrowed: Iterable[Tensor]) -> nn.Module:
    """A deep copy; attributes that cannot be copied, such as locks and open files, are shared with it."""
    # Tensors that were computed, such as weights of weight_norm or activations that were kept.
    known = {id(value): value.detach().clone() for _, value in _attributes(module) if _is_computed(value)}
    known |= {id(tensor): tensor for tensor in borrowed}
    try:
        return copy.deepcopy(module, dict(known))
    except Exception:
        # What a user keeps in a module may fail in any way.
        shared = _uncopyable(module, known)
    try:
        made = copy.deepcopy(module, known | {id(value): value for value in shared.values()})
    except Exception as error:
        raise UserError(
            f"{where}: cannot be copied ({one_line(error)}); take out what it holds beside tensors and modules"
        ) from error
    if told:
        _log.info("%s: cannot be copied, and is shared with the copy that is worked on: %s", where, ", ".join(shared))
    return made


def _uncopyable(module: nn.Module, known: Mapping[int, Tensor]) -> dict[str, object]:
    """Attributes of the module and its parts, by name, of which a copy fails."""
    # Whatever leads back to the network need not be copied once more.
    own = itertools.chain(module.modules(), module.parameters(), module.buffers())
    known = {id(part): part for part in own} | known
    found = {}
    for name, value in _attributes(module):
        try:
            copy.deepcopy(value, dict(known))
        except Exception:
            found[name] = value
    return found


def _attributes(module: nn.Module) -> Iterator[tuple[str, object]]:
    """What a module and its parts hold beside parameters, buffers and parts; of dictionaries and lists the items."""
    for path, part in module.named_modules():
        prefix = f"{path}." if path else ""
        pending = [(prefix + key, value) for key, value in vars(part).items() if key not in REGISTRIES]
        while pending:
            name, value = pending.pop()
            if isinstance(value, dict):
                pending += [(f"{name}[{key!r}]", item) for key, item in value.items()]
            elif isinstance(value, list | tuple):
                pending += [(f"{name}[{place}]", item) for place, item in enumerate(value)]
            else:
                yield name, value


def _is_computed(value: object) -> bool:
    return isinstance(value, Tensor) and not value.is_leaf


def is_plain(module: nn.Module) -> bool:
    """Whether `make_plain` would change nothing."""
    parts = itertools.islice(module.modules(), 1, None)
    kept = all(_inside(part) is None and _thawed(part) is None for part in parts)
    return kept and next(_computed_weights(module), None) is None


def make_plain(module: nn.Module, where: str | None = None) -> None:
    """Take parts out of their wrappers, make batch norms of frozen ones, and `fold_weights`, all in place.

    The log says so, if `where` names the model.
    """
    taken = _unwrap_inside(module)
    if taken and where:
        kinds = ", ".join(sorted({type(wrapper).__name__ for *_, wrapper in taken}))
        _log.info("%s: parts are taken out of %s", where, kinds)
    thawed = [(parent, leaf, norm) for parent, leaf, part in _places(module) if (norm := _thawed(part)) is not None]
    for parent, leaf, norm in thawed:
        parent._modules[leaf] = norm
    if thawed and where:
        _log.info("%s: %d frozen batch norms are taken for batch norms", where, len(thawed))
    fold_weights(module, where)


def _thawed(part: nn.Module) -> nn.Module | None:
    """A batch norm in evaluation mode with the statistics of a frozen one; None for all other modules."""
    # A network that has one has loaded its library.
    for library, frozen in FROZEN:
        loaded = sys.modules.get(library)
        if loaded is None or type(part) is not getattr(loaded, frozen):
            continue
        channels = len(part.weight)
        if hasattr(part, "act"):
            norm = loaded.BatchNormAct2d(channels, eps=part.eps)
            norm.drop, norm.act = part.drop, part.act
        else:
            norm = nn.BatchNorm2d(channels, eps=part.eps)
        for name in ("weight", "bias"):
            setattr(norm, name, nn.Parameter(getattr(part, name), requires_grad=False))
        norm.running_mean, norm.running_var = part.running_mean, part.running_var
        return norm.eval()
    return None


def fold_weights(module: nn.Module, where: str | None = None) -> None:
    """Make parameters of weights that are computed from others, in place; the module has to be in evaluation mode.

    Outputs stay the same. The log names them, if `where` names the model.
    """
    found = list(_computed_weights(module))
    with torch.inference_mode(False), torch.enable_grad():
        for _, part, leaf, remove in found:
            originals = _originals(part, leaf)
            trained = any(tensor.requires_grad for tensor in originals)
            for tensor in originals:
                # Only of these does torch make a parameter again.
                tensor.requires_grad_()
            if remove is parametrize.remove_parametrizations:
                # A copy is of its original's class, from which torch would take the weight away.
                part.__class__ = _own_class(type(part))
            remove(part, leaf)
            getattr(part, leaf).requires_grad_(trained)
    if found and where:
        names = ", ".join(f"{name}.{leaf}" if name else leaf for name, _, leaf, _ in found)
        _log.info(
            "%s: computed from other tensors (weight_norm and the like), parameters from now on: %s", where, names
        )


def _computed_weights(module: nn.Module) -> Iterator[tuple[str, nn.Module, str, object]]:
    """Name of the module, the module, the name of the tensor, and what makes it a parameter."""
    for name, part in module.named_modules():
        if parametrize.is_parametrized(part):
            for leaf in part.parametrizations:
                yield name, part, leaf, parametrize.remove_parametrizations
        for hook in part._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm):
                yield name, part, hook.name, remove_weight_norm
            elif isinstance(hook, SpectralNorm):
                yield name, part, hook.name, remove_spectral_norm
            elif isinstance(hook, prune.BasePruningMethod):
                yield name, part, hook._tensor_name, prune.remove


def _own_class(kind: type[nn.Module]) -> type[nn.Module]:
    content = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
    return type(kind.__name__, kind.__bases__, content)


def _originals(part: nn.Module, leaf: str) -> list[nn.Parameter]:
    """Parameters that a tensor is computed from."""
    if parametrize.is_parametrized(part, leaf):
        return list(part.parametrizations[leaf].parameters())
    return [tensor for name, tensor in part.named_parameters(recurse=False) if name.startswith(f"{leaf}_")]
