"""A whole network shared at one price: folding, compression, its files, and the stages from inputs to packed file."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

import wshare.stages.search_rate_distortion as stage
from wshare.artifacts.calibration import read_calibration
from wshare.artifacts.model import read_model, write_model
from wshare.artifacts.outputs import write_outputs
from wshare.artifacts.weights import read_layer
from wshare.calibration.statistics import input_statistics
from wshare.data.images import ImageFile
from wshare.errors import UserError
from wshare.evaluation.predict import predict
from wshare.files.sealed import read_json, write_json
from wshare.files.tables import read_sealed
from wshare.models import zoo as networks
from wshare.models.description import Fetched
from wshare.models.folding import folded_norms
from wshare.models.forward import forward
from wshare.models.kinds.table import kind_of
from wshare.models.layers import replaced
from wshare.models.norms import batch_norm_of
from wshare.models.state import fast, load_state
from wshare.packed.format import load_packed
from wshare.packed.write import pack_network, write_files
from wshare.quantize.layer import Options
from wshare.report.results import _trace
from wshare.search.rate_distortion import find as price_search
from wshare.search.rate_distortion.find import Scale
from wshare.search.rate_distortion.network import Network
from wshare.search.rate_distortion.slope import first_guess
from wshare.stages.extract_weights import extract_weights
from wshare.stages.measure_inputs import measure_inputs
from wshare.stages.pack_rate_distortion import pack_rate_distortion
from wshare.tasks import classification
from wshare.tasks.classification import score

CHOICES = {
    "format": "entropy",
    "kl": None,
    "compression_rate": None,
    "evaluations": 4,
    "probe_images": 8,
    "error_feedback": True,
    "bias_correction": True,
    "least_squares": True,
    "assignment_descent": True,
    "variance_matching": True,
    "fold_batch_norm": True,
}


def alive(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with weights and batch norms as training might leave them, negative scales among them."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if kind_of(module) is not None:
            columns = module.weight[0].numel()
            module.weight.data = torch.randn(module.weight.shape, generator=generator) * (2 / columns) ** 0.5
            if module.bias is not None:
                module.bias.data = torch.randn(module.bias.shape, generator=generator) / 10
        elif isinstance(module, nn.BatchNorm2d):
            for tensor, centre, width in (
                (module.running_mean, 0.0, 0.3),
                (module.running_var, 1.0, 0.0),
                (module.weight.data, 0.7, 0.5),
                (module.bias.data, 0.0, 0.3),
            ):
                tensor.copy_(centre + width * torch.randn(tensor.shape, generator=generator))
    return fast(model.eval())


def layers_of(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if kind_of(module) is not None]


def prepared(model: nn.Module, images: ImageFile, fold: bool = True) -> Network:
    names = layers_of(model)
    fisher = {name: 0.5 + i / 7 for i, name in enumerate(names)}
    folded = folded_norms(model, names, images.batch(0)[:2]) if fold else {}
    return Network.of(model, fisher, input_statistics(model, images.batches(), names, 0), folded)


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


# Folding.


class Block(nn.Module):
    """One convolution and batch norm; `kind` tells what is odd about them."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind
        self.conv = nn.Conv2d(3, 3, 3, padding=1, bias=kind == "own bias")
        self.norm = nn.BatchNorm2d(3)
        self.other = nn.BatchNorm2d(3)
        self.act = nn.ReLU(inplace=True)

    def forward(self, images):
        made = self.conv(images)
        if self.kind == "called twice":
            made = self.conv(made)
        if self.kind == "not at once":
            made = made * 2
        if self.kind == "activated in place":
            made = self.act(made)
        out = self.norm(made)
        if self.kind == "norm called twice":
            out = self.norm(out)
        if self.kind == "goes elsewhere":
            out = out + made
        if self.kind == "two norms":
            out = out + self.other(made)
        return out.mean((2, 3))


def batch(channels: int = 3, size: int = 8, count: int = 2) -> torch.Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(5))


