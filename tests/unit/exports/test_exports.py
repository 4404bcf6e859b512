"""Exports: plain tensors to the bit, and an ONNX file that runs as the network does."""

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from wshare.errors import UserError
from wshare.exports.table import FORMATS, Format
from wshare.models import zoo as networks
from wshare.models.state import state_of
from wshare.packed.bitfields import fields, widths
from wshare.packed.format import FoldedNorm, load_packed, write_packed
from wshare.quantize.codebooks import Shared

from ..test_nn import Odd, network, pack

SIDES = {"tiny": 8, "lenet5": 28, "resnet_ds": 28}
IMAGES = 100


def run(path: Path, images: np.ndarray, level: str = "ORT_ENABLE_ALL") -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"images": images})[0]


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def check(model: nn.Module, packed: Path, path: Path, images: torch.Tensor) -> None:
    """The ONNX file gives the logits of the dense network."""
    model.load_state_dict(load_packed(packed))
    with torch.inference_mode():
        expected = model(images).numpy()
    for level in ("ORT_ENABLE_ALL", "ORT_DISABLE_ALL"):
        found = run(path, images.numpy(), level)
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
        assert np.array_equal(found.argmax(1), expected.argmax(1))


@pytest.mark.parametrize("bits", range(17))
def test_fields_hold_all_bits_of_an_index(bits):
    indices = np.random.default_rng(0).integers(1 << bits, size=37).astype(np.uint16)
    packed = fields(indices, bits)
    assert sum(widths(bits)) == bits
    found, place = np.zeros(37, np.int64), 0
    for width, octets in zip(widths(bits), packed, strict=True):
        values = [int(octet) >> shift & (1 << width) - 1 for octet in octets for shift in range(0, 8, width)]
        found += np.array(values[:37]) << place
        assert octets.size == -(-37 * width // 8)
        place += width
    assert np.array_equal(found, indices)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SIDES))
def test_onnx_runs_as_the_network(tmp_path, name):
    torch.manual_seed(0)
    model = networks.build(name, {"classes": 10}).eval()
    packed = pack(model, tmp_path / "packed", ks=(16, 5, 37, 9), scaled=name != "lenet5")
    before = state_of(model)
    images = noise(IMAGES, 1, SIDES[name], SIDES[name])
    FORMATS["onnx"].write(packed, tmp_path / "net.onnx", model, images[:1])
    assert all(torch.equal(tensor, before[key]) for key, tensor in state_of(model).items())
    onnx.checker.check_model(tmp_path / "net.onnx", full_check=True)
    check(model, packed, tmp_path / "net.onnx", images)


@pytest.mark.slow
@pytest.mark.parametrize("ks", [(1,), (2,), (8,), (100,), (256,), (257, 4096)])
def test_onnx_holds_indices_of_any_width(tmp_path, ks):
    """Grouped, depthwise, tied and own layers; without optimisation, weights are expanded as the graph says."""
    model, images = network(), noise(IMAGES, 3, 6, 7)
    packed = pack(model, tmp_path / "packed", ks=ks)
    FORMATS["onnx"].write(packed, tmp_path / "net.onnx", model, images[:2])
    check(model, packed, tmp_path / "net.onnx", images)
    # Exact: the weights themselves, asked for as outputs.
    file = onnx.load(tmp_path / "net.onnx")
    names = [name for name in load_packed(packed) if name.endswith("weight") and name not in ("2.weight", "8.weight")]
    file.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    session = onnxruntime.InferenceSession(file.SerializeToString(), providers=["CPUExecutionProvider"])
    for name, found in zip(names, session.run(names, {"images": images.numpy()}), strict=True):
        assert found.tobytes() == load_packed(packed)[name].numpy().tobytes()


def test_onnx_is_small(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(400, 200, bias=False)).eval()
    packed = pack(model, tmp_path / "packed", ks=(32,))
    FORMATS["onnx"].write(packed, tmp_path / "net.onnx", model, noise(1, 1, 20, 20))
    assert (tmp_path / "net.onnx").stat().st_size < 5 * 80_000 / 8 + 4 * 32 + 2000


def with_folded_norm(packed: Path) -> nn.Module:
    """A network with a batch norm that only shifts, and one that is kept; its packed file is written."""
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 5, 3),
        nn.BatchNorm2d(5),
        nn.Flatten(),
    ).eval()
    state = {name: tensor.numpy() for name, tensor in state_of(model).items()}
    indices = np.random.default_rng(0).integers(3, size=(4, 1, 3, 3)).astype(np.uint16)
    shared = {"0.weight": Shared(np.array([-1, 0.1, 2], np.float32), indices, np.array([-9, 0, 3, 8], np.int16))}
    norms = {"1": FoldedNorm("0.weight", np.array([4, -3, 0, 9], np.int32), 0.1, 1e-5, True)}
    write_packed(packed, state, shared, {}, norms, {}, "entropy")
    return model


def test_a_folded_norm_becomes_a_bias(tmp_path):
    model = with_folded_norm(tmp_path / "packed")
    images = noise(IMAGES, 1, 6, 6)
    FORMATS["onnx"].write(tmp_path / "packed", tmp_path / "net.onnx", model, images[:1])
    kinds = [node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node]
    assert kinds.count("BatchNormalization") == 1
    check(model, tmp_path / "packed", tmp_path / "net.onnx", images)


