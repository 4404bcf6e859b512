"""What happens to an image before the network sees it."""

import math
from collections.abc import Sequence

from wshare.errors import UserError
from wshare.names import closest

# In a mask: pixels that count for nothing, as most datasets mark borders.
IGNORED = 255
# Side of an input, in pixels, where nothing says one.
USUAL = 224
PREPROCESSING = ("channels", "order", "resize", "crop", "letterbox", "interpolation", "mean", "std")
ORDERS = ("rgb", "bgr")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")


def complete_preprocessing(found: dict, given: dict | None = None) -> dict:
    """What happens to an image before the network sees it: `given` over `found`, checked, every key present.

    `channels`, 1 or 3 of pictures, in the `order` rgb or bgr; `resize` of the shorter side in pixels, or to [height,
    width], or None; `crop`, the network's input, cut out at the centre, the side of a square or [height, width], or
    None, where it is given, for images of any size; `letterbox`, instead of the two, the value from 0 to 255 around an
    image that is resized to fit inside the crop, or None; `interpolation` of the resize; `mean` and `std`, one a
    channel, on the scale where pixels run from 0 to 1 (0 and 1, so no change, where neither is known).
    """
    given = given or {}
    for key in given:
        if key not in PREPROCESSING:
            raise UserError(f"preprocessing: {key!r}: no such key. {closest(key, PREPROCESSING)}")
    neutral = {"order": "rgb", "resize": None, "crop": None, "letterbox": None, "interpolation": "bilinear"}
    merged = {"channels": 3} | neutral | found | given
    if merged["letterbox"] is not None and "resize" not in given:
        # What a source knows of the resize is for its own crop.
        merged["resize"] = None
    channels = merged["channels"]
    if not _is_length(channels):
        raise UserError(f"preprocessing.channels: {channels!r}: must be a number from 1 on; pictures have 1 or 3")
    _check_geometry(merged, None if "crop" in given and given["crop"] is None else sides(merged["crop"]))
    for key, known in (("interpolation", INTERPOLATIONS), ("order", ORDERS)):
        if merged[key] not in known:
            raise UserError(f"preprocessing.{key}: {merged[key]!r}: must be one of {', '.join(known)}")
    for key, neutral in (("mean", 0.0), ("std", 1.0)):
        values = merged.get(key) or [neutral] * channels
        if not _are_numbers(values) or len(values) != channels or (key == "std" and min(values) <= 0):
            raise UserError(
                f"preprocessing.{key}: {values!r}: must be {channels} values, one a channel"
                + (", above 0" if key == "std" else "")
            )
        merged[key] = list(map(float, values))
    return {key: merged[key] for key in PREPROCESSING}


def input_shape(preprocessing: dict) -> list[int]:
    """Shape of an input of the network, [C, H, W]; where it takes any size, of one like others."""
    crop, resize = preprocessing["crop"], preprocessing["resize"]
    size = crop if crop is not None else resize if resize is not None else USUAL
    return [preprocessing["channels"], *sides(size)]


def sides(crop: object) -> list[int]:
    """Height and width of the network's input, or other lengths of one that is no picture; UserError if it is none."""
    size = [crop, crop] if _is_length(crop) else crop
    if not isinstance(size, list | tuple) or not 1 <= len(size) <= 3 or not all(map(_is_length, size)):
        raise UserError(
            f"preprocessing.crop: {crop!r}: must be the side of the network's input in pixels, or [height, width] "
            "(of arrays [length], or three lengths)"
        )
    return list(size)


def crop_of(lengths: Sequence[int]) -> int | list[int]:
    """The `crop` of an input of these lengths, as a configuration says it."""
    square = len(lengths) == 2 and lengths[0] == lengths[1]
    return lengths[0] if square else list(lengths)


def _check_geometry(merged: dict, crop: list[int] | None) -> None:
    resize, letterbox = merged["resize"], merged["letterbox"]
    if letterbox is not None:
        if not isinstance(letterbox, int) or isinstance(letterbox, bool) or not 0 <= letterbox <= 255:
            raise UserError(f"preprocessing.letterbox: {letterbox!r}: must be null or a pixel value from 0 to 255")
        if resize is not None or crop is None:
            key = "resize" if resize is not None else "crop: null"
            raise UserError(f"preprocessing.{key}: not read with letterbox; remove one of the two keys")
        return
    sizes, least = [resize, resize] if _is_length(resize) else resize, [1, 1] if crop is None else crop
    fits = isinstance(sizes, list | tuple) and len(sizes) == len(least) == 2 and all(map(_is_length, sizes))
    if resize is not None and not (fits and all(size >= side for size, side in zip(sizes, least, strict=True))):
        raise UserError(
            f"preprocessing.resize: {resize!r}: must be null, the shorter side, or [height, width], at least "
            f"preprocessing.crop ({' x '.join(map(str, least))})"
        )


def _is_length(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _are_numbers(values: object) -> bool:
    return isinstance(values, list | tuple) and all(
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) for value in values
    )
