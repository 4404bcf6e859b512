"""`wshare apply`: the recipe of one search on another checkpoint of the same architecture."""

import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np

from wshare.api import apply_recipe
from wshare.commands.common import (
    CORES,
    Architecture,
    Arguments,
    Enlarge,
    Preprocessing,
    Threads,
    Weights,
    check_at_least,
    check_output,
    decoded,
    network_of,
    open_folder,
)
from wshare.errors import FormatError
from wshare.files.atomic import atomic
from wshare.files.sealed import read_json


def apply(
    *,
    recipe: Annotated[Path, "recipe.json of a search, or what `wshare compress --recipe` wrote"],
    architecture: Architecture,
    images: Annotated[Path, "folder of images at any depth; labels are not looked at"],
    output: Annotated[Path, "packed file to write"],
    weights: Weights = None,
    limit: Annotated[int, "so many images, taken at random"] = 512,
    arguments: Arguments = {},  # noqa: B006
    preprocessing: Preprocessing = {},  # noqa: B006
    enlarge: Enlarge = True,
    threads: Threads = CORES,
) -> None:
    """Put a recipe on another checkpoint of the same architecture, without a search; prints the sizes.

    Example:
      wshare apply --recipe recipe.json --architecture mobilenet_v2 --weights other.safetensors \\
          --images photos --output other.wshare.safetensors

    Layers that the recipe does not name are kept in float32. `wshare evaluate` tells the quality.
    """
    check_at_least(1, limit=limit, threads=threads)
    check_output(output)
    chosen = read_json(recipe)
    if not isinstance(chosen, dict) or not {"layers", "settings", "search_images"} <= chosen.keys():
        raise FormatError(f"{recipe}: not a recipe of wshare; give the recipe.json of a search")
    dataset = open_folder(images, None, True)
    model, spec = network_of(architecture, None, weights, arguments, preprocessing)
    order = np.random.default_rng(chosen["settings"]["seed"]).permutation(len(dataset.keys))[:limit]
    with tempfile.TemporaryDirectory() as folder:
        sample = decoded(dataset, order, spec, enlarge, Path(folder) / "images.h5")
        packed, sizes = apply_recipe(model, chosen, str(recipe), sample, threads)
    with atomic(output) as temporary:
        temporary.write_bytes(packed)
    octets = sizes["bytes"]
    print(
        f"{octets['float32']:,} bytes -> {octets['packed']:,} bytes, {octets['float32'] / octets['packed']:.2f}x "
        f"on disk, {len(chosen['layers'])} layers shared\n{output}: written"
    )
