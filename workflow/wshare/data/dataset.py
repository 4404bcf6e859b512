"""A collection of images, read one by one."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from wshare.errors import UserError, one_line

# Unreadable images that an error names.
MOST_NAMED = 20


class UnreadableImage(UserError):
    """An image file that cannot be decoded."""

    def __init__(self, path: Path, reason: str):
        self.path = as_text(path)
        super().__init__(f"{self.path}: unreadable image ({reason}); replace or remove it")


@dataclass(frozen=True)
class Dataset:
    """One image collection, read image by image.

    `labels` is int64 [N], the class index of the network's output, or None; of other tasks than classification it is
    int64 or float32 [N, ...]. `keys` are N stable names, unique in a split (path below the folder, or the index as
    text); their order is the order of the images. `read(i)` decodes image i to mode "L" or "RGB" as Pillow converts it
    (EXIF orientation ignored; 16-bit grey is scaled by 1/257 and rounded, where Pillow would clip it) and raises
    UserError if it cannot; where the network takes no pictures it gives float32 arrays as the network takes them.
    `classes` is None where the source does not know the number of classes. `splits` holds the image indices of each
    split where the source deals them out itself. Images that are `cropped` already are resized to the network's input
    as they are. `folders` are names of the classes by index, where nothing but their order gives the indices; see
    `data.matching`. `apart` tells that the images are files of the user's own, of which no two in different splits may
    be alike. `masks(i)` gives, in place of labels, the class of each pixel of image i, int32 [H, W], as large as the
    image is before it is prepared; see `data.masks`. Labels that are `sparse` are
    sets of class indices, as 0 and 1, of which the network may have more.
    """

    labels: np.ndarray | None
    keys: tuple[str, ...]
    read: Callable[[int], PIL.Image.Image | np.ndarray]
    classes: int | None
    splits: Mapping[str, np.ndarray] | None = None
    cropped: bool = False
    folders: tuple[str, ...] | None = None
    apart: bool = False
    masks: Callable[[int], np.ndarray] | None = None
    sparse: bool = False


def first_readable(dataset: Dataset) -> PIL.Image.Image:
    """The first image that can be decoded; UserError if none can."""
    for i in range(len(dataset.keys)):
        try:
            return dataset.read(i)
        except UnreadableImage:
            # It is no matter here what becomes of its split.
            continue
    raise all_unreadable(dataset, range(len(dataset.keys)))


def all_unreadable(dataset: Dataset, chosen: Iterable[int]) -> UserError:
    """The error that names all unreadable images among those chosen, of which there is one at least."""
    found = []
    for i in chosen:
        try:
            dataset.read(i)
        except UnreadableImage as error:
            found.append(error)
    if len(found) == 1:
        return found[0]
    return UserError(f"{len(found)} unreadable images; replace or remove them: {listed(found, MOST_NAMED)}")


def listed(found: Iterable[UnreadableImage], most: int) -> str:
    """Paths of unreadable images, sorted; of more than `most` only the first, and how many others there are."""
    paths = sorted(error.path for error in found)
    return ", ".join(paths[:most]) + (f" and {len(paths) - most} more" if len(paths) > most else "")


def from_arrays(images: np.ndarray, labels: Any, where: str, classes: int | None) -> Dataset:
    """Dataset of images uint8 [N, H, W] or [N, H, W, 3]; see `from_reader`."""
    return from_reader(partial(_read_array, images), len(images), labels, where, classes)


def from_reader(read: Callable, count: int, labels: Any, where: str, classes: int | None) -> Dataset:
    """Dataset of `count` images that `read(i)` gives, named by their index.

    `labels` are numbers [count, ...] or None; one integer an image is its class index. UserError, opening with `where`,
    if there is no image, or the labels are not such.
    """
    if count == 0:
        raise UserError(f"{where}: holds no image")
    keys = tuple(map(str, range(count)))
    if labels is None:
        return Dataset(None, keys, read, classes)
    labels = np.asarray(labels)
    if labels.shape[:1] != (count,) or labels.dtype.kind not in "biuf":
        raise UserError(
            f"{where}: {count} images, but labels are {labels.dtype} {list(labels.shape)}; give one an image"
        )
    if labels.ndim > 1 or labels.dtype.kind == "f":
        return Dataset(labels.astype(np.float32 if labels.dtype.kind == "f" else np.int64), keys, read, None)
    if labels.min() < 0 or (classes is not None and labels.max() >= classes):
        raise UserError(
            f"{where}: labels from {labels.min()} to {labels.max()}; they must be class indices from 0 "
            + ("on" if classes is None else f"to {classes - 1}")
        )
    return Dataset(labels.astype(np.int64), keys, read, classes)


def source_folder(settings: Mapping[str, Any]) -> Path:
    """The folder that a source's `path` names; UserError if it is not set or no folder."""
    if settings.get("path") is None:
        raise UserError(f"source {settings['source']!r}: 'path' is missing; set it to the folder of the data")
    path = Path(settings["path"]).expanduser()
    if not path.is_dir():
        raise UserError(f"{path}: {'not a folder' if path.exists() else 'no such folder'}; correct 'path'")
    return path


def as_text(path: str | Path) -> str:
    """A path as text that any file can hold: bytes that are no UTF-8, of names in an older encoding, stand as \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _read_array(images: np.ndarray, index: int) -> PIL.Image.Image:
    return PIL.Image.fromarray(images[index])


def read_file(root: Path, paths: Sequence[str], index: int) -> PIL.Image.Image:
    """The image file at that one of the paths below a folder, decoded; UnreadableImage if it cannot be."""
    path = root / paths[index]
    try:
        with PIL.Image.open(path) as image:
            return as_rgb(image)
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        raise UnreadableImage(path, one_line(error)) from None


def as_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """The image in mode RGB; ValueError if its pixels have no defined range."""
    # Pillow would clip 16-bit grey at 255; here its range 0..65535 is mapped to 0..255, rounded. Such files
    # are opened as "I;16" or as "I", which has room for more.
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"values from {values.min()} to {values.max()} are not 16-bit grey")
        image = PIL.Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined range; save it with 8 or 16 bits")
    return image.convert("RGB")
