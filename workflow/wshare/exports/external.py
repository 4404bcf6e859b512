"""ONNX whose weights lie in a file beside the graph, which is made from the packed file where a network is installed.

The data file holds the tensors of the packed file, as `load_packed` gives them, in C order and little-endian, one after
another in the order of the state dict, each at the next multiple of 64 bytes, zeros in between. Tied tensors are in it
once. `decoder/unpack.c --raw` and `decoder/wshare.js` write the same bytes, so that the graph can say where they lie
before the file is there. The name of the data file is the graph's and `.data`.

The graph's metadata have one entry, `wshare`, which is JSON: `packed` and `data`, each {`sha256`, `bytes`}, of the
files that belong to the graph, and of `data` the `name`; `input`, the shape [C, H, W] of an example; and
`preprocessing` and `categories` as a network's description has them, or null.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from wshare.errors import UserError
from wshare.exports.onnxfile import dense_graph
from wshare.files.atomic import atomic
from wshare.files.sealed import sha256_file
from wshare.models.preprocessing import complete_preprocessing
from wshare.packed.format import load_packed, read_index

ENDING = ".data"
METADATA = "wshare"
# Tensors start at multiples of so many bytes.
ALIGNMENT = 64


def write_graph(packed: Path, output: Path, model: nn.Module, example: Tensor, description: dict | None = None) -> None:
    """Write the graph of `write_onnx` with plain weights, all of which that the packed file holds in external data.

    What the packed file does not hold, such as shapes, stays in the graph. `description` is that of the network, whose
    preprocessing and categories the metadata are to have. UserError as for `write_onnx`.
    """
    state, aliases = load_packed(packed), read_index(packed)["aliases"]
    with atomic(output) as temporary:
        graph_file, sources = dense_graph(state, packed, model, example, temporary)
        places, digest, nbytes = {}, hashlib.sha256(), 0
        for name, gap, tensor in _layout(state, aliases):
            digest.update(bytes(gap))
            digest.update(tensor)
            places[name] = (nbytes + gap, tensor.nbytes)
            nbytes += gap + tensor.nbytes
        places |= {alias: places[_first(alias, aliases)] for alias in aliases}
        location = Path(output).name + ENDING
        _move_out(graph_file.graph, state, sources, places, location, packed)
        told = description or {}
        preprocessing = told.get("preprocessing")
        about = {
            "packed": {"sha256": sha256_file(packed), "bytes": packed.stat().st_size},
            "data": {"sha256": digest.hexdigest(), "bytes": nbytes, "name": location},
            "input": list(example.shape[1:]),
            # Descriptions of before have no letterbox and no order.
            "preprocessing": preprocessing and complete_preprocessing({}, preprocessing),
            "categories": told.get("categories"),
        }
        entry = graph_file.metadata_props.add(key=METADATA)
        entry.value = json.dumps(about, separators=(",", ":"), ensure_ascii=False)
        temporary.write_bytes(graph_file.SerializeToString())


def write_data(packed: Path, output: Path) -> None:
    """Write the data file of the graph that lies beside `output`, or will: the graph's name and `.data`.

    UserError if a graph is there that another packed file belongs to.
    """
    state, aliases = load_packed(packed), read_index(packed)["aliases"]
    _check_graph(Path(output), packed)
    nbytes = sum(gap + tensor.nbytes for _, gap, tensor in _layout(state, aliases))
    with atomic(output, nbytes) as temporary, temporary.open("wb") as file:
        for _, gap, tensor in _layout(state, aliases):
            file.write(bytes(gap))
            file.write(tensor)


def _layout(state: dict[str, Tensor], aliases: dict[str, str]) -> Iterator[tuple[str, int, np.ndarray]]:
    """Tensors of the data file in their order: the name, the zeros before it, and its bytes."""
    end = 0
    for name, tensor in state.items():
        if name not in aliases:
            octets = np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8)
            gap = -end % ALIGNMENT
            yield name, gap, octets
            end += gap + octets.nbytes


def _first(name: str, aliases: dict[str, str]) -> str:
    while name in aliases:
        name = aliases[name]
    return name


def _check_graph(output: Path, packed: Path) -> None:
    graph = output.with_name(output.name.removesuffix(ENDING))
    if graph == output or not graph.is_file():
        return
    about = metadata(graph)
    if about is not None and about["packed"]["sha256"] != sha256_file(packed):
        raise UserError(
            f"{graph}: belongs to another packed file than {packed} (their sha256 differ); take the graph that was "
            "written from it, or --output another name"
        )


def metadata(graph: Path) -> dict | None:
    """What `write_graph` wrote into a graph's metadata; None for any other file."""
    try:
        found = {entry.key: entry.value for entry in ModelProto.FromString(graph.read_bytes()).metadata_props}
        return json.loads(found[METADATA])
    except (DecodeError, KeyError, ValueError):
        return None


def _move_out(
    graph: GraphProto,
    state: dict[str, Tensor],
    sources: dict[str, tuple[str, bool]],
    places: dict[str, tuple[int, int]],
    location: str,
    packed: Path,
) -> None:
    """Replace the values of initialisers by their places in the data file, which has them as the packed file does.

    Nodes at the front bring them to the type and the order of axes that the graph takes.
    """
    nodes = []
    for tensor in graph.initializer:
        if tensor.name not in sources:
            continue
        name, transposed = sources[tensor.name]
        array, found = state[name].numpy(), numpy_helper.to_array(tensor)
        kind, stored, target = tensor.data_type, helper.np_dtype_to_tensor_dtype(array.dtype), tensor.name
        value = (array.T if transposed else array).astype(found.dtype)
        if (found.shape, found.tobytes()) != (value.shape, value.tobytes()):
            raise UserError(f"export onnx-external: torch changed {name!r} of {packed}; export onnx instead")
        steps = [("Cast", {"to": kind})] * (kind != stored) + [("Transpose", {"perm": [1, 0]})] * transposed
        for step, (operator, attributes) in enumerate(reversed(steps)):
            source = f"{METADATA}.{tensor.name}.{step}"
            nodes.insert(0, helper.make_node(operator, [source], [target], **attributes))
            target = source
        tensor.CopyFrom(_external(target, stored, array.shape, location, *places[name]))
    nodes += graph.node
    del graph.node[:]
    graph.node.extend(nodes)


def _external(name: str, kind: int, shape: tuple[int, ...], location: str, offset: int, length: int) -> TensorProto:
    tensor = TensorProto(name=name, data_type=kind, dims=shape, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor
