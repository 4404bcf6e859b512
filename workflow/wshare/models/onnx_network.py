"""A network of an ONNX file as a torch module, whose parameters know the file's initialisers."""

import base64
import re
import warnings
import zlib

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnx2pytorch import ConvertModel
from onnx2pytorch.constants import STANDARD_LAYERS
from onnx2pytorch.convert.operations import get_buffer_name
from onnx2pytorch.operations import BatchNormWrapper
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from wshare.models.outputs import one_by_one

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
# TensorFlow Lite joins the names of all operations that it fused.
LONGEST_NAME = 100
# Initialisers of so few values, such as the factors of a resize, are constants of the graph.
FEW = 64
# Parameters and statistics of a module by the place of the node's input that they come from.
PLACES = {
    "Conv": {"weight": 1, "bias": 2},
    "ConvTranspose": {"weight": 1, "bias": 2},
    "Gemm": {"weight": 1, "bias": 2},
    "MatMul": {"weight": 1},
    "BatchNormalization": {"weight": 1, "bias": 2, "running_mean": 3, "running_var": 4},
}


# It warns of what may differ from other runtimes; outputs are held against ONNX Runtime's.
warnings.filterwarnings("ignore", module="onnx2pytorch")


class OnnxNetwork(ConvertModel):
    """The network of an ONNX file, in evaluation mode; it takes images [N, C, H, W], or other arrays [N, C, ...].

    `proto` may lack the values of large float initialisers, as `without_values` leaves it: parameters are then zero.
    A graph that takes pixels as [N, H, W, C] (`channels_last`) gets them so, and one that takes an image at a time
    (`one_by_one`) is called for each. `initialisers` gives, by the name of a tensor in the state dict, the initialiser
    that it is, and whether transposed.
    """

    def __init__(self, proto: onnx.ModelProto, channels_last: bool = False, one_by_one: bool = False):
        whole = _whole(proto)
        # The conversion takes out nodes of the graph that it is given.
        converted = onnx.ModelProto.FromString(whole.SerializeToString())
        super().__init__(converted)
        self.channels_last, self.one_by_one = channels_last, one_by_one
        self._rename()
        self._call_norms()
        self.initialisers = self._initialisers(whole.graph)
        self._keep_constants(whole.graph)
        self._tie()
        self.file = without_values(whole)
        self.onnx_model = without_values(converted)
        self.float().eval()

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """What the graph gives for images [N, C, H, W]: its output, or a tuple of them."""
        images = images.permute(0, 2, 3, 1) if self.channels_last else images
        # Some operations of a graph look at the memory of what they get.
        images = images.contiguous()
        if not self.one_by_one or len(images) == 1:
            return _outputs(super().forward(images))
        return one_by_one(lambda image: _outputs(super(OnnxNetwork, self).forward(image)), images)

    def _rename(self) -> None:
        """Module names without dots, which would stand for modules inside modules, and short enough for folders."""
        for output, name in self.mapping.items():
            plain = re.sub(r"\W+", "_", name)[-LONGEST_NAME:].strip("_")
            while plain in self._modules and plain != name:
                plain += "_"
            operation = getattr(self, name)
            if isinstance(operation, nn.Module):
                self._modules[plain] = self._modules.pop(name)
            else:
                # Concatenation is a plain function.
                setattr(self, plain, operation)
            self.mapping[output] = plain

    def _call_norms(self) -> None:
        """Have batch norms called as modules are, so that hooks see what goes into them."""
        for part in self.modules():
            if isinstance(part, BatchNormWrapper) and not part.has_lazy:
                part.__class__ = _CalledNorm

    def _initialisers(self, graph: onnx.GraphProto) -> dict[str, tuple[str, bool]]:
        known = {tensor.name for tensor in graph.initializer}
        added = {name: node for node in graph.node if node.op_type == "Add" for name in node.output}
        found = {}
        for node in self.onnx_model.graph.node:
            part = getattr(self, self.mapping[node.output[0]])
            places = PLACES.get(node.op_type, {})
            inputs = {leaf: node.input[place] for leaf, place in places.items() if place < len(node.input)}
            if node.op_type == "MatMul":
                # The initialiser may be either factor, and the bias that of the addition behind.
                behind = added.get(node.output[0])
                inputs = {"weight": _first(node.input, known), "bias": behind and _first(behind.input, known)}
            if node.op_type == "Gemm" and any(_attribute(node, name, 1.0) != 1 for name in ("alpha", "beta")):
                # The module holds a multiple of the initialiser.
                continue
            transposed = node.op_type == "MatMul" or (node.op_type == "Gemm" and not _attribute(node, "transB", 0))
            for path, module in part.named_modules() if isinstance(part, nn.Module) else ():
                if isinstance(module, (_ConvNd, nn.Linear, _BatchNorm)):
                    start = ".".join(filter(None, (self.mapping[node.output[0]], path)))
                    found |= {
                        f"{start}.{leaf}": (name, transposed and leaf == "weight")
                        for leaf, name in inputs.items()
                        if name in known and getattr(module, leaf, None) is not None
                    }
        return found

    def _keep_constants(self, graph: onnx.GraphProto) -> None:
        """Of the buffers that the conversion makes of all initialisers, only those that a forward pass reads.

        Constants of the graph are part of it, and no weights: a state dict does not hold them.
        """
        read = {
            name
            for node in self.onnx_model.graph.node
            for name in node.input
            if not _holds_standard(getattr(self, self.mapping[node.output[0]]))
        }
        read |= {name for node in graph.node for name in _of_subgraphs(node)}
        for tensor in graph.initializer:
            name = get_buffer_name(tensor.name)
            if tensor.name not in read:
                self._buffers.pop(name, None)
            elif name in self._buffers and not _is_weight(tensor):
                self._non_persistent_buffers_set.add(name)
            elif name in self._buffers:
                self.initialisers[name] = (tensor.name, False)

    def _tie(self) -> None:
        """One parameter for the layers that use the same initialiser in the same way."""
        owners: dict[tuple[str, bool], nn.Parameter] = {}
        for name, source in self.initialisers.items():
            path, _, leaf = name.rpartition(".")
            module = self.get_submodule(path)
            if leaf in module._parameters:
                # Of a transposed initialiser the layer holds a view.
                module._parameters[leaf] = owners.setdefault(
                    source, nn.Parameter(module._parameters[leaf].detach().contiguous())
                )


