"""Images as a network sees them: resized, cropped, before normalisation."""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

import numpy as np
import PIL.Image

from wshare.data.dataset import Dataset, UnreadableImage, _names
from wshare.errors import UserError

INTERPOLATIONS = {
    "nearest": PIL.Image.Resampling.NEAREST,
    "bilinear": PIL.Image.Resampling.BILINEAR,
    "bicubic": PIL.Image.Resampling.BICUBIC,
    "lanczos": PIL.Image.Resampling.LANCZOS,
}

# Unreadable images that a note about those left out names.
MOST_NOTED = 10


def prepare(image: PIL.Image.Image, preprocessing: Mapping[str, Any], enlarge: bool = True) -> np.ndarray:
    """Pixels a network sees, before normalization: uint8 [C,H,W].

    Equal, pixel for pixel, to torchvision's Resize and CenterCrop on PIL images. `preprocessing` has
    `channels` (1 or 3), `resize` (length of the shorter side, [height, width], or None), `crop` (side, or
    None; what lies outside the image is 0) and `interpolation` (a name in INTERPOLATIONS). Without `enlarge`
    an image that would grow is not resized. UserError for an unknown value.
    """
    channels, interpolation = preprocessing["channels"], preprocessing["interpolation"]
    if channels not in (1, 3):
        raise UserError(f"preprocessing.channels: {channels!r} is neither 1 nor 3")
    if interpolation not in INTERPOLATIONS:
        raise UserError(f"preprocessing.interpolation: {interpolation!r} is unknown; use {' or '.join(INTERPOLATIONS)}")
    image = image.convert("L" if channels == 1 else "RGB")
    if preprocessing["resize"] is not None:
        width, height = _resized(image.size, preprocessing["resize"])
        if enlarge or (width <= image.width and height <= image.height):
            image = image.resize((width, height), INTERPOLATIONS[interpolation])
    if preprocessing["crop"] is not None:
        side = preprocessing["crop"]
        left, top = (_crop_start(length, side) for length in image.size)
        image = image.crop((left, top, left + side, top + side))
    pixels = np.array(image)
    return pixels[np.newaxis] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


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
    shape = {**preprocessing, "resize": [preprocessing["crop"]] * 2} if dataset.cropped else preprocessing
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

    `settings` are those of the data set. Once through, prints how many were skipped, and which; UserError if no image
    is left.
    """
    skipped: list[UnreadableImage] | None = [] if settings["on_bad_image"] == "skip" else None
    yield from prepared(dataset, chosen, preprocessing, settings["enlarge"], skipped)
    if skipped:
        told = f"{len(skipped)} of {len(chosen)} images are unreadable: {_names(skipped, MOST_NOTED)}"
        if len(skipped) == len(chosen):
            raise UserError(f"split {name!r}: no image is left, {told}; replace them")
        print(f"{name}: skipped, {told}")


def _resized(size: tuple[int, int], resize: int | Sequence[int]) -> tuple[int, int]:
    if not isinstance(resize, int):
        height, width = resize
        return width, height
    width, height = size
    longer = int(resize * max(size) / min(size))
    return (resize, longer) if width <= height else (longer, resize)


def _crop_start(length: int, side: int) -> int:
    # Python's rounding of halves to even is part of torchvision's rule, as is the smaller margin first.
    return round((length - side) / 2) if side <= length else -((side - length) // 2)
