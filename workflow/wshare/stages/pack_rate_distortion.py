"""Write the network shared at one price of a bit as a packed file and as a dense one."""

from pathlib import Path

from wshare.artifacts.model import read_model
from wshare.data.images import ImageFile
from wshare.files.sealed import read_json
from wshare.packed.write import check_recipe, write_files
from wshare.search.rate_distortion.files import network_hashes, read_network


def pack_rate_distortion(
    settings: dict,
    spec: Path,
    weights: Path,
    images: Path,
    extracted: Path,
    moments: Path,
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
    sample = ImageFile(images)
    chosen = read_json(recipe)
    fold = chosen["settings"]["options"]["fold_batch_norm"]
    made_from = {"model": read_json(spec)["sha256"], "images": sample.fingerprint}
    network = read_network(model, extracted, moments, made_from, sample.batch(0)[:2], fold)
    made_from |= network_hashes(extracted, moments)
    check_recipe(chosen, recipe, made_from, {name: layer.shape for name, layer in network.targets.items()})
    write_files(
        model,
        network.pieces(chosen, threads),
        settings["batch_norm"],
        sample,
        threads,
        weights,
        recipe,
        packed,
        dense,
        sizes,
    )
