"""Batch norms that can be folded into the layer before them."""

import logging
from collections import Counter
from dataclasses import replace
from operator import attrgetter

import numpy as np
import torch
from torch import Tensor, nn

from wshare.models.forward import forward
from wshare.models.kinds.table import Layer, layer_of
from wshare.models.layers import replaced
from wshare.models.norms import BATCH_NORMS, batch_norms
from wshare.quantize.batch_norm import BatchNorm

_log = logging.getLogger(__name__)
# Largest difference that folding may make to an output, as a share of the largest output: rounding makes less.
TOLERANCE = 1e-3


def folded_norms(model: nn.Module, layers: list[str], sample: torch.Tensor) -> dict[str, str]:
    """Name of the batch norm behind each layer that takes this layer's output and nothing else.

    A traced forward pass of `sample` [N, C, ...] finds the pairs by object identity; a second one with all of them
    folded must give the same output, which rules out layers whose output goes elsewhere as well. If it does not, each
    pair is tried alone. A bias of the layer becomes a part of the norm's shift.
    """
    norms = batch_norms(model)
    found = _pairs(model, layers, norms, sample)
    before = forward(model, sample)

    def difference(pairs: dict[str, str]) -> float:
        with replaced(model, _folded(model, pairs, norms)):
            return np.abs(forward(model, sample) - before).max() / np.abs(before).max()

    whole = difference(found)
    if whole <= TOLERANCE:
        return found
    alone = {layer: norm for layer, norm in found.items() if difference({layer: norm}) <= TOLERANCE}
    alone = alone if difference(alone) <= TOLERANCE else {}
    if alone:
        left = ", ".join(norm for layer, norm in found.items() if layer not in alone)
        _log.info("batch norms that stay, since outputs would differ by %.2g of the largest: %s", whole, left)
    else:
        _log.info("no batch norm is folded: outputs would differ by %.2g of the largest", whole)
    return alone


def behind_bias(norm: BatchNorm, bias: np.ndarray | None) -> BatchNorm:
    """The batch norm that takes what a layer gives without its bias, float32 [channels]: it is a part of the shift."""
    if bias is None:
        return norm
    shift = norm.shift.astype(np.float64) + norm.scale.astype(np.float64) * bias
    return replace(norm, shift=shift.astype(np.float32))


def bias_of(model: nn.Module, layer: Layer) -> np.ndarray | None:
    """The bias of a layer, float32 [outputs]."""
    return None if layer.bias is None else attrgetter(layer.bias)(model).numpy(force=True)


def _folded(model: nn.Module, pairs: dict[str, str], norms: dict[str, BatchNorm]) -> dict[str, np.ndarray]:
    """Tensors of the network with these norms folded, before anything is rounded."""
    tensors: dict[str, np.ndarray] = {}
    for name, norm in pairs.items():
        layer = layer_of(model, name)
        weight, bias, scale = layer.weight.numpy(force=True), bias_of(model, layer), norms[norm].scale
        tensors[layer.tensor] = weight * layer.layout.per_output(scale, weight.shape)
        tensors |= {} if bias is None else {layer.bias: np.zeros_like(bias)}
        tensors |= replace(behind_bias(norms[norm], bias), scale=np.ones_like(scale)).tensors(norm)
    return tensors


def _pairs(model: nn.Module, layers: list[str], norms: dict[str, BatchNorm], sample: torch.Tensor) -> dict[str, str]:
    made: list[tuple[str, object, int]] = []
    taken: list[tuple[str, object, int]] = []
    # What a recurrent layer or an attention gives is more than the sums of one weight.
    alone = [layer for layer in (layer_of(model, name) for name in layers) if layer.leaf == "weight"]
    hooks = [
        layer.module.register_forward_hook(
            lambda _, __, output, name=layer.name: made.append((name, output, _version(output)))
        )
        for layer in alone
    ]
    hooks += [
        module.register_forward_pre_hook(
            lambda _, inputs, named, name=name: taken.extend(
                (name, tensor, _version(tensor)) for tensor in (*inputs, *named.values())
            ),
            with_kwargs=True,
        )
        for name, module in model.named_modules()
        if isinstance(module, BATCH_NORMS) and name in norms
    ]
    try:
        # Unlike in inference mode, a tensor counts how often it was written to.
        with torch.no_grad():
            model(sample.clone())
    finally:
        for hook in hooks:
            hook.remove()
    called = Counter(name for name, *_ in [*made, *taken])
    tied = _tied(model)
    return {
        layer: norm
        for layer, output, version in made
        for norm, inputs, seen in taken
        # What an activation wrote over in place is the same object, and no longer what the layer gave.
        if inputs is output
        and seen == version
        and called[layer] == called[norm] == 1
        and not {layer, norm} & tied
        and _outputs(layer_of(model, layer)) == len(norms[norm].scale)
    }


def _version(tensor: object) -> int:
    """How often the tensor was written to."""
    return tensor._version if isinstance(tensor, Tensor) and not tensor.is_inference() else 0


def _tied(model: nn.Module) -> set[str]:
    """Names of modules that have a parameter which another one has too."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name.rpartition(".")[0] for group in names.values() if len(group) > 1 for name in group}


def _outputs(layer: Layer) -> int:
    return layer.layout.outputs(layer.weight.shape)
