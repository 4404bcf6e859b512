"""ONNX graphs whose weights are made from the packed file where they are installed."""

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from tests.unit.models.onnx_files import classifier, save, tied
from wshare.errors import FormatError, UserError
from wshare.exports.external import metadata
from wshare.exports.table import FORMATS
from wshare.models import registry
from wshare.models.preprocessing import complete_preprocessing
from wshare.models.state import state_of
from wshare.packed.format import load_packed, write_packed

from ..test_nn import network, pack
from .test_exports import noise, with_folded_norm

GRAPH, DATA = FORMATS["onnx-external"], FORMATS["onnx-data"]


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def installed(packed: Path, model: nn.Module, example: torch.Tensor, about: dict | None = None) -> onnx.ModelProto:
    """The graph, and beside it the data."""
    GRAPH.write(packed, "net.onnx", model, example, about)
    DATA.write(packed, "net.onnx.data")
    return onnx.load("net.onnx", load_external_data=False)


def logits(file: str | bytes, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images})[0]


def folded() -> tuple[nn.Module, Path, torch.Tensor]:
    """A batch norm that only shifts, and one that is kept."""
    torch.manual_seed(0)
    return with_folded_norm(Path("packed")), Path("packed"), noise(5, 1, 6, 6)


def of_layers() -> tuple[nn.Module, Path, torch.Tensor]:
    """Grouped, depthwise, own and tied layers."""
    return network(), pack(network(), Path("packed")), noise(5, 3, 6, 7)


