"""A whole network shared at one price of a bit."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from torch import nn

from wshare.models.kinds.table import kind_of
from wshare.models.norms import batch_norms
from wshare.packed.compressed import Compressed
from wshare.quantize.layer import Options, PreparedLayer, Quantised, prepare, quantise
from wshare.quantize.statistics import InputStatistics


@dataclass(frozen=True)
class Network:
    """The layers of a network, ready to be shared.

    `targets` and `norms`, the batch norms folded into them, go by layer name; `biases` holds the float32 biases
    [outputs] of those that have one. `images` tells how many, with mirror images, their inputs were measured on.
    """

    targets: dict[str, PreparedLayer]
    norms: dict[str, str]
    biases: dict[str, np.ndarray]
    images: int

    @classmethod
    def of(
        cls, model: nn.Module, fisher: dict[str, float], moments: dict[str, InputStatistics], folded: dict[str, str]
    ) -> "Network":
        """Prepare the layers of `fisher`, which maps their names to the sums of their weights' importance.

        `folded` names the batch norms to be folded by layer, as `wshare.folding.folded_norms` finds them.
        """
        norms = batch_norms(model)
        modules = {name: model.get_submodule(name) for name in fisher}
        biases = {
            name: module.bias.numpy(force=True)
            for name, module in modules.items()
            if getattr(module, "bias", None) is not None
        }
        targets = {
            name: prepare(
                name,
                module.weight.numpy(force=True),
                kind_of(module).layout(module),
                fisher[name],
                moments[name],
                norms[folded[name]] if name in folded else None,
                name in biases,
            )
            for name, module in modules.items()
        }
        return cls(targets, folded, biases, next(iter(moments.values())).images)

    def quantised(
        self, slope: float, factors: dict[str, float], options: Options, threads: int
    ) -> dict[str, Quantised]:
        """All layers at `slope` nats a bit; `factors` corrects the predicted loss of each layer.

        Layers run side by side on `threads` threads; the result does not depend on their number.
        """
        with ThreadPoolExecutor(threads) as pool:
            done = pool.map(lambda layer: quantise(layer, slope, factors[layer.name], options), self.targets.values())
            return dict(zip(self.targets, done, strict=True))

    def tensors(self, name: str, layer: Quantised) -> dict[str, np.ndarray]:
        """What of the state dict a shared layer changes, by tensor name: as a reader of the packed file gets it."""
        changed = {f"{name}.weight": layer.shared.weight()}
        if layer.norm is not None:
            changed |= layer.norm.norm(layer.shared.exponents).tensors(self.norms[name])
        return changed | self.corrected(name, layer)

    def all_tensors(self, layers: dict[str, Quantised]) -> dict[str, np.ndarray]:
        """The same for all layers."""
        return {key: array for name, layer in layers.items() for key, array in self.tensors(name, layer).items()}

    def corrected(self, name: str, layer: Quantised) -> dict[str, np.ndarray]:
        """The layer's own bias after correction, by tensor name; empty if it has none."""
        if name not in self.biases:
            return {}
        return {f"{name}.bias": (self.biases[name] + layer.correction).astype(np.float32)}

    def pieces(self, recipe: dict, threads: int) -> Compressed:
        """All layers as a recipe by rate_distortion has them."""
        factors = {name: layer["factor"] for name, layer in recipe["layers"].items()}
        options = Options.of(recipe["settings"]["options"])
        layers = self.quantised(recipe["slope"], factors, options, threads)
        corrected = [self.corrected(name, layer) for name, layer in layers.items()]
        return Compressed(
            shared={f"{name}.weight": layer.shared for name, layer in layers.items()},
            format=options.format,
            bits=sum(layer.bits for layer in layers.values()),
            changed={key: array for tensors in corrected for key, array in tensors.items()},
            folded={self.norms[name]: layer.norm for name, layer in layers.items() if layer.norm},
        )
