import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import qmc

from wshare.models.zoo import tiny
from wshare.quantize.cost import index_bits, layer_bits
from wshare.search.by_k.greedy import greedy_path
from wshare.search.by_k.milp import allocate as allocate_within
from wshare.search.by_k.milp import choices_of
from wshare.search.by_k.problem import Combination, Layer, Problem, Profiled, ladder, loss_per_bit, narrower
from wshare.search.by_k.slope import allocate, predicted_loss
from wshare.search.by_k.two_step import filter_candidates
from wshare.search.method import Artifacts, SettingError
from wshare.search.methods import METHODS

OPTIONS = {
    "greedy": {"evaluations": 12},
    "milp": {"evaluations": 12},
    "slope": {"evaluations": 24},
    "two_step": {"samples": 24, "population": 20, "generations": 15, "rescored": 10, "seed": None},
    "uniform": {"max_bits": 6},
}
CANDIDATES = (2, 3, 4, 6, 8, 12, 16, 32)


class Additive:
    """A network whose loss is a known sum over layers: sensitivity times weights over k squared.

    It counts what is measured, as the stage does: each distinct combination once.
    """

    def __init__(self, weights: list[int], sensitivities: list[float], k_max: int = 32):
        self.measured: list[Combination] = []
        self.losses = [s * w / np.arange(1, k_max + 1) ** 2 for w, s in zip(weights, sensitivities, strict=True)]
        self.layers = tuple(
            Layer(
                f"layer{i}",
                w,
                w / np.arange(1, k_max + 1) ** 2,
                tuple(Profiled(k, w / k**2, 1 - loss[k - 1], loss[k - 1], 10) for k in CANDIDATES if k <= k_max),
            )
            for i, (w, loss) in enumerate(zip(weights, self.losses, strict=True))
        )

    def loss(self, combination: Combination) -> float:
        return sum(0.0 if k is None else loss[k - 1] for loss, k in zip(self.losses, combination, strict=True))

    def problem(self, target: float, seed: int = 0) -> Problem:
        def measure(combination: Combination) -> dict:
            if combination not in self.measured:
                self.measured.append(combination)
            quality = 1 - self.loss(combination)
            return {"relative_quality": quality, "low": quality, "kl": self.loss(combination)}

        return Problem(self.layers, target, seed, measure, lambda row: row["low"] >= target)


def search(network: Additive, name: str, target: float, seed: int = 0, **options: int) -> Combination:
    return METHODS[name].load().choose(network.problem(target, seed), OPTIONS[name] | options)


def three_layers(**options: int) -> Additive:
    return Additive([100, 3000, 800], [3e-3, 1e-4, 5e-4], **options)


def hull_steps(weights: int, loss: np.ndarray) -> list[int]:
    """Bits between neighbouring corners of the lower convex hull of one layer's loss over its bits."""
    points = [(layer_bits(weights, k), loss[k - 1]) for k in range(1, len(loss) + 1)]
    hull: list[tuple[int, float]] = []
    for point in sorted({*points, (32 * weights, 0.0)}):
        if hull and point[1] >= hull[-1][1]:
            continue
        while len(hull) > 1 and (hull[-1][1] - hull[-2][1]) * (point[0] - hull[-2][0]) >= (point[1] - hull[-2][1]) * (
            hull[-1][0] - hull[-2][0]
        ):
            hull.pop()
        hull.append(point)
    return [second[0] - first[0] for first, second in itertools.pairwise(hull)]


LAYERS = st.lists(
    st.tuples(st.integers(20, 5000), st.floats(1e-6, 1e-3)), min_size=1, max_size=3, unique_by=lambda layer: layer[0]
)


