"""Write the compressed network as a packed file, and as a dense one for those who want plain tensors."""

from pathlib import Path

from wshare.clusters import cluster_hashes, read_clusters
from wshare.codebooks import Shared, assign
from wshare.cost import layer_bits
from wshare.images import ImageFile
from wshare.modelfile import read_model
from wshare.packedmodel import check_recipe, write_files
from wshare.pieces import Pieces
from wshare.storage import read_json


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
    model, sample = read_model(spec, weights), ImageFile(images)
    chosen = read_json(recipe)
    made_from = {"model": read_json(spec)["sha256"], "images": sample.fingerprint}
    layers = [read_clusters(path, made_from) for path in clusters]
    made_from |= cluster_hashes(clusters, layers)
    check_recipe(chosen, recipe, made_from, {layer.layer: layer.shape for layer in layers})
    ks = {name: layer["k"] for name, layer in chosen["layers"].items()}
    shared = {}
    for layer in layers:
        if ks[layer.layer] is not None:
            codebook = layer.sweep.codebook(ks[layer.layer])
            weight = model.get_submodule(layer.layer).weight.detach().numpy()
            shared[f"{layer.layer}.weight"] = Shared(codebook, assign(weight, codebook))
    bits = sum(layer_bits(layer.weights, ks[layer.layer]) for layer in layers)
    pieces = Pieces(shared, settings["format"], bits)
    write_files(model, pieces, settings["batch_norm"], sample, threads, weights, recipe, packed, dense, sizes)
