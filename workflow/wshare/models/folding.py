"""Batch norms that can be folded into the layer before them."""

import logging
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from wshare.models.forward import forward
from wshare.models.kinds.table import kind_of
from wshare.models.layers import replaced
from wshare.models.norms import BATCH_NORMS, batch_norms

_log = logging.getLogger(__name__)
# Largest difference that folding may make to an output, as a share of the largest output: rounding makes less.
TOLERANCE = 1e-3


def folded_norms(model: nn.Module, layers: list[str], sample: torch.Tensor) -> dict[str, str]:
    """Name of the batch norm behind each layer that takes this layer's output and nothing else.

    A traced forward pass of `sample` [N, C, H, W] finds the pairs by object identity; a second one with all of them
    folded must give the same output, which rules out layers whose output goes elsewhere as well. Then none is folded.
    """
    found = _pairs(model, layers, sample)
    norms = batch_norms(model)
    tensors: dict[str, np.ndarray] = {}
    for layer, norm in found.items():
        module = model.get_submodule(layer)
        weight = module.weight.numpy(force=True)
        scale = kind_of(module).layout(module).per_output(norms[norm].scale, weight.shape)
        tensors[f"{layer}.weight"] = weight * scale
        tensors |= replace(norms[norm], scale=np.ones_like(norms[norm].scale)).tensors(norm)
    before = forward(model, sample)
    with replaced(model, tensors):
        after = forward(model, sample)
    difference = np.abs(after - before).max() / np.abs(before).max()
    if not difference <= TOLERANCE:
        _log.info("no batch norm is folded: outputs would differ by %.2g of the largest", difference)
        return {}
    return found


def _pairs(model: nn.Module, layers: list[str], sample: torch.Tensor) -> dict[str, str]:
    made: list[tuple[str, object]] = []
    taken: list[tuple[str, object]] = []
    norms = batch_norms(model)
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda _, __, output, name=name: made.append((name, output)))
        for name in layers
    ]
    hooks += [
        module.register_forward_pre_hook(lambda _, inputs, name=name: taken.append((name, inputs[0])))
        for name, module in model.named_modules()
        if isinstance(module, BATCH_NORMS) and name in norms
    ]
    try:
        forward(model, sample)
    finally:
        for hook in hooks:
            hook.remove()
    called = [name for name, _ in [*made, *taken]]
    once = {name for name in called if called.count(name) == 1}
    return {
        layer: norm
        for layer, output in made
        for norm, inputs in taken
        # A layer with a bias of its own would keep it beside the folded shift.
        if inputs is output and {layer, norm} <= once and getattr(model.get_submodule(layer), "bias", None) is None
    }
