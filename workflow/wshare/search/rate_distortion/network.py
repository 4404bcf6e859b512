"""A network whose layers are ready to be quantised, each at a slope of its own."""

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from wshare.models.folding import behind_bias, bias_of
from wshare.models.kinds.table import layer_of
from wshare.models.norms import batch_norms
from wshare.packed.compressed import Compressed
from wshare.quantize import integers
from wshare.quantize.formats import INTEGER_WIDTHS
from wshare.quantize.layer import LEAST_STEPS, Options, PreparedLayer, Quantised, prepare, quantise
from wshare.quantize.statistics import InputStatistics
from wshare.search.method import Setting, entry


@dataclass(frozen=True)
class Network:
    """The layers of a network, ready to be quantised.

    `layers` and `norms`, the batch norms folded into them, go by layer name; `biases` holds the float32 biases
    [outputs] of those that have one. Those of layers with a folded norm are a part of its shift already. `tensors` and
    `bias_names` name weights and biases in the state dict.
    """

    layers: dict[str, PreparedLayer]
    norms: dict[str, str]
    biases: dict[str, np.ndarray]
    tensors: dict[str, str]
    bias_names: dict[str, str]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        fisher: Mapping[str, float],
        statistics: Mapping[str, InputStatistics],
        folded: dict[str, str],
        threads: int = 1,
    ) -> "Network":
        """Prepare the layers of `fisher`, which maps their names to the sums of their weights' importance.

        `folded` names the batch norms to be folded by layer, as `wshare.models.folding.folded_norms` finds them. Layers
        are prepared side by side on `threads` threads.
        """
        norms = batch_norms(model)
        found = {name: layer_of(model, name) for name in fisher}
        biases = {name: bias for name, layer in found.items() if (bias := bias_of(model, layer)) is not None}

        def prepared(name: str) -> PreparedLayer:
            layer = found[name]
            norm = behind_bias(norms[folded[name]], biases.get(name)) if name in folded else None
            weight = layer.weight.numpy(force=True)
            return prepare(name, weight, layer.layout, fisher[name], statistics[name], norm, name in biases)

        with ThreadPoolExecutor(threads) as pool:
            layers = dict(zip(found, pool.map(prepared, found), strict=True))
        return cls(
            layers,
            folded,
            biases,
            {name: layer.tensor for name, layer in found.items()},
            {name: found[name].bias for name in biases},
        )

    def sharing(self, other: "Network") -> "Network":
        """With the weights of another network of the same layers, in its memory, wherever they are the same.

        They are the same in both halves but for layers in groups, whose units follow from what their inputs are.
        """
        layers = {
            name: replace(layer, weights=other.layers[name].weights)
            if np.array_equal(layer.weights, other.layers[name].weights)
            else layer
            for name, layer in self.layers.items()
        }
        return replace(self, layers=layers)

    def quantised(self, settings: Mapping[str, Setting], options: Options, threads: int) -> dict[str, Quantised]:
        """All layers at their slopes, in nats a bit, with their predicted losses scaled as their settings tell.

        Layers run side by side on `threads` threads; the result does not depend on their number.
        """

        way = integers.quantise if options.format in INTEGER_WIDTHS else quantise

        def quantised(name: str) -> Quantised:
            return way(self.layers[name], *_numbers(name, settings[name]), options)

        with ThreadPoolExecutor(threads) as pool:
            return dict(zip(self.layers, pool.map(quantised, self.layers), strict=True))

    def widths(self, settings: Mapping[str, Setting], options: Options, threads: int) -> tuple[int, ...]:
        """Bits of the integers of all layers at their slopes, which tell all of the network in these formats."""

        def width(name: str) -> int:
            return integers.width_at(self.layers[name], *_numbers(name, settings[name]), options)

        with ThreadPoolExecutor(threads) as pool:
            return tuple(pool.map(width, self.layers))

    def scaled(self, layers: Mapping[str, Quantised], name: str, factor: float) -> dict[str, Quantised]:
        """The layers, one of which gives outputs multiplied by a factor; it has no folded norm."""
        layer = layers[name]
        bias = self.biases.get(name, 0.0)
        moved = layer.moved(factor * layer.shared.codebook.astype(np.float64))
        return dict(layers) | {name: replace(moved, correction=factor * (bias + layer.correction) - bias)}

    def compressed(self, layers: Mapping[str, Quantised]) -> Compressed:
        """Compressed tensors of some layers: what a reader of the packed file gets of them."""
        return Compressed(
            shared={self.tensors[name]: layer.shared for name, layer in layers.items()},
            bits=sum(layer.bits for layer in layers.values()),
            changed={
                self.bias_names[name]: _rounded(self.biases[name] + layer.correction, layer.bias_unit)
                for name, layer in layers.items()
                if name in self.biases and layer.norm is None
            },
            merged={
                self.bias_names[name]: len(self.biases[name])
                for name, layer in layers.items()
                if name in self.biases and layer.norm is not None
            },
            folded={self.norms[name]: layer.norm for name, layer in layers.items() if layer.norm is not None},
        )


def _rounded(bias: np.ndarray, unit: float) -> np.ndarray:
    """The bias, float32, as multiples of a power of two: the unit, or less if the largest were few of it."""
    largest = float(np.abs(bias).max(initial=0))
    if not largest:
        return bias.astype(np.float32)
    unit = min(unit, 2.0 ** math.floor(math.log2(largest / LEAST_STEPS)))
    # No -0.0, which is no multiple.
    return (np.rint(bias / unit) * unit + 0.0).astype(np.float32)


def _numbers(name: str, setting: Setting) -> tuple[float, float]:
    """Slope and sensitivity scale of a layer."""
    slope, scale = (
        entry(name, setting, key, is_positive, "a number above 0") for key in ("slope", "sensitivity_scale")
    )
    return slope, scale


def is_positive(value: object) -> bool:
    """Whether a setting is a number above 0."""
    return type(value) in (int, float) and 0 < value < math.inf
