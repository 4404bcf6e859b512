"""One k for all layers: what a user gets without any search."""

from wshare.search.by_k.problem import Combination, Problem

USES_PROFILE = False


def budget(options: dict) -> int:
    """Combinations measured at most."""
    return options["max_bits"]


def run(problem: Problem, options: dict) -> Combination:
    """Smallest of k = 2, 4, ..., 2^max_bits that meets the target; all of them are measured."""
    ks = [2**bits for bits in range(1, options["max_bits"] + 1)]
    return problem.smallest_met([problem.clamped([k] * len(problem.layers)) for k in ks])
