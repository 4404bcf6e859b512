import itertools
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import wshare.stages.search as stage
from wshare.artifacts.clusters import Clusters, cluster_hashes, write_clusters
from wshare.artifacts.outputs import write_outputs
from wshare.calibration.sensitivity import COLUMNS, profile, row
from wshare.errors import UserError
from wshare.evaluation.predict import predict
from wshare.files.journal import Journal
from wshare.files.sealed import read_json, write_json
from wshare.files.tables import read_sealed, write_sealed
from wshare.models.zoo import tiny
from wshare.quantize.cost import index_bits, layer_bits
from wshare.quantize.kmeans import sweep
from wshare.search import method
from wshare.search.by_k.greedy import greedy_path
from wshare.search.by_k.milp import allocate as allocate_within
from wshare.search.by_k.milp import choices_of
from wshare.search.by_k.problem import Combination, Layer, Measurement, Problem, Profiled, ladder, narrower
from wshare.search.by_k.slope import _narrower, allocate, predicted_loss
from wshare.search.by_k.two_step import filter_candidates
from wshare.tasks.classification import Score, score

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
        def measure(combination: Combination) -> Measurement:
            if combination not in self.measured:
                self.measured.append(combination)
            quality = 1 - self.loss(combination)
            return Measurement(quality, quality, quality, self.loss(combination), quality)

        return Problem(self.layers, target, seed, measure)


def search(network: Additive, name: str, target: float, seed: int = 0, **options: int) -> Combination:
    return method(name).run(network.problem(target, seed), OPTIONS[name] | options)


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
    """With a convex loss, prices reach all corners of the hull; the optimum lies at most one step below."""
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
    problem = network.problem(0.9)
    assert list(_narrower(problem, network.losses, (None, None))) == [(16, None), (None, 32)]
    moves = _narrower(problem, network.losses, (2, 5))
    assert moves == {(2, 4): pytest.approx(4 * (1 / 16 - 1 / 25) / (4000 + 32))}


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
    """Two equal layers of which only one can afford the wider index: one price moves both at once."""
    network = Additive([1000, 1000], [1e-3, 1e-3], k_max=4)
    target = 1 - (network.losses[0][1] + network.losses[1][3]) - 1e-9
    bits = [np.array([layer_bits(1000, k) for k in range(1, 5)])] * 2
    priced = {allocate(network.layers, network.losses, bits, price) for price in np.geomspace(1e-9, 1e-2, 200)}
    chosen = search(network, "milp", target, evaluations=40)
    assert sorted(chosen) == [2, 4]
    assert chosen not in priced


@given(LAYERS)
def test_a_greedy_path_narrows_every_layer_step_by_step_and_cheapest_first(layers):
    network = Additive(*map(list, zip(*layers, strict=True)))
    problem = network.problem(0.9)
    path = greedy_path(problem)
    for old, new in itertools.pairwise(path):
        prices = _narrower(problem, network.losses, old)
        assert prices[new] <= min(prices.values()) * (1 + 1e-9)
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


@settings(max_examples=40)
@given(LAYERS, st.floats(0.5, 0.9999), st.integers(1, 8), st.sampled_from(["greedy", "milp"]))
def test_milp_and_greedy_measure_no_more_than_they_may_and_return_the_smallest_they_met(
    layers, target, evaluations, name
):
    network = Additive(*map(list, zip(*layers, strict=True)))
    chosen = search(network, name, target, evaluations=evaluations)
    problem = network.problem(target)
    assert 0 < len(network.measured) <= evaluations == method(name).budget({"evaluations": evaluations})
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
        problem.bits(allocate(network.layers, network.losses, bits, price)) for price in np.geomspace(1e-12, 1e3, 60)
    ]
    assert (np.diff(sizes) <= 0).all()
    assert sizes[0] > sizes[-1]


@pytest.mark.filterwarnings("ignore:invalid value encountered in divide")
@pytest.mark.parametrize("name", OPTIONS)
def test_nothing_feasible_gives_the_best_quality_measured(name):
    network = three_layers()
    chosen = search(network, name, target=2.0)
    assert network.loss(chosen) == min(map(network.loss, network.measured))


