"""Passes of one network with one tensor after another changed, each from the layer on that the change begins at.

A search measures every layer alone. What comes before a layer gives the same for all that follow it, so it is computed
once: about half of all work. The outputs are those of whole passes to the bit, since the same operators take the same
values.
"""

import copy
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, fx, nn

from wshare.data.images import Images
from wshare.evaluation.predict import predict, side_by_side
from wshare.models.forward import forward
from wshare.models.fusion import fused
from wshare.models.layers import replaced
from wshare.models.outputs import with_same_logits

# What is kept of all images may take so many bytes; where it would take more, passes are whole.
ROOM = 1 << 29

# Values of nodes by node: what the rest of a graph needs.
Values = dict[fx.Node, object]


class Resumed:
    """Outputs of a network for the same images, with some tensors changed each time.

    It pays where the tensors of one call come behind those of the call before it; in another order passes are whole. So
    they are where the network cannot be traced.
    """

    def __init__(self, model: nn.Module, images: Images, threads: int):
        self._model, self.images, self._threads = model, images, threads
        self._sample = images.batch(0)[:2]
        # Whether a network can be fused is found out with its own tensors.
        fused(model, self._sample)
        self._place, self._known = 0, dict[int, Values]()

    def predict(self, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
        """Outputs, float32 [N, ...], with these tensors of the state dict, as `predict` gives them."""
        with replaced(self._model, dict(tensors)):
            # What comes before the first of them is computed with them in place, too: it takes none of them.
            network = fused(self._model, self._sample)
            place = _first(network, self._model, tensors) if isinstance(network, fx.GraphModule) else 0
            if place < self._place or not self._known:
                self._place, self._known = 0, {}
            if not place or not self._advance(network, place):
                return predict(self._model, self.images, self._threads)
            starts = self.images.starts()
            outputs = side_by_side(lambda start: self._rest(network, start), starts, self._sample, self._threads)
            return np.concatenate(outputs)

    def _advance(self, network: fx.GraphModule, place: int) -> bool:
        """Compute what comes before a place in the graph; False if it takes too much room."""
        nodes = list(network.graph.nodes)
        known = self._known or {start: _inputs(nodes, self.images.batch(start)) for start in self.images.starts()}
        reached, before = self._place, set(nodes[:place])
        needed = before & {node for later in nodes[place:] for node in later.all_input_nodes}

        def values(start: int) -> Values:
            with torch.inference_mode():
                runner = fx.Interpreter(network)
                runner.env = dict(known[start])
                for node in nodes[reached:place]:
                    if node not in runner.env:
                        runner.env[node] = runner.run_node(node)
                return {node: value for node, value in runner.env.items() if node in needed}

        first, *others = known
        found = {first: values(first)}
        # Before those of all batches fill the memory.
        if _nbytes(found[first]) * len(known) > ROOM:
            self._place, self._known = 0, {}
            return False
        found |= zip(others, side_by_side(values, others, self._sample, self._threads), strict=True)
        self._place, self._known = place, found
        return True

    def _rest(self, network: fx.GraphModule, start: int) -> np.ndarray:
        rest = with_same_logits(_Rest(network, self._place, self._known[start]), network)
        return forward(rest, self.images.batch(start))


class _Rest(nn.Module):
    """The nodes of a graph from a place on."""

    def __init__(self, network: fx.GraphModule, place: int, known: Values):
        super().__init__()
        # In a tuple, since the network is no part of this module.
        self._network, self._place, self._known = (network,), place, known

    def forward(self, images: Tensor) -> object:
        (network,) = self._network
        before = list(network.graph.nodes)[: self._place]
        # Copies, since the rest may write into them, of all at once: some may be views of others.
        copies = zip(self._known, copy.deepcopy(list(self._known.values())), strict=True)
        # What no node behind needs has no value.
        return fx.Interpreter(network).run(images, initial_env=dict.fromkeys(before) | dict(copies))


def _inputs(nodes: list[fx.Node], batch: Tensor) -> Values:
    """What the network is called with: images, and its further arguments' defaults."""
    images, *others = (node for node in nodes if node.op == "placeholder")
    return {images: batch.clone()} | {node: node.args[0] for node in others if node.args}


def _nbytes(values: Values) -> int:
    return sum(value.nbytes for value in values.values() if isinstance(value, Tensor))


def _first(network: fx.GraphModule, model: nn.Module, tensors: Mapping[str, np.ndarray]) -> int:
    """Place of the first node that takes one of these tensors."""
    state = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    changed = {id(state[name]) for name in tensors}
    for place, node in enumerate(network.graph.nodes):
        if node.op == "call_module":
            module = network.get_submodule(node.target)
            own = [*module.parameters(), *module.buffers()]
        elif node.op == "get_attr":
            module, _, leaf = node.target.rpartition(".")
            own = [getattr(network.get_submodule(module), leaf)]
        else:
            continue
        if changed & {id(tensor) for tensor in own}:
            return place
    return 0
