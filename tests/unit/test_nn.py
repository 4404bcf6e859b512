"""Networks that stay compressed in memory: the same outputs, fewer bytes."""

import copy
import gc
import io
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from wshare import nn as own
from wshare.errors import UserError
from wshare.files.sizes import parse_size
from wshare.models import zoo as networks
from wshare.models.state import fast, state_of, tied
from wshare.nn import CALL, SharedTensor, compressed, stay_expanded
from wshare.packed.format import load_packed, read_shared, write_packed
from wshare.quantize.codebooks import Shared, nearest_indices


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


def test_an_expansion_is_the_same_whatever_the_block(monkeypatch):
    rng = np.random.default_rng(0)
    for k in (1, 2, 5, 100, 256, 8000):
        tensor = Shared(np.sort(rng.normal(size=k)).astype(np.float32), rng.integers(k, size=(7, 11)).astype(np.uint16))
        for block in (8, 24, 80):
            monkeypatch.setattr(own, "BLOCK", block)
            assert SharedTensor(tensor)().numpy().tobytes() == tensor.weight().tobytes()


@pytest.mark.slow
def test_traced_networks_give_the_same_outputs(packed):
    """torch.jit has no views as another type, and loses in ONNX files what is written to a part of a tensor."""
    small = compressed(network(), packed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(small, IMAGES)
    with torch.no_grad():
        small[0].shared.codebook += 1
    assert torch.equal(traced(IMAGES), small(IMAGES))
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(small, (IMAGES,), file, dynamo=False, input_names=["images"])
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": IMAGES.numpy()})
    assert np.allclose(found, small(IMAGES).detach().numpy(), rtol=1e-4, atol=1e-4)


# Bytes of the expanded weights of `network`: layers 0, 1, 3, 4, 6 and the tied 7 and 8.
SIZES = [4 * n for n in (216, 144, 72, 40, 600, 400)]


def held(model: nn.Module) -> list[SharedTensor]:
    return [part for part in model.modules() if isinstance(part, SharedTensor) and part.held is not None]


def alive() -> list[Tensor]:
    """All tensors that Python knows."""
    gc.collect()
    return [thing for thing in gc.get_objects() if type(thing) in (Tensor, nn.Parameter)]


def made_since(others: list[Tensor]) -> int:
    """Bytes behind all tensors but these, which other tests have left."""
    storages = [tensor.untyped_storage() for tensor in alive()]
    known = {tensor.untyped_storage().data_ptr() for tensor in others}
    return sum({one.data_ptr(): one.nbytes() for one in storages if one.data_ptr() not in known}.values())


@pytest.mark.parametrize("budget", [None, 0, 100, 400, 2000, 3000, 5000, "5.888 kB", 10**9])
def test_a_budget_bounds_what_stays_expanded_and_changes_no_output(packed, budget):
    model = network(seed=3)
    small, bare = compressed(model, packed, budget), compressed(model, packed)
    room = parse_size(budget or 0, "budget")
    for _ in range(2):
        assert torch.equal(small(IMAGES), dense(model, packed)(IMAGES))
    kept = [part.nbytes for part in held(small)]
    assert sum(kept) <= room
    assert (len(kept) == len(SIZES)) == (room >= sum(SIZES))
    assert bool(kept) == (room >= min(SIZES))
    assert all(part() is part() for part in held(small))
    assert octets(small) == octets(bare)
    assert small.state_dict().keys() == bare.state_dict().keys()


def test_tied_layers_stay_expanded_rather_than_a_single_one(tmp_path):
    model = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10), nn.Linear(10, 10))
    model[1].weight = model[0].weight
    small = compressed(model, pack(model, tmp_path / "packed"), 400)
    assert held(small) == [small[0].shared]


