"""Networks of ONNX files: the same outputs as ONNX Runtime's, and the same graph again as an export."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from tests.unit.models.fetching import error, evaluate, rebuilt
from tests.unit.models.onnx_files import classifier, floats, model, save, tied
from wshare.errors import FormatError
from wshare.models import registry
from wshare.models.folding import folded_norms
from wshare.models.layers import Choice, inspect

SETTINGS = {"source": "onnx", "path": "net.onnx"}
SHAPE = (3, 12, 12)


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def runtime(path, images, channels_last=False):
    """Outputs of ONNX Runtime, image by image."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    images = images.transpose(0, 2, 3, 1) if channels_last else images
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: image[None]})[0] for image in np.ascontiguousarray(images)])


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"batch": 1},
        {"channels_last": True},
        {"constants": True},
        {"batch": 1, "channels_last": True},
        {"exported": True},
    ],
)
def test_outputs_are_those_of_onnx_runtime_also_once_built_again(variant):
    path = save(classifier(**variant), "net.onnx")
    fetched = registry.fetch(SETTINGS, "cache")
    assert fetched.spec["name"] == "net"
    assert fetched.spec["input"] == list(SHAPE)
    assert fetched.spec["builder"]["arguments"]["channels_last"] == variant.get("channels_last", False)
    assert fetched.spec["builder"]["arguments"]["one_by_one"] == (variant.get("batch") == 1)
    images = np.random.default_rng(1).random((3, *SHAPE), np.float32)
    with torch.no_grad():
        found = fetched.module(torch.from_numpy(images)).numpy()
    expected = runtime(path, images, variant.get("channels_last", False))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert evaluate(rebuilt(fetched, "saved.safetensors"), SHAPE) == evaluate(fetched.module, SHAPE)


def test_every_large_initialiser_is_a_layers_or_a_batch_norms():
    save(classifier(), "net.onnx")
    fetched = registry.fetch(SETTINGS, "cache")
    layers = {entry["name"]: entry for entry in inspect(fetched.module, [], Choice())["layers"]}
    assert {entry["type"]: entry["shape"] for entry in layers.values()} == {"Conv2d": [8, 1, 3, 3], "Linear": [5, 12]}
    assert sorted(entry["weights"] for entry in layers.values()) == [60, 72, 96, 216]
    assert all("." not in name.replace(".1", "") for name in layers)
    known = {source for source, _ in fetched.module.initialisers.values()}
    assert known == {tensor.name for tensor in classifier().graph.initializer} - {"shape"}
    assert set(fetched.module.initialisers) <= set(fetched.module.state_dict())


def test_long_names_of_nodes_make_names_of_layers_that_folders_can_have():
    proto = classifier()
    made = {name for node in proto.graph.node for name in node.output} - {"scores"}
    for node in proto.graph.node:
        for names in (node.input, node.output):
            names[:] = [f"{'fused;' * 50}{name}" if name in made else name for name in names]
    save(proto, "net.onnx")
    layers = inspect(registry.fetch(SETTINGS, "cache").module, [], Choice())["layers"]
    assert len({entry["folder"] for entry in layers}) == 4


def test_the_graph_travels_without_weights():
    proto = classifier()
    save(proto, "net.onnx")
    spec = registry.fetch(SETTINGS, "cache").spec
    arrays = {tensor.name: tensor for tensor in proto.graph.initializer}
    arrays["conv_w"].CopyFrom(onnx.numpy_helper.from_array(floats(8, 3, 3, 3), "conv_w"))
    save(proto, "other.onnx")
    other = registry.fetch(SETTINGS | {"path": "other.onnx"}, "cache").spec
    assert other["builder"]["arguments"]["graph"] == spec["builder"]["arguments"]["graph"]
    json.dumps(spec)


@pytest.mark.parametrize("copied", [False, True])
def test_layers_with_one_initialiser_are_tied(copied):
    save(tied(copied), "net.onnx")
    fetched = registry.fetch(SETTINGS, "cache")
    [entry] = [entry for entry in inspect(fetched.module, [], Choice())["parameters"] if entry["aliases"]]
    assert entry["status"] == "shared"
    assert entry["shape"] == [4, 4, 3, 3]


