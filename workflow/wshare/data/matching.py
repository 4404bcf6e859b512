"""A collection's classes held against those of the network."""

import logging
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from wshare.data.dataset import Dataset
from wshare.errors import UserError
from wshare.names import closest

_log = logging.getLogger(__name__)


def matched(dataset: Dataset, description: Mapping[str, Any], where: str) -> Dataset:
    """The images with labels that are indices of the network's classes; `description` is model.json.

    Folders in sorted order are classes of the same name, where the network's names are known. UserError, opening with
    `where`, if some folders have such a name and others none, or the numbers of classes differ.
    """
    classes, categories = description.get("classes"), description.get("categories")
    if dataset.labels is not None and description.get("task") == "multilabel":
        return _matched_sets(dataset, description["labels"], categories, where)
    if dataset.labels is None or classes is None:
        return dataset
    if dataset.folders is not None:
        found = _by_name(dataset.folders, categories or (), where)
        if found is not None:
            if (found != np.arange(len(found))).any():
                _log.info("%s: folders are matched with the network's classes by their names", where)
            return replace(dataset, labels=found[dataset.labels], classes=classes)
    if dataset.classes in (None, classes):
        return dataset
    if dataset.folders is None:
        raise UserError(
            f"{where}: images of {dataset.classes} classes, but the network has {classes}, so that indices mean other "
            "classes; take images of the network's classes"
        )
    raise UserError(
        f"{where}: {len(dataset.folders)} class folders, but the network has {classes} classes, so that the place of a "
        "folder does not tell its class; give a class_map {folder: class index} as a JSON file"
    )


def _matched_sets(dataset: Dataset, count: int, categories: Sequence[str] | None, where: str) -> Dataset:
    """The images with sets of labels [N, count], as far as it is known which label is which."""
    if dataset.sparse and dataset.labels.shape[1] < count:
        return replace(dataset, labels=spread(dataset.labels, count))
    found = _by_name(dataset.folders or (), categories or (), where)
    return dataset if found is None else replace(dataset, labels=spread(dataset.labels, count, found))


def spread(labels: np.ndarray, count: int, places: np.ndarray | None = None) -> np.ndarray:
    """Sets of labels [N, L] in `count` columns, at these places, or the first ones; 0 at all others."""
    found = np.zeros((len(labels), count), labels.dtype)
    found[:, np.arange(labels.shape[1]) if places is None else places] = labels
    return found


def _by_name(folders: Sequence[str], categories: Sequence[str], where: str) -> np.ndarray | None:
    """Class index of each folder, int64; None if no folder is named like a class."""
    names = [_plain(name) for name in categories]
    # ImageNet has two cranes.
    once = {name for name, count in Counter(names).items() if count == 1}
    indices = {name: index for index, name in enumerate(names) if name in once}
    known = [_plain(folder) in indices for folder in folders]
    if not any(known):
        return None
    if not all(known):
        unknown = folders[known.index(False)]
        raise UserError(
            f"{where}: {sum(known)} of {len(folders)} folders are named like classes of the network, but not "
            f"{unknown!r}. {closest(unknown, categories)} Rename it, or give a class_map {{folder: class index}} as a "
            "JSON file"
        )
    return np.array([indices[_plain(folder)] for folder in folders], dtype=np.int64)


def _plain(name: str) -> str:
    return " ".join(unicodedata.normalize("NFC", name).lower().replace("_", " ").replace("-", " ").split())
