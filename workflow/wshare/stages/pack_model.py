"""Write the compressed network as a packed file, and as a dense one for those who want plain tensors."""

from pathlib import Path

from wshare.artifacts.clusters import cluster_hashes, read_clusters
from wshare.artifacts.model import read_model
from wshare.data.images import ImageFile
from wshare.files.sealed import read_json
from wshare.packed.compressed import Compressed
from wshare.packed.write import check_recipe, write_files
from wshare.quantize.codebooks import Shared, nearest_indices
from wshare.quantize.cost import layer_bits
from wshare.stages.arguments import ModelFiles, Needs
from wshare.stages.pack_rate_distortion import pack_rate_distortion


def _by_k(
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
            shared[f"{layer.layer}.weight"] = Shared(codebook, nearest_indices(weight, codebook))
    bits = sum(layer_bits(layer.weights, ks[layer.layer]) for layer in layers)
    pieces = Compressed(shared, settings["format"], bits)
    write_files(model, pieces, settings["batch_norm"], sample, threads, weights, recipe, packed, dense, sizes)


def pack_model(
    files: ModelFiles,
    layers: Path,
    search_images: Path,
    search_outputs: Path,
    needs: Needs,
    recipe: Path,
    packed: Path,
    dense: Path,
    sizes: Path,
    threads: int,
) -> None:
    """Write packed.safetensors, dense.safetensors and the sizes of their parts in bytes."""
    settings = read_json(recipe)["settings"]["packing"]
    common = (settings, files.spec, files.weights, search_images)
    if needs.calibration:
        pack_rate_distortion(*common, needs.layer_weights, needs.calibration, recipe, packed, dense, sizes, threads)
    else:
        _by_k(*common, needs.clusters, recipe, packed, dense, sizes, threads)
