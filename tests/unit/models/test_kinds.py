"""A kind of layer is a row of a table: one whose weight is [inputs, outputs] goes all the way."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from wshare.calibration.statistics import input_statistics
from wshare.errors import UserError
from wshare.exports.table import FORMATS
from wshare.models.folding import folded_norms
from wshare.models.kinds import linear, table
from wshare.models.kinds.kind import Kind
from wshare.models.layers import Choice, inspect, replaced
from wshare.models.norms import batch_norms
from wshare.models.state import state_of
from wshare.nn import compressed
from wshare.packed.format import load_packed, pack, read_shared
from wshare.quantize.codebooks import Layout, row_scale
from wshare.quantize.layer import Options, PreparedLayer, Quantised, prepare, quantise


class Mixing(nn.Module):
    """x @ weight, with a weight [inputs, outputs]."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs, generator=torch.Generator().manual_seed(0)))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ self.weight


MIXING = Kind((Mixing,), lambda module: Layout(1), linear.KIND.positions, linear.KIND.inputs)


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setattr(table, "KINDS", [*table.KINDS, MIXING])


def network() -> nn.Module:
    """Mixing with a batch norm behind it, and a dense layer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), Mixing(12, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4)).eval()
    norm = model[2]
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.1, -2, 1, 3, 0.5, 9]))
        norm.bias.normal_()
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return model


def images(count: int = 40) -> Tensor:
    return torch.randn(count, 3, 2, 2, generator=torch.Generator().manual_seed(1))


def prepared(model: nn.Module, turned: bool = False, folded: bool = True) -> PreparedLayer:
    """The layer; `turned` as a dense one would hold the same weights."""
    statistics = input_statistics(model, [images()], ["1"], 0)["1"]
    weight = model[1].weight.numpy(force=True)
    weight, layout = (np.ascontiguousarray(weight.T), Layout()) if turned else (weight, Layout(1))
    return prepare("1", weight, layout, 1.0, statistics, batch_norms(model)["2"] if folded else None, False)


def packed(path: Path, model: nn.Module) -> Quantised:
    """Write the network with the layer shared and its norm folded."""
    part = quantise(prepared(model), 1e-6, 1.0, Options())
    state = {name: tensor.numpy() for name, tensor in state_of(model).items()}
    content, _ = pack(state, {"1.weight": part.shared}, {}, {"2": part.norm}, {}, "entropy")
    path.write_bytes(content)
    return part


def test_layers_of_the_kind_are_listed():
    found = inspect(network(), [], Choice())
    assert [(layer["name"], layer["type"], layer["shape"]) for layer in found["layers"]] == [
        ("1", "Mixing", [12, 6]),
        ("4", "Linear", [4, 6]),
    ]
    with pytest.raises(UserError, match="no layer is left to share of the 2 that can be"):
        inspect(network(), [], Choice(exclude=["1", "4"]))


def test_statistics_are_those_of_the_inputs():
    found = input_statistics(network(), [images()], ["1"], 0)["1"]
    inputs = torch.cat([images(), images().flip(3)]).flatten(1).double().numpy()
    np.testing.assert_allclose(found.mean, inputs.mean(0)[None], atol=1e-5)
    np.testing.assert_allclose(found.second, (inputs.T @ inputs / len(inputs))[None], atol=1e-5)


@pytest.mark.parametrize("folded", [True, False])
@pytest.mark.parametrize("format", ["entropy", "fixed"])
def test_a_layer_is_quantised_as_the_same_weights_the_other_way_round(format, folded):
    model = network()
    options = Options(format=format)
    found, expected = (quantise(prepared(model, turned, folded), 1e-4, 1.0, options) for turned in (False, True))
    assert found.shared.weight().T.tobytes() == expected.shared.weight().tobytes()
    assert found.shared.indices.shape == (12, 6)
    assert (found.loss, found.bits) == (expected.loss, expected.bits)
    assert np.array_equal(found.correction, expected.correction)
    if folded:
        assert np.array_equal(found.norm.steps, expected.norm.steps)
        scale = row_scale(found.shared.exponents)
        assert np.array_equal(found.shared.weight(), found.shared.codebook[found.shared.indices] * scale[None])


def test_a_batch_norm_behind_it_is_folded():
    model = network()
    assert folded_norms(model, ["1", "4"], images(2)) == {"1": "2"}
    part = quantise(prepared(model), 1e-12, 1.0, Options())
    tensors = {"1.weight": part.shared.weight()} | part.norm.norm(part.shared.exponents).tensors("2")
    expected = model(images())
    with replaced(model, tensors):
        found = model(images())
    assert (found - expected).abs().max() < 1e-2 * expected.abs().max()


def test_a_packed_file_tells_which_axis_is_scaled(tmp_path):
    model = network()
    part = packed(tmp_path / "packed", model)
    assert part.shared.exponents.shape == (6,)
    for source in (tmp_path / "packed", (tmp_path / "packed").read_bytes()):
        state, (shared, _) = load_packed(source), read_shared(source)
        assert shared["1.weight"].layout == Layout(1)
        assert state["1.weight"].numpy().tobytes() == part.shared.weight().tobytes()
        assert np.array_equal(state["2.bias"].numpy(), part.norm.norm(part.shared.exponents).shift)


def test_it_stays_compressed_in_memory(tmp_path):
    model = network()
    packed(tmp_path / "packed", model)
    small = compressed(model, tmp_path / "packed")
    model.load_state_dict(load_packed(tmp_path / "packed"))
    with torch.inference_mode():
        assert torch.equal(small(images()), model(images()))
    assert torch.equal(small[1].weight, model[1].weight)


def test_exports_hold_its_weights(tmp_path):
    model = network()
    part = packed(tmp_path / "packed", model)
    FORMATS["state_dict"].write(tmp_path / "packed", tmp_path / "net.pt")
    assert torch.load(tmp_path / "net.pt")["1.weight"].numpy().tobytes() == part.shared.weight().tobytes()
    FORMATS["c"].write(tmp_path / "packed", tmp_path / "net.bin")
    assert "/* [12, 6], plain */" in (tmp_path / "net.h").read_text()
    assert part.shared.weight().astype("<f4").tobytes() in (tmp_path / "net.bin").read_bytes()
    FORMATS["onnx"].write(tmp_path / "packed", tmp_path / "net.onnx", model, images(2))
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(["logits"], {"images": images().numpy()})
    model.load_state_dict(load_packed(tmp_path / "packed"))
    expected = model(images()).detach().numpy()
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.slow
def test_core_ml_gives_its_weights_back(tmp_path):
    from ..exports.test_coreml import read, value_of

    model = network()
    part = packed(tmp_path / "packed", model)
    FORMATS["coreml"].write(tmp_path / "packed", tmp_path / "net.mlpackage", model, images(1))
    values = [value_of(operation) for operation in read(tmp_path / "net.mlpackage")]
    expected = part.shared.weight()
    same = (np.array_equal(value, way) for value in values if value is not None for way in (expected, expected.T))
    assert any(same)