def check_unchanged(model: nn.Module, sample: torch.Tensor) -> dict[str, str]:
    before, logits = state(model), forward(model, sample)
    found = folded_norms(model, layers_of(model), sample)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    np.testing.assert_array_equal(forward(model, sample), logits)
    return found


def test_a_norm_right_behind_a_convolution_is_folded(capsys):
    assert check_unchanged(alive(Block("plain")), batch()) == {"conv": "norm"}
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("kind", ["own bias", "called twice", "norm called twice", "not at once"])
def test_a_pair_that_is_none_is_not_folded(kind, capsys):
    assert check_unchanged(alive(Block(kind)), batch()) == {}
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("kind", ["goes elsewhere", "activated in place", "two norms"])
def test_an_output_that_goes_elsewhere_too_is_found_out(kind, caplog):
    caplog.set_level("INFO")
    model = alive(Block(kind))
    # A positive scale and a ReLU may change places.
    model.norm.weight.data.neg_()
    assert check_unchanged(model, batch()) == {}
    assert "no batch norm is folded: outputs would differ by" in caplog.text


def test_only_layers_that_are_shared_are_folded():
    model = alive(nn.Sequential(Block("plain")))
    assert folded_norms(model, [], batch()) == {}


def test_a_norm_without_weight_and_bias_is_folded():
    model = Block("plain")
    model.norm = nn.BatchNorm2d(3, affine=False)
    model = fast(model.eval())
    model.norm.running_var.fill_(0.3)
    assert check_unchanged(model, batch()) == {"conv": "norm"}


