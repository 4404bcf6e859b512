"""Masks: the class of each pixel of an image, read from image files and placed as the image is."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from tqdm import tqdm

from wshare.data.dataset import Dataset, as_text
from wshare.data.datasets.class_map import ClassMap
from wshare.data.prepare import placed
from wshare.errors import UserError, one_line
from wshare.models.preprocessing import IGNORED
from wshare.progress import PROGRESS

_log = logging.getLogger(__name__)

# A class index for each pixel: bits, grey of 8 or 16 bits, and indices into a palette, whatever colours it has.
MODES = ("1", "L", "P", "I;16", "I;16L", "I;16B", "I")


def read_mask(mask: Path, image: Path, classes: ClassMap | None) -> np.ndarray:
    """Class index of each pixel, int32 [H, W], IGNORED where it does not count.

    `classes` are those of the pixels' values; without, the values are the classes. UserError if the file cannot be
    decoded, has colours in place of classes, or is not of the image's size.
    """
    try:
        with PIL.Image.open(mask) as found:
            if found.mode not in MODES:
                raise UserError(
                    f"{as_text(mask)}: a mask of colours (mode {found.mode}); save classes as grey or with a palette"
                )
            pixels = np.asarray(found).astype(np.int32)
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        raise UserError(f"{as_text(mask)}: unreadable mask ({one_line(error)}); replace it") from None
    size = _size(image)
    if size not in (None, pixels.shape[::-1]):
        raise UserError(
            f"{as_text(mask)}: {pixels.shape[1]} x {pixels.shape[0]} pixels, but {as_text(image)} has {size[0]} x "
            f"{size[1]}; a mask must be as large as its image"
        )
    return pixels if classes is None else _mapped(pixels, classes, mask)


def labels_of(dataset: Dataset, chosen: np.ndarray, description: Mapping[str, Any], enlarge: bool) -> np.ndarray | None:
    """Labels of the chosen images, masks prepared as the images are; None where there are none."""
    if dataset.masks is not None:
        return prepared_masks(dataset, chosen, description, enlarge)
    return None if dataset.labels is None else dataset.labels[chosen]


def prepared_masks(
    dataset: Dataset, chosen: Iterable[int], description: Mapping[str, Any], enlarge: bool
) -> np.ndarray:
    """Masks of the chosen images, [N, H, W], placed as `prepare` places the images, but by nearest neighbour.

    What lies outside an image is IGNORED. Masks have the size of the network's outputs; `description` is model.json.
    UserError if the network is none of segmentation, or if all pixels are 0 or IGNORED, as where foreground is 255.
    """
    if description.get("task") != "segmentation":
        raise UserError(f"masks: the network's task is {description.get('task')}; set its task to segmentation")
    preprocessing, size = description["preprocessing"], tuple(description["mask"])
    masks, told, foreground = [], False, False
    for index in tqdm(chosen, "masks", **PROGRESS):
        pixels = dataset.masks(index)
        foreground |= bool(((pixels != 0) & (pixels != IGNORED)).any())
        mask = placed(PIL.Image.fromarray(pixels), preprocessing, enlarge, PIL.Image.Resampling.NEAREST, IGNORED)
        if (mask.height, mask.width) != size:
            if not told:
                _log.info("masks are resized to the network's outputs, %d x %d, by nearest neighbour", *size)
            told, mask = True, mask.resize(size[::-1], PIL.Image.Resampling.NEAREST)
        array = np.asarray(mask)
        # A quarter of the memory.
        masks.append(array.astype(np.uint8) if array.min() >= 0 and array.max() <= 255 else array)
    found = np.stack(masks)
    if not foreground and (found == IGNORED).any():
        raise UserError(
            f"masks: all pixels are 0 or {IGNORED}, which is for pixels that do not count; give a class_map, such as "
            '{"0": 0, "255": 1}'
        )
    return found


def _size(image: Path) -> tuple[int, int] | None:
    """Width and height of an image file; None of one that is unreadable, which is told where it is decoded."""
    try:
        with PIL.Image.open(image) as found:
            return found.size
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError):
        return None


def _mapped(pixels: np.ndarray, classes: ClassMap, mask: Path) -> np.ndarray:
    values, places = np.unique(pixels, return_inverse=True)
    indices = [classes.index(str(value), f"pixel value {value} of {as_text(mask)}") for value in values.tolist()]
    return np.array(indices, np.int32)[places].reshape(pixels.shape)
