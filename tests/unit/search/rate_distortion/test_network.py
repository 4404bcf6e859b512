"""A whole network quantised at one slope."""

import copy
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from wshare.calibration.statistics import input_statistics
from wshare.data.images import ImageFile
from wshare.evaluation.predict import predict
from wshare.models import zoo as networks
from wshare.models.folding import folded_norms
from wshare.models.layers import replaced
from wshare.models.state import fast, load_state
from wshare.packed.compressed import Compressed
from wshare.packed.format import load_packed
from wshare.packed.write import pack_network
from wshare.quantize.layer import Options
from wshare.search.methods import packing_of
from wshare.search.rate_distortion.network import Network
from wshare.tasks.table import task

from ..networks import alive, layers_of, state

TASK = task("classification")


def prepared(model: nn.Module, images: ImageFile, fold: bool = True) -> Network:
    names = layers_of(model)
    fisher = {name: 0.5 + i / 7 for i, name in enumerate(names)}
    folded = folded_norms(model, names, images.batch(0)[:2]) if fold else {}
    return Network.of(model, fisher, input_statistics(model, images.batches(), names, 0), folded)


def settings_of(network: Network, slope: float, scales: Mapping[str, float] | None = None) -> dict[str, dict]:
    return {
        name: {"slope": slope, "sensitivity_scale": 1.0 if scales is None else scales[name]} for name in network.layers
    }


def at(
    network: Network, slope: float, options: Options, threads: int = 1, scales: Mapping[str, float] | None = None
) -> Compressed:
    return network.compressed(network.quantised(settings_of(network, slope, scales), options, threads))


NETWORKS = [
    ("tiny", (1, 8, 8), "entropy"),
    ("tiny", (1, 8, 8), "fixed"),
    ("tiny", (1, 8, 8), "coreml"),
    ("tiny", (1, 8, 8), "int4"),
    pytest.param("resnet_ds", (1, 28, 28), "entropy", marks=pytest.mark.slow),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shape", "form"), NETWORKS)
@pytest.mark.parametrize("fold", [True, False])
def test_what_a_search_measures_is_what_a_reader_of_the_file_gets(random_images, name, shape, form, fold):
    model = alive(networks.build(name, {"classes": 10}))
    images = random_images(6, shape)
    network = prepared(model, images, fold)
    assert bool(network.norms) == fold
    compressed = at(network, 1e-9, Options(format=form), 2)
    tensors = compressed.tensors()
    before = state(model)
    with replaced(model, tensors):
        measured = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        logits = predict(model, images)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    written = copy.deepcopy(model)
    packing = packing_of({"format": form}) | {"batch_norm": "float32"}
    content, sizes, _ = pack_network(TASK, written, compressed, packing, images, predict(model, images), 1, 10)
    found = load_packed(content)
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
    assert sizes["bytes"]["packed"] == len(content)
    assert sizes["bytes"]["float32"] == 10
    assert sizes["folded_batch_norms"] == len(network.norms)
    assert sizes["weights"] == sum(layer.weights.size for layer in network.layers.values())
    shared = sizes["bytes"]["indices"] + sizes["bytes"]["codebooks"] + sizes["bytes"]["scales"]
    # Small layers: a coder's own bytes and tables count.
    # What other runtimes take more than the packed file: whole palettes, and float32 scales and shifts.
    least = {"coreml": 0.1, "int4": 0.3}.get(form, 0.5)
    assert least * sizes["analytic_bits"] / 8 < shared < 2 * sizes["analytic_bits"] / 8


BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def norms_of(model: nn.Module) -> list[str]:
    return [key for key, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]


@pytest.mark.slow
def test_the_number_of_threads_changes_nothing(random_images):
    model = alive(networks.tiny())
    network = prepared(model, random_images(4))
    scales = {name: 1 + i / 3 for i, name in enumerate(network.layers)}
    results = [at(network, 1e-9, Options(), threads, scales).tensors() for threads in (1, 2, 4)]
    for other in results[1:]:
        assert list(other) == list(results[0])
        assert all(np.array_equal(other[key], array) for key, array in results[0].items())


@pytest.mark.slow
def test_a_second_pass_gives_the_same(random_images):
    """Factors and codebooks that are kept from a first slope are not changed by it."""
    model = alive(networks.tiny())
    images = random_images(4)
    used, fresh = prepared(model, images), prepared(model, images)
    for form in ("entropy", "fixed", "int4"):
        at(used, 1e-7, Options(format=form))
        found = at(used, 1e-9, Options(format=form)).tensors()
        expected = at(fresh, 1e-9, Options(format=form)).tensors()
        assert all(np.array_equal(found[key], array) for key, array in expected.items())


@pytest.mark.slow
def test_a_low_slope_hardly_changes_the_outputs_and_a_high_one_does(random_images):
    model = alive(networks.tiny())
    images = random_images(16)
    network, reference = prepared(model, images), predict(model, images)
    found = []
    for slope in (1e-12, 1e-9, 1e-7):
        with replaced(model, at(network, slope, Options()).tensors()):
            found.append(TASK.score(predict(model, images), reference, None).kl)
    assert found[0] < 1e-4
    assert found == sorted(found)
    assert found[-1] > 0.01


def test_a_bias_of_its_own_is_corrected_and_goes_with_the_weights(random_images):
    model = alive(networks.tiny())
    network = prepared(model, random_images(4))
    layers = network.quantised(settings_of(network, 1e-9), Options(), 1)
    tensors = network.compressed({"fc": layers["fc"]}).tensors()
    assert tensors.keys() == {"fc.weight", "fc.bias"}
    assert tensors["fc.bias"].dtype == np.float32
    expected = model.fc.bias.detach().numpy() + layers["fc"].correction
    unit = 2.0 ** np.floor(np.log2(np.abs(expected).max() / 64))
    unit = min(unit, layers["fc"].bias_unit)
    np.testing.assert_array_equal(tensors["fc.bias"], (np.rint(expected / unit) * unit).astype(np.float32))
    assert not np.signbit(tensors["fc.bias"][tensors["fc.bias"] == 0]).any()
    assert layers["fc"].correction.any()
    norm = network.compressed({"conv": layers["conv"]}).tensors()
    assert norm.keys() == {"conv.weight", *(f"bn1.{leaf}" for leaf in BATCH_NORM)}
    np.testing.assert_array_equal(norm["bn1.weight"], 1)


def test_networks_share_the_weights_that_are_the_same_in_both(random_images):
    """Units of layers in groups may differ, since they follow from inputs."""
    model = alive(networks.build("tiny", {"classes": 10}))
    first, second = (prepared(model, random_images(6, seed=seed)) for seed in range(2))
    name, layer = next(iter(second.layers.items()))
    second = replace(second, layers=second.layers | {name: replace(layer, weights=2 * layer.weights)})
    for other, layer in second.sharing(first).layers.items():
        np.testing.assert_array_equal(layer.weights, second.layers[other].weights)
        assert (layer.weights is first.layers[other].weights) == (other != name)
        assert layer.inputs is second.layers[other].inputs