@given(LAYERS, st.floats(0.5, 0.9999))
def test_slope_is_within_one_step_of_the_best_of_all_combinations(layers, target):
    """With a convex loss, slopes reach all corners of the hull; the optimum lies at most one step below."""
    network = Additive(*map(list, zip(*layers, strict=True)), k_max=16)
    chosen = search(network, "slope", target)
    problem = network.problem(target)
    bits = [[*(layer_bits(w, k) for k in range(1, 17)), 32 * w] for w, _ in layers]
    losses = [[*loss, 0.0] for loss in network.losses]
    total_bits, total_loss = (sum(np.ix_(*map(np.array, rows))) for rows in (bits, losses))
    best = total_bits[1 - total_loss >= target].min()
    step = max(step for (w, _), loss in zip(layers, network.losses, strict=True) for step in hull_steps(w, loss))
    assert problem.meets(chosen)
    assert best <= problem.bits(chosen) <= best + step


@given(LAYERS, st.floats(0.5, 0.9999), st.integers(1, 30))
def test_slope_measures_no_more_than_it_may_and_returns_the_smallest_it_met(layers, target, evaluations):
    network = Additive(*map(list, zip(*layers, strict=True)))
    chosen = search(network, "slope", target, evaluations=evaluations)
    problem = network.problem(target)
    assert len(network.measured) <= evaluations
    assert chosen in network.measured
    met = [combination for combination in network.measured if problem.meets(combination)]
    assert not met or problem.bits(chosen) == min(map(problem.bits, met))


@given(LAYERS, st.floats(1e-9, 1e-1))
def test_a_slope_gives_each_layer_the_k_of_least_loss_and_cost_of_bits(layers, slope):
    network = Additive(*map(list, zip(*layers, strict=True)))
    bits = [np.array([layer_bits(layer.weights, k + 1) for k in range(32)]) for layer in network.layers]
    found = allocate(network.layers, network.losses, bits, slope)
    for layer, loss, k in zip(network.layers, network.losses, found, strict=True):
        choices = [*range(1, 33), None]
        total = {k: (0.0 if k is None else loss[k - 1]) + slope * layer_bits(layer.weights, k) for k in choices}
        assert total[k] == min(total.values())


@given(LAYERS, st.floats(0.5, 0.9999))
def test_slope_spends_no_evaluation_on_what_it_has_measured_already(layers, target):
    """With as many evaluations as there are different combinations on its way it comes just as far."""
    free, bound = (Additive(*map(list, zip(*layers, strict=True)), k_max=8) for _ in range(2))
    chosen = search(free, "slope", target, evaluations=1000)
    assert search(bound, "slope", target, evaluations=len(free.measured)) == chosen
    assert bound.measured == free.measured


def test_slope_comes_near_the_optimum_by_bisection_alone():
    """Eight layers, and evaluations for no more than the halvings: single steps alone would be too many."""
    network = Additive([100, 3000, 800, 5000, 1500, 400, 2000, 700], [3e-3, 1e-4, 5e-4, 2e-5, 1e-4, 1e-3, 3e-4, 2e-3])
    problem = network.problem(0.9)
    best = problem.bits(search(network, "milp", 0.9, evaluations=60))
    assert problem.bits(search(network, "slope", 0.9, evaluations=14)) < 1.02 * best


def test_slope_narrows_one_of_two_equal_layers_where_both_are_too_much():
    network = Additive([1000, 1000], [1e-3, 1e-3], k_max=4)
    target = 1 - (network.losses[0][1] + network.losses[1][3]) - 1e-9
    assert sorted(search(network, "slope", target)) == [2, 4]


def test_slope_narrows_nothing_where_nothing_meets_the_target():
    """Of slopes that all fail it measures the combinations there are at the end of the range, and no more."""
    network = three_layers()
    search(network, "slope", 2.0, evaluations=200)
    assert len(network.measured) == 2


def test_slope_gives_more_bits_to_sensitive_layers():
    network = Additive([1000, 1000], [1e-5, 1e-3])
    first, second = search(network, "slope", 0.99)
    assert second > first


def test_slope_keeps_a_layer_dense_where_sharing_costs_more_bits_than_it_saves():
    """A layer of five weights with sixteen distinct values' worth of codebook is larger shared than dense."""
    network = Additive([5, 4000], [10.0, 1e-6])
    assert search(network, "slope", 0.999)[0] is None


