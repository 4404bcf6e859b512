"""`wshare compress`: a network and a folder of images in, a packed file out."""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import numpy as np

from wshare.api import CONFIDENCE, Result, compress_images, search_settings
from wshare.commands.common import (
    CORES,
    Architecture,
    Arguments,
    CalibrationImages,
    ClassMap,
    Device,
    Enlarge,
    Key,
    NoLabels,
    Preprocessing,
    Task,
    Threads,
    Weights,
    check_at_least,
    check_output,
    decoded,
    decoded_unlabelled,
    labelled,
    network_of,
    open_folder,
)
from wshare.data.dataset import Dataset
from wshare.data.devices import device_named
from wshare.data.images import ImageFile
from wshare.data.joining import joined
from wshare.data.splits import held_out_count, kinds_of, split_indices
from wshare.data_free import DataFree, compress_data_free
from wshare.errors import UserError
from wshare.files.sealed import write_json
from wshare.search.methods import DEFAULT, METHODS

# torch's generators take no more.
MOST_SEEDS = 1 << 63

Confidence = Annotated[
    float | None, "probability with which the verdict shall be met; none goes by the quality measured"
]


def compress(
    *,
    architecture: Architecture,
    output: Annotated[Path, "packed file to write"],
    images: Annotated[Path | None, "folder of images, one folder a class, or a table; without it --k"] = None,
    k: Annotated[int | None, "in place of --images: shared values of each layer; the quality is then unknown"] = None,
    weights: Weights = None,
    key: Key = None,
    task: Task = None,
    class_map: ClassMap = None,
    no_labels: NoLabels = False,
    quality: Annotated[float, "least quality, as a share of the float32 network's"] = 0.99,
    confidence: Confidence = CONFIDENCE,
    method: Annotated[str, f"search method: {', '.join(METHODS)}"] = DEFAULT,
    rate: Annotated[float | None, "compression rate of the layers to reach, whatever the quality"] = None,
    held_out: Annotated[str, "share of the images for the verdict alone, or a folder of other images for it"] = "0.5",
    calibration_images: CalibrationImages = None,
    limit: Annotated[int | None, "so many images of a folder, taken at random; all without it"] = None,
    recipe: Annotated[Path | None, "recipe to write, for `wshare apply`"] = None,
    metrics: Annotated[Path | None, "sizes, quality and verdict to write, as JSON"] = None,
    options: Annotated[dict, "options of the method, as in a configuration"] = {},  # noqa: B006
    arguments: Arguments = {},  # noqa: B006
    preprocessing: Preprocessing = {},  # noqa: B006
    enlarge: Enlarge = True,
    keep_zeros: Annotated[bool, "weights of exactly 0, as of a pruned network, stay exactly 0"] = False,
    seed: Annotated[int, "seed of the split and of all that is drawn"] = 0,
    threads: Threads = CORES,
    device: Device = None,
) -> None:
    """Compress a network on a folder of images, without retraining; prints sizes and the verdict.

    Example:
      wshare compress --architecture mobilenet_v2 --weights w.safetensors --images photos --class-map sorted \\
          --quality 0.99 --output net.wshare.safetensors

    Choices look at one part of the images, the verdict at the other. With --k no image is looked at.
    """
    if (images is None) == (k is None):
        raise UserError("--images and --k: give images, or a number of shared values a layer, which looks at no image")
    check_at_least(1, limit=limit, threads=threads)
    place = device_named(device)
    _check(seed, filter(None, (output, recipe, metrics)))
    if k is not None:
        _check_unused({"--recipe": recipe, "--device": device, "--calibration-images": calibration_images})
        model, _ = network_of(architecture, None, weights, key, arguments, preprocessing)
        _write(compress_data_free(model, k, keep_zeros=keep_zeros, seed=seed), output, metrics)
        return
    chosen_options = options if rate is None else options | {"compression_rate": rate}
    settings = search_settings(method, quality, confidence, chosen_options, seed, keep_zeros)
    found, share = _opened(images, held_out, limit, class_map, no_labels, seed)
    model, spec = network_of(architecture, None, weights, key, arguments, preprocessing, task)
    dataset = labelled(found, spec)
    with tempfile.TemporaryDirectory() as folder:
        *both, others = _splits(dataset, spec, enlarge, share, limit, seed, Path(folder), calibration_images)
        given = {"threads": threads, "categories": spec.get("categories"), "keep_zeros": keep_zeros, "device": place}
        given["calibration"] = others
        result = compress_images(model, *both, settings, spec["task"], **given)
    if recipe:
        write_json(recipe, result.recipe)
    _write(result, output, metrics)


def _check_unused(flags: dict[str, object]) -> None:
    """UserError if a flag is given that says nothing where no image is looked at."""
    for flag, value in flags.items():
        if value is not None:
            raise UserError(
                f"{flag} {value}: without images there is no search, and no network runs; leave the flag out"
            )


def _check(seed: int, paths: Iterable[Path]) -> None:
    """UserError if a seed is none, or no file can be written to one of the paths."""
    check_at_least(0, seed=seed)
    if seed >= MOST_SEEDS:
        raise UserError(f"--seed {seed}: must be below 2^63")
    for path in paths:
        check_output(path)


def _write(result: Result | DataFree, output: Path, metrics: Path | None) -> None:
    result.save(output)
    if metrics:
        write_json(metrics, result.metrics)
    print(f"{result}\n{output}: written")


def _opened(
    images: Path, held_out: str, limit: int | None, class_map: str | None, no_labels: bool, seed: int
) -> tuple[Dataset, float | None]:
    """Images of a folder and the share of them that is held out, or of two folders, dealt already, and None."""
    share = _share(held_out)
    found = open_folder(images, class_map, no_labels)
    if share is not None:
        return found, share
    others = open_folder(Path(held_out), class_map, no_labels, "--held-out")
    counts = {"search": len(found.keys), "held_out": len(others.keys)}
    sizes = {name: count if limit is None else min(limit, count) for name, count in counts.items()}
    return joined(found, others, sizes, seed), None


def _share(held_out: str) -> float | None:
    """The share that is held out, or None where it is a folder; UserError if it is no such share."""
    try:
        share = float(held_out)
    except ValueError:
        return None
    if not 0 < share < 1:
        raise UserError(f"--held-out {held_out}: must be a share of the images, above 0 and below 1, or a folder")
    return share


def _splits(
    dataset: Dataset,
    spec: dict,
    enlarge: bool,
    held_out: float | None,
    limit: int | None,
    seed: int,
    folder: Path,
    calibration: Path | None,
) -> list[ImageFile | None]:
    """Search and held-out images, and those for calibration alone, if there are any, decoded into files in a folder.

    Each is in random order, as the workflow has them. They are dealt by the share `held_out`; None is for images that
    are dealt already.
    """
    splits = dataset.splits
    if held_out is not None:
        count = len(dataset.keys)
        taken = count if limit is None else min(limit, count)
        kept = held_out_count(held_out, taken, "--held-out")
        splits = split_indices(count, kinds_of(dataset.labels), {"search": taken - kept, "held_out": kept}, seed)
    seen: dict[bytes, tuple[str, str]] = {}
    both = [
        decoded(
            dataset,
            np.random.default_rng(seed).permutation(splits[name]),
            spec,
            enlarge,
            folder / f"{name}.h5",
            seen,
        )
        for name in ("search", "held_out")
    ]
    if calibration is None:
        return [*both, None]
    path = folder / "calibration.h5"
    others = decoded_unlabelled(calibration, "--calibration-images", spec, enlarge, seed, path, seen=seen)
    return [*both, others]
