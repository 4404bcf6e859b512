"""ONNX with shared weights: codebooks and indices as constants, and the nodes that expand them."""

import ctypes
import itertools
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, checker, helper, numpy_helper, version_converter
from torch import nn

from wshare.errors import UserError
from wshare.exports.outputs import INPUT, named_outputs
from wshare.files.atomic import atomic
from wshare.models.kinds.attention import called_as_modules
from wshare.models.plain import plain_copy
from wshare.models.state import load_state
from wshare.packed.bitfields import fields, widths
from wshare.packed.format import load_packed, read_shared
from wshare.quantize.codebooks import Shared, row_scale
from wshare.quantize.cost import index_bits

OPSET = 18
# Operators whose third input is a bias.
BIASED = ("Conv", "ConvTranspose", "Gemm")


def write_onnx(packed: Path, output: Path, model: nn.Module, example: torch.Tensor) -> None:
    """Write the network with input `images` [N, C, H, W], N free, and outputs as `named_outputs` calls them.

    Weights are the packed file's to the bit. A batch norm that only shifts becomes the bias of the convolution before
    it. A network that came from an ONNX file becomes that file's own graph, with its inputs and outputs. UserError if
    the network cannot be exported, or uses a shared tensor otherwise than by its name.
    """
    write_graph(packed, output, model, example, Nodes)


def write_graph(packed: Path, output: Path, model: nn.Module, example: torch.Tensor, made_by: type["Nodes"]) -> None:
    """Write the network as `write_onnx` does, with the nodes that `made_by` expands shared tensors by."""
    if isinstance(getattr(model, "file", None), onnx.ModelProto):
        _write_own(packed, output, model, made_by)
        return
    network = plain_copy(model, "model", told=False).eval().to(memory_format=torch.contiguous_format)
    load_state(network, load_packed(packed), str(packed))
    shared, _ = read_shared(packed)
    opset = made_by.least_opset(shared, packed)
    with atomic(output) as temporary:
        graph_file = _exported(network, example, temporary)
        if opset > OPSET:
            graph_file = version_converter.convert_version(graph_file, opset)
            graph_file.ir_version = helper.find_min_ir_version_for(graph_file.opset_import)
        _name_once(graph_file.graph)
        _merge_shifts(graph_file.graph)
        _share(graph_file.graph, shared, packed, made_by)
        checker.check_model(graph_file, full_check=True)
        onnx.save(graph_file, temporary)


def _write_own(packed: Path, output: Path, model: nn.Module, made_by: type["Nodes"]) -> None:
    """Write the graph that the network came from; `model.initialisers` says which tensor is which of its."""
    graph_file = onnx.ModelProto.FromString(model.file.SerializeToString())
    opset = max(entry.version for entry in graph_file.opset_import if entry.domain in ("", "ai.onnx"))
    shared, others = read_shared(packed)
    needed = made_by.least_opset(shared, packed)
    if opset < needed:
        raise UserError(
            f"export onnx: the graph is of opset {opset}, which cannot expand {made_by.WHAT}; convert the ONNX file to "
            f"opset {needed} or later (onnx.version_converter) and compress that"
        )
    graph = graph_file.graph
    dense = {tensor.name: tensor for tensor in graph.initializer}
    nodes = made_by(graph)
    for name, (own, transposed) in model.initialisers.items():
        if name in others:
            value = others[name].T if transposed else others[name]
            kind = helper.tensor_dtype_to_np_dtype(dense[own].data_type)
            dense[own].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value.astype(kind)), own))
        elif own in dense:
            # Layers that use one initialiser are tied: the first has it.
            graph.initializer.remove(dense.pop(own))
            nodes.expand(own, shared[name], transposed)
    nodes.made += graph.node
    del graph.node[:]
    graph.node.extend(nodes.made)
    _check_values(graph)
    _merge_shifts(graph)
    with atomic(output) as temporary:
        checker.check_model(graph_file, full_check=True)
        onnx.save(graph_file, temporary)


def dense_graph(
    state: dict[str, torch.Tensor], packed: Path, model: nn.Module, example: torch.Tensor, path: Path
) -> tuple[onnx.ModelProto, dict[str, tuple[str, bool]]]:
    """The graph of `write_onnx` with the weights of `state`, what the packed file holds, as plain initialisers.

    And of each initialiser that may be one of these tensors: which, and whether it is transposed. `path` is a file
    that may be overwritten on the way. UserError as in `write_onnx`.
    """
    if isinstance(getattr(model, "file", None), onnx.ModelProto):
        graph_file = onnx.ModelProto.FromString(model.file.SerializeToString())
        sources = {own: (name, transposed) for name, (own, transposed) in model.initialisers.items() if name in state}
        for tensor in graph_file.graph.initializer:
            if tensor.name in sources:
                name, transposed = sources[tensor.name]
                value = state[name].numpy().T if transposed else state[name].numpy()
                kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
                tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value.astype(kind)), tensor.name))
        _check_values(graph_file.graph)
    else:
        network = plain_copy(model, "model", told=False).eval().to(memory_format=torch.contiguous_format)
        load_state(network, state, str(packed))
        graph_file, sources = _exported(network, example, path), {name: (name, False) for name in state}
        _name_once(graph_file.graph)
        _shorten(graph_file.graph)
    _merge_shifts(graph_file.graph)
    checker.check_model(graph_file, full_check=True)
    return graph_file, sources


def _check_values(graph: onnx.GraphProto) -> None:
    left = next((tensor.name for tensor in graph.initializer if not _has_values(tensor)), None)
    if left is not None:
        raise UserError(
            f"export onnx: {left!r} of the graph is not among what a packed file holds; export dense instead"
        )


