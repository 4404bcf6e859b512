"""The compressed network as files: packed, dense, and the sizes of their parts."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from wshare.data.images import Images
from wshare.errors import FormatError, UserError
from wshare.evaluation.predict import predict
from wshare.files.atomic import atomic, remedy
from wshare.files.sealed import check_origin, sha256_file, write_json
from wshare.models.norms import batch_norms
from wshare.models.state import load_state, state_of, tied
from wshare.packed.compressed import Compressed
from wshare.packed.format import load_packed, write_packed
from wshare.packed.hashes import weights_hash
from wshare.quantize.batch_norm import BatchNorm


def pack(
    model: nn.Module, pieces: Compressed, batch_norm: str, images: Images, threads: int, float32: int, packed: Path
) -> dict:
    """Write the packed file of the compressed `model`; returns the content of sizes.json. The model itself changes.

    `batch_norm` is how batch norms that are not folded are kept: "auto", "float16" or "float32". `float32` is the bytes
    of the uncompressed network.
    """
    shared, folded = pieces.shared, pieces.folded
    state = {name: tensor.numpy() for name, tensor in state_of(model).items()} | pieces.changed
    weights = sum(tensor.indices.size for tensor in shared.values())
    norms = {name: norm for name, norm in batch_norms(model).items() if name not in folded}
    decoded = {name: tensor.weight() for name, tensor in shared.items()}
    for name, norm in folded.items():
        decoded |= norm.norm(shared[norm.tensor].exponents).tensors(name)
    half = _halve(batch_norm, model, state | decoded, norms, images, threads)
    if half:
        norms = {name: norm.halved() for name, norm in norms.items()}
    parts = write_packed(
        packed, state, shared, norms, folded, _aliases(model), pieces.form, weights_hash(state, shared)
    )
    return {
        "bytes": {"float32": float32} | parts,
        "format": pieces.form,
        "batch_norm": "float16" if half else "float32",
        "folded_batch_norms": len(folded),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "analytic_bits": pieces.bits,
        "weights": weights,
    }


def write_files(
    model: nn.Module,
    pieces: Compressed,
    batch_norm: str,
    images: Images,
    threads: int,
    float32: Path,
    recipe: Path,
    packed: Path,
    dense: Path,
    sizes: Path,
) -> None:
    """Write the compressed `model`, packed and dense, and the sizes in bytes; the model itself changes.

    `float32` is the file of the uncompressed network, `recipe` that of its recipe; the other arguments are those of
    `pack`. The sizes name the recipe and the packed file by their hashes.
    """
    octets = float32.stat().st_size
    found = pack(model, pieces, batch_norm, images, threads, octets, packed)
    _write_dense(dense, load_packed(packed), _aliases(model))
    write_json(sizes, found | {"recipe": sha256_file(recipe), "packed": sha256_file(packed)})


def _aliases(model: nn.Module) -> dict[str, str]:
    """First name of each tensor that has several, by its other names."""
    return {alias: first for first, *others in tied(model.state_dict(keep_vars=True)) for alias in others}


def check_recipe(recipe: dict, path: Path, made_from: dict[str, str], shapes: dict[str, tuple[int, ...]]) -> None:
    """FormatError unless the recipe was made from what `made_from` tells, and for layers of these shapes."""
    found = {"model": recipe["model"]["sha256"], "images": recipe["search_images"]} | recipe["made_from"]
    check_origin(path, found, made_from)
    check_layers(recipe, str(path), shapes, remedy(path))


def check_layers(recipe: dict, where: str, shapes: dict[str, tuple[int, ...]], cure: str) -> None:
    """FormatError unless the recipe's layers have these names and shapes; it opens with `where`, ends with `cure`."""
    found = {name: tuple(layer["shape"]) for name, layer in recipe["layers"].items()}
    if found != shapes:
        wrong = min(name for name in found.keys() | shapes.keys() if found.get(name) != shapes.get(name))
        there, here = (list(layers[wrong]) if wrong in layers else "missing" for layers in (found, shapes))
        raise FormatError(
            f"{where}: layer {wrong!r} is not that of the network ({there} in the recipe, {here} in the network); "
            f"{cure}"
        )


def _halve(
    wanted: str,
    model: nn.Module,
    state: dict[str, np.ndarray],
    norms: dict[str, BatchNorm],
    images: Images,
    threads: int,
) -> bool:
    """Whether batch norm is kept in float16; where that is left to us, if it changes no image's top-1 class."""
    fits = all(norm.fits_half() for norm in norms.values())
    if wanted == "float16" and not fits:
        raise UserError("packing.batch_norm: a scale or shift is beyond the range of float16; use auto or float32")
    if wanted != "auto" or not norms or not fits:
        return wanted == "float16"

    def classes(candidate: dict[str, BatchNorm]) -> np.ndarray:
        kept = {key: array for name, norm in candidate.items() for key, array in norm.tensors(name).items()}
        tensors = {name: torch.from_numpy(array) for name, array in (state | kept).items()}
        load_state(model, tensors, "the compressed network")
        return predict(model, images, threads).argmax(1)

    return np.array_equal(classes(norms), classes({name: norm.halved() for name, norm in norms.items()}))


def _write_dense(path: Path, state: dict[str, torch.Tensor], aliases: dict[str, str]) -> None:
    """The decoded state dict as plain tensors; a tied tensor only once, as safetensors wants it."""
    kept = {name: tensor for name, tensor in state.items() if name not in aliases}
    with atomic(path, sum(tensor.nbytes for tensor in kept.values())) as temporary:
        save_file(kept, temporary)
