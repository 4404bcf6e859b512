"""Batch norms that can be folded into the layer before them."""

import logging

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from wshare.calibration.statistics import input_statistics
from wshare.models import zoo as networks
from wshare.models.folding import behind_bias, folded_norms
from wshare.models.forward import forward
from wshare.models.layers import replaced
from wshare.models.norms import batch_norms
from wshare.models.state import fast, load_state, state_of
from wshare.nn import compressed
from wshare.packed.contents import contents
from wshare.packed.format import load_packed, pack, read_layout, read_shared
from wshare.quantize.batch_norm import BatchNorm
from wshare.quantize.layer import Options
from wshare.search.rate_distortion.network import Network

from ..search.networks import alive, layers_of, state
from .kinds import inputs, lived_in, network


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
        out = self.norm(input=made) if self.kind == "by name" else self.norm(made)
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


@pytest.mark.parametrize("kind", ["plain", "own bias", "by name"])
def test_a_norm_right_behind_a_convolution_is_folded(kind, caplog):
    assert check_unchanged(alive(Block(kind)), batch()) == {"conv": "norm"}
    assert not caplog.records


@pytest.mark.parametrize("kind", ["called twice", "norm called twice", "not at once", "activated in place"])
def test_a_pair_that_is_none_is_not_folded(kind, caplog):
    assert check_unchanged(alive(Block(kind)), batch()) == {}
    assert not caplog.records


@pytest.mark.parametrize("kind", ["goes elsewhere", "two norms"])
def test_an_output_that_goes_elsewhere_too_is_found_out(kind, caplog):
    assert check_unchanged(alive(Block(kind)), batch()) == {}
    assert "no batch norm is folded: outputs would differ by" in caplog.text


def test_one_pair_that_is_none_does_not_keep_the_others_from_being_folded(caplog):
    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleList(map(Block, ("plain", "goes elsewhere", "own bias")))

        def forward(self, images):
            return sum(part(images) for part in self.parts)

    found = check_unchanged(alive(Joined()), batch())
    assert found == {"parts.0.conv": "parts.0.norm", "parts.2.conv": "parts.2.norm"}
    assert "batch norms that stay, since outputs would differ by" in caplog.text
    assert caplog.text.strip().endswith("largest: parts.1.norm")


def test_a_bias_becomes_a_part_of_the_shift_to_the_last_digit():
    """In float64, before rounding: y = s (W x + b) + t = (s W) x + (s b + t)."""
    rng = np.random.default_rng(0)
    scale, shift, bias, sums = rng.normal(size=(4, 7)).astype(np.float32)
    norm = BatchNorm(scale, shift, 1e-5, True)
    found = behind_bias(norm, bias)
    wide = [array.astype(np.float64) for array in (scale, shift, bias, sums)]
    np.testing.assert_allclose(
        found.scale * sums + found.shift.astype(np.float64),
        wide[0] * (wide[3] + wide[2]) + wide[1],
        rtol=1e-6,
        atol=1e-6,
    )
    assert behind_bias(norm, None) is norm


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_norms_behind_every_kind_are_folded(rank, bias):
    sample = inputs(rank, 4)
    assert check_unchanged(network(rank, bias), sample) == {"0": "1", "3": "4"}


@pytest.mark.parametrize(
    ("model", "sample"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.BatchNorm1d(5)), torch.randn(2, 3, 2, 2)),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.SyncBatchNorm(4), nn.Flatten()), batch()),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), nn.Flatten()), batch()),
        (nn.Sequential(nn.ConvTranspose1d(4, 6, 3, groups=2), nn.SyncBatchNorm(6), nn.Flatten()), inputs(1, 4)),
    ],
    ids=["dense", "synchronised", "without affine", "transposed and synchronised"],
)
def test_any_batch_norm_counts(model, sample):
    found = check_unchanged(lived_in(model), sample)
    assert len(found) == 1