def test_a_budget_counts_bytes_in_the_type_of_the_network(packed):
    for model, nbytes in ((network(), sum(SIZES)), (network().half(), sum(SIZES) // 2)):
        assert len(held(compressed(model, packed, nbytes))) == len(SIZES)
        assert len(held(compressed(model, packed, nbytes - 1))) == len(SIZES) - 1


@pytest.mark.slow
@pytest.mark.parametrize("budget", [None, 2000, 10**9])
def test_no_more_is_held_than_compressed_and_budget(packed, budget):
    model = network()
    # Held, so that none of them goes, and no tensor made later takes the place of one.
    others = alive()
    small = compressed(model, packed, budget)
    kept = sum(part.nbytes for part in held(small))
    assert made_since(others) == octets(small) + kept
    small(IMAGES)
    assert made_since(others) == octets(small) + kept
    assert kept <= (budget or 0)


@pytest.mark.parametrize(
    ("sizes", "uses", "budget", "staying"),
    [
        ([], [], 0, []),
        ([8, 4], [1, 1], 12, [0, 1]),
        ([8, 4], [1, 1], 11, [0]),
        ([8, 4], [1, 1], 8, [0]),
        ([8, 4], [1, 1], 7, [1]),
        ([8, 4], [1, 1], 3, []),
        # One large tensor rather than several small ones.
        ([10**6, 4 * 10**5, 4 * 10**5, 3 * 10**5], [1] * 4, 11 * 10**5, [1, 2, 3]),
        # What is used twice stays, and of the same the later.
        ([10**6, 10**6, 10**6], [2, 1, 1], 2 * 10**6, [0, 2]),
        ([10**6, 10**6, 10**6], [1, 1, 2], 10**6, [2]),
        ([0, 5], [1, 1], 0, [0]),
    ],
)
def test_what_stays_expanded_saves_most_time(sizes, uses, budget, staying):
    assert stay_expanded(sizes, uses, budget) == staying


def test_what_stays_expanded_is_near_the_best_choice():
    """Among all choices of eight layers, by the same count of time: a tenth worse on average, at most."""
    rng = np.random.default_rng(0)
    parts = []
    for _ in range(40):
        sizes = (4 * rng.integers(10, 2 * 10**6, 8)).tolist()
        uses = rng.integers(1, 3, 8).tolist()
        budget = int(rng.uniform(0.2, 0.9) * sum(sizes))
        costs = [times * (CALL + size) for size, times in zip(sizes, uses, strict=True)]
        choices = [[place for place in range(8) if code >> place & 1] for code in range(256)]
        best = max(sum(costs[i] for i in chosen) for chosen in choices if sum(sizes[i] for i in chosen) <= budget)
        parts.append(sum(costs[i] for i in stay_expanded(sizes, uses, budget)) / best)
    assert np.mean(parts) > 0.9
    assert max(parts) <= 1


def test_copies_files_and_moves_keep_what_stays_expanded(packed):
    small = compressed(network(), packed, 3000)
    expected, kept = small(IMAGES), [part.nbytes for part in held(small)]
    file, bare = io.BytesIO(), io.BytesIO()
    torch.save(small, file)
    torch.save(compressed(network(), packed), bare)
    # A whole weight would be as many bytes more as are held.
    assert abs(len(file.getvalue()) - len(bare.getvalue())) < sum(kept) / 2
    file.seek(0)
    for other in (copy.deepcopy(small), torch.load(file, weights_only=False)):
        assert [part.nbytes for part in held(other)] == kept
        assert torch.equal(other(IMAGES), expected)
        assert all(one() is not two() for one, two in zip(held(small), held(other), strict=True))
    assert len({id(part()) for part in held(copy.deepcopy(small))}) == len(kept)
    double = copy.deepcopy(small).half().double()
    assert torch.equal(double[0].weight, small[0].weight.double())
    assert [part().dtype for part in held(double)] == [torch.float64] * len(kept)
    assert all(part() is part() for part in held(double))


def test_what_stays_expanded_follows_its_buffers(packed):
    small = compressed(network(), packed, "1 MB")
    want = {name: tensor + 1 if name.endswith("codebook") else tensor for name, tensor in small.state_dict().items()}
    bare = compressed(network(), packed)
    bare.load_state_dict(want)
    expected = bare(IMAGES)
    # Of tied tensors the first names alone: torch does not put back what a module has under two.
    given = {name: want[name].clone() for name, _ in small.named_buffers() if name in want}
    for name, tensor in given.items():
        # Written to as often as the buffer in whose place it is.
        for _ in range(small.get_buffer(name)._version):
            tensor += 0
    # As long as a call lasts, written to in place, and loaded.
    before = small(IMAGES)
    found = torch.func.functional_call(small, given, (IMAGES,), tie_weights=False)
    assert torch.equal(found, expected)
    assert torch.equal(small(IMAGES), before)
    with torch.no_grad():
        for name, buffer in small.named_buffers():
            if name.endswith("codebook"):
                buffer += 1
    assert torch.equal(small(IMAGES), expected)
    small = compressed(network(), packed, "1 MB")
    small.load_state_dict(want)
    assert torch.equal(small(IMAGES), expected)
    assert all(part() is part() for part in held(small))


def test_what_is_expanded_in_inference_mode_serves_gradients_of_inputs(packed):
    small = compressed(network(), packed, "1 MB")
    with torch.inference_mode():
        small.load_state_dict(small.state_dict())
    images = IMAGES.clone().requires_grad_()
    small(images).sum().backward()
    assert images.grad.abs().sum() > 0


def test_recurrent_layers_count_against_the_budget(tmp_path):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.fc = nn.GRU(4, 6, batch_first=True), nn.Linear(6, 3)

        def forward(self, sequences):
            return self.fc(self.rnn(sequences)[0][:, -1])

    torch.manual_seed(0)
    model = Recurrent().eval()
    state = {name: tensor.numpy() for name, tensor in state_of(model).items()}
    values = np.linspace(-0.5, 0.5, 9, dtype=np.float32)
    shared = {name: Shared(values, nearest_indices(state[name], values)) for name in state if "weight" in name}
    write_packed(tmp_path / "packed", state, shared, {}, {}, {}, "entropy")
    whole = 4 * (18 * 4 + 18 * 6)
    with pytest.raises(
        UserError, match=rf"budget: {whole - 1} bytes do not hold rnn.weight_ih_l0, .*; give {whole} or"
    ):
        compressed(model, tmp_path / "packed", whole - 1)
    sequences = torch.randn(2, 5, 4)
    for budget, count in ((None, 0), (whole, 0), (whole + 71, 0), (whole + 72, 1)):
        small = compressed(model, tmp_path / "packed", budget)
        assert len(held(small)) == count
        assert torch.equal(small(sequences), dense(model, tmp_path / "packed")(sequences))


@pytest.mark.parametrize("budget", ["20 cows", "-1", -1, 2.5, True, "", "MB", [3]])
def test_a_budget_that_is_no_size_is_refused(packed, budget):
    with pytest.raises(UserError, match="budget: .* is no size; give bytes as an integer, or text such as"):
        compressed(network(), packed, budget)