@pytest.mark.parametrize(("name", "shape"), [("tiny", (1, 8)), ("resnet_ds", (1, 28)), ("lenet5", (1, 28))])
def test_all_norms_of_our_own_networks_are_folded_but_those_behind_a_pool(name, shape):
    model = alive(networks.build(name, {"classes": 10}))
    found = check_unchanged(model, batch(*shape))
    norms = [key for key, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert sorted(found.values()) == sorted(set(norms) - {"stem.bn"})
    for layer, norm in found.items():
        assert layer.rpartition(".")[0] == norm.rpartition(".")[0]


# Compression.

NETWORKS = [("tiny", (1, 8, 8), "entropy"), ("tiny", (1, 8, 8), "fixed"), ("resnet_ds", (1, 28, 28), "entropy")]


@pytest.mark.parametrize(("name", "shape", "form"), NETWORKS)
@pytest.mark.parametrize("fold", [True, False])
def test_what_a_search_measures_is_what_a_reader_of_the_file_gets(tmp_path, random_images, name, shape, form, fold):
    model = alive(networks.build(name, {"classes": 10}))
    images = random_images(6, shape)
    network = prepared(model, images, fold)
    assert bool(network.norms) == fold
    parts = network.quantised(1e-9, dict.fromkeys(network.targets, 1.0), Options(format=form), 2)
    tensors = network.all_tensors(parts)
    assert {key for part in parts for key in network.tensors(part, parts[part])} == tensors.keys()
    before = state(model)
    with replaced(model, tensors):
        measured = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        logits = predict(model, images)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    written = copy.deepcopy(model)
    (tmp_path / "recipe").write_bytes(bytes(10))
    recipe = {
        "slope": 1e-9,
        "layers": {key: {"factor": 1.0} for key in parts},
        "settings": {"options": CHOICES | {"format": form}},
    }
    content, sizes, _ = pack_network(
        classification, written, network.pieces(recipe, 1), "float32", images, predict(model, images), 1, 10
    )
    write_files(content, sizes, *(tmp_path / file for file in ("recipe", "packed", "dense", "sizes.json")))
    found = load_packed(tmp_path / "packed")
    assert found.keys() == measured.keys()
    for key, array in tensors.items():
        np.testing.assert_array_equal(found[key].numpy(), array, err_msg=key)
        assert found[key].numpy().dtype == array.dtype
    kept = {f"{norm}.{leaf}" for norm in ("stem.bn", *(() if fold else norms_of(model))) for leaf in BATCH_NORM}
    for key, tensor in measured.items():
        assert torch.equal(found[key], tensor) or key in kept, key
    loaded = fast(networks.build(name, {"classes": 10}).eval())
    load_state(loaded, found, "packed")
    if kept & found.keys():
        np.testing.assert_allclose(predict(loaded, images), logits, rtol=1e-3, atol=1e-4)
    else:
        np.testing.assert_array_equal(predict(loaded, images), logits)
    dense = load_file(tmp_path / "dense")
    assert dense.keys() == found.keys()
    assert all(np.array_equal(dense[key], found[key].numpy()) for key in dense)
    sizes = read_json(tmp_path / "sizes.json")
    assert sizes["bytes"]["packed"] == (tmp_path / "packed").stat().st_size
    assert sizes["bytes"]["float32"] == 10
    assert sizes["folded_batch_norms"] == len(network.norms)
    assert sizes["weights"] == sum(layer.weights.size for layer in network.targets.values())
    shared = sizes["bytes"]["indices"] + sizes["bytes"]["codebooks"] + sizes["bytes"]["scales"]
    # Small layers: a coder's own bytes and tables count.
    assert 0.5 * sizes["analytic_bits"] / 8 < shared < 2 * sizes["analytic_bits"] / 8


BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def norms_of(model: nn.Module) -> list[str]:
    return [key for key, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]


def test_the_number_of_threads_changes_nothing(random_images):
    model = alive(networks.tiny())
    network = prepared(model, random_images(4))
    factors = {name: 1 + i / 3 for i, name in enumerate(network.targets)}
    results = [network.all_tensors(network.quantised(1e-9, factors, Options(), threads)) for threads in (1, 2, 4)]
    for other in results[1:]:
        assert list(other) == list(results[0])
        assert all(np.array_equal(other[key], array) for key, array in results[0].items())


def test_a_second_pass_gives_the_same(random_images):
    """Factors and codebooks that are kept from a first price are not changed by it."""
    model = alive(networks.tiny())
    images = random_images(4)
    used, fresh = prepared(model, images), prepared(model, images)
    factors = dict.fromkeys(used.targets, 1.0)
    for form in ("entropy", "fixed"):
        used.quantised(1e-7, factors, Options(format=form), 1)
        found = used.all_tensors(used.quantised(1e-9, factors, Options(format=form), 1))
        expected = fresh.all_tensors(fresh.quantised(1e-9, factors, Options(format=form), 1))
        assert all(np.array_equal(found[key], array) for key, array in expected.items())


def test_a_low_price_hardly_changes_the_outputs_and_a_high_one_does(random_images):
    model = alive(networks.tiny())
    images = random_images(16)
    network, reference = prepared(model, images), predict(model, images)
    found = []
    for slope in (1e-12, 1e-9, 1e-7):
        parts = network.quantised(slope, dict.fromkeys(network.targets, 1.0), Options(), 1)
        with replaced(model, network.all_tensors(parts)):
            found.append(score(predict(model, images), reference, None).kl)
    assert found[0] < 1e-4
    assert found == sorted(found)
    assert found[-1] > 0.01


def test_a_bias_of_its_own_is_corrected_and_goes_with_the_weights(random_images):
    model = alive(networks.tiny())
    network = prepared(model, random_images(4))
    parts = network.quantised(1e-9, dict.fromkeys(network.targets, 1.0), Options(), 1)
    assert network.tensors("fc", parts["fc"]).keys() == {"fc.weight", "fc.bias"}
    found = network.tensors("fc", parts["fc"])["fc.bias"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, (model.fc.bias.detach().numpy() + parts["fc"].correction).astype(np.float32))
    assert parts["fc"].correction.any()
    assert network.corrected("conv", parts["conv"]) == {}
    norm = network.tensors("conv", parts["conv"])
    assert norm.keys() == {"conv.weight", *(f"bn1.{leaf}" for leaf in BATCH_NORM)}
    np.testing.assert_array_equal(norm["bn1.weight"], 1)


# The stages.

# Without the widest, which takes most of the time.
SHARED = ["conv", "depthwise", "pointwise"]


class Study:
    """A network with random weights and random images, as the stages find them, and all that they write."""

    def __init__(self, folder: Path, random_images: Callable[..., ImageFile], count: int = 24, gpus: int = 0):
        self.folder, self.count, self.gpus = folder, count, gpus
        self.images = random_images(count)
        self.write_network(0)
        model = read_model(self.spec, self.weights)
        self.logits = predict(model, self.images)
        write_outputs(folder / "baseline.h5", self.logits, self.images, read_json(self.spec)["sha256"])
        self.forwarded, self.stop_after = 0, None

    def write_network(self, seed: int) -> None:
        self.spec, self.weights = self.folder / f"model{seed}.json", self.folder / f"weights{seed}.safetensors"
        spec = {"name": "tiny", "builder": {"kind": "embedded", "name": "tiny", "arguments": {}}, "dropped": []}
        spec["preprocessing"] = {"mean": [0.5], "std": [0.25]}
        write_model(Fetched(alive(networks.tiny(), seed), spec), self.weights, self.spec)
        layers = [{"name": name} for name in SHARED]
        write_json(self.folder / "layers.json", {"model": read_json(self.spec)["sha256"], "layers": layers})
        listed = self.folder / "layers.json"
        settings = {"images": self.count, "seed": 0}
        self.extracted = self.folder / f"extracted{seed}.h5"
        extract_weights(settings, self.spec, self.weights, listed, self.images.path, self.extracted, self.gpus)

    def measure_inputs(self, images: int = 512, path: Path | None = None) -> None:
        measure_inputs(
            {"images": images, "seed": 0},
            self.spec,
            self.weights,
            self.folder / "layers.json",
            path or self.images.path,
            self.folder / "calibration.h5",
            self.gpus,
        )

    def search(self, threads: int = 1, **settings: object) -> dict:
        self.forwarded = 0
        choices = CHOICES | {key: value for key, value in settings.items() if key in CHOICES}
        rest = {key: value for key, value in settings.items() if key not in CHOICES}
        stage.search_rate_distortion(
            {"method": "rate_distortion", "quality_target": 0.9, "confidence": None, "seed": 0, "options": choices}
            | rest,
            self.spec,
            self.weights,
            self.images.path,
            self.folder / "baseline.h5",
            self.extracted,
            self.folder / "calibration.h5",
            "code",
            self.folder / "journal.jsonl",
            self.folder / "front.csv",
            self.folder / "losses.csv",
            self.folder / "recipe.json",
            threads,
            self.gpus,
        )
        return read_json(self.folder / "recipe.json")

    def pack(self, threads: int = 1, batch_norm: str = "auto") -> dict:
        pack_rate_distortion(
            {"batch_norm": batch_norm},
            self.spec,
            self.weights,
            self.images.path,
            self.extracted,
            self.folder / "calibration.h5",
            self.folder / "recipe.json",
            self.folder / "packed.safetensors",
            self.folder / "dense.safetensors",
            self.folder / "sizes.json",
            threads,
        )
        return read_json(self.folder / "sizes.json")

    def predict(self, *arguments: object) -> np.ndarray:
        if self.forwarded == self.stop_after:
            raise KeyboardInterrupt
        self.forwarded += 1
        return predict(*arguments)


def rows_of(path: Path) -> list[dict[str, str]]:
    return read_sealed(path)[0]


@pytest.fixture
def study(tmp_path, random_images, monkeypatch) -> Study:
    made = Study(tmp_path, random_images)
    monkeypatch.setattr(price_search, "predict", made.predict)
    return made


def test_the_inputs_are_measured_in_two_folds(study):
    study.measure_inputs()
    names = SHARED
    folds = read_calibration(study.folder / "calibration.h5", names).halves
    assert [fold["conv"].images for fold in folds] == [24, 24]
    model = read_model(study.spec, study.weights)
    for fold, part in zip(folds, (study.images.part(0, 12), study.images.part(12, 24)), strict=True):
        expected = input_statistics(model, part.batches(), names, 0)
        for name in names:
            np.testing.assert_array_equal(fold[name].second, expected[name].second)


def test_no_more_images_are_measured_than_asked_for(study):
    study.measure_inputs(images=9)
    folds = read_calibration(study.folder / "calibration.h5", ["conv"]).halves
    assert [fold["conv"].images for fold in folds] == [8, 10]


def test_one_image_is_not_enough(study, random_images):
    with pytest.raises(UserError, match="1 search image; calibration needs at least two"):
        study.measure_inputs(images=1)
    with pytest.raises(UserError, match="1 search image"):
        study.measure_inputs(path=random_images(1).path)
    assert not (study.folder / "calibration.h5").exists()


@pytest.mark.parametrize("form", ["entropy", "fixed"])
def test_from_inputs_to_a_packed_file(study, form):
    study.measure_inputs()
    recipe = study.search(format=form)
    names = SHARED
    assert list(recipe["layers"]) == names
    assert recipe["evaluations"] <= CHOICES["evaluations"]
    # Two folds a price, and one probe a layer.
    assert study.forwarded == 2 * recipe["evaluations"] + len(names)
    assert recipe["images_forwarded"] == {"search": 24 * recipe["evaluations"], "probe": 8 * len(names), "inputs": 48}
    assert recipe["on_search_images"]["measure"] == "accuracy"
    assert -1 <= recipe["predicted_loss_rank_correlation"] <= 1
    front = rows_of(study.folder / "front.csv")
    assert list(front[0]) == [*stage.FRONT, *names]
    assert len(front) == recipe["evaluations"]
    slopes = [float(line["slope"]) for line in front]
    assert slopes == sorted(slopes)
    (chosen,) = [line for line in front if line["chosen"] == "1"]
    assert float(chosen["slope"]) == recipe["slope"]
    losses = rows_of(study.folder / "losses.csv")
    assert [line["layer"] for line in losses] == names
    for line in losses:
        assert float(line["factor"]) == recipe["layers"][line["layer"]]["factor"]
        assert 0.1 <= float(line["factor"]) <= 10
    sizes = study.pack()
    assert sizes["format"] == form
    assert sizes["folded_batch_norms"] == 3
    assert sizes["bytes"]["packed"] < sizes["bytes"]["float32"]
    model = fast(networks.tiny().eval())
    load_state(model, load_packed(study.folder / "packed.safetensors"), "packed")
    quality = score(predict(model, study.images), study.logits, study.images.labels)
    assert quality.kl < 10 * recipe["on_search_images"]["kl"] + 1e-3
    for name, layer in recipe["layers"].items():
        assert layer["shape"] == list(model.get_submodule(name).weight.shape)


def test_a_measurement_scores_each_fold_by_what_the_other_taught(study):
    study.measure_inputs()
    recipe = study.search(probe_images=0)
    assert recipe["predicted_loss_rank_correlation"] is None
    assert {layer["factor"] for layer in recipe["layers"].values()} == {1.0}
    model = read_model(study.spec, study.weights)
    names = SHARED
    fisher = {name: float(study_fisher(study, name).sum(dtype="float64")) for name in names}
    logits = []
    for fold, (first, stop) in zip(
        reversed(read_calibration(study.folder / "calibration.h5", names).halves), ((0, 12), (12, 24)), strict=True
    ):
        network = Network.of(model, fisher, fold, folded_norms(model, list(fisher), study.images.batch(0)[:2]))
        parts = network.quantised(recipe["slope"], dict.fromkeys(names, 1.0), Options(), 1)
        with replaced(model, network.all_tensors(parts)):
            logits.append(predict(model, study.images.part(first, stop)))
    expected = score(np.concatenate(logits), study.logits, study.images.labels)
    found = recipe["on_search_images"]
    assert (found["kl"], found["top1"], found["expected"]) == (expected.kl, expected.top1, expected.expected)
    np.testing.assert_allclose(found["kl_high"], expected.kl + 1.6448536 * expected.kl_error)
    np.testing.assert_allclose(found["expected_low"], expected.expected - 1.6448536 * expected.expected_error)


@pytest.fixture
def scale(tmp_path, random_images) -> Scale:
    """Prices of a network with 460 images: 192 in the first fold, 268 in the second, 64 in a batch."""
    study = Study(tmp_path, random_images, 460)
    study.measure_inputs()
    model = read_model(study.spec, study.weights)
    fisher = {name: float(study_fisher(study, name).sum(dtype="float64")) for name in SHARED}
    norms = folded_norms(model, SHARED, study.images.batch(0)[:2])
    folds = [
        Network.of(model, fisher, fold, norms)
        for fold in read_calibration(study.folder / "calibration.h5", SHARED).halves
    ]
    return Scale(model, folds, study.images, study.logits, Options(), 1)


PRICE = 1e-5


def test_looks_on_the_way_change_nothing_of_what_is_measured_to_the_end(scale):
    whole = scale.measure(PRICE, dict.fromkeys(SHARED, 1.0), None, None)
    assert whole["images"] == 460
    assert scale.measure(PRICE, dict.fromkeys(SHARED, 1.0), None, (whole["kl"] * 0.999, 0.0)) == whole


@pytest.mark.parametrize(("nats", "target"), [(1e-9, 0.0), (10.0, 1.5)])
def test_a_price_that_is_clearly_too_high_is_measured_on_few_images(scale, nats, target):
    found = scale.measure(PRICE, dict.fromkeys(SHARED, 1.0), 0.95, (nats, target))
    # A quarter of each fold, in whole batches.
    assert found["images"] == 64 + 128
    assert found["kl_high"] > nats or found["low"] < target
    assert scale.measure(PRICE, dict.fromkeys(SHARED, 1.0), 0.95, (1e9, -9.0))["images"] == 460


def test_the_images_that_rule_a_price_out_are_the_first_of_both_folds(scale, monkeypatch):
    parts = []
    part = scale._sample.part
    monkeypatch.setattr(scale._sample, "part", lambda *ends: parts.append(ends) or part(*ends))
    scale.measure(PRICE, dict.fromkeys(SHARED, 1.0), None, (10.0, -9.0))
    assert parts == [(0, 64), (192, 320), (64, 128), (320, 384), (128, 192), (384, 460)]


def study_fisher(study: Study, name: str) -> np.ndarray:
    return read_layer(study.extracted, name)[1]


def test_the_recipe_meets_the_divergence_that_is_allowed(study):
    study.measure_inputs()
    recipe = study.search(quality_target=1e-3, kl=0.02, evaluations=10)
    assert 0.01 < recipe["on_search_images"]["kl_high"] <= 0.02
    assert recipe["on_search_images"]["meets_target"]


@pytest.mark.parametrize("rate", [6, 9])
def test_a_size_is_met_from_below_with_one_evaluation(study, rate):
    """Whatever the quality: no images can confirm a target of 1, and none have to."""
    study.measure_inputs()
    recipe = study.search(quality_target=1, compression_rate=rate)
    front = rows_of(study.folder / "front.csv")
    assert recipe["evaluations"] == len(front) == 1
    assert rate <= float(front[0]["compression_rate_analytic"]) < 1.05 * rate
    assert not recipe["on_search_images"]["meets_target"]


@pytest.mark.parametrize("stop_after", [2, 6])
def test_a_killed_search_goes_on_where_it_stopped(study, stop_after):
    """In a probe or in a price."""
    study.measure_inputs()
    recipe = study.search()
    total = study.forwarded
    tables = [(study.folder / name).read_bytes() for name in ("front.csv", "losses.csv", "journal.jsonl")]
    (study.folder / "journal.jsonl").unlink()
    study.stop_after = stop_after
    with pytest.raises(KeyboardInterrupt):
        study.search()
    study.stop_after = None
    assert study.search() == recipe
    # A price that was cut off between its folds is measured again.
    assert study.forwarded == total - stop_after + (stop_after - 3) % 2 * (stop_after > 3)
    assert study.search() == recipe
    assert study.forwarded == 0
    names = ("front.csv", "losses.csv", "journal.jsonl")
    assert [(study.folder / name).read_bytes() for name in names] == tables


@pytest.mark.parametrize("wrong", [1e-3, 1e3])
def test_layers_are_probed_again_if_the_first_price_was_far_off(study, monkeypatch, wrong):
    study.measure_inputs()
    near = study.search(quality_target=0.999)
    monkeypatch.setattr(price_search, "first_guess", lambda nats, weights: wrong * first_guess(nats, weights))
    (study.folder / "journal.jsonl").unlink()
    far = study.search(quality_target=0.999)
    rounds = far["images_forwarded"]["probe"] // near["images_forwarded"]["probe"]
    assert 2 <= rounds <= price_search.PROBES
    assert study.forwarded == rounds * len(SHARED) + 2 * far["evaluations"]
    # A thousandth or a thousandfold was put right; eight images say no more of a layer.
    assert 1 / 4 < far["slope"] / near["slope"] < 4


def test_threads_do_not_change_the_recipe_or_the_file(study):
    study.measure_inputs()
    recipe = study.search(threads=1)
    study.pack(threads=1)
    packed = (study.folder / "packed.safetensors").read_bytes()
    (study.folder / "journal.jsonl").unlink()
    assert study.search(threads=3) == recipe
    study.pack(threads=3)
    assert (study.folder / "packed.safetensors").read_bytes() == packed


class InHalf:
    """`predict`, whose results in float16 are what `change` makes of those in float32; it counts both."""

    def __init__(self, change: Callable[[np.ndarray, ImageFile], np.ndarray]):
        self.change, self.calls = change, []

    def __call__(self, model: nn.Module, images: ImageFile, threads: int, half: bool = False) -> np.ndarray:
        self.calls.append(half)
        logits = predict(model, images, threads)
        return self.change(logits, images) if half else logits


def search_in_half(
    study: Study,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[np.ndarray, ImageFile], np.ndarray],
    **settings: object,
) -> tuple[dict, InHalf]:
    """The recipe of a search as it runs on a GPU."""
    predictions = InHalf(change)
    monkeypatch.setattr(price_search, "predict", predictions)
    monkeypatch.setattr(stage, "Scale", lambda *given, half: Scale(*given, half=not settings.get("compression_rate")))
    (study.folder / "journal.jsonl").unlink(missing_ok=True)
    return study.search(**settings), predictions


