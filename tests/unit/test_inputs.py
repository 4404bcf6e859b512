"""Networks, images and labels as people give them: the right numbers, or one line before anything is searched."""

import copy
import logging
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import wshare
from wshare import api
from wshare.errors import UserError

from .classifier import CLASSES, MEAN, SCALE, AutoEncoder, Dropping, InPlace, images, network, probable, yes_or_no

IMAGES, LABELS = images(160)
SETTINGS = {"quality": 0.9, "confidence": None, "options": {"evaluations": 4, "probe_images": 4}}


def compressed(model: nn.Module | None = None, pixels: Tensor = IMAGES, labels: object = LABELS, **more: object):
    return wshare.compress(network() if model is None else model, pixels, labels, **SETTINGS | more)


def stopped(monkeypatch: pytest.MonkeyPatch, *given: object, **more: object) -> str:
    """The line that a compression ends with, before anything of it is searched."""

    def searched(*_: object) -> None:
        raise AssertionError("a search was started")

    monkeypatch.setattr(api, "_searched", searched)
    with pytest.raises(UserError) as raised:
        compressed(*given, **more)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.fixture(scope="module")
def result() -> wshare.Result:
    return compressed()


@pytest.mark.slow
def test_a_network_that_is_right_is_compressed(result):
    assert result.metrics["float32"]["top1"] > 0.6
    assert result.metrics["verdict"] in ("met", "undecided")
    assert result.metrics["compression_rate"]["on_disk"] > 4


# Outputs that repeat.


@pytest.mark.parametrize("labels", [None, LABELS])
def test_a_network_with_dropout_that_is_always_on_stops_with_what_to_do(monkeypatch, labels):
    told = stopped(monkeypatch, Dropping(), labels=labels)
    assert told.startswith("model: gives other outputs for the same images from pass to pass (by up to ")
    assert told.endswith("as F.dropout(x, training=self.training) does")


@pytest.mark.slow
def test_a_forward_that_writes_into_its_input_gives_the_same_as_one_that_does_not():
    pixels = IMAGES * SCALE + MEAN
    kept = pixels.clone()
    found, expected = (compressed(InPlace(writes), pixels) for writes in (True, False))
    assert torch.equal(pixels, kept)
    assert found.packed == expected.packed
    assert found.front == expected.front
    assert found.metrics == expected.metrics
    assert found.metrics["compressed"]["top1"] > 0.6


@pytest.mark.slow
@pytest.mark.parametrize("method", ["slope", "uniform", "milp"])
def test_other_methods_do_not_let_images_drift_either(method):
    pixels = IMAGES[:60] * SCALE + MEAN
    options = {"evaluations": 2} if method == "slope" else {}
    found, expected = (
        compressed(InPlace(writes), pixels, LABELS[:60], method=method, options=options) for writes in (True, False)
    )
    assert found.packed == expected.packed


# Probabilities.


@pytest.mark.slow
def test_a_network_that_ends_in_softmax_gives_the_figures_of_its_logits(result, caplog):
    model = probable()
    with caplog.at_level(logging.INFO, "wshare"):
        found = compressed(model)
    told = "gives probabilities (it ends in softmax); their logarithms are taken for logits"
    assert [record.message for record in caplog.records].count(f"model: {told}") == 1
    assert found.metrics["compressed"]["kl"] == pytest.approx(result.metrics["compressed"]["kl"], rel=1e-3)
    for key in ("top1", "agreement"):
        assert found.metrics["compressed"][key] == result.metrics["compressed"][key]
    assert [row["kl"] for row in found.front] == pytest.approx([row["kl"] for row in result.front], rel=1e-3)
    assert found.metrics["compression_rate"]["on_disk"] == pytest.approx(
        result.metrics["compression_rate"]["on_disk"], rel=0.01
    )
    # What comes out is the user's network, with its softmax.
    assert torch.allclose(found.model(IMAGES).sum(1), torch.ones(len(IMAGES)))
    assert not any(module._forward_hooks for part in (model, found.model) for module in part.modules())


@pytest.mark.slow
def test_a_recipe_of_probabilities_is_applied_again():
    model = probable()
    found = compressed(model)
    search, _ = api._splits(model, IMAGES, LABELS, 0.5, 0, None, None)
    assert api.apply_recipe(model, found.recipe, "recipe", search)[0] == found.packed


