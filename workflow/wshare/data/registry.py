"""Image collections by their source."""

from collections.abc import Callable, Mapping
from typing import Any

from wshare.data.dataset import Dataset, _closest
from wshare.data.datasets.cifar10 import _open_cifar10
from wshare.data.datasets.digits import _open_digits
from wshare.data.datasets.fashion_mnist import _open_fashion_mnist
from wshare.data.datasets.folders import _open_imagefolder, _open_imagenet, _open_imagenette
from wshare.data.datasets.mnist import _open_mnist
from wshare.data.datasets.photos import _open_photos
from wshare.data.datasets.python import _open_python
from wshare.errors import UserError


def open_dataset(settings: Mapping[str, Any]) -> Dataset:
    """Data set that `settings` names; no image of a folder is decoded before it is read.

    `settings["source"]` is a name in SOURCES; the keys `path`, `class_map`, `labels`, `function`, `split` and
    `seed` are read by the sources that need them. UserError if one is missing or wrong, FormatError for a damaged file.
    """
    source = settings["source"]
    if source not in SOURCES:
        raise UserError(f"source {source!r}: no such source of images.{_closest(source, SOURCES)}")
    return SOURCES[source](settings)


SOURCES: dict[str, Callable[[Mapping[str, Any]], Dataset]] = {
    "mnist": _open_mnist,
    "digits": _open_digits,
    "fashion_mnist": _open_fashion_mnist,
    "cifar10": _open_cifar10,
    "imagenet": _open_imagenet,
    "imagenette": _open_imagenette,
    "imagefolder": _open_imagefolder,
    "photos": _open_photos,
    "python": _open_python,
}
