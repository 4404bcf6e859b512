"""Small ONNX files as other programs write them."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

RANDOM = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32) / 3


def classifier(
    batch: int | str = "batch", channels_last: bool = False, constants: bool = False, exported: bool = False
) -> onnx.ModelProto:
    """A convolution with bias, a batch norm, a grouped convolution, two dense layers of either order; 5 classes.

    With `constants` weights are nodes instead of initialisers, as PaddlePaddle writes them; `exported` is as PyTorch's
    exporter writes it: tensors of equal values once, with copies, constants without a tensor, norms with a mode.
    """
    arrays = {
        "conv_w": floats(8, 3, 3, 3),
        "conv_b": floats(8),
        "norm_scale": floats(8) + 1,
        "norm_shift": floats(8),
        "norm_mean": floats(8),
        "norm_var": np.abs(floats(8)) + 0.5,
        "block/depthwise:0": floats(8, 1, 3, 3),
        "dense.weight": floats(8, 12),
        "dense.bias": floats(12),
        "head.weight": floats(5, 12),
        "head.bias": floats(5),
        "shape": np.array([batch if batch == 1 else -1, 8]),
    }
    nodes = [
        helper.make_node("Conv", ["input", "conv_w", "conv_b"], ["conv"], pads=[1, 1, 1, 1]),
        helper.make_node(
            "BatchNormalization", ["conv", "norm_scale", "norm_shift", "norm_mean", "norm_var"], ["norm"], epsilon=1e-3
        ),
        helper.make_node("Relu", ["norm"], ["relu"]),
        helper.make_node("Conv", ["relu", "block/depthwise:0"], ["/block/deep.conv"], group=8, auto_pad="SAME_UPPER"),
        helper.make_node("GlobalAveragePool", ["/block/deep.conv"], ["pooled"]),
        helper.make_node("Reshape", ["pooled", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "dense.weight"], ["product"]),
        helper.make_node("Add", ["product", "dense.bias"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("Gemm", ["active", "head.weight", "head.bias"], ["scores"], transB=1),
    ]
    shape = [batch, 3, 12, 12]
    if channels_last:
        shape = [batch, 12, 12, 3]
        nodes.insert(0, helper.make_node("Transpose", ["pixels"], ["input"], perm=[0, 3, 1, 2]))
    if exported:
        arrays["conv_b"] = arrays["norm_shift"]
        del arrays["norm_shift"], arrays["shape"]
        nodes[1].attribute.append(helper.make_attribute("training_mode", 0))
        nodes.insert(0, helper.make_node("Identity", ["conv_b"], ["norm_shift"]))
        nodes.insert(0, helper.make_node("Constant", [], ["shape"], value_ints=[-1, 8]))
    taken, opset = ("pixels" if channels_last else "input", shape), 15 if exported else 13
    return model(nodes, arrays, taken, ("scores", [batch, 5]), constants, opset)


def tied(copied: bool = False) -> onnx.ModelProto:
    """Two convolutions with one initialiser, of which one may take a copy, and two batch norms that share theirs."""
    arrays = {"w": floats(4, 4, 3, 3), "ones": np.ones(4, np.float32), "zeros": np.zeros(4, np.float32)}
    arrays |= {"first": floats(4, 3, 1, 1), "variances": np.abs(floats(4)) + 0.5}
    norm = ["ones", "zeros", "zeros", "variances"]
    nodes = [
        helper.make_node("Conv", ["input", "first"], ["a"]),
        helper.make_node("Conv", ["a", "w"], ["b"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["b", *norm], ["c"]),
        helper.make_node("Conv", ["c", "w"], ["d"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["d", *norm], ["e"]),
        helper.make_node("GlobalAveragePool", ["e"], ["f"]),
        helper.make_node("Flatten", ["f"], ["scores"]),
    ]
    if copied:
        nodes[3].input[1] = "copy"
        nodes.insert(0, helper.make_node("Identity", ["w"], ["copy"]))
    return model(nodes, arrays, ("input", ["n", 3, 8, 8]), ("scores", ["n", 4]))


def model(
    nodes: list,
    arrays: dict,
    taken: tuple[str, list],
    given: tuple[str, list],
    constants: bool = False,
    opset: int = 13,
) -> onnx.ModelProto:
    """A file of these nodes and initialisers."""
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    if constants:
        nodes = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in tensors] + nodes
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(taken[0], TensorProto.FLOAT, taken[1])],
        [helper.make_tensor_value_info(given[0], TensorProto.FLOAT, given[1])],
        [] if constants else tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def save(proto: onnx.ModelProto, path: Path) -> Path:
    """Write a file."""
    onnx.save(proto, path)
    return path