@pytest.mark.slow
def test_a_network_that_ends_in_log_softmax_is_as_good_as_one_with_logits(result):
    found = compressed(nn.Sequential(network(), nn.LogSoftmax(1)))
    assert found.metrics["compressed"]["kl"] == pytest.approx(result.metrics["compressed"]["kl"], rel=1e-3)


# One output.


def test_of_a_network_with_one_output_the_task_is_asked_for(monkeypatch):
    told = stopped(monkeypatch, yes_or_no(), labels=None)
    assert told.startswith("model: gives one output an image, [2, 1] for 2 images, which does not tell its task; ")
    assert "say which: binary or regression" in told


# Labels that are others.


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda labels: (labels + 1) % CLASSES, r"labels may be off by one"),
        (lambda labels: np.array([3, 0, 4, 5, 1, 2])[labels], r"images of class \d are predicted as \d most often"),
        (lambda labels: np.random.default_rng(5).permutation(labels), r"check labels, order of classes and preproc"),
    ],
)
def test_labels_of_other_classes_stop_before_a_search(monkeypatch, wrong: Callable, told: str):
    found = stopped(monkeypatch, labels=wrong(LABELS))
    assert found.startswith("search images: float32 is right on ")
    assert re.search(told, found)


def test_held_out_labels_of_other_classes_stop_before_a_search(monkeypatch):
    others, labels = images(100, seed=3)
    found = stopped(monkeypatch, held_out=(others, (labels + 1) % CLASSES))
    assert found.startswith("held-out images: float32 is right on ")


# Memory that parameters share.


def test_a_transposed_view_of_another_parameter_is_refused_by_name(monkeypatch):
    found = stopped(monkeypatch, AutoEncoder(same=False))
    assert found.startswith("model: decoder.weight [64, 64] is another view of the memory of encoder.weight [64, 64], ")
    assert "use encoder.weight itself in forward" in found


@pytest.mark.slow
def test_parameters_over_one_memory_are_tied_so_that_the_loaded_file_is_what_was_measured(tmp_path):
    model = AutoEncoder(same=True)
    found = compressed(model)
    # Shared once, and kept once.
    assert "encoder" in found.recipe["layers"]
    assert "decoder" not in found.recipe["layers"]
    state = found.state_dict()
    assert torch.equal(state["encoder.weight"], state["decoder.weight"])
    found.save(tmp_path / "net")
    loaded = wshare.load(tmp_path / "net", copy.deepcopy(model))
    assert torch.equal(loaded(IMAGES), found.model(IMAGES))
    assert model.decoder.weight is not model.encoder.weight
    again = wshare.load(tmp_path / "net", model)
    assert torch.equal(again(IMAGES), found.model(IMAGES))


# Images.


def test_an_image_that_is_searched_with_and_held_out_is_told(monkeypatch):
    others, labels = images(30, seed=3)
    others[4], others[9] = IMAGES[11], IMAGES[2]
    found = stopped(monkeypatch, held_out=(others, labels))
    assert found == (
        "held_out: 2 of 30 images are search images too, among them held-out image 4, which is image 11; "
        "hold out others"
    )


@pytest.mark.slow
def test_nothing_that_is_passed_in_changes():
    model = InPlace(True).train()
    model[0][0].weight.grad = torch.ones_like(model[0][0].weight)
    pixels, labels = IMAGES * SCALE + MEAN, LABELS.copy()
    before, given = copy.deepcopy(model.state_dict()), pixels.clone()
    compressed(model, pixels, labels, held_out=(images(40, seed=3)[0] * SCALE + MEAN, images(40, seed=3)[1]))
    assert torch.equal(pixels, given)
    assert np.array_equal(labels, LABELS)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.children())
    assert torch.equal(model[0][0].weight.grad, torch.ones_like(model[0][0].weight))
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


# What is loaded.


@pytest.mark.slow
def test_a_loaded_network_is_in_evaluation_mode(tmp_path):
    model = nn.Sequential(network(), nn.Dropout(0.9), nn.BatchNorm1d(CLASSES))
    found = compressed(model.eval())
    found.save(tmp_path / "net")
    loaded = wshare.load(tmp_path / "net", copy.deepcopy(model).train())
    assert not any(module.training for module in loaded.modules())
    assert torch.equal(loaded(IMAGES), found.model(IMAGES))
