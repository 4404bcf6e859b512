"""The search method rate_distortion, from the stages' files to the packed file."""

import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import nn

import wshare.stages.search as stage
from wshare.artifacts.calibration import read_calibration
from wshare.artifacts.model import read_model, write_model
from wshare.artifacts.outputs import write_outputs
from wshare.artifacts.weights import read_fisher, read_layer
from wshare.calibration.statistics import input_statistics
from wshare.data.images import ImageFile
from wshare.errors import FormatError, UserError
from wshare.evaluation.predict import predict
from wshare.files.hdf5 import read_settings
from wshare.files.sealed import read_json, write_json
from wshare.files.tables import read_sealed
from wshare.models import zoo as networks
from wshare.models.description import Fetched
from wshare.models.folding import folded_norms
from wshare.models.layers import replaced
from wshare.models.norms import batch_norms
from wshare.models.state import fast, load_state
from wshare.packed.format import load_packed
from wshare.quantize.layer import Options
from wshare.search import evaluator
from wshare.search.artifacts import Files, read_artifacts
from wshare.search.methods import METHODS, packing_of
from wshare.search.rate_distortion import search as rate_distortion
from wshare.search.rate_distortion.network import Network
from wshare.search.rate_distortion.search import Space
from wshare.search.rate_distortion.slope import first_guess
from wshare.stages.arguments import Machine, ModelFiles, PackedFiles, Samples, SearchedFiles
from wshare.stages.extract_weights import extract_weights
from wshare.stages.measure_inputs import measure_inputs
from wshare.stages.pack_model import pack_model
from wshare.tasks.table import task

from ..networks import alive, state
from .test_network import at

TASK = task("classification")
CHOICES = {
    "format": "entropy",
    "max_kl": None,
    "compression_rate": None,
    "evaluations": 4,
    "probe_images": 8,
    "error_feedback": True,
    "bias_correction": True,
    "least_squares": True,
    "assignment_descent": True,
    "variance_matching": True,
    "output_scale": True,
    "fold_batch_norm": True,
    "keep_zeros": False,
    "gradient_calibration": False,
}


@pytest.fixture(autouse=True)
def _heard(caplog):
    caplog.set_level(logging.INFO)


def slope_of(recipe: dict) -> float:
    """The one slope of all layers."""
    (slope,) = {layer["slope"] for layer in recipe["layers"].values()}
    return slope


# Without the widest, which takes most of the time.
SHARED = ["conv", "depthwise", "pointwise"]


