"""State dicts and ties."""

import sys
import types

import torch
from safetensors.torch import save_file
from torch import nn

from tests.unit.models.fetching import error, evaluate, rebuilt, user_state
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
    torch.save({f"backbone.{name}": value for name, value in state.items()}, "weights.pth")
    message = error(user_settings)
    assert "missing 0.weight, 0.bias, 3.weight and 1 more" in message
    assert "unexpected backbone.0.weight, backbone.0.bias, backbone.3.weight and 1 more" in message
    torch.save(state, "weights.pth")
    assert "another shape: 0.weight [4, 1, 3, 3] where the network has [8, 1, 3, 3]" in error(
        user_settings | {"arguments": {"width": 8}}
    )


def test_weights_that_are_not_numbers(user_settings):
    state = user_state()
    state["3.bias"][1] = torch.nan
    torch.save(state, "weights.pth")
    assert "3.bias holds 1 NaN or infinite values of 5" in error(user_settings)