TARGET = {"quality_target": 0.5, "kl": 0.02, "evaluations": 8}


def test_half_precision_leads_to_the_same_recipe_and_float32_confirms_it(study, monkeypatch, capsys):
    study.measure_inputs()
    plain = study.search(**TARGET)
    recipe, predictions = search_in_half(study, monkeypatch, lambda logits, images: logits, **TARGET)
    assert "searching in float16" in capsys.readouterr().out
    assert recipe["precision"] == "float16"
    # The network itself, then prices in two folds; float32 has the probes, and both folds of one price.
    assert predictions.calls.count(True) == 1 + 2 * plain["evaluations"]
    assert predictions.calls.count(False) == plain["images_forwarded"]["probe"] // CHOICES["probe_images"] + 2
    order = _trace(study.folder / "journal.jsonl", rows_of(study.folder / "front.csv"), recipe)
    assert sorted(order) == list(range(recipe["evaluations"]))
    assert recipe["images_forwarded"]["search"] == plain["images_forwarded"]["search"] + study.count
    same = {"precision", "images_forwarded"}
    assert {key: recipe[key] for key in recipe.keys() - same} == {key: plain[key] for key in plain.keys() - same}


def test_a_network_that_half_precision_changes_is_searched_in_float32(study, monkeypatch, capsys):
    study.measure_inputs()
    plain = study.search(**TARGET)

    def unknown(logits: np.ndarray, images: ImageFile) -> np.ndarray:
        raise RuntimeError("no kernel for Half")

    recipe, _ = search_in_half(study, monkeypatch, unknown, **TARGET)
    assert "float16 cannot be used: no kernel for Half" in capsys.readouterr().out
    assert recipe == plain
    for change in (lambda logits, images: 1.1 * logits, lambda logits, images: np.full_like(logits, np.inf)):
        recipe, predictions = search_in_half(study, monkeypatch, change, **TARGET)
        assert recipe == plain
        assert predictions.calls.count(True) == 1


