"""Which parameters of a network are shared, which are kept, and why."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from wshare.errors import UserError
from wshare.models.kinds.attention import called_as_modules
from wshare.models.kinds.table import Layer, kinds_of, layer_of, layers_of, type_names
from wshare.models.norms import BATCH_NORMS
from wshare.names import LISTED, check_patterns, folder_name, layer_of_tensor, matches


@dataclass(frozen=True)
class Choice:
    """Layers to share, by exact names or `re:` patterns: those of `include`, or all, without those of `exclude`.

    `where` is the key of the configuration that holds both, empty for arguments of a Python function.
    """

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    where: str = ""

    def key(self, name: str) -> str:
        """What a message calls `include` or `exclude`."""
        return f"{self.where}.{name}" if self.where else name

    def check(self, candidates: list[str]) -> None:
        """UserError if a pattern matches none of these layers."""
        listed = LISTED if self.where else "`model.named_modules()` has them"
        check_patterns(self.include, candidates, self.key("include"), listed)
        check_patterns(self.exclude, candidates, self.key("exclude"), listed)


def inspect(model: nn.Module, dropped: list[str], choice: Choice, sample: torch.Tensor | None = None) -> dict:
    """Every parameter exactly once, with status and reason, and the layers that are shared.

    `choice` names tied weights by any of their layers. `dropped` names parts of the published network that evaluation
    does not use. Layers that are not called for a `sample` of inputs, if there is one, are kept: nothing tells what
    they take. Returns the content of layers.json.
    """
    known = {layer.tensor: layer for layer in layers_of(model)}
    candidates = [layer.name for layer in known.values()]
    choice.check(candidates)
    idle = set() if sample is None else never_called(model, candidates, sample)
    owners = {f"{name}.{leaf}": module for name, module in model.named_modules() for leaf in module._parameters}
    tied: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        tied.setdefault(parameter, []).append(name)
    layers, parameters = [], []
    for parameter, names in tied.items():
        name, *aliases = names
        layer = known.get(name)
        shared, reason = _status(names, layer, owners.get(name, model), parameter, choice, idle)
        if shared and not _in_its_file(model, name):
            shared, reason = False, "its ONNX file holds these values in another order, in which none can be changed"
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
            layers.append(
                {
                    "name": layer.name,
                    "folder": folder_name(layer.name),
                    "type": type(layer.module).__name__,
                    "shape": list(parameter.shape),
                    "groups": layer.layout.groups,
                    "weights": parameter.numel(),
                }
            )
    if not layers:
        place = choice.where or "model"
        if not candidates:
            raise UserError(f"{place}: the network has no layer that can be shared; such are {type_names()}")
        raise UserError(
            f"{place}: no layer is left to share of the {len(candidates)} that can be: "
            f"{_reasons(parameters, known)}; change {choice.key('include')} or {choice.key('exclude')}"
        )
    _check_folders(layers, choice)
    return {"layers": layers, "parameters": parameters, "dropped": dropped}


def never_called(model: nn.Module, layers: Iterable[str], sample: torch.Tensor) -> set[str]:
    """Those of the layers that one forward pass does not call: parts of training, or weights that another part uses."""
    called: set[str] = set()
    hooks = [
        layer_of(model, name).module.register_forward_pre_hook(lambda _, __, name=name: called.add(name))
        for name in layers
    ]
    try:
        with called_as_modules(), torch.inference_mode():
            model(sample.clone())
    finally:
        for hook in hooks:
            hook.remove()
    return set(layers) - called


def _reasons(parameters: list[dict], weights: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(entry["reason"] for entry in parameters if entry["name"] in weights))


def _check_folders(layers: list[dict], choice: Choice) -> None:
    """UserError if two layers would share a folder where file names do not tell a from A."""
    seen: dict[str, str] = {}
    for layer in layers:
        other = seen.setdefault(layer["folder"].casefold(), layer["name"])
        if other != layer["name"]:
            raise UserError(
                f"{choice.where or 'model'}: layers {other!r} and {layer['name']!r} would share a folder on some "
                f"systems; rename one of the modules, or name one in {choice.key('exclude')}"
            )


def _status(
    names: list[str],
    layer: Layer | None,
    module: nn.Module,
    parameter: torch.Tensor,
    choice: Choice,
    idle: set[str],
) -> tuple[bool, str]:
    layers = [layer_of_tensor(name) for name in names]
    leaf = names[0].rpartition(".")[2]
    if isinstance(module, BATCH_NORMS):
        return False, "batch norm: kept as one scale and one shift a channel"
    if layer is None and not kinds_of(module):
        return False, f"{type(module).__name__} is no kind of layer that can be shared"
    if layer is None and leaf.startswith("weight_hr"):
        return False, f"{leaf}: what it takes is not seen outside of the {type(module).__name__}"
    if layer is None:
        return False, f"{leaf} of a layer: few values, kept exact"
    if parameter.dtype != torch.float32 or parameter.numel() == 0:
        return False, f"{parameter.numel()} values of type {parameter.dtype}: only float32 weights are shared"
    if any(matches(pattern, layer) for pattern in choice.exclude for layer in layers):
        return False, f"named in {choice.key('exclude')}"
    if choice.include and not any(matches(pattern, layer) for pattern in choice.include for layer in layers):
        return False, f"not named in {choice.key('include')}"
    if layers[0] in idle:
        return False, "never called: take it out of the network, unless another part uses its weight"
    return True, f"{type(layer.module).__name__} {layer.leaf}"


def _in_its_file(model: nn.Module, tensor: str) -> bool:
    """Whether a network that came from an ONNX file has the tensor from there as it is; others hold all of theirs.

    Dense layers and convolutions that do not are refused by the export, which says so.
    """
    return tensor.endswith(".weight") or tensor in getattr(model, "initialisers", {tensor})


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
