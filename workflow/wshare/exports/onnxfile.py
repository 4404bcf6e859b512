"""ONNX with shared weights: codebooks and indices as constants, and the nodes that expand them."""

import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, checker, helper, numpy_helper
from torch import nn

from wshare.errors import UserError
from wshare.files.atomic import atomic
from wshare.models.plain import plain_copy
from wshare.models.state import load_state
from wshare.packed.bitfields import fields, widths
from wshare.packed.format import load_packed, read_shared
from wshare.quantize.codebooks import Shared, row_scale
from wshare.quantize.cost import index_bits

# The first with BitwiseAnd and BitwiseOr.
OPSET = 18
# Operators whose third input is a bias.
BIASED = ("Conv", "ConvTranspose", "Gemm")


def write_onnx(packed: Path, output: Path, model: nn.Module, example: torch.Tensor) -> None:
    """Write the network with input `images` [N, C, H, W], N free, and output `logits`.

    Weights are the packed file's to the bit. A batch norm that only shifts becomes the bias of the convolution before
    it. UserError if the network cannot be exported, or uses a shared tensor otherwise than by its name.
    """
    network = plain_copy(model, "model", told=False).eval().to(memory_format=torch.contiguous_format)
    load_state(network, load_packed(packed), str(packed))
    shared, _ = read_shared(packed)
    with atomic(output) as temporary:
        graph_file = _exported(network, example, temporary)
        _name_once(graph_file.graph)
        _merge_shifts(graph_file.graph)
        _share(graph_file.graph, shared, packed)
        checker.check_model(graph_file, full_check=True)
        onnx.save(graph_file, temporary)


def _exported(network: nn.Module, example: torch.Tensor, path: Path) -> onnx.ModelProto:
    with warnings.catch_warnings(), torch.no_grad():
        # The exporter built on torch.export renames tensors and needs one more package.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", "Constant folding", UserWarning)
        # What a network checks of its input's shape is not part of the graph.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        try:
            torch.onnx.export(
                network,
                (example.contiguous(),),
                str(path),
                dynamo=False,
                opset_version=OPSET,
                input_names=["images"],
                output_names=["logits"],
                dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}},
                # Both keep tensors under their names and with their values.
                training=torch.onnx.TrainingMode.PRESERVE,
                do_constant_folding=False,
            )
        except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"export onnx: torch cannot export this network ({reason}); export dense instead") from None
    return onnx.load(path)


def _share(graph: onnx.GraphProto, shared: dict[str, Shared], packed: Path) -> None:
    """Replace the initializers of shared tensors by nodes of the same name."""
    dense = {tensor.name: tensor for tensor in graph.initializer}
    nodes = _Nodes(graph)
    for name, tensor in shared.items():
        if name in dense:
            if not np.array_equal(numpy_helper.to_array(dense[name]), tensor.weight()):
                raise UserError(f"export onnx: torch changed {name!r} of {packed}; export dense instead")
            graph.initializer.remove(dense[name])
            nodes.expand(name, tensor)
    nodes.made += graph.node
    del graph.node[:]
    graph.node.extend(nodes.made)


