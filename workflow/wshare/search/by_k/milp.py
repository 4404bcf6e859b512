"""A multiple-choice knapsack: of each layer's index widths exactly one, solved as an integer program.

The sum of the layers' predicted losses is least under a budget of bits; HiGHS finds it by branch and bound (Huangfu &
Hall 2018). The integer programs of other compressors take their budget from the user (MCT, HAWQ-V3); here it is
bisected against the measured quality. Unlike one slope for all layers, it reaches combinations off the convex hull.
"""

import math

import numpy as np
from scipy import optimize, sparse

from wshare.quantize.cost import layer_bits
from wshare.search.by_k.greedy import greedy_path
from wshare.search.by_k.method import ByK
from wshare.search.by_k.problem import Combination, Layer, Problem, ladder
from wshare.search.by_k.slope import predicted_loss

# A layer's k with the bits and the predicted loss of each.
Choices = list[tuple[int | None, int, float]]


def combinations(options: dict) -> int:
    """Combinations measured at most."""
    return options["evaluations"]


def choose(problem: Problem, options: dict) -> Combination:
    """Smallest combination met among at most `evaluations`, each of least predicted loss within its bits."""
    choices = [choices_of(layer) for layer in problem.layers]
    path = [(problem.bits(combination), predicted(choices, combination)) for combination in greedy_path(problem)]
    tried: list[Combination] = []
    # Nothing of `failed` bits or fewer meets the target, as far as is known; `met` bits or more are not worth a look.
    failed = sum(rungs[0][1] for rungs in choices) - 1
    met = problem.bits((None,) * len(problem.layers)) + 1
    while met - failed > 1:
        bits = min(max(round(math.sqrt(failed * met)), failed + 1), met - 1)
        reached = next(loss for size, loss in path if size <= bits)
        combination = allocate(choices, bits, reached)
        if combination not in tried:
            if len(tried) == options["evaluations"]:
                break
            tried.append(combination)
        if problem.meets(combination):
            met = min(bits, problem.bits(combination))
        else:
            failed = bits
    return problem.smallest_met(tried)


def choices_of(layer: Layer) -> Choices:
    """The largest k of each index width, and dense, by ascending bits."""
    loss = predicted_loss(layer)
    return [(k, layer_bits(layer.weights, k), 0.0 if k is None else float(loss[k - 1])) for k in ladder(layer)]


def predicted(choices: list[Choices], combination: Combination) -> float:
    """Sum of the layers' predicted losses."""
    return sum(
        next(loss for known, _, loss in rungs if known == k) for rungs, k in zip(choices, combination, strict=True)
    )


def allocate(choices: list[Choices], bits: int, reached: float) -> Combination:
    """The combination of least predicted loss that takes at most `bits`; `reached` is the loss of any that does."""
    # A choice that alone loses more is never taken. HiGHS stops within 1e-6 of the optimum, in absolute terms: losses
    # go in as shares of `reached`.
    most = reached * (1 + 1e-9)
    flat = [(owner, *choice) for owner, rungs in enumerate(choices) for choice in rungs if choice[2] <= most]
    owners, ks, costs, losses = zip(*flat, strict=True)
    one_each = sparse.csr_array((np.ones(len(flat)), (owners, np.arange(len(flat)))))
    result = optimize.milp(
        np.array(losses) / (reached or 1.0),
        integrality=np.ones(len(flat)),
        bounds=optimize.Bounds(0, 1),
        constraints=[
            optimize.LinearConstraint(one_each, 1, 1),
            optimize.LinearConstraint(np.array([costs], dtype=float), ub=bits),
        ],
        options={"mip_rel_gap": 0},
    )
    return tuple(ks[place] for place in np.flatnonzero(result.x > 0.5))


METHOD = ByK(choose, combinations)
