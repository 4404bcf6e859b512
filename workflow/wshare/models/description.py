"""A network with its weights, checked and described: the last step of each source."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wshare.errors import UserError, one_line
from wshare.models.outputs import outputs_of, tensors_in
from wshare.models.plain import check_network, make_plain, unwrapped
from wshare.models.preprocessing import complete_preprocessing, input_shape
from wshare.models.state import check_finite


@dataclass(frozen=True)
class Fetched:
    """A network with its weights, and what builds the same network again.

    `module` is in eval mode and float32, without the parts that an evaluation never uses. `spec` is JSON: `name`;
    `builder` {`kind`, `name`, `arguments`}; `dropped`, names of the modules taken out; `input` [C, H, W], an example
    where any size is taken; `categories`, names that the source has for the outputs, in their order, or None;
    `preprocessing` (see `complete_preprocessing`); `published` {`top1` in percent, `dataset`} or None; `origin`, a
    sentence on where the weights came from. What the outputs are is added by `tasks.description.described`.
    """

    module: nn.Module
    spec: dict


def finish(
    module: nn.Module,
    settings: dict,
    *,
    builder: dict,
    preprocessing: dict,
    origin: str,
    published: dict | None = None,
    categories: Sequence[str] | None = None,
) -> Fetched:
    """A module with its weights, checked and described: the last step of each source.

    `builder` goes into the spec as it is. `preprocessing` is what the source knows; `settings["preprocessing"]` has the
    last word. `categories` are names for the outputs. UserError if a weight or a statistic is not finite, the input
    does not fit, or the output is no tensor [N, ...].
    """
    check_network(module, origin)
    module = unwrapped(module, origin).eval()
    make_plain(module, origin)
    module = module.float()
    check_finite(module, origin)
    preprocessing = complete_preprocessing(preprocessing, settings.get("preprocessing"))
    shape = input_shape(preprocessing)
    _check_input(module, shape, settings["architecture"])
    spec = {
        "name": settings["architecture"],
        "builder": builder,
        "dropped": drop_unused(module, shape),
        "input": shape,
        "categories": list(categories) if categories else None,
        "preprocessing": preprocessing,
        "published": published,
        "origin": origin,
    }
    return Fetched(module, spec)


def drop_unused(module: nn.Module, input_shape: Sequence[int]) -> list[str]:
    """Names of the outermost submodules with parameters that an evaluation never uses; they are taken out.

    `input_shape` is [C, H, W]. Such are the auxiliary heads of GoogLeNet and InceptionV3. A module that is never
    called may still lend its parameters to a function, so each has to pass a proof on a fixed random input: the
    output stays equal to the bit with NaN in all its tensors, and with the module gone.
    """
    called: set[nn.Module] = set()
    probe = torch.randn(2, *input_shape, generator=torch.Generator().manual_seed(0))
    hooks = [part.register_forward_pre_hook(lambda part, _: called.add(part)) for part in module.modules()]
    try:
        expected = _output_bytes(module, probe)
    finally:
        for hook in hooks:
            hook.remove()
    dropped = []
    pending = list(module.named_children())
    while pending:
        name, part = pending.pop(0)
        if next(part.parameters(), None) is None:
            continue
        if called.isdisjoint(part.modules()) and _is_unused(module, name, probe, expected):
            replace_part(module, name, None)
            dropped.append(name)
        else:
            pending += [(f"{name}.{key}", child) for key, child in part._modules.items() if child is not None]
    return dropped


def replace_part(module: nn.Module, name: str, part: nn.Module | None) -> None:
    """Put another module in the place of a named part, or none."""
    parent, _, key = name.rpartition(".")
    setattr(module.get_submodule(parent), key, part)


def _is_unused(module: nn.Module, name: str, probe: Tensor, expected: bytes) -> bool:
    part = module.get_submodule(name)
    tensors = [t for t in itertools.chain(part.parameters(), part.buffers()) if t.is_floating_point()]
    saved = [tensor.detach().clone() for tensor in tensors]
    with torch.no_grad():
        for tensor in tensors:
            tensor.fill_(torch.nan)
        same = _gives(module, probe, expected)
        for tensor, value in zip(tensors, saved, strict=True):
            tensor.copy_(value)
    if not same:
        return False
    replace_part(module, name, None)
    same = _gives(module, probe, expected)
    replace_part(module, name, part)
    return same


def _gives(module: nn.Module, probe: Tensor, expected: bytes) -> bool:
    try:
        return _output_bytes(module, probe) == expected
    except (AttributeError, TypeError, ValueError, RuntimeError):
        # A network that fails once a part is gone or filled with NaN uses that part.
        return False


def _output_bytes(module: nn.Module, probe: Tensor) -> bytes:
    with torch.no_grad():
        # A copy: a network may write into its input.
        return b"".join(tensor.contiguous().numpy().tobytes() for _, tensor in tensors_in(module(probe.clone())))


def _check_input(module: nn.Module, shape: Sequence[int], name: str) -> None:
    """UserError unless the network takes a batch of such inputs, and gives tensors with an output for each."""
    try:
        with torch.no_grad():
            outputs_of(module, torch.zeros(2, *shape), name)
    except RuntimeError as error:
        raise UserError(
            f"{name}: fails on an input of {list(shape)} ({one_line(error)}); "
            "set preprocessing.channels and preprocessing.crop"
        ) from error