class Study:
    """A network with random weights and random images, as the stages find them, and all that they write."""

    def __init__(self, folder: Path, random_images: Callable[..., ImageFile], count: int = 24, gpus: int = 0):
        self.folder, self.count, self.gpus = folder, count, gpus
        self.images = random_images(count)
        self.write_network(0)
        model = read_model(self.spec, self.weights)
        self.outputs = predict(model, self.images)
        write_outputs(folder / "baseline.h5", self.outputs, self.images, read_json(self.spec)["sha256"])
        self.forwarded, self.stop_after, self.further = 0, None, None

    def write_network(self, seed: int) -> None:
        self.spec, self.weights = self.folder / f"model{seed}.json", self.folder / f"weights{seed}.safetensors"
        spec = {
            "name": "tiny",
            "task": "classification",
            "builder": {"kind": "embedded", "name": "tiny", "arguments": {}},
            "dropped": [],
        }
        spec["preprocessing"] = {"mean": [0.5], "std": [0.25]}
        write_model(Fetched(alive(networks.tiny(), seed), spec), self.weights, self.spec)
        layers = [{"name": name} for name in SHARED]
        write_json(self.folder / "layers.json", {"model": read_json(self.spec)["sha256"], "layers": layers})
        self.layer_weights = self.folder / f"extracted{seed}.h5"
        extract_weights(
            {"images": self.count, "seed": 0},
            self.spec,
            self.weights,
            self.folder / "layers.json",
            self.images.path,
            self.layer_weights,
            Machine(1, self.gpus),
        )

    def measure_inputs(self, images: int = 512, path: Path | None = None) -> None:
        measure_inputs(
            {"images": images, "seed": 0},
            self.spec,
            self.weights,
            self.folder / "layers.json",
            Samples(path or self.images.path, self.further),
            self.folder / "calibration.h5",
            Machine(2, self.gpus),
        )

    def needs(self) -> Files:
        return Files(self.layer_weights, self.folder / "calibration.h5")

    def search(self, threads: int = 1, batch_norm: str = "auto", **settings: object) -> dict:
        self.forwarded = 0
        choices = CHOICES | {key: value for key, value in settings.items() if key in CHOICES}
        rest = {key: value for key, value in settings.items() if key not in CHOICES}
        packing = packing_of(choices) | {"batch_norm": batch_norm}
        stage.search(
            {"method": "rate_distortion", "quality_target": 0.9, "confidence": None, "seed": 0, "options": choices}
            | {"packing": packing}
            | rest,
            ModelFiles(self.spec, self.weights),
            self.folder / "layers.json",
            Samples(self.images.path, self.further),
            self.folder / "baseline.h5",
            self.needs(),
            "code",
            self.folder / "journal.jsonl",
            SearchedFiles(*(self.folder / name for name in ("front.csv", "losses.csv", "recipe.json"))),
            Machine(threads, self.gpus),
        )
        return read_json(self.folder / "recipe.json")

    def pack(self, threads: int = 1) -> dict:
        pack_model(
            ModelFiles(self.spec, self.weights),
            self.folder / "layers.json",
            self.images.path,
            self.folder / "baseline.h5",
            self.needs(),
            self.folder / "recipe.json",
            PackedFiles(*(self.folder / name for name in ("packed.safetensors", "dense.safetensors", "sizes.json"))),
            threads,
        )
        return read_json(self.folder / "sizes.json")

    def counted(self, passes: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
        """The function, which counts its calls, and is stopped before one of them."""

        def run(*arguments: object) -> np.ndarray:
            if self.forwarded == self.stop_after:
                raise KeyboardInterrupt
            self.forwarded += 1
            return passes(*arguments)

        return run


def rows_of(path: Path) -> list[dict[str, str]]:
    return read_sealed(path)[0]


@pytest.fixture
def study(tmp_path, random_images, monkeypatch) -> Study:
    made = Study(tmp_path, random_images)
    monkeypatch.setattr(evaluator, "predict", made.counted(predict))
    monkeypatch.setattr(evaluator.Resumed, "predict", made.counted(evaluator.Resumed.predict))
    return made


def test_the_inputs_are_measured_in_two_halves(study):
    study.measure_inputs()
    names = SHARED
    halves = read_calibration(study.folder / "calibration.h5", names).halves
    assert [half["conv"].images for half in halves] == [24, 24]
    model = read_model(study.spec, study.weights)
    for half, part in zip(halves, (study.images.part(0, 12), study.images.part(12, 24)), strict=True):
        expected = input_statistics(model, part.batches(), names, 0)
        for name in names:
            np.testing.assert_array_equal(half[name].second, expected[name].second)


def test_no_more_images_are_measured_than_asked_for(study):
    study.measure_inputs(images=9)
    halves = read_calibration(study.folder / "calibration.h5", ["conv"]).halves
    assert [half["conv"].images for half in halves] == [8, 10]


def test_each_half_of_further_images_teaches_along_with_a_half_of_the_search_images(study, random_images, monkeypatch):
    study.measure_inputs()
    alone = read_calibration(study.folder / "calibration.h5", SHARED)
    further = random_images(11, seed=1)
    study.further = further.path
    study.measure_inputs()
    found = read_calibration(study.folder / "calibration.h5", SHARED)
    assert (alone.images, found.images) == (48, 70)
    assert (found.border, found.further_border) == (12, 5)
    assert read_settings(study.folder / "calibration.h5", "calibration")["further_images"] == 11
    model = read_model(study.spec, study.weights)
    own = [input_statistics(model, further.part(*part).batches(), SHARED, 0) for part in ((0, 5), (5, 11))]
    for name in SHARED:
        for half, count in enumerate((10, 12)):
            np.testing.assert_array_equal(found.halves[half][name].second, alone.halves[half][name].second)
            taught = found.taught(half)[name]
            assert (taught.images, alone.taught(half)[name].images) == (24 + count, 24)
            np.testing.assert_allclose(
                taught.second,
                (24 * alone.halves[half][name].second + count * own[half][name].second) / (24 + count),
                rtol=1e-5,
                atol=1e-6,
            )
        sums = [24 * half[name].mean for half in alone.halves] + [10 * own[0][name].mean, 12 * own[1][name].mean]
        np.testing.assert_allclose(found.together()[name].mean, sum(sums) / 70, rtol=1e-4, atol=1e-6)
    seen, network_of = [], Network.of
    monkeypatch.setattr(Network, "of", lambda *given: seen.append(given[2]) or network_of(*given))
    recipe = study.search(probe_images=0)
    assert recipe["images_forwarded"]["calibration"] == 70
    for half in (0, 1):
        np.testing.assert_array_equal(seen[half]["conv"].second, found.taught(half)["conv"].second)


@pytest.mark.slow
def test_divergence_is_measured_on_further_images_by_the_network_that_they_have_not_taught(study, random_images):
    further = random_images(10, seed=1)
    study.further = further.path
    study.measure_inputs()
    recipe = study.search(compression_rate=6, evaluations=2)
    (row,) = rows_of(study.folder / "front.csv")
    assert list(row)[-6:-3] == ["output_scale", "pooled_kl", "pooled_kl_high"]
    model, names = read_model(study.spec, study.weights), SHARED
    fisher, calibration = read_fisher(study.layer_weights), read_calibration(study.folder / "calibration.h5", names)
    folded = {name: layer["batch_norm"] for name, layer in recipe["layers"].items() if "batch_norm" in layer}
    losses = {}
    for collection, border in ((study.images, 12), (further, 5)):
        reference = predict(read_model(study.spec, study.weights), collection)
        for half, scored in ((1, (0, border)), (0, (border, len(collection)))):
            network = Network.of(model, fisher, calibration.taught(half), folded)
            changed = network.compressed(network.quantised(recipe["layers"], Options(), 1)).tensors()
            with replaced(model, changed):
                outputs = predict(model, collection.part(*scored))
            score = TASK.score(outputs, reference[slice(*scored)], None)
            losses[collection, half] = score.kl, len(outputs)
    for name, collections in (("kl", [study.images]), ("pooled_kl", [study.images, further])):
        told = [losses[collection, half] for collection in collections for half in (0, 1)]
        mean = sum(kl * count for kl, count in told) / sum(count for _, count in told)
        assert float(row[name]) == pytest.approx(mean, rel=1e-4)
    assert float(row["kl"]) != pytest.approx(float(row["pooled_kl"]), rel=1e-3)
    assert int(row["images"]) == 34
    assert recipe["on_search_images"]["kl"] == float(row["kl"])


@pytest.mark.slow
def test_a_divergence_on_further_images_alone_lowers_the_slope(study, random_images, monkeypatch):
    """Float32 outputs of the further images are made wrong, so that no network comes near them."""
    study.further = random_images(40, seed=1).path
    study.measure_inputs()
    settings = {"max_kl": 0.02, "quality_target": 0.5, "evaluations": 4, "probe_images": 0}
    alike, further_of = study.search(**settings), evaluator.Further.of

    def unlike(*given: object) -> evaluator.Further:
        found = further_of(*given)
        return replace(found, reference=np.roll(found.reference, 1, axis=1))

    monkeypatch.setattr(evaluator.Further, "of", unlike)
    (study.folder / "journal.jsonl").unlink()
    found = study.search(**settings)
    assert slope_of(found) < slope_of(alike) / 10
    assert found["on_search_images"]["kl_high"] < 0.002
    assert {float(row["pooled_kl_high"]) > 0.02 for row in rows_of(study.folder / "front.csv")} == {True}


def test_other_further_images_than_statistics_were_measured_on_are_refused(study, random_images):
    study.further = random_images(10, seed=1).path
    study.measure_inputs()
    for other in (None, random_images(10, seed=2).path):
        study.further = other
        with pytest.raises(FormatError, match="calibration.h5: made from other further images than are there now"):
            study.search()
    assert not (study.folder / "recipe.json").exists()


def test_one_further_image_is_not_enough(study, random_images):
    study.further = random_images(1, seed=1).path
    with pytest.raises(UserError, match="calibration: 1 further image; give at least two"):
        study.measure_inputs()


def test_a_part_of_the_statistics_that_is_lost_is_seen(study, random_images):
    study.further = random_images(10).path
    study.measure_inputs()
    with h5py.File(study.folder / "calibration.h5", "a") as file:
        del file["2"]
    with pytest.raises(FormatError):
        read_calibration(study.folder / "calibration.h5", SHARED)


def test_one_image_is_not_enough(study, random_images):
    with pytest.raises(UserError, match="1 search image; calibration needs at least two"):
        study.measure_inputs(images=1)
    with pytest.raises(UserError, match="1 search image"):
        study.measure_inputs(path=random_images(1).path)
    assert not (study.folder / "calibration.h5").exists()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["entropy", "fixed"])
