"""Image collections by their source."""

import importlib
from collections.abc import Mapping
from typing import Any

from wshare.data.dataset import Dataset
from wshare.data.datasets.table import SOURCES
from wshare.errors import UserError
from wshare.names import closest


def open_dataset(settings: Mapping[str, Any]) -> Dataset:
    """Dataset that `settings` (one entry of `datasets` in the configuration) names, and `seed`.

    No image of a folder is decoded before it is read. UserError if a key is missing or wrong, or a package is not
    installed; FormatError for a damaged file.
    """
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
