"""Write the network shared at one price of a bit as a packed file and as a dense one."""

from pathlib import Path

from wshare.images import ImageFile
from wshare.modelfile import read_model
from wshare.networkfile import read_network
from wshare.packedmodel import check_recipe, write_files
from wshare.rate_distortion import Options
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
    factors = {name: layer["factor"] for name, layer in chosen["layers"].items()}
    parts = network.quantised(chosen["slope"], factors, Options.of(choices), threads)
    write_files(
        model,
        {f"{name}.weight": part.shared for name, part in parts.items()},
        {key: tensor for name, part in parts.items() for key, tensor in network.corrected(name, part).items()},
        {network.norms[name]: part.norm for name, part in parts.items() if part.norm},
        choices["format"],
        settings["batch_norm"],
        sample,
        threads,
        sum(part.bits for part in parts.values()),
        weights,
        recipe,
        packed,
        dense,
        sizes,
    )