def test_from_inputs_to_a_packed_file(study, form):
    study.measure_inputs()
    recipe = study.search(format=form)
    names = SHARED
    assert list(recipe["layers"]) == names
    assert recipe["evaluations"] <= CHOICES["evaluations"]
    # Two halves a slope, and one probe a layer, or two where the first slope was far off.
    probes = study.forwarded - 2 * recipe["evaluations"]
    assert probes in (len(names), 2 * len(names))
    assert recipe["images_forwarded"] == {"search": 24 * recipe["evaluations"], "probe": 8 * probes, "calibration": 48}
    assert recipe["on_search_images"]["measure"] == "accuracy"
    assert -1 <= recipe["predicted_loss_rank_correlation"] <= 1
    front = rows_of(study.folder / "front.csv")
    assert list(front[0])[-5:] == ["slope", "output_scale", *(f"k:{name}" for name in names)]
    assert len(front) == recipe["evaluations"]
    bits = [float(line["bits"]) for line in front]
    assert bits == sorted(bits)
    (chosen,) = [line for line in front if line["chosen"] == "1"]
    assert float(chosen["slope"]) == slope_of(recipe)
    losses = rows_of(study.folder / "losses.csv")
    assert [line["layer"] for line in losses] == names
    for line in losses:
        assert float(line["sensitivity_scale"]) == recipe["layers"][line["layer"]]["sensitivity_scale"]
        assert 0.1 <= float(line["sensitivity_scale"]) <= 10
    sizes = study.pack()
    assert sizes["format"] == form
    assert sizes["folded_batch_norms"] == 3
    assert sizes["bytes"]["packed"] < sizes["bytes"]["float32"]
    model = fast(networks.tiny().eval())
    load_state(model, load_packed(study.folder / "packed.safetensors"), "packed")
    quality = TASK.score(predict(model, study.images), study.outputs, study.images.labels)
    assert quality.kl < 10 * recipe["on_search_images"]["kl"] + 1e-3
    for name, layer in recipe["layers"].items():
        assert layer["shape"] == list(model.get_submodule(name).weight.shape)


