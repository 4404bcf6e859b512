"""Write the network shared at one price of a bit as a packed file and as a dense one."""

from pathlib import Path

from wshare.images import ImageFile
from wshare.modelfile import read_model
from wshare.networkfile import read_network
from wshare.packedmodel import check_recipe, write_files
from wshare.storage import read_json


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
    choices = chosen["settings"]["options"]
    made_from = {"model": read_json(spec)["sha256"], "images": sample.fingerprint}
    network = read_network(model, extracted, moments, made_from, sample.batch(0)[:2], choices["fold_batch_norm"])
    check_recipe(chosen, recipe, made_from, {name: layer.shape for name, layer in network.targets.items()})
    parts = network.of_recipe(chosen, threads)
    write_files(
        model,
        form=choices["format"],
        batch_norm=settings["batch_norm"],
        images=sample,
        threads=threads,
        float32=weights,
        recipe=recipe,
        packed=packed,
        dense=dense,
        sizes=sizes,
        **network.pieces(parts),
    )