@pytest.mark.parametrize(
    "norm",
    [nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True, track_running_stats=True), nn.LayerNorm((4, 6, 6))],
    ids=lambda norm: type(norm).__name__,
)
def test_norms_of_each_image_stay_as_they_are(norm):
    model = lived_in(nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.Flatten()))
    assert check_unchanged(model, batch()) == {}
    assert batch_norms(model) == {}


def test_a_norm_in_front_of_a_convolution_keeps_its_scale_and_shift():
    """As in pre-activation networks: what is packed gives the same outputs, and takes one scale and shift a channel."""
    model = lived_in(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.Flatten()))
    assert check_unchanged(model, batch()) == {}
    (norm,) = batch_norms(model).values()
    expected = forward(model, batch())
    with replaced(model, norm.tensors("0")):
        np.testing.assert_allclose(forward(model, batch()), expected, atol=1e-5)


def test_tied_layers_and_norms_over_another_axis_are_not_folded(caplog):
    tied = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Flatten())
    tied[2].weight = tied[0].weight
    assert check_unchanged(lived_in(tied), batch()) == {}
    # [N, positions, features], and a norm that counts positions.
    turned = nn.Sequential(nn.Flatten(2), nn.Linear(64, 5), nn.BatchNorm1d(3), nn.Flatten())
    assert check_unchanged(lived_in(turned), batch()) == {}
    assert not caplog.records


def test_an_idle_layer_and_its_norm_are_left():
    model = Block("plain")
    model.aux, model.aux_norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
    assert check_unchanged(alive(model), batch()) == {"conv": "norm"}


class Bottleneck(nn.Module):
    """A block of ResNet-50, with biases before all batch norms, as converted networks have them."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(inputs, width, 1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)),
            *(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)),
            *(nn.Conv2d(width, 2 * width, 1), nn.BatchNorm2d(2 * width)),
        )
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, 2 * width, 1), nn.BatchNorm2d(2 * width))

    def forward(self, images):
        return functional.relu(self.body(images) + self.shortcut(images), inplace=True)


def residual() -> nn.Module:
    return alive(
        nn.Sequential(
            *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
            *(Bottleneck(8, 8), Bottleneck(16, 16)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4)),
        )
    )


def test_all_norms_of_a_residual_network_with_biases_are_folded():
    assert len(check_unchanged(residual(), batch())) == 9


@pytest.mark.slow
def test_biases_that_were_merged_take_next_to_nothing():
    model, sample = residual(), batch(count=8)
    layers = layers_of(model)
    found = folded_norms(model, layers, sample)
    statistics = input_statistics(model, [sample], layers, 0)
    taught = Network.of(model, dict.fromkeys(layers, 1.0), statistics, found)
    settings = {name: {"slope": 1e-6, "sensitivity_scale": 1.0} for name in layers}
    parts = taught.compressed(taught.quantised(settings, Options(), 1))
    assert sorted(parts.merged) == sorted(f"{name}.bias" for name in found)
    assert list(parts.changed) == [f"{layers[-1]}.bias"]
    norms = batch_norms(model)
    for name, norm in found.items():
        bias = model.get_submodule(name).bias.numpy(force=True)
        np.testing.assert_array_equal(taught.layers[name].norm.shift, behind_bias(norms[norm], bias).shift)
    state = {name: tensor.numpy() for name, tensor in state_of(model).items()} | parts.changed
    content, _ = pack(state, parts.stored(), {}, parts.folded, {}, "entropy")
    nbytes = read_layout(content).nbytes
    assert max(nbytes[name] for name in parts.merged) <= 8
    # What the probes measured is what a reader gets.
    tensors, others = read_shared(content)
    assert set(tensors) == {f"{name}.weight" for name in layers}
    assert len(contents(content).shared) == len(layers)
    with replaced(model, parts.tensors()):
        measured = forward(model, sample)
    small = compressed(model, content)
    load_state(model, load_packed(content), "packed")
    np.testing.assert_array_equal(forward(model, sample), measured)
    np.testing.assert_array_equal(forward(small, sample), measured)
    assert not others[f"{next(iter(found))}.bias"].any()


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
