"""Write the compressed network as a packed file, and as a dense one for those who want plain tensors."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from wshare.clusters import Clusters, read_clusters
from wshare.codebooks import shared_weight
from wshare.cost import layer_bits
from wshare.errors import UserError
from wshare.images import ImageFile
from wshare.modelfile import read_model
from wshare.models import assign, state_of, tied
from wshare.packing import BatchNorm, batch_norms, load_packed, write_packed
from wshare.scoring import predict
from wshare.storage import atomic, read_json, write_json


def pack_model(
    settings: dict,
    spec: Path,
    weights: Path,
    images: Path,
    clusters: list[Path],
    recipe: Path,
    packed: Path,
    dense: Path,
    sizes: Path,
    threads: int,
) -> None:
    """Write packed.safetensors, dense.safetensors and the sizes of their parts in bytes.

    UserError if the recipe was made for another network.
    """
    model = read_model(spec, weights)
    state = {name: tensor.numpy() for name, tensor in state_of(model).items()}
    layers = [read_clusters(path) for path in clusters]
    ks = _read_recipe(recipe, spec, layers)
    codebooks = {f"{layer.layer}.weight": layer.sweep.codebook(ks[layer.layer]) for layer in layers if ks[layer.layer]}
    norms = batch_norms(model)
    half = _halve(settings["batch_norm"], model, state, codebooks, norms, ImageFile(images), threads)
    if half:
        norms = {name: norm.halved() for name, norm in norms.items()}
    aliases = {alias: first for first, *others in tied(model.state_dict(keep_vars=True)) for alias in others}
    parts = write_packed(packed, state, codebooks, norms, aliases)
    _write_dense(dense, load_packed(packed), aliases)
    write_json(
        sizes,
        {
            "bytes": {"float32": weights.stat().st_size} | parts,
            "batch_norm": "float16" if half else "float32",
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "analytic_bits": sum(layer_bits(layer.weights, ks[layer.layer]) for layer in layers),
            "weights": sum(layer.weights for layer in layers),
        },
    )


def _halve(
    wanted: str,
    model: nn.Module,
    state: dict[str, np.ndarray],
    codebooks: dict[str, np.ndarray],
    norms: dict[str, BatchNorm],
    images: ImageFile,
    threads: int,
) -> bool:
    """Whether batch norm is kept in float16; where that is left to us, if it changes no image's top-1 class."""
    fits = all(norm.fits_half() for norm in norms.values())
    if wanted == "float16" and not fits:
        raise UserError("packing.batch_norm: a scale or shift is beyond the range of float16; use auto or float32")
    if wanted != "auto" or not norms or not fits:
        return wanted == "float16"

    shared = {name: shared_weight(state[name], codebook) for name, codebook in codebooks.items()}

    def classes(candidate: dict[str, BatchNorm]) -> np.ndarray:
        folded = {f"{name}.{leaf}": array for name, norm in candidate.items() for leaf, array in norm.state().items()}
        tensors = {name: torch.from_numpy(array) for name, array in (state | shared | folded).items()}
        assign(model, tensors, "the compressed network")
        return predict(model, images, threads).argmax(1)

    return np.array_equal(classes(norms), classes({name: norm.halved() for name, norm in norms.items()}))


def _read_recipe(path: Path, spec: Path, layers: list[Clusters]) -> dict[str, int | None]:
    """k of each layer."""
    recipe = read_json(path)
    if recipe["model"]["sha256"] != read_json(spec)["sha256"]:
        raise UserError(f"{path}: made for other weights than {spec} describes; run its search again")
    found = {name: tuple(layer["shape"]) for name, layer in recipe["layers"].items()}
    expected = {layer.layer: layer.shape for layer in layers}
    if found != expected:
        wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        raise UserError(f"{path}: layer {wrong[0]!r} is not that of the network; run its search again")
    return {name: layer["k"] for name, layer in recipe["layers"].items()}


def _write_dense(path: Path, state: dict[str, torch.Tensor], aliases: dict[str, str]) -> None:
    """The decoded state dict as plain tensors; a tied tensor only once, as safetensors wants it."""
    with atomic(path) as temporary:
        save_file({name: tensor for name, tensor in state.items() if name not in aliases}, temporary)
