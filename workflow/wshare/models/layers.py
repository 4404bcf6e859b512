"""Which parameters of a network are shared, which are kept, and why."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from wshare.errors import UserError
from wshare.models.kinds.table import kind_of, shareable, type_names
from wshare.models.norms import BATCH_NORMS
from wshare.names import check_patterns, folder_name, matches


def inspect(model: nn.Module, dropped: list[str], include: list[str], exclude: list[str], where: str) -> dict:
    """Every parameter exactly once, with status and reason, and the layers that are shared.

    `include` and `exclude` hold exact names or `re:` patterns of layers; exclude wins, and either names tied
    weights by any of their layers. `dropped` names parts of the published network that evaluation does not
    use. Returns the content of layers.json.
    """
    candidates = shareable(model)
    check_patterns(include, candidates, f"{where}.include")
    check_patterns(exclude, candidates, f"{where}.exclude")
    owners = {f"{name}.{leaf}": module for name, module in model.named_modules() for leaf in module._parameters}
    tied: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        tied.setdefault(parameter, []).append(name)
    layers, parameters = [], []
    for parameter, names in tied.items():
        name, *aliases = names
        layer = name.rpartition(".")[0]
        shared, reason = _status(names, owners.get(name, model), parameter, include, exclude)
        parameters.append(
            {
                "name": name,
                "shape": list(parameter.shape),
                "status": "shared" if shared else "kept",
                "reason": reason,
                "aliases": aliases,
            }
        )
        if shared:
            module = model.get_submodule(layer)
            layers.append(
                {
                    "name": layer,
                    "folder": folder_name(layer),
                    "type": type(module).__name__,
                    "shape": list(parameter.shape),
                    "groups": kind_of(module).layout(module).groups,
                    "weights": parameter.numel(),
                }
            )
    if not layers:
        if not candidates:
            raise UserError(f"{where}: the network has no layer that can be shared; such are {type_names()}")
        raise UserError(
            f"{where}: no layer is left to share of the {len(candidates)} that can be; change include or exclude"
        )
    _check_folders(layers, where)
    return {"layers": layers, "parameters": parameters, "dropped": dropped}


def _check_folders(layers: list[dict], where: str) -> None:
    """UserError if two layers would share a folder where file names do not tell a from A."""
    seen: dict[str, str] = {}
    for layer in layers:
        other = seen.setdefault(layer["folder"].casefold(), layer["name"])
        if other != layer["name"]:
            raise UserError(
                f"{where}: layers {other!r} and {layer['name']!r} would share a folder on some systems; "
                "rename one of the modules, or exclude one"
            )


def _status(
    names: list[str], module: nn.Module, parameter: torch.Tensor, include: list[str], exclude: list[str]
) -> tuple[bool, str]:
    layers = [name.rpartition(".")[0] for name in names]
    leaf = names[0].rpartition(".")[2]
    if isinstance(module, BATCH_NORMS):
        return False, "batch norm: kept as one scale and one shift a channel"
    if kind_of(module) is None:
        return False, f"{type(module).__name__} is no kind of layer that can be shared"
    if leaf != "weight":
        return False, f"{leaf} of a layer: few values, kept exact"
    if parameter.dtype != torch.float32 or parameter.numel() == 0:
        return False, f"{parameter.numel()} values of type {parameter.dtype}: only float32 weights are shared"
    if any(matches(pattern, layer) for pattern in exclude for layer in layers):
        return False, "excluded by the configuration"
    if include and not any(matches(pattern, layer) for pattern in include for layer in layers):
        return False, "not included by the configuration"
    return True, f"{type(module).__name__} weight"


@contextmanager
def replaced(model: nn.Module, tensors: dict[str, np.ndarray]) -> Iterator[None]:
    """The model with some parameters and buffers replaced; the old ones come back at the end.

    `tensors` maps names in the state dict to arrays of the tensors' types and shapes.
    """
    targets = {name: _tensor(model, name) for name in tensors}
    originals = {name: tensor.data for name, tensor in targets.items()}
    try:
        for name, tensor in targets.items():
            # The storage is exchanged, not written to: restoring is exact. The memory format stays.
            tensor.data = torch.empty_like(originals[name]).copy_(torch.from_numpy(np.asarray(tensors[name])))
        yield
    finally:
        for name, tensor in targets.items():
            tensor.data = originals[name]


def _tensor(model: nn.Module, name: str) -> torch.Tensor:
    module, _, leaf = name.rpartition(".")
    return getattr(model.get_submodule(module), leaf)
