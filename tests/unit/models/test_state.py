"""State dicts and ties."""

import sys
import types

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.unit.models.fetching import error, evaluate, rebuilt, user_state
from wshare.errors import UserError
from wshare.models import registry
from wshare.models import state as state_module
from wshare.models import zoo as networks


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.second = nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(3)

    def forward(self, images):
        return self.norm(self.second(self.first(images.flatten(1)).relu()))


def tied(**_):
    return Tied()


def test_ties_survive_a_safetensors_file(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tied_networks", types.SimpleNamespace(tied=tied))
    settings = {
        "source": "python",
        "architecture": "tied_networks:tied",
        "preprocessing": {"crop": 1},
    }
    fetched = registry.fetch(settings, tmp_path)
    state = state_module.state_of(fetched.module)
    assert "first.weight" in state
    assert "second.weight" not in state
    again = rebuilt(fetched, tmp_path / "weights.safetensors")
    assert again.second.weight is again.first.weight
    assert torch.equal(again.first.weight, fetched.module.first.weight)
    assert evaluate(again, (3, 1, 1)) == evaluate(fetched.module, (3, 1, 1))
    # A file may as well hold the later name only.
    state["second.weight"] = state.pop("first.weight") + 1
    assert torch.equal(registry.load(fetched.spec, state).first.weight, state["second.weight"])


def test_state_is_a_contiguous_copy(tmp_path):
    module = networks.tiny().to(memory_format=torch.channels_last)
    state = state_module.state_of(module)
    assert all(value.is_contiguous() for value in state.values())
    assert torch.equal(state["conv.weight"], module.conv.weight)
    before = state["conv.weight"].clone()
    with torch.no_grad():
        module.conv.weight.zero_()
    assert torch.equal(state["conv.weight"], before)
    save_file(state, tmp_path / "weights.safetensors")


def test_weights_that_do_not_fit_are_named(user_settings):
    state = user_state()
    torch.save({f"{name}_old": value for name, value in state.items()}, "weights.pth")
    message = error(user_settings)
    assert "missing 0.weight, 0.bias, 3.weight and 1 more" in message
    assert "unexpected 0.weight_old, 0.bias_old, 3.weight_old and 1 more" in message
    torch.save(state, "weights.pth")
    assert "another shape: 0.weight [4, 1, 3, 3] where the network has [8, 1, 3, 3]" in error(
        user_settings | {"arguments": {"width": 8}}
    )


def test_weights_that_are_not_numbers(user_settings):
    state = user_state()
    state["3.bias"][1] = torch.nan
    torch.save(state, "weights.pth")
    assert "3.bias holds 1 NaN or infinite values of 5" in error(user_settings)


class Views(nn.Module):
    """Parameters and buffers that are views of one memory, as `views` cuts it."""

    def __init__(self, views):
        super().__init__()
        whole = torch.arange(24.0).view(4, 6)
        for name, view, parameter in views:
            found = view(whole)
            self.register_parameter(name, nn.Parameter(found)) if parameter else self.register_buffer(name, found)


def same(whole):
    return whole


def left(whole):
    return whole[:, :3]


def right(whole):
    return whole[:, 3:]


def turned(whole):
    return whole.t()


@pytest.mark.parametrize(
    ("views", "told"),
    [
        ([("a", same, True), ("b", turned, True)], "net: b [6, 4] is another view of the memory of a [4, 6], "),
        ([("a", left, True), ("b", same, True)], "net: b [4, 6] is another view of the memory of a [4, 3], "),
        ([("a", same, False), ("b", same, True)], "net: a [4, 6] is another view of the memory of b [4, 6], "),
    ],
)
def test_views_of_one_memory_are_refused_by_name(views, told):
    with pytest.raises(UserError) as raised:
        state_module.shared_memory(Views(views), "net")
    assert str(raised.value).startswith(told)
    assert "\n" not in str(raised.value)


def test_views_that_share_no_number_and_buffers_are_left_as_they_are():
    for views in (
        [("a", left, True), ("b", right, True)],
        [("a", same, False), ("b", turned, False)],
        [("a", lambda whole: whole[0], True), ("b", lambda whole: whole[1], True)],
    ):
        assert state_module.shared_memory(Views(views), "net") == []


def test_parameters_over_one_memory_become_one():
    module = Views([("a", same, True), ("b", same, True), ("c", same, True)])
    module.d = module.b
    groups = state_module.shared_memory(module, "net")
    assert [sorted(group) for group in groups] == [["a", "b", "c", "d"]]
    state_module.tie(module, groups)
    assert module.a is module.b is module.c is module.d
    assert list(state_module.state_of(module)) == ["a"]
    assert state_module.shared_memory(module, "net") == []
