"""One k for all layers: what a user gets without any search."""

from wshare.search.by_k.method import ByK
from wshare.search.by_k.problem import Combination, Problem


def combinations(options: dict) -> int:
    """Combinations measured at most."""
    return options["max_bits"]


def choose(problem: Problem, options: dict) -> Combination:
    """Smallest of k = 2, 4, ..., 2^max_bits that meets the target; all of them are measured."""
    ks = [2**bits for bits in range(1, options["max_bits"] + 1)]
    return problem.smallest_met([problem.clamped([k] * len(problem.layers)) for k in ks])


METHOD = ByK(choose, combinations, uses_profile=False)
