"""Batch norms that can be folded into the layer before them."""

import logging

import numpy as np
import pytest
import torch
from torch import nn

from wshare.models import zoo as networks
from wshare.models.folding import folded_norms
from wshare.models.forward import forward
from wshare.models.state import fast

from ..search.networks import alive, layers_of, state


@pytest.fixture(autouse=True)
def _heard(caplog):
    caplog.set_level(logging.INFO)


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


def test_a_norm_right_behind_a_convolution_is_folded(caplog):
    assert check_unchanged(alive(Block("plain")), batch()) == {"conv": "norm"}
    assert not caplog.records


@pytest.mark.parametrize("kind", ["own bias", "called twice", "norm called twice", "not at once"])
def test_a_pair_that_is_none_is_not_folded(kind, caplog):
    assert check_unchanged(alive(Block(kind)), batch()) == {}
    assert not caplog.records


@pytest.mark.parametrize("kind", ["goes elsewhere", "activated in place", "two norms"])
def test_an_output_that_goes_elsewhere_too_is_found_out(kind, caplog):
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


def test_a_norm_without_running_statistics_is_not_folded(caplog):
    """Its scale and shift are those of each batch."""
    model = Block("plain")
    model.norm = nn.BatchNorm2d(3, track_running_stats=False)
    assert check_unchanged(fast(model.eval()), batch()) == {}
    assert not caplog.records


@pytest.mark.parametrize(("name", "shape"), [("tiny", (1, 8)), ("resnet_ds", (1, 28)), ("lenet5", (1, 28))])
def test_all_norms_of_our_own_networks_are_folded_but_those_behind_a_pool(name, shape):
    model = alive(networks.build(name, {"classes": 10}))
    found = check_unchanged(model, batch(*shape))
    norms = [key for key, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert sorted(found.values()) == sorted(set(norms) - {"stem.bn"})
    for layer, norm in found.items():
        assert layer.rpartition(".")[0] == norm.rpartition(".")[0]
