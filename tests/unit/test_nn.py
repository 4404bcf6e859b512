"""Networks that stay compressed in memory: the same outputs, fewer bytes."""

import copy
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from wshare.errors import UserError
from wshare.models import zoo as networks
from wshare.models.state import fast, state_of, tied
from wshare.nn import SharedTensor, compressed
from wshare.packed.format import load_packed, read_shared, write_packed
from wshare.quantize.codebooks import Shared


class Odd(nn.Conv2d):
    """A layer with a forward pass of its own, as timm has them."""

    def forward(self, images):
        return self._conv_forward(images.flip(2), self.weight, self.bias)


def network(seed: int = 0) -> nn.Module:
    """Plain, grouped, depthwise, own and tied layers."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Conv2d(8, 8, 3, groups=4, bias=False),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, groups=8),
        Odd(8, 5, 1),
        nn.Flatten(),
        nn.Linear(30, 20),
        nn.Linear(20, 20),
        nn.Linear(20, 20),
    )
    model[8].weight = model[7].weight
    return model.eval()


def pack(model: nn.Module, path: Path, ks: tuple[int, ...] = (5, 16, 1, 300, 37), scaled: bool = True) -> Path:
    """Shares all layers with codebooks of these sizes in turn, every second with scales for rows."""
    rng = np.random.default_rng(0)
    state = {name: tensor.numpy() for name, tensor in state_of(model).items()}
    aliases = {alias: first for first, *others in tied(model.state_dict(keep_vars=True)) for alias in others}
    shared = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and (key := f"{name}.weight") in state:
            k = ks[len(shared) % len(ks)]
            indices = rng.integers(k, size=state[key].shape).astype(np.uint16)
            exponents = rng.integers(-30, 9, size=len(indices)).astype(np.int16) if len(shared) % 2 and scaled else None
            shared[key] = Shared(np.sort(rng.normal(0, 0.3, k)).astype(np.float32), indices, exponents)
    write_packed(path, state, shared, {}, {}, aliases, "entropy")
    return path


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    return pack(network(), tmp_path / "packed.safetensors")


def dense(model: nn.Module, packed: Path) -> nn.Module:
    model = copy.deepcopy(model)
    model.load_state_dict(load_packed(packed))
    return model


def octets(model: nn.Module) -> int:
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensor.nbytes for tensor in tensors.values())


IMAGES = torch.randn(4, 3, 6, 7, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("k", [1, 2, 3, 5, 16, 17, 37, 100, 256, 257, 4096])
@pytest.mark.parametrize("shape", [(7,), (3, 5), (4, 1, 3, 3), (0, 4)])
def test_a_shared_tensor_expands_to_the_bit(k, shape):
    rng = np.random.default_rng(k)
    exponents = rng.integers(-1008, 900, size=shape[0]).astype(np.int16)
    codebook = np.sort(rng.normal(size=k)).astype(np.float32)
    for tensor in (
        Shared(codebook, rng.integers(k, size=shape).astype(np.uint16)),
        Shared(codebook, rng.integers(k, size=shape).astype(np.uint16), exponents),
    ):
        found, expected = SharedTensor(tensor)(), tensor.weight()
        assert found.shape == expected.shape
        assert found.numpy().tobytes() == expected.tobytes()


def test_outputs_are_those_of_the_dense_network(packed):
    model = network(seed=3)
    before = copy.deepcopy(model.state_dict())
    small, large = compressed(model, packed), dense(model, packed)
    assert torch.equal(small(IMAGES), large(IMAGES))
    for name, module in large.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            found = small.get_submodule(name)
            assert isinstance(found, type(module))
            assert torch.equal(found.weight, module.weight)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", ["tiny", "lenet5", "resnet_ds"])
def test_outputs_are_the_same_in_channels_last_order_too(tmp_path, name):
    model = fast(networks.build(name, {"classes": 10})).eval()
    packed = pack(model, tmp_path / "packed")
    small, large = compressed(model, packed), dense(model, packed)
    side = 8 if name == "tiny" else 28
    images = torch.randn(2, 1, side, side, generator=torch.Generator().manual_seed(1))
    assert torch.equal(small(images), large(images))
    for path, module in large.named_modules():
        if isinstance(module, nn.Conv2d):
            assert small.get_submodule(path).weight.stride() == module.weight.stride()


def test_buffers_take_the_bits_of_the_indices(tmp_path):
    model = nn.Sequential(nn.Linear(100, 80, bias=False))
    packed = pack(model, tmp_path / "packed", ks=(32,))
    assert octets(model) == 4 * 8000
    assert octets(compressed(model, packed)) == 5 * 8000 / 8 + 4 * 32


def test_tied_layers_hold_one_tensor(packed):
    small = compressed(network(), packed)
    assert small[7].shared is small[8].shared
    assert copy.deepcopy(small)[7].shared is not small[7].shared
    shared, _ = read_shared(packed)
    assert shared["7.weight"] is shared["8.weight"]


def test_copies_and_state_dicts_give_the_same_outputs(packed):
    small = compressed(network(), packed)
    expected = small(IMAGES)
    copied = copy.deepcopy(small)
    assert torch.equal(copied(IMAGES), expected)
    assert copied[7].shared is copied[8].shared
    with torch.no_grad():
        for buffer in (*small.buffers(), *small.parameters()):
            buffer.zero_()
    assert torch.equal(copied(IMAGES), expected)
    assert not torch.equal(small(IMAGES), expected)
    small.load_state_dict(copied.state_dict())
    assert torch.equal(small(IMAGES), expected)


def test_a_whole_network_is_saved_and_loaded(packed):
    small = compressed(network(), packed)
    file = io.BytesIO()
    torch.save(small, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(IMAGES), small(IMAGES))


def test_weights_in_float64_are_those_in_float32(packed):
    small = compressed(network(), packed).double()
    assert small[0].weight.dtype == torch.float64
    assert torch.allclose(small(IMAGES.double()), dense(network(), packed)(IMAGES).double(), atol=1e-4)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.ReLU()), "'0.weight' is no weight of a layer that can be shared"),
        (nn.Sequential(nn.Conv2d(3, 9, 3)), r"'0.weight' is \[8, 3, 3, 3\] where the network has \[9, 3, 3, 3\]"),
        (nn.Sequential(*network(), nn.Linear(20, 3)), "missing 9.weight, 9.bias"),
        (nn.Sequential(*network()[:2], nn.ReLU(), *network()[3:]), "unexpected"),
    ],
)
def test_another_network_is_refused(packed, model, message):
    with pytest.raises(UserError, match=message):
        compressed(model, packed)
