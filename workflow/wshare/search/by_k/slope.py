"""One Lagrange multiplier for all layers, bisected against the measured quality.

The predicted loss of a layer is its sensitivity times its exact inertia at each k. The fewest bits at a given sum of
predicted losses are found layer by layer, with one slope for all, in nats a bit (Shoham & Gersho 1988); the slope is
the only unknown left. Slopes reach only the convex hull of all combinations, which leaves bits on the table where
layers are few: what evaluations remain go to single layers.
"""

import math

import numpy as np

from wshare.quantize.cost import layer_bits
from wshare.search.by_k.method import ByK
from wshare.search.by_k.problem import Combination, Layer, Problem, loss_per_bit, narrower

# Halvings of the slope's logarithm, after which neighbouring slopes give the same combination.
BISECTIONS = 14


def combinations(options: dict) -> int:
    """Combinations measured at most."""
    return options["evaluations"]


def choose(problem: Problem, options: dict) -> Combination:
    """Smallest combination met among at most `evaluations`: slopes by bisection, then narrower single layers."""
    losses = [predicted_loss(layer) for layer in problem.layers]
    bits = [np.array([layer_bits(layer.weights, k + 1) for k in range(len(layer.inertia))]) for layer in problem.layers]
    low, high = _slope_range(losses, bits)
    tried: list[Combination] = []
    for _ in range(BISECTIONS):
        slope = math.sqrt(low * high)
        combination = allocate(problem.layers, losses, bits, slope)
        if combination not in tried:
            if len(tried) == options["evaluations"]:
                break
            tried.append(combination)
        if problem.meets(combination):
            low = slope
        else:
            high = slope
    best = problem.smallest_met(tried)
    while problem.meets(best) and len(tried) < options["evaluations"]:
        moves = {move: loss for move, loss in _narrower(problem, losses, best).items() if move not in tried}
        if not moves:
            break
        tried.append(min(moves, key=moves.__getitem__))
        if problem.meets(tried[-1]):
            best = tried[-1]
    return best


def _narrower(problem: Problem, losses: list[np.ndarray], combination: Combination) -> dict[Combination, float]:
    """The combination with one layer's index narrower, for each layer that has one, with its loss per saved bit."""
    moves = {}
    for place, (layer, loss, old) in enumerate(zip(problem.layers, losses, combination, strict=True)):
        new = narrower(layer, old)
        if new is not None:
            move = (*combination[:place], new, *combination[place + 1 :])
            moves[move] = loss_per_bit(layer, loss, old, new)
    return moves


def predicted_loss(layer: Layer) -> np.ndarray:
    """Predicted KL of sharing one layer alone with k = 1 .. K values: float64 [K].

    KL over inertia is interpolated between the profiled k on logarithmic axes and held constant beyond them; a
    second-order expansion of the loss makes this ratio constant for small changes.
    """
    probes = sorted((p.inertia, p.kl) for p in layer.profile if p.inertia > 0 and p.kl > 0)
    if not probes:
        return np.zeros_like(layer.inertia)
    inertia, kl = np.array(probes).T
    positive = np.maximum(layer.inertia, np.finfo(float).tiny)
    ratio = np.exp(np.interp(np.log(positive), np.log(inertia), np.log(kl / inertia)))
    return np.where(layer.inertia > 0, ratio * layer.inertia, 0.0)


def allocate(layers: tuple[Layer, ...], losses: list[np.ndarray], bits: list[np.ndarray], slope: float) -> Combination:
    """k of least loss + slope * bits for each layer, or None where keeping it dense costs less still."""
    combination = []
    for layer, loss, cost in zip(layers, losses, bits, strict=True):
        total = loss + slope * cost
        best = int(total.argmin())
        combination.append(best + 1 if total[best] <= slope * layer_bits(layer.weights, None) else None)
    return tuple(combination)


def _slope_range(losses: list[np.ndarray], bits: list[np.ndarray]) -> tuple[float, float]:
    """Slopes, in nats a bit, between which the best combination must lie: almost no loss, and total loss."""
    total = max(sum(float(loss.max()) for loss in losses), np.finfo(float).tiny)
    weights = sum(float(cost.max()) for cost in bits)
    return total / weights * 1e-9, total / weights * 1e3


METHOD = ByK(choose, combinations)
