"""Training is determined by its seed, and learns."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from wshare.errors import UserError
from wshare.models import state as state_module
from wshare.models import training
from wshare.models import zoo as networks
from wshare.stages.train_model import train_model

SETTINGS = {"epochs": 3, "learning_rate": 0.01, "batch_size": 32, "seed": 1, "shift": 1}


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    return images, torch.tensor(data.target)


def state_bytes(module):
    return {name: value.numpy().tobytes() for name, value in state_module.state_of(module).items()}


def trained(images, labels, **changes):
    module = networks.tiny()
    history = training.train(module, images, labels, **SETTINGS | changes)
    return state_bytes(module), history


@pytest.mark.parametrize(("name", "least", "most"), [("lenet5", 61706, 61706), ("resnet_ds", 1e5, 2.5e5)])
def test_network_sizes(name, least, most):
    module = networks.NETWORKS[name](7).eval()
    assert module(torch.zeros(2, 1, 28, 28)).shape == (2, 7)
    assert least <= sum(p.numel() for p in networks.NETWORKS[name]().parameters()) <= most


def test_networks_are_chains_of_named_modules():
    for make in networks.NETWORKS.values():
        assert type(make()) is torch.nn.Sequential
    assert [name for name, _ in networks.lenet5().named_children()] == (
        ["conv1", "relu1", "pool1", "conv2", "relu2", "pool2", "flatten", "fc1", "relu3", "fc2", "relu4", "fc3"]
    )


def test_networks_have_every_kind_of_layer():
    for make in (networks.tiny, networks.resnet_ds):
        parts = list(make().modules())
        assert any(isinstance(part, torch.nn.Conv2d) and part.groups == part.in_channels > 1 for part in parts)
        assert any(isinstance(part, torch.nn.BatchNorm2d) for part in parts)
        assert any(isinstance(part, torch.nn.Linear) for part in parts)


def test_unknown_network():
    with pytest.raises(UserError, match=r"'lenet': no such network. Did you mean 'lenet5'"):
        networks.build("lenet", {})


@pytest.mark.slow
def test_tiny_learns_digits(digits):
    images, labels = digits
    module = networks.tiny()
    history = training.train(
        module, images[:1000], labels[:1000], epochs=8, learning_rate=0.01, batch_size=32, seed=0, shift=1
    )
    assert [entry["epoch"] for entry in history] == list(range(1, 9))
    assert history[-1]["loss"] < history[0]["loss"] / 3
    assert history[-1]["accuracy"] > 0.9
    assert not module.training
    with torch.no_grad():
        assert (module(images[1000:]).argmax(1) == labels[1000:]).float().mean() > 0.9


@pytest.mark.slow
def test_equal_to_the_byte_for_a_seed(digits):
    images, labels = digits[0][:200], digits[1][:200]
    first = trained(images, labels)
    torch.manual_seed(99)
    assert trained(images, labels) == first
    assert trained(images, labels, seed=2)[0] != first[0]


def test_starts_from_fresh_weights(digits):
    images, labels = digits[0][:100], digits[1][:100]
    module = networks.tiny()
    training.train(module, images, labels, **SETTINGS | {"seed": 5})
    training.train(module, images, labels, **SETTINGS)
    assert state_bytes(module) == trained(images, labels)[0]


def test_leaves_global_random_state(digits):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    module = networks.tiny()
    torch.manual_seed(3)
    training.train(module, digits[0][:64], digits[1][:64], **SETTINGS)
    assert torch.equal(torch.rand(4), expected)


def test_no_batch_of_one_image(digits):
    # 33 images in batches of 32 would leave one, which batch norm refuses where a channel has one value.
    module = networks.chain(
        pool=torch.nn.AdaptiveAvgPool2d(1),
        bn=torch.nn.BatchNorm2d(1),
        flatten=torch.nn.Flatten(),
        fc=torch.nn.Linear(1, 10),
    )
    assert len(training.train(module, digits[0][:33], digits[1][:33], **SETTINGS)) == 3


def test_diverging_loss_is_an_error(digits):
    with pytest.raises(UserError, match=r"loss is not finite in epoch 1; lower learning_rate \(0.01\)"):
        training.train(networks.tiny(), digits[0][:64] * torch.nan, digits[1][:64], **SETTINGS)


def test_as_many_labels_as_images(digits):
    with pytest.raises(UserError, match="64 images and 63 labels"):
        training.train(networks.tiny(), digits[0][:64], digits[1][:63], **SETTINGS)


def test_shifted_moves_each_image_by_its_own_offset():
    torch.manual_seed(0)
    images = torch.arange(2 * 5 * 6.0).reshape(1, 2, 5, 6).repeat(64, 1, 1, 1)
    moved = training.shifted(images, 2)
    assert moved.shape == images.shape
    offsets = set()
    for image in moved:
        # The centre pixel never comes from outside for shifts of up to 2, and its value tells the shift.
        value = int(image[0, 2, 3])
        down, right = value // 6 - 2, value % 6 - 3
        rows = (torch.arange(5) + down).clamp(0, 4)
        columns = (torch.arange(6) + right).clamp(0, 5)
        assert torch.equal(image, images[0][:, rows][:, :, columns])
        offsets.add((down, right))
    assert len(offsets) > 15
    assert {down for down, _ in offsets} == {right for _, right in offsets} == {-2, -1, 0, 1, 2}


def test_no_shift():
    images = torch.rand(3, 1, 4, 4)
    assert torch.equal(training.shifted(images, 0), images)


def images_without_labels():
    return np.zeros((4, 8, 8), np.uint8), None


def test_images_without_labels_train_no_network(tmp_path):
    dataset = {"source": "python", "function": f"{__name__}:images_without_labels", "split": {"train": 2}}
    with pytest.raises(UserError, match="the dataset gives no labels to learn from"):
        train_model({"dataset": dataset, "training": {}}, tmp_path / "weights", tmp_path / "spec")