@pytest.mark.slow
def test_integers_of_one_width_are_measured_once_and_not_probed(study):
    study.measure_inputs()
    recipe = study.search(format="int8", evaluations=12)
    assert recipe["evaluations"] == 1
    assert study.forwarded == 2
    assert recipe["images_forwarded"]["probe"] == 0
    assert rows_of(study.folder / "losses.csv") == []
    assert recipe["settings"]["options"]["format"] == "int8"
    assert recipe["packing"]["format"] == "entropy"
    weights = {name: np.prod(layer["shape"]) for name, layer in recipe["layers"].items()}
    (row,) = rows_of(study.folder / "front.csv")
    outputs = [layer["shape"][0] for layer in recipe["layers"].values()]
    # Scales, and shifts of the three norms.
    assert float(row["bits"]) == 8 * sum(weights.values()) + 64 * sum(outputs)
    assert study.pack()["format"] == "entropy"


@pytest.mark.slow
def test_slopes_of_the_same_integers_are_one_network(study):
    study.measure_inputs()
    # However much may be lost, layers have 4 bits at the least.
    recipe = study.search(format="int4", evaluations=12, max_kl=0.5, quality_target=0.1)
    assert recipe["evaluations"] <= 3
    assert study.forwarded <= 2 * 3 + 2 * len(SHARED)
    rows = rows_of(study.folder / "front.csv")
    assert len({row["bits"] for row in rows}) == len(rows)
    (chosen,) = [row for row in rows if row["chosen"] == "1"]
    assert float(chosen["slope"]) == slope_of(recipe)
    weights = sum(int(np.prod(layer["shape"])) for layer in recipe["layers"].values())
    outputs = sum(layer["shape"][0] for layer in recipe["layers"].values())
    assert float(chosen["bits"]) == 4 * weights + 64 * outputs
    again = (study.pack(), (study.folder / "packed.safetensors").read_bytes())
    assert again == (study.pack(threads=2), (study.folder / "packed.safetensors").read_bytes())


def test_a_measurement_scores_each_half_by_what_the_other_taught(study):
    study.measure_inputs()
    recipe = study.search(probe_images=0)
    assert recipe["predicted_loss_rank_correlation"] is None
    assert {layer["sensitivity_scale"] for layer in recipe["layers"].values()} == {1.0}
    model = read_model(study.spec, study.weights)
    names = SHARED
    fisher = {name: float(study_fisher(study, name).sum(dtype="float64")) for name in names}
    outputs = []
    halves = read_calibration(study.folder / "calibration.h5", names).halves
    for half, (first, stop) in zip(reversed(halves), ((0, 12), (12, 24)), strict=True):
        network = Network.of(model, fisher, half, folded_norms(model, list(fisher), study.images.batch(0)[:2]))
        with replaced(model, at(network, slope_of(recipe), Options()).tensors()):
            outputs.append(predict(model, study.images.part(first, stop)))
    labels = study.images.labels
    expected = TASK.score(np.concatenate(outputs), study.outputs, labels, recipe["temperature"])
    found = recipe["on_search_images"]
    assert (found["kl"], found["top1"], found["expected"]) == (expected.kl, expected.figures["top1"], expected.expected)
    np.testing.assert_allclose(found["kl_high"], expected.kl + 1.6448536 * expected.kl_error)
    np.testing.assert_allclose(found["expected_low"], expected.expected - 1.6448536 * expected.expected_error)


def space_of(study: Study) -> Space:
    model = read_model(study.spec, study.weights)
    made_from = {"model": read_json(study.spec)["sha256"], "images": study.images.fingerprint}
    row = METHODS["rate_distortion"]
    artifacts = read_artifacts(row.needs, study.needs(), TASK, model, study.images, SHARED, made_from)
    return row.load().prepare(artifacts, CHOICES, 1)


