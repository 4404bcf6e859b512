"""Search methods that choose the number of shared values of each layer, clustered by k-means."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from wshare.models.kinds.table import layer_of
from wshare.packed.compressed import Compressed
from wshare.quantize.codebooks import Shared, nearest_indices
from wshare.quantize.cost import layer_bits
from wshare.search.by_k.problem import Combination, Layer, Problem
from wshare.search.evaluator import Evaluator, Part
from wshare.search.method import Artifacts, Found, Setting, entry


@dataclass(frozen=True)
class ByK:
    """A search method by `choose`, which returns the combination chosen among those that it measured.

    `combinations(options)` is how many it measures at most; `uses_profile` tells whether it looks at the layers'
    sensitivity, whose images then count as forwarded.
    """

    choose: Callable[[Problem, dict], Combination]
    combinations: Callable[[dict], int]
    uses_profile: bool = True
    version: int = 1

    def prepare(self, artifacts: Artifacts, options: dict, threads: int) -> Artifacts:
        """The artifacts themselves: clusters are all that is needed."""
        return artifacts

    def budget(self, space: Artifacts, options: dict) -> int:
        """Combinations measured at most."""
        return self.combinations(options)

    def search(self, space: Artifacts, evaluator: Evaluator, settings: dict) -> Found:
        """The k of each layer, or None for one that is kept dense."""

        def measure(combination: Combination) -> dict:
            def parts() -> list[Part]:
                layers = {name: {"k": k} for name, k in zip(space.layers, combination, strict=True)}
                return [Part(0, len(evaluator.images), self.realise(space, layers))]

            return evaluator.measure(combination, parts)

        layers = tuple(
            Layer(name, clusters.weights, clusters.objective, tuple(space.sensitivity[name]))
            for name, clusters in space.clusters.items()
        )
        problem = Problem(layers, settings["quality_target"], settings["seed"], measure, evaluator.accepts)
        chosen = self.choose(problem, settings["options"])
        profiled = sum(row.images for rows in space.sensitivity.values() for row in rows) if self.uses_profile else 0
        return Found(
            layers={name: {"k": k} for name, k in zip(space.layers, chosen, strict=True)},
            chosen=chosen,
            points={combination: {} for combination in evaluator.measured},
            met=frozenset(filter(problem.meets, evaluator.measured)),
            images_forwarded={"profile": profiled},
        )

    def realise(self, space: Artifacts, layers: Mapping[str, Setting]) -> Compressed:
        """Each weight replaced by the nearest value of its layer's codebook."""
        shared, bits = {}, 0
        for name, setting in layers.items():
            layer, k = layer_of(space.model, name), entry(name, setting, "k", _is_k, "1 or more, or null")
            weight = layer.weight.numpy(force=True)
            bits += layer_bits(weight.size, k)
            if k is not None:
                codebook = space.clusters[name].sweep.codebook(k)
                indices = nearest_indices(weight, codebook)
                shared[layer.tensor] = Shared(codebook, indices, layout=layer.layout)
        return Compressed(shared, bits)


def _is_k(value: object) -> bool:
    return value is None or (type(value) is int and value >= 1)
