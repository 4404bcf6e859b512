"""Images that a function of the user returns."""

import importlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import PIL.Image

from wshare.data.dataset import Dataset, as_rgb, from_arrays, from_reader
from wshare.errors import UserError, one_line


def open_function(settings: Mapping[str, Any]) -> Dataset:
    """What the function "module:function" returns: (images, labels); labels [N, ...] or None.

    Images are uint8 [N, H, W] or [N, H, W, 3], PIL images, or float arrays [N, ...] as the network takes them.
    """
    name = settings.get("function") or ""
    module, _, function = name.partition(":")
    if not (module and function):
        raise UserError(f"source 'python': 'function' is {name!r}; set it to module:function")
    try:
        call = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UserError(f"function {name!r}: {one_line(error)}; put its folder on PYTHONPATH") from error
    try:
        images, labels = call()
        count = len(images)
    except Exception as error:
        raise UserError(
            f"function {name!r}: {type(error).__name__}: {one_line(error)}; it must return (images, labels)"
        ) from error
    if isinstance(images, np.ndarray) and images.dtype.kind == "f" and images.ndim > 1:
        if not np.isfinite(images).all():
            raise UserError(f"function {name!r}: images hold NaN or infinite values")
        return from_reader(images.__getitem__, count, labels, f"function {name!r}", classes=None)
    if isinstance(images, np.ndarray):
        if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)):
            raise UserError(
                f"function {name!r}: images are {images.dtype} {list(images.shape)}; "
                "return uint8 [N,H,W] or [N,H,W,3], PIL images, or float arrays as the network takes them"
            )
        return from_arrays(images, labels, f"function {name!r}", classes=None)
    return from_reader(partial(_read_object, images, name), count, labels, f"function {name!r}", classes=None)


def _read_object(images: Sequence[PIL.Image.Image], name: str, index: int) -> PIL.Image.Image:
    image = images[index]
    if not isinstance(image, PIL.Image.Image):
        raise UserError(
            f"function {name!r}: image {index} is {type(image).__name__}; return PIL images or a uint8 array"
        )
    try:
        return image.copy() if image.mode == "L" else as_rgb(image)
    except (OSError, ValueError) as error:
        raise UserError(f"function {name!r}: image {index}: {one_line(error)}") from None
