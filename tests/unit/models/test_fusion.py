"""Fused convolutions give the network's own logits, whatever its weights become; others are left as they are."""

import copy
import gc
import weakref

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional

from tests.networks import random_weights
from wshare.models import zoo as networks
from wshare.models.forward import forward
from wshare.models.fusion import FusedConv, fused
from wshare.models.layers import replaced
from wshare.models.outputs import with_logits
from wshare.models.state import fast


def sample(channels: int = 3, side: int = 64, count: int = 4) -> torch.Tensor:
    images = torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(0))
    return images.to(memory_format=torch.channels_last)


def convolutions(network: nn.Module) -> list[FusedConv]:
    return [module for module in network.modules() if isinstance(module, FusedConv)]


class Parts(nn.Module):
    """One convolution, what may follow it, and a head."""

    def __init__(self, conv: nn.Module, *after: object):
        super().__init__()
        self.conv, self.norms = conv, nn.ModuleList(part for part in after if isinstance(part, nn.Module))
        self.after = after

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found = self.conv(images)
        for part in self.after:
            found = part(found)
        return found.mean((2, 3))


def norm(channels: int = 6, **arguments: object) -> nn.BatchNorm2d:
    found = nn.BatchNorm2d(channels, **arguments)
    generator = torch.Generator().manual_seed(1)
    if found.track_running_stats:
        found.running_mean.normal_(generator=generator)
        found.running_var.uniform_(0.5, 2, generator=generator)
    if found.affine:
        nn.init.normal_(found.weight, generator=generator)
        nn.init.normal_(found.bias, generator=generator)
    return found


def test_logarithms_of_probabilities_are_those_of_the_network():
    plain, probable = (Parts(nn.Conv2d(3, 6, 3), norm(), torch.relu).eval() for _ in range(2))
    probable.load_state_dict(plain.state_dict())
    probable = nn.Sequential(probable, nn.Softmax(1))
    model = with_logits(probable, {"outputs": "probabilities"})
    assert with_logits(model, {"outputs": "probabilities"}) is model
    assert len(model._forward_hooks) == 1
    images = sample()
    network = fused(model, images[:2])
    assert len(convolutions(network)) == 1
    expected = functional.log_softmax(plain(images), 1).detach().numpy()
    for found in (forward(network, images), forward(model, images)):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("conv", "after", "activation"),
    [
        (nn.Conv2d(3, 6, 3), [norm(), nn.ReLU()], "relu"),
        (nn.Conv2d(3, 6, 3, bias=False), [norm(), nn.ReLU6(inplace=True)], "hardtanh"),
        (nn.Conv2d(3, 6, 3, stride=2, padding=1), [norm(), nn.SiLU()], "swish"),
        (nn.Conv2d(3, 6, 3, dilation=2), [norm(), nn.Hardswish()], "hardswish"),
        (nn.Conv2d(3, 6, 1, groups=3), [norm(affine=False), functional.relu], "relu"),
        (nn.Conv2d(3, 6, 3), [norm(), nn.GELU()], "none"),
        (nn.Conv2d(3, 6, 3), [norm()], "none"),
        (nn.Conv2d(3, 6, 3), [torch.relu], "relu"),
        (nn.Conv2d(3, 6, 3, bias=False), [functional.relu6], "hardtanh"),
    ],
)
def test_what_follows_a_convolution_is_taken_along(conv, after, activation):
    model = Parts(conv, *after).eval()
    network = fused(model, sample())
    (found,) = convolutions(network)
    assert found.activation.name == activation
    assert (found.norm is None) == (not any(isinstance(part, nn.BatchNorm2d) for part in after))
    np.testing.assert_allclose(forward(network, sample()), forward(model, sample()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "model",
    [
        Parts(nn.Conv2d(3, 6, 3), nn.GELU()),
        Parts(nn.Conv2d(3, 6, 3, padding="same"), norm(), nn.ReLU()),
        Parts(nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect"), norm()),
        Parts(nn.Conv2d(3, 6, 3), norm(track_running_stats=False)),
        Parts(nn.Conv2d(3, 6, 3), lambda x: x + functional.relu(x)),
    ],
)
def test_what_has_no_such_kernel_stays(model):
    assert convolutions(fused(model.eval(), sample())) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count"), [("googlenet", 57), ("mobilenet_v2", 52), ("efficientnet_b0", 65), ("resnet50", 53)]
)
def test_published_networks_are_fused(name, count, caplog):
    caplog.set_level("INFO")
    model = fast(random_weights(name))
    network = fused(model, sample(side=96)[:2])
    assert len(convolutions(network)) == count
    expected = forward(model, sample(side=96))
    assert np.abs(forward(network, sample(side=96)) - expected).max() < 1e-4 * np.abs(expected).max()
    assert caplog.text == ""


def test_new_weights_and_statistics_count():
    model = fast(networks.tiny().eval())
    images = sample(1, 8)
    network = fused(model, images)
    assert convolutions(network)
    before = forward(network, images)
    generator = np.random.default_rng(0)
    names = [name for name in model.state_dict() if name.endswith(("weight", "bias", "running_mean"))]
    changed = {name: generator.normal(size=model.state_dict()[name].shape).astype(np.float32) for name in names}
    with replaced(model, changed):
        assert fused(model, images) is network
        inside = forward(network, images)
        np.testing.assert_allclose(inside, forward(model, images), rtol=1e-4, atol=1e-4)
    assert np.abs(inside - before).max() > 0.1
    np.testing.assert_array_equal(forward(fused(model, images), images), before)
    model.load_state_dict({name: tensor / 2 for name, tensor in model.state_dict().items()}, assign=True)
    np.testing.assert_allclose(forward(fused(model, images), images), forward(model, images), rtol=1e-4, atol=1e-4)


class Branching(Parts):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images) if images.sum() > 0 else -super().forward(images)


def test_a_network_that_cannot_be_traced_is_left_and_told_once(caplog):
    caplog.set_level("INFO")
    model = Branching(nn.Conv2d(3, 6, 3), norm()).eval()
    assert fused(model, sample()) is model
    assert fused(model, sample()) is model
    assert caplog.text.count("evaluated without fused convolutions, which is slower: symbolically") == 1


def test_a_network_of_which_a_trace_gives_others_is_left(caplog):
    caplog.set_level("INFO")
    model = Parts(nn.Conv2d(3, 6, 3), norm()).eval()
    # A hook is no part of a trace.
    model.conv.register_forward_hook(lambda module, arguments, output: 2 * output)
    assert fused(model, sample()) is model
    assert "an output would differ by" in caplog.text


def test_the_network_itself_and_its_copies_stay_as_they_are():
    model = fast(torchvision.models.get_model("mobilenet_v3_small", weights=None).eval())
    names, before = [name for name, _ in model.named_modules()], forward(model, sample())
    other = copy.deepcopy(model)
    assert fused(model, sample()) is not fused(other, sample())
    assert [name for name, _ in model.named_modules()] == names
    np.testing.assert_array_equal(forward(model, sample()), before)


@pytest.mark.slow
def test_a_network_is_not_kept_alive():
    model = fast(networks.tiny().eval())
    fused(model, sample(1, 8))
    left = weakref.ref(model)
    del model
    gc.collect()
    assert left() is None
