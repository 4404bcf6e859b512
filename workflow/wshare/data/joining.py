"""Images to search with and images to hold out that come from two collections."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from wshare.data.dataset import Dataset
from wshare.data.matching import spread
from wshare.data.splits import kinds_of, split_indices
from wshare.errors import UserError


def joined(search: Dataset, held_out: Dataset, sizes: Mapping[str, int | float | str], seed: int) -> Dataset:
    """One collection of both, whose splits are dealt: held-out images from the second, all others from the first.

    `sizes` are those of splits, each of its own collection; see `split_indices`. Class folders, and names of classes,
    mean the same in both, also where one of the two lacks a class. No image may be in both. UserError if one has
    labels and the other none, or labels of another kind.
    """
    if any((getattr(search, kind) is None) != (getattr(held_out, kind) is None) for kind in ("labels", "masks")):
        raise UserError("held_out: give labels with both the search images and the held-out images, or with neither")
    search, held_out = _of_same_classes(search, held_out)
    first = {name: size for name, size in sizes.items() if name != "held_out"}
    splits = split_indices(len(search.keys), kinds_of(search.labels), first, seed)
    own = split_indices(len(held_out.keys), kinds_of(held_out.labels), {"held_out": sizes["held_out"]}, seed)
    count = len(search.keys)
    return replace(
        search,
        labels=None if search.labels is None else np.concatenate([search.labels, held_out.labels]),
        keys=search.keys + held_out.keys,
        read=partial(_read, (search.read, held_out.read), count),
        masks=search.masks and partial(_read, (search.masks, held_out.masks), count),
        splits=splits | {"held_out": own["held_out"] + count},
        apart=True,
    )


def _of_same_classes(first: Dataset, second: Dataset) -> tuple[Dataset, Dataset]:
    """Both, with labels that mean the same; UserError if they cannot."""
    if first.labels is None:
        return first, second
    if (first.folders is None) != (second.folders is None):
        raise UserError("held_out: classes by name and classes by index; give a class_map, or indices, with both")
    if first.folders is not None:
        names = tuple(sorted({*first.folders, *second.folders}))
        first, second = (_renamed(dataset, names) for dataset in (first, second))
    elif first.sparse and second.sparse:
        width = max(dataset.labels.shape[1] for dataset in (first, second))
        first, second = (replace(dataset, labels=spread(dataset.labels, width)) for dataset in (first, second))
    known = {dataset.classes for dataset in (first, second)} - {None}
    if len(known) > 1:
        raise UserError(
            f"held_out: images of {second.classes} classes, but the search images are of {first.classes}; take images "
            "of the same classes"
        )
    shapes = [f"{dataset.labels.dtype} {list(dataset.labels.shape[1:])}" for dataset in (first, second)]
    if shapes[0] != shapes[1]:
        raise UserError(f"held_out: labels are {shapes[1]} an image, but those of the search images {shapes[0]}")
    return tuple(replace(dataset, classes=next(iter(known), None)) for dataset in (first, second))


def _renamed(dataset: Dataset, names: tuple[str, ...]) -> Dataset:
    """The images with classes by their place among these names, which hold all of their own."""
    places = np.array([names.index(name) for name in dataset.folders], dtype=np.int64)
    several = dataset.labels.ndim == 2
    labels = spread(dataset.labels, len(names), places) if several else places[dataset.labels]
    return replace(dataset, labels=labels, folders=names, classes=None if several else len(names))


def _read(readers: tuple[Callable, Callable], count: int, index: int) -> Any:
    return readers[0](index) if index < count else readers[1](index - count)
