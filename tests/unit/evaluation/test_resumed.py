"""Passes that begin where a network was changed."""

import numpy as np
import pytest
import torch
from torch import nn

from wshare.evaluation import resumed
from wshare.evaluation.predict import predict
from wshare.evaluation.resumed import Resumed
from wshare.models import zoo as networks
from wshare.models.fusion import fused
from wshare.models.layers import replaced
from wshare.models.outputs import with_logits

from ..search.networks import alive, layers_of


class Branches(nn.Module):
    """Writes in place into a tensor that a view and a later sum take, too, and uses one weight twice."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.last = nn.BatchNorm2d(4), nn.Linear(4 * 64, 5)
        self.tied = nn.Conv2d(4, 4, 3, padding=1)
        self.tied.weight = self.second.weight

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        inner = self.first(images)
        view = inner.flatten(1)
        other = self.norm(self.second(inner)) + inner
        other += self.tied(inner.add_(1))
        return self.last(torch.relu_(other).flatten(1) + view)


class Untraceable(Branches):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images if float(images.sum()) > 0 else images + 0)


class Optional(Branches):
    def forward(self, images: torch.Tensor, factor: float = 2.0, shift: torch.Tensor | None = None) -> torch.Tensor:
        return factor * super().forward(images)


MODELS = {
    "optional": Optional,
    "tiny": lambda: networks.build("tiny", {"classes": 10}),
    "branches": Branches,
    "untraceable": Untraceable,
}


def changes(model: nn.Module, layers: list[str]) -> list[dict[str, np.ndarray]]:
    """Tensors of one layer after the other, and of the batch norm behind one of them along with it."""
    found = []
    for name in layers:
        weight = model.get_submodule(name).weight.detach().numpy()
        found.append({f"{name}.weight": np.round(8 * weight) / 8})
    return found


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_those_of_whole_passes(random_images, name, threads):
    model, images = alive(MODELS[name]()), random_images(24, (1, 8, 8))
    layers = [layer for layer in layers_of(model) if layer != "tied"]
    probed = Resumed(model, images, threads)
    assert isinstance(fused(model, images.batch(0)[:2]), torch.fx.GraphModule) == (name != "untraceable")
    before = predict(model, images)
    # Backwards, too, and the same one again.
    for tensors in changes(model, [*layers, *layers[::-1], layers[-1]]):
        with replaced(model, tensors):
            expected = predict(model, images)
        assert not np.array_equal(expected, before)
        np.testing.assert_array_equal(probed.predict(tensors), expected)
    np.testing.assert_array_equal(predict(model, images), before)


def test_what_comes_before_a_layer_is_computed_once(random_images, monkeypatch):
    model, images = alive(networks.build("tiny", {"classes": 10})), random_images(24, (1, 8, 8))
    probed, layers, calls = Resumed(model, images, 1), layers_of(model), []
    run = torch.fx.Interpreter.run_node
    monkeypatch.setattr(torch.fx.Interpreter, "run_node", lambda self, node: calls.append(node.name) or run(self, node))
    for tensors in changes(model, layers):
        calls.clear()
        probed.predict(tensors)
    # From the layer before the last one on.
    assert calls == ["fused_pointwise", "pool", "flatten", "fc", "output"]


def test_where_there_is_no_room_passes_are_whole(random_images, monkeypatch):
    monkeypatch.setattr(resumed, "ROOM", 10)
    model, images = alive(networks.build("tiny", {"classes": 10})), random_images(24, (1, 8, 8))
    probed = Resumed(model, images, 1)
    for tensors in changes(model, layers_of(model)):
        with replaced(model, tensors):
            expected = predict(model, images)
        np.testing.assert_array_equal(probed.predict(tensors), expected)
        assert probed._known == {}


def test_hooks_that_make_logits_are_kept(random_images):
    softmax = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5), nn.Softmax(1))
    model = with_logits(alive(softmax), {"outputs": "probabilities"})
    images = random_images(24, (1, 8, 8))
    probed = Resumed(model, images, 1)
    for tensors in changes(model, ["0", "3"]):
        with replaced(model, tensors):
            expected = predict(model, images)
        np.testing.assert_array_equal(probed.predict(tensors), expected)
    assert (expected < 0).any()