def test_where_float32_gives_another_verdict_it_searches_again(study, monkeypatch, capsys):
    study.measure_inputs()
    plain = study.search(**TARGET)
    flattered = iter([False] + [True] * 100)

    def change(logits: np.ndarray, images: ImageFile) -> np.ndarray:
        # Right on the float32 network, and then far too good: as if nothing were lost at any price.
        return study.logits[[int(key) for key in images.keys]] if next(flattered) else logits

    recipe, _ = search_in_half(study, monkeypatch, change, **TARGET)
    assert "float32 gives another verdict than float16" in capsys.readouterr().out
    assert recipe["precision"] == "float32"
    assert recipe["on_search_images"]["kl_high"] <= 0.02
    assert recipe["slope"] == plain["slope"]


def test_a_price_beyond_the_range_of_half_precision_is_measured_in_float32(study, monkeypatch, capsys):
    study.measure_inputs()
    plain = study.search(**TARGET)
    beyond = iter([False] + [True] * 100)
    recipe, _ = search_in_half(
        study, monkeypatch, lambda logits, images: np.full_like(logits, np.nan) if next(beyond) else logits, **TARGET
    )
    assert "beyond the range of float16" in capsys.readouterr().out
    assert recipe["slope"] == plain["slope"]


def test_weights_come_back_after_a_measurement(study, monkeypatch):
    model = read_model(study.spec, study.weights)
    monkeypatch.setattr(stage, "read_model", lambda *_: model)
    before = state(model)
    study.measure_inputs()
    study.search()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_recipe_for_other_weights_is_refused(study):
    study.measure_inputs()
    study.search()
    study.write_network(1)
    with pytest.raises(UserError, match=r"calibration.h5: made from other model than are there now"):
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
    with pytest.raises(UserError, match="24 search images cannot confirm a quality target of 0.99"):
        study.search(quality_target=0.99, confidence=0.9)
    assert study.forwarded == 0


def test_a_target_of_all_accuracy_needs_a_divergence(study):
    study.measure_inputs()
    with pytest.raises(UserError, match=r"set options\.kl"):
        study.search(quality_target=1.0, confidence=None)


@pytest.mark.parametrize("kind", ["float16", "float32"])
def test_norms_that_are_not_folded_are_kept_as_asked(study, kind):
    study.measure_inputs()
    study.search(fold_batch_norm=False)
    sizes = study.pack(batch_norm=kind)
    assert sizes["batch_norm"] == kind
    assert sizes["folded_batch_norms"] == 0
    model = read_model(study.spec, study.weights)
    found = load_packed(study.folder / "packed.safetensors")
    for name in norms_of(model):
        norm = batch_norm_of(model.get_submodule(name))
        expected = (norm.to_float16() if kind == "float16" else norm).state()
        for leaf, array in expected.items():
            np.testing.assert_array_equal(found[f"{name}.{leaf}"].numpy(), array)