def test_weights_are_held_once_for_both_halves(study):
    study.measure_inputs()
    first, second = space_of(study).halves
    assert all(layer.weights is first.layers[name].weights for name, layer in second.layers.items())


@pytest.fixture
def measure(tmp_path, random_images) -> Callable[..., dict]:
    """Measures a slope with 460 images: 192 in the first half, 268 in the second, 64 in a batch."""
    study = Study(tmp_path, random_images, 460)
    study.measure_inputs()
    space = space_of(study)
    model = space.artifacts.model
    layers = {name: {"slope": 1e-5, "sensitivity_scale": 1.0} for name in SHARED}

    def measured(max_kl: float | None, target: float, confidence: float | None = None, images=study.images) -> dict:
        settings = {"quality_target": target, "confidence": confidence}
        found = evaluator.Evaluator(TASK, model, images, study.outputs, len(images), settings, 1)
        return found.measure(("float32", 1e-5), lambda: space.parts(layers, 460), max_kl)

    measured.images = study.images
    return measured


@pytest.mark.slow
def test_looks_on_the_way_change_nothing_of_what_is_measured_to_the_end(measure):
    whole = measure(None, 0.0)
    assert whole["images"] == 460
    assert measure(whole["kl"] * 0.999, 0.0) == whole


@pytest.mark.slow
@pytest.mark.parametrize(("max_kl", "target"), [(1e-9, 0.0), (10.0, 1.5)])
def test_a_slope_that_is_clearly_too_high_is_measured_on_few_images(measure, max_kl, target):
    found = measure(max_kl, target, 0.95)
    # A quarter of each half, in whole batches.
    assert found["images"] == 64 + 128
    assert found["kl_high"] > max_kl or found["low"] < target
    assert measure(1e9, -9.0, 0.95)["images"] == 460


@pytest.mark.slow
def test_the_images_that_rule_a_slope_out_are_the_first_of_both_halves(measure, monkeypatch):
    parts = []
    part = measure.images.part
    monkeypatch.setattr(measure.images, "part", lambda *ends: parts.append(ends) or part(*ends))
    measure(10.0, -9.0)
    assert parts == [(0, 64), (192, 320), (64, 128), (320, 384), (128, 192), (384, 460)]


def study_fisher(study: Study, name: str) -> np.ndarray:
    return read_layer(study.layer_weights, name)[1]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["entropy", "int8"])
def test_the_last_layer_multiplies_the_outputs_by_the_number_that_was_measured(study, monkeypatch, form):
    """The float32 outputs are made a tenth larger, at a size that is given: one slope with the scale and without."""
    monkeypatch.setattr(sys.modules[__name__], "SHARED", [*SHARED, "fc"])
    study.write_network(0)
    description = read_json(study.spec)["sha256"]
    write_outputs(study.folder / "baseline.h5", 1.1 * study.outputs, study.images, description)
    study.measure_inputs()
    settings = {"format": form, "probe_images": 0} | ({"compression_rate": 6} if form == "entropy" else {"max_kl": 0.5})
    recipes, tensors = {}, {}
    for switch in (False, True):
        (study.folder / "journal.jsonl").unlink(missing_ok=True)
        recipes[switch] = study.search(output_scale=switch, **settings)
        study.pack()
        tensors[switch] = load_packed(study.folder / "packed.safetensors")
    assert not any("output_scale" in layer for layer in recipes[False]["layers"].values())
    scale = recipes[True]["layers"]["fc"].pop("output_scale")
    assert 1.08 < scale < 1.12
    assert recipes[True]["layers"] == recipes[False]["layers"]
    (row,) = rows_of(study.folder / "front.csv")
    assert float(row["output_scale"]) == scale
    for name, tensor in tensors[True].items():
        factor = scale if name.startswith("fc.") else 1
        # The step of a grid has eight bits, and biases are multiples of a power of two.
        tolerance = {"fc.weight": 2**-8, "fc.bias": 5e-2}.get(name, 0)
        np.testing.assert_allclose(tensor, factor * tensors[False][name], rtol=tolerance, atol=tolerance / 10)
    kls = {switch: recipe["on_search_images"]["kl"] for switch, recipe in recipes.items()}
    assert kls[True] < kls[False]


def test_a_recipe_with_a_scale_that_is_none_is_refused(study):
    study.measure_inputs()
    recipe = study.search(compression_rate=6, evaluations=1, probe_images=0)
    recipe["layers"]["pointwise"]["output_scale"] = 0
    write_json(study.folder / "recipe.json", recipe)
    with pytest.raises(UserError, match="'pointwise': output_scale 0: must be a number above 0"):
        study.pack()


def test_the_recipe_meets_the_divergence_that_is_allowed(study):
    study.measure_inputs()
    recipe = study.search(quality_target=1e-3, max_kl=0.02, evaluations=10)
    assert 0.01 < recipe["on_search_images"]["kl_high"] <= 0.02
    assert recipe["on_search_images"]["meets_target"]


