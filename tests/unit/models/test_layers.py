import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from wshare.errors import UserError
from wshare.models.layers import Choice, inspect, replaced
from wshare.names import tensor_of_layer

CELLS = ("cells.weight_ih_l0", "cells.weight_hh_l0")


class Mixed(nn.Module):
    """One of everything that a network may hold."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.conv = nn.Conv2d(4, 8, 3)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.grouped = nn.Conv2d(8, 8, 1, groups=2, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 8, 2)
        self.cells = nn.LSTM(8, 2)
        self.head = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8))
        self.head[2].weight = self.head[0].weight
        self.again = self.conv


def listed(model: nn.Module, include: tuple = (), exclude: tuple = ()) -> dict:
    return inspect(model, [], Choice(list(include), list(exclude), "models.m.layers"))


def shared(table: dict) -> list[str]:
    return [layer["name"] for layer in table["layers"]]


@pytest.mark.parametrize(
    "model",
    [Mixed(), torchvision.models.mobilenet_v2(width_mult=0.1), torchvision.models.googlenet(init_weights=False)],
    ids=["mixed", "mobilenet_v2", "googlenet"],
)
def test_every_parameter_is_listed_exactly_once(model):
    table = listed(model)
    names = [name for entry in table["parameters"] for name in (entry["name"], *entry["aliases"])]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters(remove_duplicate=False))
    assert len(table["parameters"]) == len(list(model.parameters()))
    assert sum(np.prod(entry["shape"], dtype=int) for entry in table["parameters"]) == sum(
        parameter.numel() for parameter in model.parameters()
    )
    assert [tensor_of_layer(name, names) for name in shared(table)] == [
        entry["name"] for entry in table["parameters"] if entry["status"] == "shared"
    ]
    assert {entry["status"] for entry in table["parameters"]} == {"shared", "kept"}


def test_each_parameter_has_its_reason():
    reasons = {
        entry["name"]: (entry["status"], entry["reason"]) for entry in listed(Mixed(), (), ["conv"])["parameters"]
    }
    assert reasons["scale"] == ("kept", "Mixed is no kind of layer that can be shared")
    assert reasons["conv.weight"] == ("kept", "named in models.m.layers.exclude")
    assert reasons["conv.bias"] == ("kept", "bias of a layer: few values, kept exact")
    assert reasons["depthwise.weight"] == ("shared", "Conv2d weight")
    assert reasons["bn.weight"] == reasons["bn.bias"]
    assert reasons["bn.weight"] == ("kept", "batch norm: kept as one scale and one shift a channel")
    assert reasons["up.weight"] == ("shared", "ConvTranspose2d weight")
    assert reasons["cells.weight_ih_l0"] == ("shared", "LSTM weight_ih_l0")
    assert reasons["head.0.weight"] == ("shared", "Linear weight")
    assert reasons["head.1.weight"] == ("kept", "LayerNorm is no kind of layer that can be shared")


def test_tied_weights_are_one_layer_with_an_alias():
    entries = {entry["name"]: entry["aliases"] for entry in listed(Mixed())["parameters"]}
    assert entries["head.0.weight"] == ["head.2.weight"]
    assert entries["conv.weight"] == ["again.weight"]
    assert "head.2.weight" not in entries
    assert shared(listed(Mixed())) == ["conv", "depthwise", "grouped", "up", *CELLS, "head.0"]


def test_layers_tell_type_shape_groups_and_folder():
    layers = {layer["name"]: layer for layer in listed(Mixed())["layers"]}
    assert layers["depthwise"] == {
        "name": "depthwise",
        "folder": "depthwise",
        "type": "Conv2d",
        "shape": [8, 1, 3, 3],
        "groups": 8,
        "weights": 72,
    }
    assert (layers["grouped"]["shape"], layers["grouped"]["groups"]) == ([8, 4, 1, 1], 2)
    assert (layers["head.0"]["type"], layers["head.0"]["groups"]) == ("Linear", 1)


def test_weights_of_other_types_are_kept():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3).double())
    table = listed(model)
    assert shared(table) == ["0"]
    reasons = {entry["name"]: entry["reason"] for entry in table["parameters"]}
    assert "float64" in reasons["1.weight"]


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ((), (), ["conv", "depthwise", "grouped", "up", *CELLS, "head.0"]),
        (["conv"], (), ["conv"]),
        (["re:.*ed"], (), ["grouped"]),
        (["re:de.*", "head.0"], (), ["depthwise", "head.0"]),
        ((), ["conv", "re:head.*|cells.*"], ["depthwise", "grouped", "up"]),
        (["conv", "grouped"], ["conv"], ["grouped"]),
        (["re:.*"], ["re:.*e.*"], ["conv", "up"]),
        # Any of the names of tied weights counts.
        ((), ["head.2"], ["conv", "depthwise", "grouped", "up", *CELLS]),
        ((), ["cells.weight_ih_l0", "re:de.*"], ["conv", "grouped", "up", CELLS[1], "head.0"]),
        (["head.2"], (), ["head.0"]),
        # A pattern names the whole of a layer's name, not a part.
        (["re:con.|depth.*"], (), ["conv", "depthwise"]),
    ],
)
def test_include_and_exclude_choose_layers_and_exclude_wins(include, exclude, expected):
    assert shared(listed(Mixed(), include, exclude)) == expected


@pytest.mark.parametrize("key", ["include", "exclude"])
@pytest.mark.parametrize(
    ("pattern", "closest"), [("covn", "conv"), ("re:dept", "depthwise"), ("bn", "conv"), ("hade.2", "head.2")]
)
def test_a_pattern_that_matches_no_layer_is_an_error_with_the_closest_name(key, pattern, closest):
    with pytest.raises(UserError) as error:
        listed(Mixed(), **{key: [pattern]})
    message = str(error.value)
    assert message.startswith(f"models.m.layers.{key}.{pattern!r}: no such layer")
    if pattern != "bn":
        assert f"Did you mean {closest!r}" in message
    assert "\n" not in message


def test_a_network_without_a_layer_to_share_is_refused():
    with pytest.raises(UserError, match="the network has no layer that can be shared; such are Conv1d, Conv2d"):
        listed(nn.BatchNorm2d(3))
    with pytest.raises(
        UserError, match="no layer is left to share of the 8 that can be: named in models.m.layers.exclude; change"
    ):
        listed(Mixed(), (), ["re:.*"])


def test_replaced_weights_act_and_the_old_ones_come_back_to_the_bit():
    model = Mixed()
    before = {name: (value.clone(), value.data_ptr()) for name, value in model.state_dict().items()}
    new = {"conv.weight": np.zeros((8, 4, 3, 3), np.float32), "head.0.weight": np.ones((8, 8), np.float32).T}
    with replaced(model, new):
        assert not model.conv.weight.any()
        assert not model.again.weight.any()
        assert torch.equal(model.head[2].weight, torch.ones(8, 8))
        assert torch.equal(model.depthwise.weight, before["depthwise.weight"][0])
    after = model.state_dict()
    assert all(torch.equal(after[name], value) and after[name].data_ptr() == at for name, (value, at) in before.items())


def test_the_order_of_a_weight_in_memory_stays():
    model = Mixed().to(memory_format=torch.channels_last)
    with replaced(model, {"conv.weight": np.zeros((8, 4, 3, 3), np.float32)}):
        assert model.conv.weight.is_contiguous(memory_format=torch.channels_last)
        assert not model.conv.weight.is_contiguous()


def test_weights_come_back_after_an_error_and_after_writes_into_the_new_ones():
    model = Mixed()
    before = model.conv.weight.detach().clone()
    array = np.zeros((8, 4, 3, 3), np.float32)

    def fail() -> None:
        with replaced(model, {"conv.weight": array}), torch.no_grad():
            model.conv.weight.add_(1)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert torch.equal(model.conv.weight, before)


def test_nothing_changes_if_one_of_the_layers_does_not_exist():
    model = Mixed()
    before = model.conv.weight.detach().clone()
    new = {"conv.weight": np.zeros((8, 4, 3, 3), np.float32), "x.weight": 0}
    with pytest.raises(AttributeError), replaced(model, new):
        pass
    assert torch.equal(model.conv.weight, before)
