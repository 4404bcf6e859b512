"""Gradient calibration of the numbers beside the indices."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from wshare.data.images import ImageArray
from wshare.evaluation.predict import predict
from wshare.models.layers import replaced
from wshare.packed.compressed import Compressed
from wshare.quantize.layer import Options, Quantised
from wshare.search.method import SettingError
from wshare.search.rate_distortion.gradient import calibrated, recalled, recorded
from wshare.tasks.table import task
from wshare.tasks.task import fitted

from ..networks import alive, state
from .test_network import prepared, settings_of

TASK = task("classification")


class Small(nn.Module):
    """A layer with a folded batch norm, one whose batch norm has no shift of its own, and one with a bias."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.plain, self.fixed = nn.Conv2d(6, 6, 3, groups=2, bias=False), nn.BatchNorm2d(6, affine=False)
        self.fc = nn.Linear(6 * 16, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        inner = torch.relu(self.bn(self.conv(images)))
        return self.fc(torch.relu(self.fixed(self.plain(inner))).flatten(1))


@pytest.fixture(params=["entropy", "fixed"])
def small(request, random_images):
    """The network, prepared, its images, and its layers at a slope at which it loses much.

    With entropy coding its small layers have grids, with indices of fixed width they have codebooks.
    """
    torch.manual_seed(0)
    model, images = Small(), random_images(48, (1, 8, 8))
    # `alive` knows batch norms with scale and shift alone.
    alive(nn.ModuleList([model.conv, model.bn, model.plain, model.fc]))
    model.eval()
    network = prepared(model, images)
    assert set(network.norms) == {"conv", "plain"}
    layers = network.quantised(settings_of(network, 3e-5), Options(request.param), 1)
    assert all((layer.shared.step is None) == (request.param == "fixed") for layer in layers.values())
    return model, network, images, layers


def loss(model: nn.Module, compressed: Compressed, images: ImageArray) -> float:
    reference = predict(model, images)
    with replaced(model, compressed.tensors()):
        outputs = predict(model, images)
    return fitted(TASK, reference).score(outputs, reference, None).kl


def taught(small, epochs: int = 60, images: ImageArray | None = None) -> dict[str, Quantised]:
    model, network, own, layers = small
    images = images or own
    return calibrated(TASK, model, network, layers, images, predict(model, images), epochs, 0)


@pytest.mark.slow
def test_the_network_diverges_less_and_indices_stay(small):
    model, network, images, layers = small
    before = state(model)
    found = taught(small)
    assert loss(model, network.compressed(found), images) < 0.7 * loss(model, network.compressed(layers), images)
    for name, layer in found.items():
        np.testing.assert_array_equal(layer.shared.indices, layers[name].shared.indices)
        assert (np.diff(layer.shared.codebook) > 0).all()
        assert not np.array_equal(layer.shared.codebook, layers[name].shared.codebook)
    assert not np.array_equal(found["conv"].norm.steps, layers["conv"].norm.steps)
    np.testing.assert_array_equal(found["plain"].norm.steps, layers["plain"].norm.steps)
    assert not np.array_equal(found["fc"].correction, layers["fc"].correction)
    # The float32 network is what it was.
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["codebook", "shift", "correction"])
def test_each_kind_of_number_is_worth_something(small, kind):
    model, network, images, layers = small
    found = taught(small)
    without = {
        "codebook": lambda name: found[name].with_codebook(layers[name].shared.codebook, layers[name].shared.step),
        "shift": lambda name: replace(found[name], norm=layers[name].norm),
        "correction": lambda name: replace(found[name], correction=layers[name].correction),
    }[kind]
    reduced = network.compressed({name: without(name) for name in found})
    assert loss(model, reduced, images) > loss(model, network.compressed(found), images)


def test_the_same_images_and_seed_teach_the_same(small):
    first, second = taught(small, 2), taught(small, 2)
    assert json.dumps(recorded(small[1], first)) == json.dumps(recorded(small[1], second))


def test_numbers_go_through_a_recipe(small):
    _, network, _, layers = small
    found = taught(small, 2)
    read = json.loads(json.dumps(recorded(network, found)))
    again = {name: recalled(network, name, layer, read[name]) for name, layer in layers.items()}
    for first, second in zip(found.values(), again.values(), strict=True):
        assert first.bits == second.bits
    first, second = (network.compressed(own).tensors() for own in (found, again))
    assert first.keys() == second.keys()
    for key, array in first.items():
        np.testing.assert_array_equal(second[key], array, err_msg=key)


def test_bits_follow_the_shifts(small):
    layer = small[3]["conv"]
    same = layer.shifted(layer.norm.steps)
    one = layer.shifted(np.zeros_like(layer.norm.steps))
    assert same.bits == pytest.approx(layer.bits)
    assert one.bits < layer.bits