def test_a_dense_layer_is_narrowed_to_the_widest_index_that_saves_bits():
    """20 weights take 640 bits dense, 1124 with 32 values and 592 with 16."""
    network = Additive([20, 4000], [1e-3, 1e-3])
    assert [narrower(layer, None) for layer in network.layers] == [16, 32]
    assert [narrower(layer, k) for layer, k in zip(network.layers, (2, 5), strict=True)] == [None, 4]
    slope = loss_per_bit(network.layers[1], network.losses[1], 5, 4)
    assert slope == pytest.approx(4 * (1 / 16 - 1 / 25) / (4000 + 32))


def test_a_ladder_holds_the_widths_that_save_bits_and_its_largest_rung_is_clamped():
    many, few = (Additive([weights], [1e-3], k_max=10).layers[0] for weights in (4000, 12))
    assert ladder(many) == [2, 4, 8, 10, None]
    assert [narrower(many, k) for k in (None, 10, 9, 8, 2)] == [10, 8, 8, 4, None]
    # Twelve weights: 384 bits dense, 368 with ten values; nine weights: 288 bits dense, 283 with eight.
    assert ladder(few) == [2, 4, 8, 10, None]
    assert ladder(Additive([9], [1e-3], k_max=10).layers[0]) == [2, 4, 8, None]
    assert ladder(Additive([9], [1e-3], k_max=1).layers[0]) == [1, None]


def every_combination(problem: Problem) -> list[Combination]:
    return list(itertools.product(*map(ladder, problem.layers)))


@pytest.mark.slow
@settings(max_examples=40)
@given(LAYERS, st.floats(0.5, 0.9999))
def test_milp_finds_the_smallest_of_all_combinations(layers, target):
    """Where predictions are exact and evaluations many, nothing smaller meets the target."""
    network = Additive(*map(list, zip(*layers, strict=True)))
    chosen = search(network, "milp", target, evaluations=60)
    problem = network.problem(target)
    assert problem.meets(chosen)
    met = [combination for combination in every_combination(problem) if 1 - network.loss(combination) >= target]
    assert problem.bits(chosen) == min(map(problem.bits, met))


@pytest.mark.slow
@pytest.mark.parametrize("target", np.linspace(0.7, 0.999, 12))
def test_milp_skips_no_budget_where_combinations_lie_close_together(target):
    network = Additive([100, 3000, 800, 5000], [3e-3, 1e-4, 5e-4, 2e-5])
    problem = network.problem(target)
    met = [combination for combination in every_combination(problem) if 1 - network.loss(combination) >= target]
    assert problem.bits(search(network, "milp", target, evaluations=60)) == min(map(problem.bits, met))


@pytest.mark.parametrize("scale", [1.0, 1e-9])
def test_milp_loses_least_at_every_budget_of_bits(scale):
    """However small the losses: a solver's tolerances are absolute."""
    network = Additive([100, 3000, 800, 5000], [scale * s for s in (3e-3, 1e-4, 5e-4, 2e-5)])
    problem = network.problem(0.9)
    everything = [(problem.bits(c), network.loss(c)) for c in every_combination(problem)]
    choices = [choices_of(layer) for layer in network.layers]
    smallest, largest = min(everything)[0], max(everything)[0]
    for bits in np.geomspace(smallest, largest, 15).round().astype(int).tolist():
        within = [loss for size, loss in everything if size <= bits]
        found = allocate_within(choices, bits, max(within))
        assert problem.bits(found) <= bits
        assert network.loss(found) == pytest.approx(min(within), rel=1e-6)


def test_milp_reaches_a_combination_that_no_price_does():
    """Two equal layers of which only one can afford the wider index: one slope moves both at once."""
    network = Additive([1000, 1000], [1e-3, 1e-3], k_max=4)
    target = 1 - (network.losses[0][1] + network.losses[1][3]) - 1e-9
    bits = [np.array([layer_bits(1000, k) for k in range(1, 5)])] * 2
    at_slopes = {allocate(network.layers, network.losses, bits, slope) for slope in np.geomspace(1e-9, 1e-2, 200)}
    chosen = search(network, "milp", target, evaluations=40)
    assert sorted(chosen) == [2, 4]
    assert chosen not in at_slopes


