"""The layer by which the outputs of a network can be multiplied."""

import pytest
import torch
from torch import nn

from wshare.evaluation.head import output_layer
from wshare.models.kinds.table import layers_of
from wshare.tasks.table import task


def found(*modules: nn.Module, but: str = "") -> str | None:
    torch.manual_seed(0)
    model = nn.Sequential(*modules).eval()
    for parameter in model.parameters():
        # So large that no function looks like a straight line.
        parameter.data *= 4
    names = [layer.name for layer in layers_of(model) if layer.name != but]
    return output_layer(TASK, model, names, torch.randn(2, 3, 6, 6))


TASK = task("classification")
CONV = (nn.Conv2d(3, 4, 3), nn.ReLU())


@pytest.mark.parametrize(
    ("modules", "name"),
    [
        ((*CONV, nn.Flatten(), nn.Linear(64, 5)), "3"),
        ((*CONV, nn.Flatten(), nn.Linear(64, 5, bias=False)), "3"),
        ((*CONV, nn.Conv2d(4, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()), "2"),
        ((*CONV, nn.Flatten(), nn.Linear(64, 5), nn.ReLU()), "3"),
        ((*CONV, nn.Flatten(), nn.Linear(64, 5), nn.LogSoftmax(1)), "3"),
        ((*CONV, nn.Flatten(), nn.Linear(64, 5), nn.Softplus()), None),
        ((*CONV, nn.Flatten(), nn.Linear(64, 5), nn.BatchNorm1d(5)), None),
        ((nn.Flatten(), nn.ReLU()), None),
    ],
)
def test_it_is_the_last_layer_if_what_follows_keeps_proportions(modules, name):
    if name is None and isinstance(modules[-1], nn.BatchNorm1d):
        nn.init.uniform_(modules[-1].bias)
    assert found(*modules) == name


def test_a_layer_before_one_that_is_kept_is_none():
    assert found(*CONV, nn.Flatten(), nn.Linear(64, 5), but="3") is None


def test_a_layer_that_is_called_twice_is_none():
    twice = nn.Linear(3, 3)
    assert found(nn.AdaptiveAvgPool2d(1), nn.Flatten(), twice, nn.Tanh(), twice) is None


def test_the_network_stays_as_it_is():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert output_layer(TASK, model, ["1"], torch.ones(2, 12)) == "1"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model[1]._forward_hooks
