"""What several commands share: their flags, the network, the images, a table."""

import os
from pathlib import Path
from typing import Annotated

import numpy as np
from torch import nn
from tqdm import tqdm

from wshare.artifacts.model import check_description, read_model
from wshare.data.dataset import Dataset
from wshare.data.images import ImageFile
from wshare.data.masks import labels_of
from wshare.data.matching import matched
from wshare.data.prepare import prepared, unlike_others
from wshare.data.registry import open_dataset
from wshare.data.stored import write_images
from wshare.errors import UserError
from wshare.files.sealed import read_json
from wshare.models.registry import fetch
from wshare.models.sources.table import spelled, whole_file
from wshare.progress import PROGRESS
from wshare.tasks.description import described
from wshare.tasks.table import TASKS, task_of

CACHE = Path(".cache/wshare")
CORES = os.cpu_count() or 1
# Endings of tables that list images.
TABLES = (".csv", ".json", ".jsonl")

Architecture = Annotated[
    str, "torchvision name, timm:<name>, python:<module>:<function>, onnx:<file> or torch_export:<file>"
]
Spec = Annotated[Path | None, "model.json of a results folder, in place of --architecture"]
Weights = Annotated[
    Path | None,
    "float32 weights, a safetensors file or a torch state dict; without it the published ones, or those of the Python "
    "function",
]
Key = Annotated[
    str | None, "of a checkpoint that holds several networks, the key, or the names' prefix, of the one to take"
]
Arguments = Annotated[dict, "keyword arguments of the function that builds the architecture"]
Preprocessing = Annotated[
    dict,
    "channels, resize, crop, interpolation, mean and std, where they differ from the architecture's published ones",
]
Folder = Annotated[Path, "folder of images, one folder a class, or a table that lists them"]
ClassMap = Annotated[
    str | None,
    "class of each folder, name or pixel value: `sorted` for its place in the sorted list, or a JSON file {folder: "
    "class}; not needed for ImageNet wnids",
]
NoLabels = Annotated[bool, "take all images at any depth; quality is then agreement with the float32 network"]
Task = Annotated[
    str | None,
    f"what the outputs are: {', '.join(TASKS)}; recognised without it where they leave no doubt",
]
Enlarge = Annotated[bool, "whether images smaller than the network's resize size are enlarged, or only cropped"]
CalibrationImages = Annotated[
    Path | None,
    "folder of further images for statistics and divergence, at any depth, or a table; labels are not looked at",
]
Limit = Annotated[int | None, "so many images, taken at random; all without it"]
Device = Annotated[str | None, "where the networks run: cpu, cuda or cuda:<number>; the CPU without it"]
Threads = Annotated[int, "threads; the result does not depend on them"]


def network_of(
    architecture: str | None,
    spec: Path | None,
    weights: Path | None,
    key: str | None,
    arguments: dict,
    preprocessing: dict,
    task: str | None = None,
) -> tuple[nn.Module, dict]:
    """The float32 network that the flags name, and its description, as model.json holds it.

    Either by its `architecture`, with `weights` or published ones, or by the `spec` of a results folder, whose weights
    lie beside it unless `weights` says where. `task` is for a network that does not come with one. UserError tells what
    cannot be used.
    """
    if (architecture is None) == (spec is None):
        raise UserError("--architecture and --spec: give one of the two")
    if spec is not None:
        weights = weights or spec.parent / "weights.safetensors"
        for flag, path in (("--spec", spec), ("--weights", weights)):
            if not path.is_file():
                raise UserError(
                    f"{path}: no such file; {flag} gives the place of the float32 network's {path.name}, "
                    "or give --architecture"
                )
        model, description = read_model(spec, weights), read_json(spec)
        check_description(description, spec, ("task", "input", "preprocessing"))
        if task not in (None, description["task"]):
            raise UserError(f"--task {task}: the network of {spec} has the task {description['task']}; leave it out")
        return model, description
    settings: dict = {"task": task, "arguments": arguments, "preprocessing": preprocessing}
    if whole := whole_file(architecture):
        if weights:
            raise UserError(f"--weights {weights}: the file {whole['path']} holds its weights; leave the flag out")
        settings |= whole
    elif weights:
        settings |= {"source": "file", "architecture": architecture, "path": str(weights), "key": key}
    else:
        source, name = spelled(architecture)
        settings |= {"source": source, "architecture": name}
    fetched = described(fetch(settings, CACHE), settings)
    return fetched.module, fetched.spec


def open_folder(folder: Path, class_map: str | None, no_labels: bool, flag: str = "--images") -> Dataset:
    """The images of a folder, or a table, that a flag gives, none of them decoded yet."""
    table = folder.suffix.lower() in TABLES and folder.is_file()
    if not table and not folder.is_dir():
        raise UserError(
            f"{flag} {folder}: {'not a folder' if folder.exists() else 'no such folder'}, nor a table "
            f"({', '.join(TABLES)})"
        )
    if class_map and no_labels:
        raise UserError("--class-map and --no-labels: give one of the two")
    try:
        source = "table" if table else "imagefolder"
        return open_dataset({"source": source, "path": str(folder), "class_map": class_map, "labels": not no_labels})
    except UserError as error:
        hint = "" if no_labels else " (--class-map gives the class_map; --no-labels takes images as they lie)"
        raise UserError(f"{error}{hint}") from None


def labelled(dataset: Dataset, description: dict) -> Dataset:
    """The images of a folder, with labels of the described network; UserError if a label is none that it can give."""
    dataset = matched(dataset, description, "--images")
    task_of(description).check_labels(dataset.labels, description, "--class-map")
    return dataset


def decoded(
    dataset: Dataset,
    chosen: np.ndarray,
    spec: dict,
    enlarge: bool,
    path: Path,
    seen: dict[bytes, tuple[str, str]] | None = None,
) -> ImageFile:
    """The chosen images as the network of `spec` takes them, decoded into a file at `path`, in that order.

    `seen` holds those of other splits, which are not to come again; see `unlike_others`.
    """
    labels = labels_of(dataset, chosen, spec, enlarge)
    with tqdm(chosen, path.stem, **PROGRESS) as bar:
        keys = [dataset.keys[i] for i in chosen]
        images = prepared(dataset, bar, spec["preprocessing"], enlarge)
        images = unlike_others(path.stem, images, keys, {} if seen is None else seen, dataset.apart)
        write_images(path, images, labels, keys, spec["preprocessing"], {})
    return ImageFile(path)


def decoded_unlabelled(
    images: Path,
    flag: str,
    spec: dict,
    enlarge: bool,
    seed: int,
    path: Path,
    limit: int | None = None,
    seen: dict[bytes, tuple[str, str]] | None = None,
) -> ImageFile:
    """Images that a flag names, in random order, the first `limit` of them, without labels; the rest as `decoded`."""
    dataset = open_folder(images, None, True, flag)
    order = np.random.default_rng(seed).permutation(len(dataset.keys))[:limit]
    return decoded(dataset, order, spec, enlarge, path, seen)


def check_at_least(least: int, **flags: int | None) -> None:
    """UserError if a flag is below `least`."""
    for flag, value in flags.items():
        if value is not None and value < least:
            raise UserError(f"--{flag} {value}: must be {least} or more")


def check_output(path: Path) -> None:
    """UserError if no file can be written there: hours of work should not end so."""
    if path.is_dir():
        raise UserError(f"--output {path}: a folder; give the path of the file to write")
    if any(parent.exists() and not parent.is_dir() for parent in path.parents):
        raise UserError(f"--output {path}: lies below a file; give a path in a folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"--output {path}: its folder cannot be written to")