@given(LAYERS)
def test_a_greedy_path_narrows_every_layer_step_by_step_and_cheapest_first(layers):
    network = Additive(*map(list, zip(*layers, strict=True)))
    problem = network.problem(0.9)
    path = greedy_path(problem)
    for old, new in itertools.pairwise(path):
        slopes = [
            loss_per_bit(layer, loss, k, narrower(layer, k))
            for layer, loss, k in zip(network.layers, network.losses, old, strict=True)
            if narrower(layer, k) is not None
        ]
        (place,) = (place for place, pair in enumerate(zip(old, new, strict=True)) if pair[0] != pair[1])
        assert new[place] == narrower(network.layers[place], old[place])
        slope = loss_per_bit(network.layers[place], network.losses[place], old[place], new[place])
        assert slope <= min(slopes) * (1 + 1e-9)
    losses = list(map(network.loss, path))
    assert losses == sorted(losses)
    for place, layer in enumerate(problem.layers):
        steps = [k for k, _ in itertools.groupby(combination[place] for combination in path)]
        # Dense is the start where 32 values take no fewer bits.
        assert steps == ladder(layer)[::-1][32 in ladder(layer) :]


def test_a_greedy_path_starts_at_eight_bits_or_dense_where_that_is_smaller():
    network = Additive([100, 3000, 100_000], [1e-3] * 3, k_max=1000)
    assert greedy_path(network.problem(0.9))[0] == (None, 256, 256)


@given(LAYERS, st.floats(0.5, 0.9999))
def test_greedy_returns_the_smallest_of_its_path_that_meets_the_target(layers, target):
    network = Additive(*map(list, zip(*layers, strict=True)))
    problem = network.problem(target)
    chosen = search(network, "greedy", target)
    path = greedy_path(problem)
    met = [combination for combination in path if 1 - network.loss(combination) >= target]
    assert chosen == (min(met, key=problem.bits) if met else path[0])


@pytest.mark.slow
@settings(max_examples=40)
@given(LAYERS, st.floats(0.5, 0.9999), st.integers(1, 8), st.sampled_from(["greedy", "milp"]))
def test_milp_and_greedy_measure_no_more_than_they_may_and_return_the_smallest_they_met(
    layers, target, evaluations, name
):
    network = Additive(*map(list, zip(*layers, strict=True)))
    chosen = search(network, name, target, evaluations=evaluations)
    problem = network.problem(target)
    assert 0 < len(network.measured) <= evaluations == METHODS[name].load().combinations({"evaluations": evaluations})
    met = [combination for combination in network.measured if problem.meets(combination)]
    assert problem.bits(chosen) == min(map(problem.bits, met)) if met else chosen in network.measured


def test_predicted_loss_meets_the_profile_and_follows_the_inertia_beyond_it():
    inertia = 1000.0 / np.arange(1, 65) ** 2
    probes = tuple(Profiled(k, inertia[k - 1], 1.0, kl, 10) for k, kl in ((4, 0.5), (8, 0.1), (16, 0.03)))
    loss = predicted_loss(Layer("a", 1000, inertia, probes))
    assert [loss[k - 1] for k in (4, 8, 16)] == pytest.approx([0.5, 0.1, 0.03])
    assert loss[63] == pytest.approx(0.03 * inertia[63] / inertia[15])
    assert loss[0] == pytest.approx(0.5 * inertia[0] / inertia[3])
    assert (np.diff(loss) < 0).all()


