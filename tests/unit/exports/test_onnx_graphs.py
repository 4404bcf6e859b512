"""ONNX files of networks that came as ONNX files: their own graphs, with smaller weights."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from tests.unit.models.onnx_files import classifier, floats, model, save, tied
from wshare.errors import UserError
from wshare.exports.table import FORMATS
from wshare.models import registry
from wshare.packed.format import load_packed

from ..test_nn import pack

SETTINGS = {"source": "onnx", "path": "net.onnx"}


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def export(proto):
    """Fetched network, its packed file, and the file of the export."""
    save(proto, "net.onnx")
    fetched = registry.fetch(SETTINGS, "cache")
    packed = pack(fetched.module, "packed", ks=(5, 16, 3, 9))
    FORMATS["onnx"].write(packed, "small.onnx", fetched.module, torch.zeros(1, *fetched.spec["input"]))
    return fetched, packed


@pytest.mark.parametrize(
    "make",
    [
        classifier,
        lambda: classifier(channels_last=True, batch=1),
        lambda: classifier(constants=True),
        tied,
    ],
)
def test_it_is_the_files_own_graph_with_the_packed_weights(make):
    proto = make()
    fetched, packed = export(proto)
    fetched.module.load_state_dict(load_packed(packed), strict=False)
    images = torch.rand(3, *fetched.spec["input"])
    with torch.no_grad():
        expected = fetched.module(images).numpy()
    given = images.permute(0, 2, 3, 1) if fetched.module.channels_last else images
    session = onnxruntime.InferenceSession("small.onnx", providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0].name
    found = np.concatenate([session.run(None, {entry: image[None].numpy()})[0] for image in given.contiguous()])
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    written = onnx.load("small.onnx")
    assert [entry.name for entry in written.graph.input] == [entry.name for entry in proto.graph.input]
    assert written.graph.output == proto.graph.output
    own = [node.op_type for node in written.graph.node if not node.output[0].startswith("wshare.")]
    kept = [node.op_type for node in proto.graph.node if node.op_type != "Constant"]
    # The weights themselves are made by nodes.
    assert [kind for kind in own if kind not in ("Mul", "Gather", "Reshape")] == [
        kind for kind in kept if kind not in ("Mul", "Gather", "Reshape")
    ]


def test_an_opset_that_cannot_expand_indices_ends_in_one_line():
    proto = classifier()
    proto.opset_import[0].version = 10
    with pytest.raises(UserError, match="the graph is of opset 10, which cannot expand indices"):
        export(proto)


def test_a_factor_that_the_module_took_in_ends_in_one_line():
    nodes = [
        onnx.helper.make_node("GlobalAveragePool", ["input"], ["a"]),
        onnx.helper.make_node("Flatten", ["a"], ["b"]),
        onnx.helper.make_node("Gemm", ["b", "w", "c"], ["scores"], alpha=0.5, transB=1),
    ]
    arrays = {"w": floats(40, 3), "c": floats(40)}
    with pytest.raises(UserError, match="'w' of the graph is not among what a packed file holds"):
        export(model(nodes, arrays, ("input", ["n", 3, 8, 8]), ("scores", ["n", 40])))
