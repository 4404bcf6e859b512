"""Images as a network sees them: resized, cropped, before normalisation."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

import numpy as np
import PIL.Image

from wshare.data.dataset import Dataset, UnreadableImage, listed
from wshare.data.stored import image_hash
from wshare.errors import UserError
from wshare.models.preprocessing import input_shape, sides

_log = logging.getLogger(__name__)

# Unreadable images that a note about those left out names.
MOST_NOTED = 10


def prepare(image: PIL.Image.Image | np.ndarray, preprocessing: Mapping[str, Any], enlarge: bool = True) -> np.ndarray:
    """Pixels a network sees, before normalization: uint8 [C,H,W]; an array as it is, float32.

    Equal, pixel for pixel, to torchvision's Resize and CenterCrop on PIL images. `preprocessing` is complete, as
    `complete_preprocessing` gives it; `crop` may be None. What lies outside the image is 0, or the value of a
    letterbox. Without `enlarge` an image that would grow is not resized. UserError if the network takes no pictures, or
    an array has another shape than it takes.
    """
    if isinstance(image, np.ndarray):
        return _array(image, preprocessing)
    channels, interpolation = preprocessing["channels"], PIL.Image.Resampling[preprocessing["interpolation"].upper()]
    _check_picture(preprocessing)
    image = image.convert("L" if channels == 1 else "RGB")
    image = placed(image, preprocessing, enlarge, interpolation, preprocessing.get("letterbox") or 0)
    pixels = np.array(image)
    if channels == 1:
        return pixels[np.newaxis]
    pixels = pixels[:, :, ::-1] if preprocessing.get("order") == "bgr" else pixels
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def placed(
    image: PIL.Image.Image,
    preprocessing: Mapping[str, Any],
    enlarge: bool,
    interpolation: PIL.Image.Resampling,
    fill: int,
) -> PIL.Image.Image:
    """An image, or its mask, resized and cropped as `prepare` says, with `fill` outside of it."""
    # Descriptions of before have no letterbox and no order.
    letterbox, resize = preprocessing.get("letterbox"), preprocessing["resize"]
    if letterbox is not None:
        resize = _fitted(image.size, preprocessing["crop"])
    if resize is not None:
        width, height = _resized(image.size, resize)
        if enlarge or (width <= image.width and height <= image.height):
            image = image.resize((width, height), interpolation)
    return image if preprocessing["crop"] is None else _cropped(image, preprocessing["crop"], fill)


def prepared(
    dataset: Dataset,
    chosen: Iterable[int],
    preprocessing: Mapping[str, Any],
    enlarge: bool,
    skipped: list[UnreadableImage] | None = None,
) -> Iterator[np.ndarray | None]:
    """The chosen images, read and prepared one by one; see `prepare`.

    None stands for one that is unreadable, and its error is added to `skipped`; without such a list it is raised.
    """
    # A crop is the network's view already: a second one, at the centre, would cut it again.
    shape = (
        {**preprocessing, "resize": input_shape(preprocessing)[1:], "letterbox": None}
        if dataset.cropped
        else preprocessing
    )
    for i in chosen:
        try:
            yield prepare(dataset.read(i), shape, enlarge)
        except UnreadableImage as error:
            if skipped is None:
                raise
            skipped.append(error)
            yield None


def prepared_split(
    name: str, dataset: Dataset, chosen: Sized, preprocessing: Mapping[str, Any], settings: Mapping[str, Any]
) -> Iterator[np.ndarray | None]:
    """The images of the split `name`, as `prepared` gives them; None stands for one that is skipped.

    `settings` are those of the dataset. Once through, logs how many were skipped, and which; UserError if no image
    is left.
    """
    skipped: list[UnreadableImage] | None = [] if settings["on_bad_image"] == "skip" else None
    yield from prepared(dataset, chosen, preprocessing, settings["enlarge"], skipped)
    if skipped:
        told = f"{len(skipped)} of {len(chosen)} images are unreadable: {listed(skipped, MOST_NOTED)}"
        if len(skipped) == len(chosen):
            raise UserError(f"split {name!r}: no image is left, {told}; replace them")
        _log.info("%s: skipped, %s", name, told)


def unlike_others(
    name: str, images: Iterable[np.ndarray | None], keys: Iterable[str], seen: dict[bytes, tuple[str, str]], apart: bool
) -> Iterator[np.ndarray | None]:
    """The images of the split `name`, which are passed on one by one and noted in `seen`, with the split and the key.

    Once through, UserError if an image of another split is equal, pixel for pixel, and images must be `apart`: the
    verdict would rest on images that choices have looked at. Where they need not be, the log tells.
    """
    alike = []
    for image, key in zip(images, keys, strict=True):
        if image is not None:
            other, first = seen.setdefault(image_hash(image), (name, key))
            if other != name:
                alike.append((key, other, first))
        yield image
    if alike:
        key, other, first = alike[0]
        told = f"{len(alike)} images of split {name!r} are in split {other!r} too: {key} is the same as {first}"
        if apart:
            raise UserError(f"{told}; remove copies and links, so that each image is there once")
        _log.info("%s", told)


def _resized(size: tuple[int, int], resize: int | Sequence[int]) -> tuple[int, int]:
    if not isinstance(resize, int):
        height, width = resize
        return width, height
    width, height = size
    longer = int(resize * max(size) / min(size))
    return (resize, longer) if width <= height else (longer, resize)


def _array(image: np.ndarray, preprocessing: Mapping[str, Any]) -> np.ndarray:
    any_size = preprocessing["crop"] is None
    shape = [preprocessing["channels"], *image.shape[1:]] if any_size else input_shape(preprocessing)
    if list(image.shape) != shape:
        raise UserError(
            f"an array of the dataset is {list(image.shape)}, but the network takes {shape} (preprocessing.channels "
            "and .crop); give arrays as it takes them"
        )
    return np.ascontiguousarray(image, dtype=np.float32)


def _check_picture(preprocessing: Mapping[str, Any]) -> None:
    """UserError unless the network takes pictures."""
    crop = preprocessing["crop"]
    if preprocessing["channels"] not in (1, 3) or (crop is not None and len(sides(crop)) != 2):
        raise UserError(
            f"preprocessing: the network takes {preprocessing['channels']} channels of {crop}, which no picture is; "
            "give arrays (source python)"
        )


def _fitted(size: tuple[int, int], crop: int | Sequence[int]) -> list[int]:
    """Height and width of the largest image of these proportions that fits inside the crop."""
    (width, height), (high, wide) = size, sides(crop)
    scale = min(high / height, wide / width)
    return [max(1, round(height * scale)), max(1, round(width * scale))]


def _cropped(image: PIL.Image.Image, crop: int | Sequence[int], fill: int) -> PIL.Image.Image:
    height, width = sides(crop)
    left, top = _crop_start(image.width, width), _crop_start(image.height, height)
    if left >= 0 and top >= 0:
        return image.crop((left, top, left + width, top + height))
    canvas = PIL.Image.new(image.mode, (width, height), (fill,) * len(image.getbands()))
    canvas.paste(image, (-left, -top))
    return canvas


def _crop_start(length: int, side: int) -> int:
    # Python's rounding of halves to even is part of torchvision's rule, as is the smaller margin first.
    return round((length - side) / 2) if side <= length else -((side - length) // 2)
