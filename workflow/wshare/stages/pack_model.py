"""Write the compressed network as a packed file, and as a dense one for those who want plain tensors."""

from pathlib import Path

from wshare.artifacts.model import read_model
from wshare.artifacts.outputs import read_outputs
from wshare.data.images import ImageFile
from wshare.files.sealed import check_origin, read_json
from wshare.models.kinds.table import layer_of
from wshare.packed.write import pack_network, write_files
from wshare.search.artifacts import Files, read_artifacts
from wshare.search.recipe import check_promise, check_recipe, method_of, read_recipe, realised
from wshare.stages.arguments import ModelFiles, PackedFiles
from wshare.tasks.table import task_of


def pack_model(
    files: ModelFiles,
    layers: Path,
    search_images: Path,
    search_outputs: Path,
    needs: Files,
    recipe: Path,
    packed: PackedFiles,
    threads: int,
) -> None:
    """Write packed.safetensors, dense.safetensors and the sizes of their parts in bytes.

    FormatError if the recipe was made for another network; UserError if the packed network is far from the one that
    the search measured.
    """
    model, sample = read_model(files.spec, files.weights), ImageFile(search_images)
    description, chosen, where = read_json(files.spec), read_recipe(recipe), str(recipe)
    made_from = {"model": description["sha256"], "images": sample.fingerprint}
    listed = read_json(layers)
    check_origin(layers, listed, {"model": made_from["model"]})
    shapes = {layer["name"]: tuple(layer_of(model, layer["name"]).weight.shape) for layer in listed["layers"]}
    check_recipe(chosen, recipe, made_from, shapes)
    kind, needed = task_of(description), method_of(chosen, where).realised_from
    artifacts = read_artifacts(needed, needs, kind, model, sample, list(chosen["layers"]), made_from)
    check_recipe(chosen, recipe, dict(artifacts.made_from), shapes)
    reference = read_outputs(search_outputs, sample, description["sha256"])
    compressed = realised(chosen, artifacts, where, threads)
    content, sizes, kl = pack_network(
        kind, model, compressed, chosen["packing"], sample, reference, threads, files.weights.stat().st_size
    )
    print(f"divergence of the packed network on the search images: {kl:.4g} nats")
    check_promise(chosen, where, kl)
    write_files(content, sizes, recipe, packed.packed, packed.dense, packed.sizes)