def test_predicted_loss_of_lossless_sharing_and_of_a_layer_without_effect_is_zero():
    inertia = np.array([4.0, 1.0, 0.0])
    probes = (Profiled(2, 1.0, 1.0, 0.2, 10), Profiled(3, 0.0, 1.0, 0.0, 10))
    assert predicted_loss(Layer("a", 9, inertia, probes))[2] == 0.0
    silent = (Profiled(2, 1.0, 1.0, 0.0, 10),)
    assert not predicted_loss(Layer("a", 9, inertia, silent)).any()


def test_a_higher_price_never_buys_more_bits():
    network = three_layers()
    bits = [np.array([layer_bits(layer.weights, k + 1) for k in range(32)]) for layer in network.layers]
    problem = network.problem(0.9)
    sizes = [
        problem.bits(allocate(network.layers, network.losses, bits, slope)) for slope in np.geomspace(1e-12, 1e3, 60)
    ]
    assert (np.diff(sizes) <= 0).all()
    assert sizes[0] > sizes[-1]


@pytest.mark.filterwarnings("ignore:invalid value encountered in divide")
@pytest.mark.parametrize("name", OPTIONS)
def test_nothing_feasible_gives_the_best_quality_measured(name):
    network = three_layers()
    chosen = search(network, name, target=2.0)
    assert network.loss(chosen) == min(map(network.loss, network.measured))


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_the_choice_is_the_smallest_measured_that_meets_the_target(name):
    network = three_layers()
    problem = network.problem(0.97)
    chosen = search(network, name, 0.97)
    met = [combination for combination in network.measured if problem.meets(combination)]
    assert 0 < len(met) < len(network.measured)
    assert problem.bits(chosen) == min(map(problem.bits, met))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:invalid value encountered in divide")