class _CalledNorm(BatchNormWrapper):
    def forward(self, values: Tensor) -> Tensor:
        return self.bnu(values)


def simplified(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph as onnx2pytorch takes it, in which initialisers go to the nodes that use them.

    Values of Constant nodes and copies of initialisers, which PyTorch's exporter makes Identity nodes for, are
    initialisers. None of these is an input of the graph.
    """
    proto = onnx.ModelProto.FromString(proto.SerializeToString())
    graph, kept = proto.graph, []
    values = {tensor.name: tensor for tensor in graph.initializer}
    outputs = {entry.name for entry in graph.output}
    read_inside = {name for node in graph.node for name in _of_subgraphs(node)}
    renamed: dict[str, str] = {}
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        source = values.get(node.input[0]) if node.op_type == "Identity" else None
        constant = _constant(node) if node.op_type == "Constant" else source
        name = node.output[0] if node.output else ""
        if constant is None or name in outputs:
            kept.append(node)
        elif source is not None and len(source.dims) > 1 and name not in read_inside:
            # One weight of several layers, which stays one.
            renamed[name] = source.name
        else:
            values[name] = _called(name, constant)
            graph.initializer.append(values[name])
    del graph.node[:]
    graph.node.extend(kept)
    inputs = [entry for entry in graph.input if entry.name not in values]
    del graph.input[:]
    graph.input.extend(inputs)
    _drop_modes(graph)
    _part_norms(graph)
    return proto


def _constant(node: onnx.NodeProto) -> TensorProto | None:
    """The value of a Constant node; None if it is no tensor of numbers."""
    attribute = node.attribute[0]
    value = onnx.helper.get_attribute_value(attribute)
    if attribute.name == "value":
        return value
    types = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    kind = types.get(attribute.name)
    return None if kind is None else numpy_helper.from_array(np.array(value, kind))


def _called(name: str, tensor: TensorProto) -> TensorProto:
    """A copy of a tensor by another name."""
    copied = TensorProto.FromString(tensor.SerializeToString())
    copied.name = name
    return copied


def _drop_modes(graph: onnx.GraphProto) -> None:
    """Take from batch norms the attribute that says that they are not in training, which onnx2pytorch refuses."""
    for node in graph.node:
        if node.op_type == "BatchNormalization" and not _attribute(node, "training_mode", 0):
            kept = [item for item in node.attribute if item.name != "training_mode"]
            del node.attribute[:]
            node.attribute.extend(kept)


def _part_norms(graph: onnx.GraphProto) -> None:
    """Give each batch norm initialisers of its own: compression gives each other values."""
    values = {tensor.name: tensor for tensor in graph.initializer}
    taken: set[str] = set()
    for node in graph.node:
        for place, name in enumerate(node.input):
            if node.op_type == "BatchNormalization" and name in taken & values.keys():
                node.input[place] = f"{name}.{node.output[0]}.{place}"
                graph.initializer.append(_called(node.input[place], values[name]))
        taken.update(node.input)


def without_values(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph, whose large float initialisers have shapes alone: their values are in a state dict."""
    proto = onnx.ModelProto.FromString(proto.SerializeToString())
    for tensor in proto.graph.initializer:
        if _is_weight(tensor):
            bare = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
            tensor.CopyFrom(bare)
    return proto


def as_text(proto: onnx.ModelProto) -> str:
    """A graph as ASCII, for JSON."""
    return base64.b64encode(zlib.compress(proto.SerializeToString(deterministic=True), 9)).decode()


def of_text(text: str) -> onnx.ModelProto:
    """The graph that `as_text` wrote."""
    return onnx.ModelProto.FromString(zlib.decompress(base64.b64decode(text)))


def _whole(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with zeros for values that are missing."""
    proto = onnx.ModelProto.FromString(proto.SerializeToString())
    for tensor in proto.graph.initializer:
        if _is_weight(tensor) and not _has_values(tensor):
            zeros = np.zeros(tuple(tensor.dims), onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
            tensor.CopyFrom(numpy_helper.from_array(zeros, tensor.name))
    return proto


def _has_values(tensor: TensorProto) -> bool:
    return bool(tensor.raw_data or tensor.float_data or tensor.double_data or tensor.int32_data)


def _is_weight(tensor: TensorProto) -> bool:
    return tensor.data_type in FLOATS and int(np.prod(tuple(tensor.dims))) > FEW


def _holds_standard(operation: object) -> bool:
    """Whether the conversion put a node's initialisers into its module, so that a forward pass does not pass them."""
    parts = operation.modules() if isinstance(operation, nn.Sequential) else [operation]
    return any(isinstance(part, STANDARD_LAYERS) for part in parts)


def _of_subgraphs(node: onnx.NodeProto) -> list[str]:
    inner = [item.g for item in node.attribute if item.HasField("g")]
    return [name for graph in inner for part in graph.node for name in (*part.input, *_of_subgraphs(part))]


def _first(names: list[str], known: set[str]) -> str | None:
    return next((name for name in names if name in known), None)


def _attribute(node: onnx.NodeProto, name: str, default: float) -> float:
    return next((onnx.helper.get_attribute_value(item) for item in node.attribute if item.name == name), default)


def _outputs(found: Tensor | list[Tensor]) -> Tensor | tuple[Tensor, ...]:
    return found if isinstance(found, Tensor) else tuple(found)
