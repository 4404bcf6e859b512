"""Convolution, batch norm and activation as one kernel: what makes an evaluation as fast as an inference runtime's.

Batch norm and activation each move all values through memory once more, which takes longer than many a convolution
computes. oneDNN's convolution takes both along; on a GPU the batch norm alone is saved.
"""

import logging
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from wshare.models.outputs import with_same_logits

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Activation:
    """An activation: name and bounds by which oneDNN knows it, and its function."""

    name: str
    bounds: list[float]
    function: Callable[..., Tensor]


# By a module's type, or the function itself.
ACTIVATIONS: dict[object, Activation] = {
    **dict.fromkeys((nn.ReLU, functional.relu, torch.relu), Activation("relu", [], functional.relu)),
    **dict.fromkeys((nn.ReLU6, functional.relu6), Activation("hardtanh", [0.0, 6.0], functional.relu6)),
    **dict.fromkeys((nn.SiLU, functional.silu), Activation("swish", [], functional.silu)),
    **dict.fromkeys((nn.Hardswish, functional.hardswish), Activation("hardswish", [], functional.hardswish)),
}
NOTHING = Activation("none", [], lambda values, inplace: values)
# Largest difference that fusing may make to an output, as a share of the largest output: rounding makes less.
TOLERANCE = 1e-3
# A search evaluates one network many times, and tracing takes as long as some images do.
_KNOWN: weakref.WeakKeyDictionary[nn.Module, nn.Module | None] = weakref.WeakKeyDictionary()


def fused(model: nn.Module, sample: Tensor) -> nn.Module:
    """The network with fused convolutions, for inference alone, with the weights that `model` has now.

    `sample` [N, C, H, W] is an image or a few, on which both must give the same outputs. A network that cannot be
    traced, or gives others, is returned as it is; a line of the log says so, once.
    """
    if model not in _KNOWN:
        found, reason = _checked(model, sample)
        if found is None:
            _log.info("evaluated without fused convolutions, which is slower: %s", reason)
        _KNOWN[model] = found
    network = _KNOWN[model]
    if network is None:
        return model
    _fold(network)
    return network


class FusedConv(nn.Module):
    """A convolution with the batch norm and the activation behind it, if there are; their modules stay as they are."""

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d | None, activation: Activation):
        super().__init__()
        self.conv, self.norm, self.activation = conv, norm, activation

    def forward(self, images: Tensor) -> Tensor:
        conv, activation = self.conv, self.activation
        if images.is_cuda:
            values = functional.conv2d(images, *self._weights, conv.stride, conv.padding, conv.dilation, conv.groups)
            return activation.function(values, inplace=True)
        # The operator behind torch.compile's fused convolutions on a CPU; there is no public one, and torch is pinned.
        return torch.ops.mkldnn._convolution_pointwise(
            *(images, *self._weights, conv.padding, conv.stride, conv.dilation, conv.groups),
            *(activation.name, activation.bounds, ""),
        )

    def fold(self) -> None:
        """Take over the weights and statistics of now; for each batch anew it would take a sixth of the time."""
        self._weights = self._folded()

    def _folded(self) -> tuple[Tensor, Tensor | None]:
        conv, norm = self.conv, self.norm
        if norm is None:
            return conv.weight, conv.bias
        # In float32 on the network's device, unlike `wshare.models.norms`: this runs before every evaluation, and its
        # last digits are part of all outputs that were ever measured.
        scale = torch.rsqrt(norm.running_var + norm.eps)
        scale = scale if norm.weight is None else scale * norm.weight
        shift = -norm.running_mean if conv.bias is None else conv.bias - norm.running_mean
        bias = shift * scale if norm.bias is None else torch.addcmul(norm.bias, shift, scale)
        return conv.weight * scale[:, None, None, None], bias


def _checked(model: nn.Module, sample: Tensor) -> tuple[nn.Module | None, str]:
    """The fused network, or None and why there is none."""
    if not (sample.is_cuda or torch.backends.mkldnn.is_available()):
        return None, "this torch has no oneDNN"
    try:
        candidate = _fuse(model)
        _fold(candidate)
        with torch.inference_mode():
            # Copies, since a network may write into its input.
            expected, found = (network(sample.clone()) for network in (model, candidate))
    except Exception as error:
        # A network may run any code, which fails in any way on what a tracer feeds it.
        return None, str(error).strip().partition("\n")[0]
    difference, largest = (found - expected).abs().max(), expected.abs().max()
    if not difference <= TOLERANCE * largest:
        return None, f"an output would differ by {difference:.2g}, where the largest is {largest:.2g}"
    return candidate, ""


def _fuse(model: nn.Module) -> fx.GraphModule:
    # Tracing leaves out what hooks on the whole network do.
    network = with_same_logits(fx.symbolic_trace(model), model)
    modules = dict(network.named_modules())
    for node in list(network.graph.nodes):
        conv = modules.get(node.target) if node.op == "call_module" else None
        if type(conv) is not nn.Conv2d or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            continue
        last, norm = node, None
        after = _only_user(last)
        if after is not None and _is_norm(after, modules):
            last, norm = after, modules[after.target]
            after = _only_user(last)
        activation = NOTHING if after is None else ACTIVATIONS.get(_function(after, modules), NOTHING)
        last = last if activation is NOTHING else after
        if last is not node:
            name = f"fused_{node.name}"
            network.add_module(name, FusedConv(conv, norm, activation))
            with network.graph.inserting_after(last):
                last.replace_all_uses_with(network.graph.call_module(name, node.args))
    network.graph.eliminate_dead_code()
    network.recompile()
    return network


def _fold(network: nn.Module) -> None:
    with torch.no_grad():
        for part in network.modules():
            if isinstance(part, FusedConv):
                part.fold()


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _is_norm(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    norm = modules.get(node.target) if node.op == "call_module" else None
    return type(norm) is nn.BatchNorm2d and norm.track_running_stats


def _function(node: fx.Node, modules: dict[str, nn.Module]) -> object:
    """What tells an activation: a module's type, or the function itself."""
    return type(modules[node.target]) if node.op == "call_module" else node.target
