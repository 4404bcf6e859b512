"""`wshare apply`: a recipe applied again, to the same network or to another checkpoint of its architecture."""

import tempfile
from pathlib import Path
from typing import Annotated

from wshare.api import apply_recipe
from wshare.commands.common import (
    CORES,
    Architecture,
    Arguments,
    Enlarge,
    Key,
    Preprocessing,
    Spec,
    Threads,
    Weights,
    check_at_least,
    check_output,
    decoded_unlabelled,
    network_of,
)
from wshare.data.images import ImageFile
from wshare.errors import UserError
from wshare.files.atomic import write_bytes
from wshare.search.recipe import read_recipe


def apply(
    *,
    recipe: Annotated[Path, "recipe.json of a search, or what `wshare compress --recipe` wrote"],
    output: Annotated[Path, "packed file to write"],
    architecture: Architecture = None,
    spec: Spec = None,
    weights: Weights = None,
    key: Key = None,
    images: Annotated[Path | None, "folder of images at any depth, or a table; labels are not looked at"] = None,
    search_images: Annotated[Path | None, "in place of --images, images/search.h5 of a results folder"] = None,
    calibration_images: Annotated[
        Path | None,
        "images for calibration alone, if the recipe had some: a folder, or images/calibration.h5",
    ] = None,
    limit: Annotated[int, "so many images of the folder, taken at random"] = 512,
    arguments: Arguments = {},  # noqa: B006
    preprocessing: Preprocessing = {},  # noqa: B006
    enlarge: Enlarge = True,
    threads: Threads = CORES,
) -> None:
    """Apply a recipe again, without a search: to the same network, or to another checkpoint; prints the sizes.

    Example:
      wshare apply --recipe recipe.json --architecture mobilenet_v2 --weights other.safetensors \\
          --images photos --output other.wshare.safetensors

    Layers that the recipe does not name are kept in float32. The same network and the same --search-images give the
    bytes of packed.safetensors again. `wshare evaluate` tells the quality.
    """
    check_at_least(1, limit=limit, threads=threads)
    check_output(output)
    if (images is None) == (search_images is None):
        raise UserError("--images and --search-images: give one of the two")
    chosen = read_recipe(recipe)
    module, description = network_of(architecture, spec, weights, key, arguments, preprocessing, chosen["task"])
    given = description, enlarge, chosen["settings"]["seed"]
    with tempfile.TemporaryDirectory() as folder:
        if search_images is not None:
            sample = ImageFile(search_images, preprocessing=description["preprocessing"])
        else:
            sample = decoded_unlabelled(images, "--images", *given, Path(folder, "images.h5"), limit)
        others = calibration_images
        if others is not None and others.suffix == ".h5":
            others = ImageFile(others, preprocessing=description["preprocessing"])
        elif others is not None:
            others = decoded_unlabelled(others, "--calibration-images", *given, Path(folder, "calibration.h5"))
        packed, sizes = apply_recipe(module, chosen, str(recipe), sample, threads, others)
    write_bytes(output, packed)
    nbytes = sizes["bytes"]
    print(
        f"{nbytes['float32']:,} bytes -> {nbytes['packed']:,} bytes, {nbytes['float32'] / nbytes['packed']:.2f}x "
        f"on disk, {len(chosen['layers'])} layers shared\n{output}: written"
    )