class _Nodes:
    """New nodes and their constants; numbers for names keep the file small."""

    def __init__(self, graph: onnx.GraphProto):
        self.graph, self.names = graph, set()
        self.made: list[onnx.NodeProto] = []

    def expand(self, name: str, tensor: Shared) -> None:
        """Compute the weight `name`."""
        if tensor.exponents is None:
            self.gathered(tensor.codebook, tensor.indices, tensor.indices.shape, name)
            return
        # Outputs have few different scales.
        scales, outputs = np.unique(row_scale(tensor.exponents), return_inverse=True)
        column = tensor.layout.per_output(outputs, tensor.indices.shape)
        unscaled = self.gathered(tensor.codebook, tensor.indices, tensor.indices.shape)
        self.add("Mul", [unscaled, self.gathered(scales, column, column.shape)], name)

    def gathered(self, codebook: np.ndarray, indices: np.ndarray, shape: tuple[int, ...], name: str = "") -> str:
        """codebook[indices], float32 of `shape`; returns its name."""
        values, size = self.constant(codebook), self.constant(np.array(shape, np.int64))
        if len(codebook) == 1:
            return self.add("Expand", [values, size], name)
        whole = self.indices(indices, index_bits(len(codebook)))
        return self.add("Gather", [values, self.add("Reshape", [whole, size])], name)

    def indices(self, indices: np.ndarray, bits: int) -> str:
        """Indices, int32 [n], put together from their fields."""
        parts: list[str] = []
        place = 0
        for width, packed in zip(widths(bits), fields(indices, bits), strict=True):
            field = self.field(packed, width, indices.size)
            if place % 8:
                shifted = self.add("BitShift", [field, self.constant(np.uint8(place % 8))], direction="LEFT")
                parts[-1] = self.add("BitwiseOr", [parts[-1], shifted])
            else:
                parts.append(field)
            place += width
        whole, *high = [self.add("Cast", [part], to=TensorProto.INT32) for part in parts]
        for part in high:
            whole = self.add("Add", [whole, self.add("Mul", [part, self.constant(np.int32(256))])])
        return whole

    def field(self, packed: np.ndarray, width: int, count: int) -> str:
        """One field of each index: uint8 [count]."""
        if width == 8:
            return self.constant(packed)
        places = self.constant(np.arange(0, 8, width, dtype=np.uint8))
        shifted = self.add("BitShift", [self.constant(packed[:, None]), places], direction="RIGHT")
        masked = self.add("BitwiseAnd", [shifted, self.constant(np.uint8((1 << width) - 1))])
        flat = self.add("Reshape", [masked, self.constant(np.array([-1]))])
        if count == packed.size * 8 // width:
            return flat
        return self.add("Slice", [flat, self.constant(np.array([0])), self.constant(np.array([count]))])

    def constant(self, value: np.ndarray) -> str:
        """Name of a constant; small ones are kept once, and so named after their content."""
        value = np.asarray(value)
        name = f"wshare.{value.dtype}{value.tolist()}" if value.size <= 8 else f"wshare.constant{len(self.names)}"
        if name not in self.names:
            self.names.add(name)
            self.graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def add(self, kind: str, inputs: list[str], name: str = "", **attributes: object) -> str:
        """Name of what a new node gives."""
        name = name or f"wshare.{len(self.made)}"
        self.made.append(helper.make_node(kind, inputs, [name], **attributes))
        return name


def _name_once(graph: onnx.GraphProto) -> None:
    """Take out the Identity nodes by which the exporter gives equal tensors, tied ones too, other names."""
    values = {tensor.name for tensor in graph.initializer}
    same = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Identity"}
    same = {name: first for name, first in same.items() if first in values}
    kept = [node for node in graph.node if node.output[0] not in same]
    del graph.node[:]
    graph.node.extend(kept)
    for node in graph.node:
        node.input[:] = [same.get(name, name) for name in node.input]


def _merge_shifts(graph: onnx.GraphProto) -> None:
    """Take out the batch norms that only shift what a layer without bias, or with zeros, gives to nothing else."""
    values = {tensor.name: tensor for tensor in graph.initializer}
    uses = [name for node in graph.node for name in node.input] + [output.name for output in graph.output]
    makers = {name: node for node in graph.node for name in node.output}
    for norm in [node for node in graph.node if node.op_type == "BatchNormalization"]:
        before = makers.get(norm.input[0])
        if before is None or before.op_type not in BIASED or uses.count(norm.input[0]) != 1:
            continue
        # A bias that was merged into the norm is left as zeros.
        if any(name not in values or numpy_helper.to_array(values[name]).any() for name in before.input[2:]):
            continue
        scale, shift, mean, variance = norm.input[1:]
        eps = np.float32(next(item.f for item in norm.attribute if item.name == "epsilon"))
        arrays = [numpy_helper.to_array(values[name]) for name in (scale, mean, variance)]
        if (arrays[0] == 1).all() and (arrays[1] == 0).all() and (np.sqrt(arrays[2] + eps) == 1).all():
            before.input[2:] = [shift]
            before.output[0] = norm.output[0]
            makers[norm.output[0]] = before
            graph.node.remove(norm)
    left = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in left]:
        graph.initializer.remove(tensor)