@pytest.mark.parametrize("name", OPTIONS)
def test_the_choice_is_the_smallest_measured_that_meets_the_target(name):
    network = three_layers()
    problem = network.problem(0.97)
    chosen = search(network, name, 0.97)
    met = [combination for combination in network.measured if problem.meets(combination)]
    assert 0 < len(met) < len(network.measured)
    assert problem.bits(chosen) == min(map(problem.bits, met))


@pytest.mark.filterwarnings("ignore:invalid value encountered in divide")
@pytest.mark.parametrize("target", [0.5, 0.97, 0.9999])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_search_stays_within_its_budget(name, target):
    network = three_layers()
    search(network, name, target)
    assert 0 < len(network.measured) <= method(name).budget(OPTIONS[name])


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


def test_two_step_measures_the_samples_and_the_front_and_no_more():
    network = three_layers()
    search(network, "two_step", 0.97, samples=9, rescored=4)
    assert len(network.measured) >= 9
    assert len(network.measured) <= 9 + 4
    candidates = {k for combination in network.measured for k in combination}
    assert candidates <= set(CANDIDATES)


def test_two_step_with_other_seeds_samples_elsewhere():
    first, second = three_layers(), three_layers()
    search(first, "two_step", 0.97, seed=0)
    search(second, "two_step", 0.97, seed=1)
    assert first.measured != second.measured


def test_two_step_takes_a_seed_of_its_own():
    own, configured = three_layers(), three_layers()
    method("two_step").run(own.problem(0.97, seed=0), OPTIONS["two_step"] | {"seed": 1})
    search(configured, "two_step", 0.97, seed=1)
    assert own.measured == configured.measured


@pytest.mark.filterwarnings("ignore:invalid value encountered in divide")
def test_two_step_copes_with_layers_that_have_one_candidate_left():
    network = three_layers()
    layers = tuple(replace(layer, profile=layer.profile[-1:]) for layer in network.layers)
    problem = replace(network.problem(0.5), layers=layers)
    assert method("two_step").run(problem, OPTIONS["two_step"]) == (32, 32, 32)


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


def test_an_unknown_method_is_an_error():
    with pytest.raises(ValueError, match="no search method 'greed'"):
        method("greed")


def test_analytic_bits_are_those_of_the_paper():
    assert [index_bits(k) for k in (1, 2, 3, 4, 5, 256, 257, 4096)] == [0, 1, 2, 2, 3, 8, 9, 12]
    assert layer_bits(1000, 16) == 4 * 1000 + 32 * 16
    assert layer_bits(1000, 1) == 32
    assert layer_bits(1000, None) == 32 * 1000
    assert three_layers().problem(0.9).bits((2, None, 16)) == 100 + 64 + 32 * 3000 + 4 * 800 + 512


HEADER = {"settings": {"seed": 0}, "inputs": ["a", "b"]}
ENTRIES = {(2, None, 16): {"top1": 0.1, "low": 0.3}, (4, 4, 4): {"top1": 1 / 3, "low": -0.0}}


def filled(path: Path) -> str:
    with Journal(path, HEADER) as journal:
        for combination, measurement in ENTRIES.items():
            journal.append(combination, measurement)
            # On disk at once: a kill after this line loses nothing.
            assert json.loads(path.read_text().splitlines()[-1])[:2] == [list(combination), measurement]
    return path.read_text()


def test_a_journal_gives_back_what_was_measured(tmp_path):
    path = tmp_path / "journal.jsonl"
    text = filled(path)
    with Journal(path, HEADER) as journal:
        assert journal.entries() == ENTRIES
        assert len(journal) == 2
        assert (2, None, 16) in journal
        assert (2, 2, 16) not in journal
        assert journal[4, 4, 4]["top1"] == 1 / 3
    assert path.read_text() == text