@pytest.mark.slow
@pytest.mark.parametrize("rate", [6, 9])
def test_a_size_is_met_from_below_with_one_evaluation(study, rate):
    """Whatever the quality: no images can confirm a target of 1, and none have to."""
    study.measure_inputs()
    recipe = study.search(quality_target=1, compression_rate=rate)
    front = rows_of(study.folder / "front.csv")
    assert recipe["evaluations"] == len(front) == 1
    assert rate <= float(front[0]["compression_rate_analytic"]) < 1.05 * rate
    assert not recipe["on_search_images"]["meets_target"]


@pytest.mark.slow
@pytest.mark.parametrize("stop_after", [2, 7, 8])
def test_a_killed_search_goes_on_where_it_stopped(study, stop_after):
    """In a probe or in a slope."""
    study.measure_inputs()
    recipe = study.search()
    total, probes = study.forwarded, study.forwarded - 2 * recipe["evaluations"]
    tables = [(study.folder / name).read_bytes() for name in ("front.csv", "losses.csv", "journal.jsonl")]
    (study.folder / "journal.jsonl").unlink()
    study.stop_after = stop_after
    with pytest.raises(KeyboardInterrupt):
        study.search()
    study.stop_after = None
    assert study.search() == recipe
    # A slope that was cut off between its halves is measured again.
    assert study.forwarded == total - stop_after + (stop_after - probes) % 2 * (stop_after > probes)
    assert study.search() == recipe
    assert study.forwarded == 0
    names = ("front.csv", "losses.csv", "journal.jsonl")
    assert [(study.folder / name).read_bytes() for name in names] == tables


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [1e-3, 1e3])
def test_layers_are_probed_again_if_the_first_slope_was_far_off(study, monkeypatch, wrong):
    study.measure_inputs()
    near = study.search(quality_target=0.999)
    monkeypatch.setattr(rate_distortion, "first_guess", lambda max_kl, weights: wrong * first_guess(max_kl, weights))
    (study.folder / "journal.jsonl").unlink()
    far = study.search(quality_target=0.999)
    rounds = far["images_forwarded"]["probe"] // near["images_forwarded"]["probe"]
    assert 2 <= rounds <= rate_distortion.PROBES
    assert study.forwarded == rounds * len(SHARED) + 2 * far["evaluations"]
    # A thousandth or a thousandfold was put right; eight images say no more of a layer.
    assert 1 / 4 < slope_of(far) / slope_of(near) < 4


@pytest.mark.slow
def test_threads_do_not_change_the_recipe_or_the_file(study):
    study.measure_inputs()
    recipe = study.search(threads=1)
    study.pack(threads=1)
    packed = (study.folder / "packed.safetensors").read_bytes()
    (study.folder / "journal.jsonl").unlink()
    assert study.search(threads=3) == recipe
    study.pack(threads=3)
    assert (study.folder / "packed.safetensors").read_bytes() == packed


class InFloat16:
    """`predict`, whose results in float16 are what `change` makes of those in float32; it counts both."""

    def __init__(self, change: Callable[[np.ndarray, ImageFile], np.ndarray]):
        self.change, self.calls = change, []

    def __call__(self, model: nn.Module, images: ImageFile, threads: int, half: bool = False) -> np.ndarray:
        self.calls.append(half)
        logits = predict(model, images, threads)
        return self.change(logits, images) if half else logits


def search_in_float16(
    study: Study,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[np.ndarray, ImageFile], np.ndarray],
    **settings: object,
) -> tuple[dict, InFloat16]:
    """The recipe of a search as it runs on a GPU."""
    predictions = InFloat16(change)
    monkeypatch.setattr(evaluator, "predict", predictions)
    monkeypatch.setattr(stage, "Evaluator", lambda *given, **_: evaluator.Evaluator(*given, float16=True))
    (study.folder / "journal.jsonl").unlink(missing_ok=True)
    return study.search(**settings), predictions


TARGET = {"quality_target": 0.5, "max_kl": 0.02, "evaluations": 8}


@pytest.mark.slow
def test_float16_leads_to_the_same_recipe_and_float32_confirms_it(study, monkeypatch, caplog):
    study.measure_inputs()
    plain = study.search(**TARGET)
    recipe, predictions = search_in_float16(study, monkeypatch, lambda logits, images: logits, **TARGET)
    assert "searching in float16" in caplog.text
    assert recipe["precision"] == "float16"
    # The network itself, then slopes in two halves; float32 has both halves of one slope, beside the probes.
    assert predictions.calls.count(True) == 1 + 2 * plain["evaluations"]
    assert predictions.calls.count(False) == 2
    order = [int(line["evaluation"]) for line in rows_of(study.folder / "front.csv")]
    assert sorted(order) == list(range(1, recipe["evaluations"] + 1))
    assert recipe["images_forwarded"]["search"] == plain["images_forwarded"]["search"] + study.count
    same = {"precision", "images_forwarded"}
    assert {key: recipe[key] for key in recipe.keys() - same} == {key: plain[key] for key in plain.keys() - same}


