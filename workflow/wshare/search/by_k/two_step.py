"""The heuristic of Dupuis, Novo, O'Connor and Bosio (ASP-DAC 2022): layers first, then combinations.

Its libraries are imported where it searches: they take two seconds, and its recipes are applied without.
"""

from typing import TYPE_CHECKING

import numpy as np

from wshare.quantize.cost import index_bits
from wshare.search.by_k.method import ByK
from wshare.search.by_k.problem import Combination, Layer, Problem
from wshare.search.method import Profiled

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

# Rows [combinations, layers] of positions in each layer's list of candidates.
Positions = np.ndarray


def combinations(options: dict) -> int:
    """Combinations measured at most."""
    return options["samples"] + options["rescored"]


def choose(problem: Problem, options: dict) -> Combination:
    """Smallest combination met among the measured samples and the re-scored Pareto front.

    Step 1 filters each layer's candidates by the quality target and keeps the best of each index width.
    Step 2 measures `samples` combinations of a space-filling design, regresses quality on inertia, runs
    NSGA-II (Deb et al. 2002) with `population` and `generations` on the regression, and measures up to
    `rescored` combinations of its front.
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    candidates = [filter_candidates(layer, problem.target) for layer in problem.layers]
    seed = problem.seed if options["seed"] is None else options["seed"]
    sampled = _space_filling(candidates, options["samples"], seed)
    quality = [problem.measure(combination)["relative_quality"] for combination in _combinations(candidates, sampled)]
    model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-3, 3, 13)))
    model.fit(_inertias(candidates, sampled), quality)
    front = _front(problem, candidates, model, options, seed)
    chosen = front[np.unique(np.linspace(0, len(front) - 1, options["rescored"]).round().astype(int))]
    return problem.smallest_met(_combinations(candidates, np.concatenate([sampled, chosen])))


def filter_candidates(layer: Layer, target: float) -> list[Profiled]:
    """Best profiled k of each index width among those that meet the target alone, by ascending width.

    Where none does, the layer's best candidate of all is the only one.
    """

    def quality(row: Profiled) -> tuple[float, float]:
        return row.relative_quality, -row.kl

    by_width: dict[int, Profiled] = {}
    for row in layer.profile:
        if row.relative_quality >= target:
            width = index_bits(row.k)
            by_width[width] = max(by_width.get(width, row), row, key=quality)
    return [by_width[width] for width in sorted(by_width)] or [max(layer.profile, key=quality)]


def _space_filling(candidates: list[list[Profiled]], samples: int, seed: int) -> Positions:
    """Distinct rows of a Latin hypercube, a Sobol and a Halton design, a third of the samples each."""
    from scipy.stats import qmc

    share = -(-samples // 3)
    designs = [
        design(len(candidates), rng=np.random.default_rng(seed)).random(share)
        for design in (qmc.LatinHypercube, qmc.Halton)
    ]
    sobol = qmc.Sobol(len(candidates), rng=np.random.default_rng(seed))
    designs.append(sobol.random_base2(int(np.ceil(np.log2(share))))[:share])
    choices = np.array([len(rows) for rows in candidates])
    return np.unique((np.concatenate(designs)[:samples] * choices).astype(int), axis=0)


def _combinations(candidates: list[list[Profiled]], positions: Positions) -> list[Combination]:
    return [tuple(rows[place].k for rows, place in zip(candidates, row, strict=True)) for row in positions]


def _inertias(candidates: list[list[Profiled]], positions: Positions) -> np.ndarray:
    columns = [np.array([row.inertia for row in rows])[positions[:, i]] for i, rows in enumerate(candidates)]
    return np.stack(columns, axis=1)


def _front(
    problem: Problem, candidates: list[list[Profiled]], model: "Pipeline", options: dict, seed: int
) -> Positions:
    """Pareto front of predicted quality against bits, by ascending bits."""
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.problem import Problem as MultiObjective
    from pymoo.operators.crossover.sbx import SBX
    from pymoo.operators.mutation.pm import PM
    from pymoo.operators.repair.rounding import RoundingRepair
    from pymoo.operators.sampling.rnd import IntegerRandomSampling
    from pymoo.optimize import minimize

    class Trade(MultiObjective):
        def __init__(self):
            last = np.array([len(rows) - 1 for rows in candidates])
            super().__init__(n_var=len(candidates), n_obj=2, xl=np.zeros_like(last), xu=last, vtype=int)

        def _evaluate(self, positions, out, *args, **kwargs):
            bits = [problem.bits(combination) for combination in _combinations(candidates, positions)]
            out["F"] = np.column_stack([-model.predict(_inertias(candidates, positions)), bits])

    algorithm = NSGA2(
        pop_size=options["population"],
        sampling=IntegerRandomSampling(),
        crossover=SBX(vtype=float, repair=RoundingRepair()),
        mutation=PM(vtype=float, repair=RoundingRepair()),
        eliminate_duplicates=True,
    )
    result = minimize(Trade(), algorithm, ("n_gen", options["generations"]), seed=seed)
    return result.X[np.argsort(result.F[:, 1], kind="stable")].astype(int)


METHOD = ByK(choose, combinations)