@pytest.mark.parametrize(
    ("layers", "images"),
    [
        ((nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)), noise(4, 3, 6, 6)),
        ((nn.ConvTranspose1d(3, 4, 3, groups=1), nn.BatchNorm1d(4)), noise(4, 3, 6)),
        ((nn.Linear(6, 5), nn.BatchNorm1d(5)), noise(4, 6)),
    ],
    ids=["convolution", "transposed", "dense"],
)
@pytest.mark.parametrize("zero", [True, False])
def test_a_norm_that_shifts_takes_the_place_of_zeros_alone(tmp_path, layers, images, zero):
    """A bias that was merged into the norm is zeros; any other stays, with the norm behind it."""
    model = nn.Sequential(*layers, nn.Flatten()).eval()
    with torch.no_grad():
        model[1].running_var.fill_(1 - model[1].eps)
        model[1].bias.copy_(noise(*model[1].bias.shape))
        model[0].bias.zero_() if zero else model[0].bias.copy_(noise(*model[0].bias.shape))
    write_packed(
        tmp_path / "packed", {name: tensor.numpy() for name, tensor in state_of(model).items()}, {}, {}, {}, {}, "fixed"
    )
    FORMATS["onnx"].write(tmp_path / "packed", tmp_path / "net.onnx", model, images[:2])
    kinds = [node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node]
    assert ("BatchNormalization" in kinds) is not zero
    expected = model(images).detach().numpy()
    assert np.abs(run(tmp_path / "net.onnx", images.numpy()) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_dense_files_hold_the_weights(tmp_path):
    packed = pack(network(), tmp_path / "packed")
    state = load_packed(packed)
    for name in ("dense", "dense16", "state_dict"):
        FORMATS[name].write(packed, tmp_path / name)
    half, whole, pickled = (
        load_file(tmp_path / "dense16"),
        load_file(tmp_path / "dense"),
        torch.load(tmp_path / "state_dict"),
    )
    assert whole.keys() == half.keys() == state.keys() - {"8.weight"}
    assert pickled.keys() == state.keys()
    assert pickled["7.weight"].data_ptr() == pickled["8.weight"].data_ptr()
    for name, tensor in state.items():
        assert torch.equal(pickled[name], tensor)
        if name in whole:
            assert torch.equal(whole[name], tensor)
            assert torch.equal(half[name], tensor.half() if tensor.is_floating_point() else tensor)
    network().load_state_dict(pickled)


def test_float16_without_room_is_refused(tmp_path):
    write_packed(tmp_path / "packed", {"w": np.array([1, 1e5], np.float32)}, {}, {}, {}, {}, "fixed")
    with pytest.raises(UserError, match="dense16: w has values beyond the range of float16"):
        FORMATS["dense16"].write(tmp_path / "packed", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [name for name, entry in FORMATS.items() if entry.packages])
def test_a_missing_package_is_named(tmp_path, monkeypatch, name):
    (package,) = FORMATS[name].packages
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"export {name}: package {package} is needed .* install it"):
        FORMATS[name].write(tmp_path / "packed", tmp_path / "out", network(), noise(1, 3, 6, 7))


def test_a_missing_architecture_is_named(tmp_path):
    packed = pack(network(), tmp_path / "packed")
    with pytest.raises(UserError, match="export onnx: needs the architecture and an example input"):
        FORMATS["onnx"].write(packed, tmp_path / "net.onnx")


class Branching(nn.Module):
    """A network that no graph holds."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, images):
        return torch.linalg.eigvals(self.layer(images)).real


def test_a_network_that_torch_cannot_export_leaves_no_file(tmp_path):
    packed = pack(Branching(), tmp_path / "packed")
    with pytest.raises(UserError, match="export onnx: torch cannot export this network"):
        FORMATS["onnx"].write(packed, tmp_path / "net.onnx", Branching(), noise(1, 3, 3))
    assert not (tmp_path / "net.onnx").exists()


def test_formats_are_named_once():
    assert all(
        isinstance(entry, Format) and entry.name == name and entry.description for name, entry in FORMATS.items()
    )


def test_layers_with_a_forward_pass_of_their_own_are_exported(tmp_path):
    model = nn.Sequential(Odd(1, 4, 3), nn.Flatten()).eval()
    packed = pack(model, tmp_path / "packed")
    images = noise(IMAGES, 1, 5, 5)
    FORMATS["onnx"].write(packed, tmp_path / "net.onnx", model, images[:1])
    check(model, packed, tmp_path / "net.onnx", images)


class Decomposed(nn.Module):
    """What no ONNX operator computes."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, images):
        return torch.linalg.svdvals(self.conv(images).flatten(2))


def test_a_network_that_torch_cannot_export_ends_in_one_line_and_prints_no_graph(tmp_path, capfd):
    packed = pack(Decomposed(), tmp_path / "packed")
    with pytest.raises(UserError, match="export onnx: torch cannot export this network .*svd.*; export dense instead"):
        FORMATS["onnx"].write(packed, tmp_path / "net.onnx", Decomposed(), noise(1, 3, 8, 8))
    assert capfd.readouterr().out == ""
