"""The compressed network as files: packed, dense, and the sizes of their parts."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from wshare.data.images import Images
from wshare.errors import UserError
from wshare.evaluation.predict import predict
from wshare.files.atomic import atomic, write_bytes
from wshare.files.sealed import sha256_file, write_json
from wshare.models.norms import batch_norms
from wshare.models.state import load_state, state_of, tied
from wshare.packed.compressed import Compressed
from wshare.packed.format import load_packed, pack, read_index
from wshare.packed.hashes import weights_hash
from wshare.quantize.batch_norm import BatchNorm
from wshare.tasks.task import Task


def pack_network(
    task: Task,
    model: nn.Module,
    compressed: Compressed,
    packing: dict,
    images: Images,
    reference: np.ndarray,
    threads: int,
    float32: int,
) -> tuple[bytes, dict, float]:
    """Content of the packed file, content of sizes.json, and the divergence in nats from the float32 network.

    The divergence is that of the network as it was packed, on `images`, where the float32 one's outputs are
    `reference`. `packing` tells `format`, how indices are coded ("fixed" or "entropy"), and `batch_norm`, how batch
    norms that are not folded are kept ("auto", "float16" or "float32"). `float32` is the bytes of the uncompressed
    network. UserError if float16 is asked for and does not hold a batch norm. The model itself changes.
    """
    shared, folded, batch_norm = compressed.stored(), compressed.folded, packing["batch_norm"]
    state = {name: tensor.numpy() for name, tensor in state_of(model).items()} | compressed.changed
    norms = {name: norm for name, norm in batch_norms(model).items() if name not in folded}
    aliases = {alias: first for first, *others in tied(model.state_dict(keep_vars=True)) for alias in others}
    fits = all(norm.fits_float16() for norm in norms.values())
    if batch_norm == "float16" and not fits:
        raise UserError("packing.batch_norm: a scale or shift is beyond the range of float16; use auto or float32")
    rounded, outputs = batch_norm == "float16", None
    if batch_norm == "auto" and norms and fits:
        rounded, outputs = _float16_or_not(task, model, state | compressed.tensors(), norms, images, threads)
    if rounded:
        norms = {name: norm.to_float16() for name, norm in norms.items()}
    content, nbytes = pack(state, shared, norms, folded, aliases, packing["format"], weights_hash(state, shared))
    if outputs is None:
        load_state(model, load_packed(content), "the packed network")
        outputs = predict(model, images, threads)
    sizes = {
        "bytes": {"float32": float32} | nbytes,
        "format": packing["format"],
        "batch_norm": "float16" if rounded else "float32",
        "folded_batch_norms": len(folded),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "analytic_bits": compressed.bits,
        "weights": sum(tensor.indices.size for tensor in compressed.shared.values()),
    }
    return content, sizes, task.score(outputs, reference, images.labels).kl


def _float16_or_not(
    task: Task,
    model: nn.Module,
    state: dict[str, np.ndarray],
    norms: dict[str, BatchNorm],
    images: Images,
    threads: int,
) -> tuple[bool, np.ndarray]:
    """Whether float16 for batch norms changes no image's prediction, and the outputs of the type to be taken."""

    def outputs(candidate: dict[str, BatchNorm]) -> np.ndarray:
        kept = {key: array for name, norm in candidate.items() for key, array in norm.tensors(name).items()}
        tensors = {name: torch.from_numpy(array) for name, array in (state | kept).items()}
        load_state(model, tensors, "the compressed network")
        return predict(model, images, threads)

    exact, rounded = outputs(norms), outputs({name: norm.to_float16() for name, norm in norms.items()})
    same = task.same_predictions(exact, rounded)
    return same, rounded if same else exact


def write_files(content: bytes, found: dict, recipe: Path, packed: Path, dense: Path, sizes: Path) -> None:
    """Write what `pack_network` gave: the packed file, the same as plain tensors, and the sizes in bytes.

    The sizes, `found`, name the recipe and the packed file by their hashes.
    """
    write_bytes(packed, content)
    _write_dense(dense, load_packed(content), read_index(content)["aliases"])
    write_json(sizes, found | {"recipe": sha256_file(recipe), "packed": sha256_file(packed)})


def _write_dense(path: Path, state: dict[str, torch.Tensor], aliases: dict[str, str]) -> None:
    """The decoded state dict as plain tensors; a tied tensor only once, as safetensors wants it."""
    kept = {name: tensor for name, tensor in state.items() if name not in aliases}
    with atomic(path, sum(tensor.nbytes for tensor in kept.values())) as temporary:
        save_file(kept, temporary)