@pytest.mark.parametrize("exported", [False, True])
def test_a_batch_norm_behind_a_convolution_is_folded(exported):
    save(classifier(exported=exported), "net.onnx")
    network = registry.fetch(SETTINGS, "cache").module
    layers = [entry["name"] for entry in inspect(network, [], Choice())["layers"]]
    assert list(folded_norms(network, layers, torch.rand(2, *SHAPE)).items()) == [
        ("Conv_conv", "BatchNormalization_norm.bnu")
    ]


def test_a_graph_that_cannot_be_converted_ends_in_one_line():
    nodes = [helper.make_node("Conv", ["input", "w"], ["a"]), helper.make_node("Mystery", ["a"], ["b"], domain="mine")]
    proto = model(nodes, {"w": floats(2, 3, 1, 1)}, ("input", ["n", 3, 8, 8]), ("b", ["n", 2, 8, 8]))
    proto.opset_import.append(helper.make_opsetid("mine", 1))
    save(proto, "net.onnx")
    assert error(SETTINGS).startswith("net.onnx: ONNX Runtime does not run it on an image [3, 8, 8]")


def test_a_network_of_sequences_is_taken():
    nodes = [
        helper.make_node("Conv", ["input", "w"], ["a"], strides=[2]),
        helper.make_node("GlobalAveragePool", ["a"], ["b"]),
        helper.make_node("Flatten", ["b"], ["scores"]),
    ]
    save(model(nodes, {"w": floats(4, 2, 5)}, ("input", ["n", 2, 40]), ("scores", ["n", 4])), "net.onnx")
    fetched = registry.fetch(SETTINGS, "cache")
    assert fetched.spec["input"] == [2, 40]
    assert [entry["type"] for entry in inspect(fetched.module, [], Choice())["layers"]] == ["Conv1d"]


def test_two_inputs_end_in_one_line():
    proto = classifier()
    proto.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["n", 1]))
    save(proto, "net.onnx")
    assert "net.onnx: takes 2 inputs, input, mask; networks of one input" in error(SETTINGS)


def test_a_network_of_vectors_ends_in_one_line():
    nodes = [helper.make_node("MatMul", ["input", "w"], ["scores"])]
    save(model(nodes, {"w": floats(6, 4)}, ("input", ["n", 6]), ("scores", ["n", 4])), "net.onnx")
    assert "net.onnx: its input input has 2 axes, not those of images [N, C, H, W]" in error(SETTINGS)


@pytest.mark.parametrize("damage", [lambda content: content[:-20], lambda content: b"\x08\x07\x12" + b"\xff" * 64])
def test_a_damaged_file_ends_in_one_line(damage):
    path = save(classifier(), "net.onnx")
    with open(path, "rb") as file:
        content = file.read()
    with open(path, "wb") as file:
        file.write(damage(content))
    assert error(SETTINGS, kind=FormatError).startswith("net.onnx: no ONNX file, or damaged")


def test_a_file_of_another_kind_is_told_with_what_to_do():
    Path("net.onnx").write_bytes(b"\x1c\x00\x00\x00TFL3" + bytes(64))
    assert error(SETTINGS, kind=FormatError).startswith(
        "net.onnx: TensorFlow Lite file, no ONNX file; convert it to ONNX (python -m tf2onnx.convert --tflite <path> "
    )


def test_a_free_size_is_asked_for():
    proto = classifier()
    for axis in proto.graph.input[0].type.tensor_type.shape.dim[2:]:
        axis.dim_param = "side"
    save(proto, "net.onnx")
    assert "preprocessing.crop" in error(SETTINGS)
    assert registry.fetch(SETTINGS | {"preprocessing": {"crop": 16}}, "cache").spec["input"] == [3, 16, 16]


def test_a_conversion_that_computes_something_else_is_refused(monkeypatch):
    from wshare.models import onnx_network

    save(classifier(), "net.onnx")
    monkeypatch.setattr(onnx_network.OnnxNetwork, "forward", lambda self, images: images.flatten(1)[:, :5])
    assert "its outputs differ from ONNX Runtime's by up to" in error(SETTINGS)