@pytest.mark.slow
def test_a_network_that_float16_changes_is_searched_in_float32(study, monkeypatch, caplog):
    study.measure_inputs()
    plain = study.search(**TARGET)

    def unknown(logits: np.ndarray, images: ImageFile) -> np.ndarray:
        raise RuntimeError("no kernel for Half")

    recipe, _ = search_in_float16(study, monkeypatch, unknown, **TARGET)
    assert "float16 cannot be used: no kernel for Half" in caplog.text
    assert recipe == plain
    for change in (lambda logits, images: 1.1 * logits, lambda logits, images: np.full_like(logits, np.inf)):
        recipe, predictions = search_in_float16(study, monkeypatch, change, **TARGET)
        assert recipe == plain
        assert predictions.calls.count(True) == 1


@pytest.mark.slow
def test_where_float32_gives_another_verdict_it_searches_again(study, monkeypatch, caplog):
    study.measure_inputs()
    plain = study.search(**TARGET)
    flattered = iter([False] + [True] * 100)

    def change(logits: np.ndarray, images: ImageFile) -> np.ndarray:
        # Right on the float32 network, and then far too good: as if nothing were lost at any slope.
        return study.outputs[[int(key) for key in images.keys]] if next(flattered) else logits

    recipe, _ = search_in_float16(study, monkeypatch, change, **TARGET)
    assert "float32 gives another verdict than float16" in caplog.text
    assert recipe["precision"] == "float32"
    assert recipe["on_search_images"]["kl_high"] <= 0.02
    assert slope_of(recipe) == slope_of(plain)


@pytest.mark.slow
def test_a_slope_beyond_the_range_of_float16_is_measured_in_float32(study, monkeypatch, caplog):
    study.measure_inputs()
    plain = study.search(**TARGET)
    beyond = iter([False] + [True] * 100)
    recipe, _ = search_in_float16(
        study, monkeypatch, lambda logits, images: np.full_like(logits, np.nan) if next(beyond) else logits, **TARGET
    )
    assert "beyond the range of float16" in caplog.text
    assert slope_of(recipe) == slope_of(plain)


def test_weights_come_back_after_a_measurement(study, monkeypatch):
    model = read_model(study.spec, study.weights)
    monkeypatch.setattr(stage, "read_model", lambda *_: model)
    before = state(model)
    study.measure_inputs()
    study.search()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.slow
def test_a_recipe_for_other_weights_is_refused(study):
    study.measure_inputs()
    study.search()
    study.write_network(1)
    with pytest.raises(UserError, match=r"recipe.json: made from other model than are there now"):
        study.pack()
    study.measure_inputs()
    with pytest.raises(UserError, match=r"recipe.json: made from other model than are there now"):
        study.pack()
    assert not (study.folder / "packed.safetensors").exists()


def test_a_recipe_with_other_layers_is_refused(study):
    study.measure_inputs()
    recipe = study.search()
    del recipe["layers"]["conv"]
    write_json(study.folder / "recipe.json", recipe)
    with pytest.raises(
        UserError, match=r"recipe.json: layer 'conv' is not that of the network \(.*\); make or get it again"
    ):
        study.pack()


def test_a_target_that_few_images_cannot_confirm_is_refused(study):
    study.measure_inputs()
    with pytest.raises(UserError, match="24 search images and 24 held-out ones cannot confirm"):
        study.search(quality_target=0.99, confidence=0.9)
    assert study.forwarded == 0


def test_a_target_of_all_accuracy_needs_a_divergence(study):
    study.measure_inputs()
    with pytest.raises(UserError, match=r"set options\.max_kl"):
        study.search(quality_target=1.0, confidence=None)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["float16", "float32"])
def test_norms_that_are_not_folded_are_kept_as_asked(study, kind):
    study.measure_inputs()
    study.search(fold_batch_norm=False, batch_norm=kind)
    sizes = study.pack()
    assert sizes["batch_norm"] == kind
    assert sizes["folded_batch_norms"] == 0
    model = read_model(study.spec, study.weights)
    found = load_packed(study.folder / "packed.safetensors")
    for name, norm in batch_norms(model).items():
        expected = (norm.to_float16() if kind == "float16" else norm).state()
        for leaf, array in expected.items():
            np.testing.assert_array_equal(found[f"{name}.{leaf}"].numpy(), array)


