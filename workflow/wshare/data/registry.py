"""Image collections by their source."""

import importlib
from collections.abc import Mapping
from typing import Any

from wshare.data.dataset import Dataset
from wshare.data.datasets.table import SOURCES, held_out_of
from wshare.data.joining import joined
from wshare.errors import UserError
from wshare.names import closest


def open_dataset(settings: Mapping[str, Any]) -> Dataset:
    """Dataset that `settings` (one entry of `datasets` in the configuration) names, and `seed`.

    Of two collections, where `held_out` names one of its own. No image of a folder is decoded before it is read.
    UserError if a key is missing or wrong, or a package is not installed; FormatError for a damaged file.
    """
    own = held_out_of(settings)
    if own is None:
        return _open(settings)
    return joined(_open(settings), _open(own), settings["split"], settings["seed"])


def _open(settings: Mapping[str, Any]) -> Dataset:
    name = settings["source"]
    if name not in SOURCES:
        raise UserError(f"source {name!r}: no such source of images. {closest(name, SOURCES)}")
    source = SOURCES[name]
    for package in source.packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise UserError(f"source {name!r}: package {package} is needed ({error}); install it") from None
    module = importlib.import_module(f"wshare.data.datasets.{source.module}")
    return getattr(module, source.function)(settings)