def test_a_journal_cut_off_anywhere_keeps_its_whole_lines(tmp_path):
    path = tmp_path / "journal.jsonl"
    text = filled(path)
    ends = [match.end() for match in re.finditer("\n", text)]
    for length in {0, len(text), *range(3, len(text), 7), *(end + near for end in ends for near in (-1, 0, 1))}:
        path.write_text(text[:length])
        with Journal(path, HEADER) as journal:
            whole = sum(end <= length for end in ends)
            assert list(journal.entries()) == list(ENTRIES)[: max(0, whole - 1)]
            journal.append((1, 1, 1), {"top1": 0.5})
        with Journal(path, HEADER) as journal:
            assert (1, 1, 1) in journal


@pytest.mark.parametrize("other", [HEADER | {"inputs": ["a", "c"]}, HEADER | {"settings": {"seed": 1}}, {}])
def test_a_journal_of_other_settings_or_inputs_is_started_anew(tmp_path, other):
    path = tmp_path / "journal.jsonl"
    filled(path)
    with Journal(path, other) as journal:
        assert journal.entries() == {}
    with Journal(path, HEADER) as journal:
        assert journal.entries() == {}


def test_the_order_of_a_header_does_not_matter(tmp_path):
    path = tmp_path / "journal.jsonl"
    filled(path)
    with Journal(path, dict(reversed(HEADER.items()))) as journal:
        assert len(journal) == 2


class Study:
    """The files that the stage `search` reads, of a tiny network on random images."""

    def __init__(self, folder: Path, images: Callable, monkeypatch: pytest.MonkeyPatch):
        torch.manual_seed(0)
        self.model, self.folder = tiny().eval(), folder
        sample = images(80)
        reference = predict(self.model, sample)
        names = ["conv", "pointwise", "fc"]
        layers, made_from = [], {"model": "0" * 64, "images": sample.fingerprint}
        for name in names:
            weight = self.model.get_submodule(name).weight.detach().numpy()
            layers.append(Clusters(name, weight.shape, (2, 4, 16), "none", sweep(weight, k_max=16)))
            write_clusters(folder / f"{name}.h5", layers[-1], {}, made_from)
        original = score(reference, reference, sample.labels)
        rows = [row(probe, original) for probe in profile(self.model, layers, sample, reference)]
        shared_from = cluster_hashes([folder / f"{name}.h5" for name in names], layers)
        write_sealed(folder / "sensitivity.csv", COLUMNS, rows, made_from | shared_from)
        write_outputs(folder / "baseline.h5", reference, sample, made_from["model"])
        write_json(folder / "model.json", {"name": "tiny", "sha256": made_from["model"]})
        (folder / "weights").write_bytes(b"weights")
        self.files = {
            "spec": folder / "model.json",
            "weights": folder / "weights",
            "images": sample.path,
            "baseline": folder / "baseline.h5",
            "clusters": [folder / f"{name}.h5" for name in names],
            "sensitivity": folder / "sensitivity.csv",
            "code": "code",
            "journal": folder / "journal.jsonl",
            "front": folder / "front.csv",
            "recipe": folder / "recipe.json",
        }
        self.forwarded, self.stop_after = 0, None
        monkeypatch.setattr(stage, "read_model", lambda *_: self.model)
        monkeypatch.setattr(stage, "predict", self.predict)

    def predict(self, *arguments: object) -> np.ndarray:
        if self.forwarded == self.stop_after:
            raise KeyboardInterrupt
        self.forwarded += 1
        return predict(*arguments)

    def run(self, name: str, **settings: object) -> dict:
        self.forwarded = 0
        default = {"method": name, "options": OPTIONS[name], "quality_target": 0.7, "confidence": 0.5, "seed": 0}
        stage.search(default | settings, **self.files, threads=1, gpus=0)
        return read_json(self.files["recipe"])


@pytest.fixture
def study(tmp_path, random_images, monkeypatch) -> Study:
    return Study(tmp_path, random_images, monkeypatch)