@pytest.fixture
def taught(study, monkeypatch) -> dict:
    """The recipe of a search with gradient calibration, which takes four passes, whatever they are worth."""
    monkeypatch.setattr(rate_distortion, "EPOCHS", (1, 4))
    monkeypatch.setattr(rate_distortion, "WORTH", 10.0)
    study.measure_inputs()
    return study.search(gradient_calibration=True, max_kl=0.2)


@pytest.mark.slow
def test_gradient_calibration_teaches_every_network_of_a_search(study, taught, caplog):
    assert taught["gradient_epochs"] == 4
    told = [record.getMessage() for record in caplog.get_records("setup")]
    assert any(line.startswith("4 passes of gradient calibration at slope") for line in told)
    front = rows_of(study.folder / "front.csv")
    assert len({line["slope"] for line in front}) == len(front) == taught["evaluations"]
    # A pass or four on the way, and four for each point of the front that is not among them, and for the recipe.
    passes = taught["images_forwarded"]["gradient"] / 24
    assert passes in (1 + 4 * taught["evaluations"] + 4, 1 + 4 + 4 * taught["evaluations"] + 4)
    without = study.search(max_kl=0.2)
    assert without["gradient_epochs"] is None
    assert not any("numbers" in layer for layer in without["layers"].values())
    assert "gradient" not in without["images_forwarded"]


@pytest.mark.slow
def test_each_half_is_scored_by_what_the_other_has_taught_by_gradient(study, monkeypatch):
    seen = []
    teach = rate_distortion.calibrated

    def heard(task, model, network, layers, images, reference, epochs, seed):
        np.testing.assert_allclose(reference, predict(model, images), rtol=1e-4, atol=1e-5)
        seen.append((network, images.fingerprint, len(images)))
        return teach(task, model, network, layers, images, reference, epochs, seed)

    monkeypatch.setattr(rate_distortion, "calibrated", heard)
    monkeypatch.setattr(rate_distortion, "EPOCHS", (1,))
    monkeypatch.setattr(rate_distortion, "WORTH", 10.0)
    study.measure_inputs()
    halves = read_calibration(study.folder / "calibration.h5", SHARED).halves
    study.search(gradient_calibration=True)
    of_second, of_first, *_, whole = seen
    for (network, _, count), half in ((of_second, halves[1]), (of_first, halves[0])):
        assert count == 12
        mean = network.layers["pointwise"].mean
        np.testing.assert_allclose(mean, half["pointwise"].mean, rtol=1e-5, atol=1e-7)
    assert of_second[1] == study.images.part(12, 24).fingerprint
    assert of_first[1] == study.images.part(0, 12).fingerprint
    assert whole[2] == 24


@pytest.mark.slow
def test_the_packed_file_holds_the_numbers_that_the_recipe_records(study, taught):
    study.pack()
    found = load_packed(study.folder / "packed.safetensors")
    scales = {name: layer["numbers"]["codebook"] for name, layer in taught["layers"].items()}
    for name in SHARED:
        values = np.unique(np.abs(found[f"{name}.weight"].numpy()[0]))
        ratios = values[values > 0][:, None] / np.abs(np.array([v for v in scales[name] if v]))
        # The row's scale, an eighth of an octave or several, takes every value to one of the codebook.
        exponents = 8 * np.log2(ratios)
        assert (np.abs(exponents - exponents.round()).min(1) < 1e-3).all()


@pytest.mark.slow
def test_a_killed_search_with_gradient_calibration_goes_on(study, taught):
    before = (study.folder / "recipe.json").read_bytes()
    forwarded = study.forwarded
    assert study.search(gradient_calibration=True, max_kl=0.2) == taught
    assert study.forwarded == 0
    for stop in (5, forwarded - 1):
        (study.folder / "journal.jsonl").unlink()
        study.stop_after = stop
        with pytest.raises(KeyboardInterrupt):
            study.search(gradient_calibration=True, max_kl=0.2)
        study.stop_after = None
        study.search(gradient_calibration=True, max_kl=0.2)
        assert (study.folder / "recipe.json").read_bytes() == before


@pytest.mark.slow
def test_gradient_calibration_that_does_not_help_is_left(study, monkeypatch):
    monkeypatch.setattr(rate_distortion, "WORTH", 0.0)
    study.measure_inputs()
    found = study.search(gradient_calibration=True)
    assert found["gradient_epochs"] == 0
    assert found["images_forwarded"]["gradient"] == 24
    assert not any("numbers" in layer for layer in found["layers"].values())


@pytest.mark.slow
def test_numbers_that_are_not_the_layers_own_are_refused(study, taught):
    taught["layers"]["conv"]["numbers"]["codebook"].pop()
    write_json(study.folder / "recipe.json", taught)
    with pytest.raises(FormatError, match="layer 'conv': numbers are missing, or those of another layer; search again"):
        study.pack()
    assert not (study.folder / "packed.safetensors").exists()