def with_halves() -> tuple[nn.Module, Path, torch.Tensor]:
    """A bias that the packed file keeps as float16, and a dense layer on three axes, which torch transposes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 5), nn.Flatten(), nn.Linear(30, 3)).eval()
    state = {name: tensor.numpy() for name, tensor in state_of(model).items()}
    state["0.bias"] = state["0.bias"].astype(np.float16)
    write_packed("packed", state, {}, {}, {}, {}, "fixed")
    return model, Path("packed"), noise(5, 6, 7)


def recurrent() -> tuple[nn.Module, Path, torch.Tensor]:
    """Weights that the graph takes apart."""
    torch.manual_seed(0)

    class Last(nn.LSTM):
        def forward(self, images):
            return super().forward(images)[0][:, -1]

    model = Last(6, 4, batch_first=True).eval()
    write_packed("packed", {name: t.numpy() for name, t in state_of(model).items()}, {}, {}, {}, {}, "fixed")
    return model, Path("packed"), noise(5, 7, 6)


def branching() -> tuple[nn.Module, Path, torch.Tensor]:
    """A node with graphs of its own, which name what other nodes give."""
    torch.manual_seed(0)
    model = Branching().eval()
    write_packed("packed", {name: t.numpy() for name, t in state_of(model).items()}, {}, {}, {}, {}, "fixed")
    return model, Path("packed"), noise(1, 4)


def chosen(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """One of two products."""
    return torch.matmul(values, weight) if bool(values.sum() > 0) else torch.matmul(values + 1, weight)


class Branching(nn.Module):
    """What it computes depends on its values."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(3, 3, bias=False)
        with pytest.warns(FutureWarning, match="deprecated"):
            self.chosen = torch.jit.script(chosen)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits."""
        return self.chosen(self.first(images), self.second.weight.t() * 2)


@pytest.mark.slow
@pytest.mark.parametrize("make", [of_layers, folded, with_halves, recurrent, branching])
def test_it_runs_as_the_dense_network(make):
    model, packed, images = make()
    file = installed(packed, model, images[:1])
    whole = onnx.load("net.onnx")
    onnx.checker.check_model(whole, full_check=True)
    found = logits("net.onnx", images.numpy())
    model.load_state_dict(load_packed(packed))
    with torch.inference_mode():
        expected = model(images).numpy()
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    # The same graph with its weights inside.
    assert found.tobytes() == logits(whole.SerializeToString(), images.numpy()).tobytes()
    assert_weights_lie_outside(file)


def assert_weights_lie_outside(file: onnx.ModelProto) -> None:
    data = Path("net.onnx.data").read_bytes()
    outside = [tensor for tensor in file.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    inside = [tensor for tensor in file.graph.initializer if tensor.data_location != onnx.TensorProto.EXTERNAL]
    assert {entry.value for tensor in outside for entry in tensor.external_data if entry.key == "location"} == {
        "net.onnx.data"
    }
    assert outside
    # What is left are shapes.
    assert {tensor.data_type for tensor in inside} <= {onnx.TensorProto.INT64}
    about = metadata(Path("net.onnx"))
    assert about["data"] == {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), "name": "net.onnx.data"}
    assert about["packed"]["sha256"] == hashlib.sha256(Path("packed").read_bytes()).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize(
    "proto",
    [
        classifier(),
        classifier(channels_last=True, batch=1),
        classifier(constants=True),
        classifier(exported=True),
        tied(),
        tied(copied=True),
    ],
    ids=["plain", "channels last", "constants", "exported", "tied", "copied"],
)
def test_a_network_of_an_onnx_file_keeps_its_own_graph(proto):
    """Dense layers that hold their weights the other way round take them through a Transpose."""
    save(proto, "own.onnx")
    fetched = registry.fetch({"source": "onnx", "path": "own.onnx"}, "cache")
    packed = pack(fetched.module, Path("packed"), ks=(5, 16, 3, 9))
    example = torch.zeros(1, *fetched.spec["input"])
    file = installed(packed, fetched.module, example)
    FORMATS["onnx"].write(packed, "small.onnx", fetched.module, example)
    shape = [entry.dim_value or 1 for entry in file.graph.input[0].type.tensor_type.shape.dim]
    images = noise(*shape).numpy()
    expected = logits("small.onnx", images)
    assert np.abs(logits("net.onnx", images) - expected).max() <= 1e-6 * np.abs(expected).max()
    assert file.graph.output == proto.graph.output
    assert_weights_lie_outside(file)


@pytest.mark.slow
def test_metadata_tell_what_the_network_takes():
    model, packed, images = folded()
    description = {"preprocessing": {"channels": 1, "crop": None}, "categories": ["é", "b"], "origin": "elsewhere"}
    installed(packed, model, images[:1], description)
    about = metadata(Path("net.onnx"))
    assert (about["input"], about["categories"]) == ([1, 6, 6], ["é", "b"])
    # Complete, as a reader takes it.
    assert about["preprocessing"] == complete_preprocessing({}, description["preprocessing"])
    session = onnxruntime.InferenceSession("net.onnx", providers=["CPUExecutionProvider"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["wshare"]) == about


@pytest.mark.slow
def test_the_graph_is_small():
    model = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(20))).eval()
    state = {name: tensor.numpy() for name, tensor in state_of(model).items()}
    write_packed("packed", state, {}, {}, {}, {}, "fixed")
    GRAPH.write("packed", "net.onnx", model, noise(1, 8, 9, 9))
    assert Path("net.onnx").stat().st_size < 40 * 150 + 500


def test_data_of_another_packed_file_are_not_written_beside_a_graph():
    model, packed, images = folded()
    GRAPH.write(packed, "net.onnx", model, images[:1])
    other = pack(network(), Path("other"))
    with pytest.raises(UserError, match=r"^net.onnx: belongs to another packed file than other .*; take the graph"):
        DATA.write(other, "net.onnx.data")
    assert not Path("net.onnx.data").exists()
    # A graph that tells nothing, and no graph.
    Path("net.onnx").write_bytes(b"\xff")
    DATA.write(other, "net.onnx.data")
    DATA.write(other, "weights.bin")
    assert Path("weights.bin").read_bytes() == Path("net.onnx.data").read_bytes()


def test_a_damaged_packed_file_leaves_no_data():
    packed = pack(network(), Path("packed"))
    packed.write_bytes(packed.read_bytes()[:-1] + b"\0")
    with pytest.raises(FormatError):
        DATA.write(packed, "net.onnx.data")
    assert list(Path().iterdir()) == [packed]