@pytest.mark.parametrize("name", OPTIONS)
def test_each_distinct_combination_is_forwarded_once_and_counted(study, name):
    recipe = study.run(name)
    assert recipe["evaluations"] == study.forwarded
    # The uniform search does not look at the profile: three layers with three candidates each.
    profiled = 0 if name == "uniform" else 80 * 9
    assert recipe["images_forwarded"] == {"search": 80 * study.forwarded, "profile": profiled}
    front, _ = read_sealed(study.files["front"])
    assert list(front[0]) == [*stage.FRONT, "conv", "pointwise", "fc"]
    assert len(front) == study.forwarded
    assert [line["chosen"] for line in front].count("1") == 1
    (chosen,) = [line for line in front if line["chosen"] == "1"]
    ks = {layer: entry["k"] for layer, entry in recipe["layers"].items()}
    assert {layer: "dense" if k is None else str(k) for layer, k in ks.items()} == {key: chosen[key] for key in ks}
    bits = [int(line["bits"]) for line in front]
    assert bits == sorted(bits)
    best = -1.0
    for line in front:
        assert (line["pareto"] == "1") == (float(line["relative_quality"]) > best)
        best = max(best, float(line["relative_quality"]))


@pytest.mark.parametrize("name", OPTIONS)
def test_a_killed_search_goes_on_where_it_stopped(study, name):
    recipe = study.run(name)
    total, front = study.forwarded, study.files["front"].read_bytes()
    study.files["journal"].unlink()
    study.stop_after = 2
    with pytest.raises(KeyboardInterrupt):
        study.run(name)
    study.stop_after = None
    assert study.run(name) == recipe
    assert study.forwarded == total - 2
    assert study.files["front"].read_bytes() == front
    # And one that had come to its end measures nothing again.
    assert study.run(name) == recipe
    assert study.forwarded == 0


def test_a_search_with_other_settings_inputs_or_code_starts_anew(study):
    study.run("uniform")
    total = study.forwarded
    study.run("uniform", confidence=None)
    assert study.forwarded == total
    for key in ("spec", "sensitivity", "code"):
        path = study.files[key]
        if key == "sensitivity":
            rows, made_from = read_sealed(path)
            rows[0]["kl"] = "0.5"
            write_sealed(path, COLUMNS, rows, made_from)
        elif key == "code":
            study.files[key] = "other code"
        else:
            path.write_text(f"{path.read_text()}\n")
        study.run("uniform", confidence=None)
        assert study.forwarded == total, key


def test_a_target_that_the_images_can_never_confirm_is_refused_before_anything_is_measured(study):
    with pytest.raises(UserError, match="80 search images cannot confirm a quality target of 0.99"):
        study.run("slope", quality_target=0.99)
    assert study.forwarded == 0
    assert study.run("slope", quality_target=0.99, confidence=None)["evaluations"] > 0


def test_weights_come_back_after_the_search(study):
    before = {name: value.clone() for name, value in study.model.state_dict().items()}
    study.run("slope")
    assert all(torch.equal(value, before[name]) for name, value in study.model.state_dict().items())


def test_a_measurement_is_the_quality_of_the_shared_network(study, random_images):
    recipe = study.run("uniform", options={"max_bits": 1}, quality_target=1.0, confidence=None)
    assert [entry["k"] for entry in recipe["layers"].values()] == [2, 2, 2]
    sample = random_images(80)
    reference = predict(study.model, sample)
    for name in ("conv", "pointwise", "fc"):
        weight = study.model.get_submodule(name).weight
        codebook = sweep(weight.detach().numpy(), k_max=16).codebook(2)
        nearest = np.abs(weight.detach().numpy()[..., None] - codebook).argmin(-1)
        weight.data = torch.from_numpy(codebook[nearest])
    expected: Score = score(predict(study.model, sample), reference, sample.labels)
    found = recipe["on_search_images"]
    assert (found["top1"], found["kl"], found["agreement"]) == (expected.top1, expected.kl, expected.agreement)
    assert found["meets_target"] == (found["low"] >= 1.0)