@pytest.mark.parametrize("target", [0.5, 0.97, 0.9999])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_search_stays_within_its_budget(name, target):
    network = three_layers()
    search(network, name, target)
    assert 0 < len(network.measured) <= METHODS[name].load().combinations(OPTIONS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_the_same_seed_measures_the_same_in_the_same_order(name):
    first, second = three_layers(), three_layers()
    assert search(first, name, 0.97, seed=4) == search(second, name, 0.97, seed=4)
    assert first.measured == second.measured


@pytest.mark.parametrize("name", OPTIONS)
def test_a_network_of_one_layer_with_few_distinct_weights_can_be_searched(name):
    network = Additive([50], [1e-4], k_max=3)
    chosen = search(network, name, 0.5)
    assert network.problem(0.5).meets(chosen)
    assert chosen[0] is None or chosen[0] <= 3


def test_uniform_measures_every_width_and_clamps_to_the_distinct_weights():
    network = three_layers(k_max=10)
    chosen = search(network, "uniform", 0.9, max_bits=6)
    assert network.measured == [(k,) * 3 for k in (2, 4, 8, 10)]
    assert len(set(chosen)) == 1


@pytest.mark.slow
def test_two_step_measures_the_samples_and_the_front_and_no_more():
    network = three_layers()
    search(network, "two_step", 0.97, samples=9, rescored=4)
    assert len(network.measured) >= 9
    assert len(network.measured) <= 9 + 4
    candidates = {k for combination in network.measured for k in combination}
    assert candidates <= set(CANDIDATES)


def test_two_step_samples_by_each_of_three_designs():
    """A third each of nine: four layers with eight candidates, so that no two designs agree on all."""
    network = Additive([1000] * 4, [1e-9] * 4)
    search(network, "two_step", 0.9, seed=3, samples=9, rescored=1)
    designs = [qmc.LatinHypercube, qmc.Halton, qmc.Sobol]
    drawn = [design(4, rng=np.random.default_rng(3)).random(4 if design is qmc.Sobol else 3)[:3] for design in designs]
    candidates = [filter_candidates(layer, 0.9) for layer in network.layers]
    expected = {
        tuple(rows[int(share * len(rows))].k for rows, share in zip(candidates, point, strict=True))
        for point in np.concatenate(drawn)
    }
    assert len(expected) > 6
    assert expected <= {*network.measured}
    assert len({*network.measured} - expected) <= 1


@pytest.mark.slow
def test_two_step_with_other_seeds_samples_elsewhere():
    first, second = three_layers(), three_layers()
    search(first, "two_step", 0.97, seed=0)
    search(second, "two_step", 0.97, seed=1)
    assert first.measured != second.measured


@pytest.mark.slow
def test_two_step_takes_a_seed_of_its_own():
    own, configured = three_layers(), three_layers()
    METHODS["two_step"].load().choose(own.problem(0.97, seed=0), OPTIONS["two_step"] | {"seed": 1})
    search(configured, "two_step", 0.97, seed=1)
    assert own.measured == configured.measured


@pytest.mark.filterwarnings("ignore:invalid value encountered in divide")
def test_two_step_copes_with_layers_that_have_one_candidate_left():
    network = three_layers()
    layers = tuple(replace(layer, profile=layer.profile[-1:]) for layer in network.layers)
    problem = replace(network.problem(0.5), layers=layers)
    assert METHODS["two_step"].load().choose(problem, OPTIONS["two_step"]) == (32, 32, 32)


@pytest.mark.slow
def test_two_step_is_near_the_optimum_of_its_candidates():
    """Six layers whose loss is linear in their inertia: 20 samples teach the regression what the front needs."""
    network = Additive([100, 3000, 800, 5000, 1500, 400], [3e-3, 1e-4, 5e-4, 2e-5, 1e-4, 1e-3])
    problem = network.problem(0.97)
    kept = [[row.k for row in filter_candidates(layer, 0.97)] for layer in network.layers]
    best = min(problem.bits(combination) for combination in itertools.product(*kept) if problem.meets(combination))
    network.measured.clear()
    chosen = search(network, "two_step", 0.97, samples=20, population=40, generations=30, rescored=20)
    assert best <= problem.bits(chosen) <= 1.1 * best
    assert len(network.measured) < 0.1 * np.prod([len(ks) for ks in kept])


def profiled(k: int, accuracy: float, kl: float = 0.1) -> Profiled:
    return Profiled(k, 1.0, accuracy, kl, 10)


def test_candidates_are_the_best_of_each_index_width_that_meets_the_target():
    rows = (
        profiled(2, 0.5),
        profiled(3, 0.992),
        profiled(4, 0.991),
        profiled(6, 0.995, kl=0.2),
        profiled(8, 0.995, kl=0.1),
        profiled(12, 0.98),
        profiled(16, 0.97),
        profiled(32, 1.0),
    )
    kept = filter_candidates(Layer("a", 10, np.ones(32), rows), 0.99)
    assert [row.k for row in kept] == [3, 8, 32]
    assert [index_bits(row.k) for row in kept] == [2, 3, 5]


def test_a_layer_that_never_meets_the_target_alone_keeps_its_best_candidate():
    rows = (profiled(2, 0.5), profiled(4, 0.9, kl=0.2), profiled(8, 0.9, kl=0.1))
    assert [row.k for row in filter_candidates(Layer("a", 10, np.ones(8), rows), 0.99)] == [8]


def test_analytic_bits_are_those_of_the_paper():
    assert [index_bits(k) for k in (1, 2, 3, 4, 5, 256, 257, 4096)] == [0, 1, 2, 2, 3, 8, 9, 12]
    assert layer_bits(1000, 16) == 4 * 1000 + 32 * 16
    assert layer_bits(1000, 1) == 32
    assert layer_bits(1000, None) == 32 * 1000
    assert three_layers().problem(0.9).bits((2, None, 16)) == 100 + 64 + 32 * 3000 + 4 * 800 + 512


@pytest.mark.parametrize("k", [0, -3, True, 2.0, "4"])
def test_a_k_that_is_no_number_of_shared_values_is_refused(k):
    artifacts = Artifacts(tiny(), None, ("conv",))
    with pytest.raises(SettingError, match=f"layer 'conv': k {k!r}: must be 1 or more, or null"):
        METHODS["uniform"].load().realise(artifacts, {"conv": {"k": k}})
