"""Layer after layer a bit narrower, where it costs least: the greedy search of other compressors.

Peers' greedy ranks layers by their loss alone (coreai-opt); here it is the predicted loss for each bit saved, so that
a large layer is worth more than a small one.
"""

import math

from wshare.quantize.cost import layer_bits
from wshare.search.by_k.method import ByK
from wshare.search.by_k.problem import Combination, Problem, loss_per_bit, narrower
from wshare.search.by_k.slope import predicted_loss

# Index width that every layer starts from.
WIDEST = 8


def combinations(options: dict) -> int:
    """Combinations measured at most."""
    return options["evaluations"]


def choose(problem: Problem, options: dict) -> Combination:
    """Smallest combination met among at most `evaluations` on the greedy path, by bisection.

    Each step of the path adds predicted loss, so that the measured quality falls along it but for noise.
    """
    path = greedy_path(problem)
    tried: list[Combination] = []
    # The path meets the target up to `met`, as far as is known, and fails from `failed` on.
    met, failed = -1, len(path)
    while failed - met > 1 and len(tried) < options["evaluations"]:
        middle = (met + failed) // 2
        tried.append(path[middle])
        if problem.meets(path[middle]):
            met = middle
        else:
            failed = middle
    return problem.smallest_met(tried)


def greedy_path(problem: Problem) -> list[Combination]:
    """Combinations from the widest index in every layer to the narrowest, a layer narrowed at each step.

    The layer narrowed next is the one of least predicted loss per saved bit. A layer that takes no fewer bits with the
    widest index than dense starts dense.
    """
    losses = [predicted_loss(layer) for layer in problem.layers]
    starts = problem.clamped([2**WIDEST] * len(problem.layers))
    ks = [
        k if layer_bits(layer.weights, k) < layer_bits(layer.weights, None) else None
        for layer, k in zip(problem.layers, starts, strict=True)
    ]
    path = [tuple(ks)]

    def cost(place: int) -> float:
        """Predicted loss of narrowing a layer, in nats for each bit saved; infinite where it is narrowest."""
        layer, old = problem.layers[place], ks[place]
        new = narrower(layer, old)
        return math.inf if new is None else loss_per_bit(layer, losses[place], old, new)

    costs = [cost(place) for place in range(len(ks))]
    while (least := min(costs)) < math.inf:
        place = costs.index(least)
        ks[place] = narrower(problem.layers[place], ks[place])
        costs[place] = cost(place)
        path.append(tuple(ks))
    return path


METHOD = ByK(choose, combinations)
