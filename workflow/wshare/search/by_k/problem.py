"""What every search method by k is given: layers, their bits and inertia, and a counted way to measure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from wshare.quantize.cost import index_bits, layer_bits
from wshare.search.method import Profiled

# The k of each layer, in the network's order; None keeps a layer dense.
Combination = tuple[int | None, ...]


@dataclass(frozen=True)
class Layer:
    """A layer as the search sees it; `inertia` is float64 [K], entry k - 1 for k shared values."""

    name: str
    weights: int
    inertia: np.ndarray
    profile: tuple[Profiled, ...]


@dataclass(frozen=True)
class Problem:
    """Find the combination of fewest bits that meets the quality target.

    `measure` gives a combination's quality on the search images, with the keys of `wshare.search.front.QUALITY`: of
    these `relative_quality` is a share of the float32 quality, `low` the lower end that its interval is expected to
    have on other images, `kl` the divergence in nats. Each distinct combination is forwarded once. `accepts` tells
    whether what was measured confirms the target.
    """

    layers: tuple[Layer, ...]
    target: float
    seed: int
    measure: Callable[[Combination], dict]
    accepts: Callable[[dict], bool]

    def bits(self, combination: Combination) -> int:
        """Analytic bits of all layers' weights."""
        return sum(layer_bits(layer.weights, k) for layer, k in zip(self.layers, combination, strict=True))

    def meets(self, combination: Combination) -> bool:
        """Whether other images are expected to confirm the quality target."""
        return self.accepts(self.measure(combination))

    def clamped(self, ks: Sequence[int]) -> Combination:
        """One k a layer, no larger than its number of distinct weights."""
        return tuple(min(k, len(layer.inertia)) for layer, k in zip(self.layers, ks, strict=True))

    def smallest_met(self, combinations: list[Combination]) -> Combination:
        """The one of fewest bits among those that meet the target, else the one of best quality."""
        met = [combination for combination in combinations if self.meets(combination)]
        if met:
            return min(met, key=self.bits)
        return max(combinations, key=lambda c: (self.measure(c)["low"], -self.measure(c)["kl"]))


def ladder(layer: Layer) -> list[int | None]:
    """What is worth choosing for a layer, by ascending bits: the largest k of each index width, and dense last.

    Widths that take no fewer bits than dense are left out: few weights do not pay for a wide codebook.
    """
    largest = len(layer.inertia)
    ks = [min(2**width, largest) for width in range(1, index_bits(largest) + 1)] or [largest]
    return [*(k for k in ks if layer_bits(layer.weights, k) < layer_bits(layer.weights, None)), None]


def narrower(layer: Layer, k: int | None) -> int | None:
    """The largest k of the next narrower index, of fewer bits than `k`; None if there is none."""
    bits = layer_bits(layer.weights, k)
    return max((rung for rung in ladder(layer) if rung and layer_bits(layer.weights, rung) < bits), default=None)


def loss_per_bit(layer: Layer, loss: np.ndarray, old: int | None, new: int) -> float:
    """Predicted loss added by a layer's change from `old` to `new` for each bit it saves; `loss` is float64 [K]."""
    before = 0.0 if old is None else float(loss[old - 1])
    return (float(loss[new - 1]) - before) / (layer_bits(layer.weights, old) - layer_bits(layer.weights, new))