def _has_values(tensor: TensorProto) -> bool:
    kinds = ("raw", "float", "double", "int32", "int64", "uint64", "string")
    return not np.prod(tuple(tensor.dims)) or any(len(getattr(tensor, f"{kind}_data")) for kind in kinds)


def _exported(network: nn.Module, example: torch.Tensor, path: Path) -> onnx.ModelProto:
    with warnings.catch_warnings(), torch.no_grad():
        # The exporter built on torch.export renames tensors and needs one more package.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", "Constant folding", UserWarning)
        # The number of images is free: recurrent layers start with as many states.
        warnings.filterwarnings("ignore", "Exporting a model to ONNX with a batch_size", UserWarning)
        # What a network checks of its input's shape is not part of the graph.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        try:
            with _unprinted(), called_as_modules():
                outputs = named_outputs(network, example)
                batched = [name for name, tensor in outputs.items() if tensor.shape[:1] == example.shape[:1]]
                torch.onnx.export(
                    network,
                    (example.contiguous(),),
                    str(path),
                    dynamo=False,
                    opset_version=OPSET,
                    input_names=[INPUT],
                    output_names=list(outputs),
                    dynamic_axes={name: {0: "batch"} for name in (INPUT, *batched)},
                    # Both keep tensors under their names and with their values.
                    training=torch.onnx.TrainingMode.PRESERVE,
                    do_constant_folding=False,
                )
        except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"export onnx: torch cannot export this network ({reason}); export dense instead") from None
    return onnx.load(path)


@contextmanager
def _unprinted() -> Iterator[None]:
    """Drop what is written to standard output, from C++ too: where torch fails, it prints pages of its graph."""
    sys.stdout.flush()
    kept = os.dup(1)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    try:
        yield
    finally:
        # What C++ has yet to write goes nowhere, too.
        ctypes.CDLL(None).fflush(None)
        os.dup2(kept, 1)
        os.close(kept)


def _share(graph: onnx.GraphProto, shared: dict[str, Shared], packed: Path, made_by: type["Nodes"]) -> None:
    """Replace the initializers of shared tensors by nodes of the same name."""
    dense = {tensor.name: tensor for tensor in graph.initializer}
    nodes = made_by(graph)
    for name, tensor in shared.items():
        if name in dense:
            if not np.array_equal(numpy_helper.to_array(dense[name]), tensor.weight()):
                raise UserError(f"export onnx: torch changed {name!r} of {packed}; export dense instead")
            graph.initializer.remove(dense[name])
            nodes.expand(name, tensor)
    nodes.made += graph.node
    del graph.node[:]
    graph.node.extend(nodes.made)


class Nodes:
    """New nodes and their constants, which make weights of indices; numbers for names keep the file small."""

    WHAT = "indices"

    @classmethod
    def least_opset(cls, shared: dict[str, Shared], packed: Path) -> int:
        """The first operator set that can expand these tensors of a packed file: it has BitShift."""
        return 11

    def __init__(self, graph: onnx.GraphProto):
        self.graph, self.names = graph, set()
        self.made: list[onnx.NodeProto] = []

    def expand(self, name: str, tensor: Shared, transposed: bool = False) -> None:
        """Compute the weight `name`."""
        indices = tensor.indices.T if transposed else tensor.indices
        if tensor.exponents is None:
            self.gathered(tensor.codebook, indices, indices.shape, name)
            return
        # Outputs have few different scales.
        scales, outputs = np.unique(row_scale(tensor.exponents), return_inverse=True)
        column = tensor.layout.per_output(outputs, tensor.indices.shape)
        column = column.T if transposed else column
        unscaled = self.gathered(tensor.codebook, indices, indices.shape)
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
        whole, place = "", 0
        for width, packed in zip(widths(bits), fields(indices, bits), strict=True):
            part = self.add("Cast", [self.field(packed, width, indices.size)], to=TensorProto.INT32)
            if place:
                part = self.add("Mul", [part, self.constant(np.int32(1 << place))])
            whole = self.add("Add", [whole, part]) if whole else part
            place += width
        return whole

    def field(self, packed: np.ndarray, width: int, count: int) -> str:
        """One field of each index: uint8 [count]."""
        if width == 8:
            return self.constant(packed)
        places = self.constant(np.arange(0, 8, width, dtype=np.uint8))
        shifted = self.add("BitShift", [self.constant(packed[:, None]), places], direction="RIGHT")
        # The bits of one index; graphs of older opsets have no BitwiseAnd.
        masked = self.add("Mod", [shifted, self.constant(np.uint8(1 << width))])
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


def _shorten(graph: onnx.GraphProto) -> None:
    """Number what nodes give, which torch names after where it comes from, and leave out the names of nodes.

    Inputs, outputs and initialisers keep their names; so does everything where a node has a graph of its own.
    """
    if any(attribute.HasField("g") or attribute.graphs for node in graph.node for attribute in node.attribute):
        return
    kept = {"", *(entry.name for entries in (graph.initializer, graph.input, graph.output) for entry in entries)}
    numbers = (str(number) for number in itertools.count() if str(number) not in kept)
    short = {}
    for node in graph.node:
        node.name = ""
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name not in kept:
                    if name not in short:
                        short[name] = next(numbers)
                    names[place] = short[name]


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
        eps = np.float32(next((item.f for item in norm.attribute if item.name == "epsilon"), 1e-5))
        arrays = [numpy_helper.to_array(values[name]) for name in (scale, mean, variance)]
        if (arrays[0] == 1).all() and (arrays[1] == 0).all() and (np.sqrt(arrays[2] + eps) == 1).all():
            before.input[2:] = [shift]
            before.output[0] = norm.output[0]
            makers[norm.output[0]] = before
            graph.node.remove(norm)
    left = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in left]:
        graph.initializer.remove(tensor)