@pytest.mark.parametrize(
    ("layer", "key", "change"),
    [
        ("conv", "codebook", lambda values: values[:-1]),
        ("conv", "codebook", lambda values: values[::-1]),
        ("conv", "codebook", lambda values: [*values[:-1], float("inf")]),
        ("conv", "codebook", lambda values: "many"),
        ("conv", "step", lambda values: "one"),
        ("conv", "shift", lambda values: None),
        ("conv", "shift", lambda values: [0.5] * len(values)),
        ("conv", "shift", lambda values: [1 << 40] * len(values)),
        ("conv", "correction", lambda values: [0.0] * 6),
        ("fc", "correction", lambda values: values[1:]),
        ("fc", "shift", lambda values: [1] * 5),
    ],
)
def test_numbers_of_another_layer_are_refused(small, layer, key, change):
    _, network, _, layers = small
    read = recorded(network, layers)[layer]
    recalled(network, layer, layers[layer], read)
    wrong = copy.deepcopy(read)
    wrong["numbers"][key] = change(wrong["numbers"][key])
    with pytest.raises(SettingError, match=f"^layer '{layer}': numbers are missing, or those of another layer$"):
        recalled(network, layer, layers[layer], wrong)
    del wrong["numbers"][key]
    with pytest.raises(SettingError):
        recalled(network, layer, layers[layer], wrong)


def test_values_of_a_grid_stay_multiples_of_a_step(small):
    _, network, _, layers = small
    step = 0.25
    grid = {
        name: layer.with_codebook((step * np.arange(-2, len(layer.shared.codebook) - 2)).astype(np.float32), step)
        for name, layer in layers.items()
    }
    model, network, images, _ = small
    found = calibrated(TASK, model, network, grid, images, predict(model, images), 2, 0)
    for name, layer in found.items():
        own = layer.shared
        assert own.step != step, name
        np.testing.assert_array_equal(
            own.codebook, (np.arange(-2, len(own.codebook) - 2) * own.step).astype(np.float32)
        )


@pytest.mark.parametrize("small", ["fixed"], indirect=True)
def test_a_value_of_zero_stays_zero(small):
    model, network, images, layers = small
    middle = {
        name: layer.with_codebook(
            np.where(np.arange(len(layer.shared.codebook)) == 1, 0, layer.shared.codebook).astype(np.float32), None
        )
        for name, layer in layers.items()
    }
    ordered = {name: layer for name, layer in middle.items() if (np.diff(layer.shared.codebook) > 0).all()}
    assert ordered
    found = calibrated(TASK, model, network, layers | ordered, images, predict(model, images), 2, 0)
    assert all(found[name].shared.codebook[1] == 0 for name in ordered)


@pytest.mark.parametrize("small", ["fixed"], indirect=True)
def test_values_that_would_change_places_stay(small):
    layer = small[3]["conv"]
    assert layer.moved(layer.shared.codebook[::-1].astype(np.float64)) is layer
    moved = layer.moved(layer.shared.codebook * 1.5)
    np.testing.assert_allclose(moved.shared.codebook, layer.shared.codebook * 1.5, rtol=1e-2)


def test_a_layer_that_nothing_tells_of_stays(small):
    """Nothing follows from a tensor whose output is thrown away: no number of it moves."""
    model, network, images, layers = small

    class Blind(Small):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(torch.zeros_like(images))

    blind = Blind().eval()
    blind.load_state_dict(model.state_dict())
    found = calibrated(TASK, blind, network, layers, images, predict(blind, images), 2, 0)
    np.testing.assert_array_equal(found["conv"].shared.codebook, layers["conv"].shared.codebook)
    assert np.isfinite(network.compressed(found).tensors()["conv.weight"]).all()


@pytest.mark.parametrize("form", ["coreml", "int8", "int4"])
def test_formats_of_other_runtimes_take_it_too(random_images, form):
    """Their bits do not follow from steps of shifts, and integers stay what they are; 8 bits lose next to nothing."""
    torch.manual_seed(0)
    model, images = nn.Sequential(nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6)), random_images(24, (1, 8, 8))
    model = alive(nn.Sequential(*model, nn.Flatten(), nn.Linear(216, 5))).eval()
    network = prepared(model, images)
    layers = network.quantised(settings_of(network, 3e-5), Options(form), 1)
    found = calibrated(TASK, model, network, layers, images, predict(model, images), 16, 0)
    for name, layer in found.items():
        before, after = layers[name].shared, layer.shared
        assert layer.bits == layers[name].bits
        assert form == "int8" or not np.array_equal(after.codebook, before.codebook)
        if form != "coreml":
            np.testing.assert_allclose(after.codebook / after.step, before.codebook / before.step, rtol=1e-6)
    assert form == "int8" or not np.array_equal(found["0"].norm.steps, layers["0"].norm.steps)
