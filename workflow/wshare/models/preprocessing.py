"""What happens to an image before the network sees it."""

import math

from wshare.errors import UserError
from wshare.names import closest

PREPROCESSING = ("channels", "resize", "crop", "interpolation", "mean", "std")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")


def complete_preprocessing(found: dict, given: dict | None = None) -> dict:
    """What happens to an image before the network sees it: `given` over `found`, checked, every key present.

    `channels` 1 or 3; `resize` of the shorter side in pixels, or None; `crop`, the side of the centre crop in pixels;
    `interpolation` of the resize; `mean` and `std`, one a channel, on the scale where pixels run from 0 to 1
    (0 and 1, so no change, where neither is known).
    """
    given = given or {}
    for key in given:
        if key not in PREPROCESSING:
            raise UserError(f"preprocessing: {key!r}: no such key. {closest(key, PREPROCESSING)}")
    merged = {"channels": 3, "resize": None, "crop": None, "interpolation": "bilinear"} | found | given
    channels, resize, crop = merged["channels"], merged["resize"], merged["crop"]
    if channels not in (1, 3):
        raise UserError(f"preprocessing.channels: {channels!r}: must be 1 (gray) or 3 (colour)")
    if not isinstance(crop, int) or crop < 1:
        raise UserError(f"preprocessing.crop: {crop!r}: must be the side of the network's input in pixels")
    if resize is not None and (not isinstance(resize, int) or resize < crop):
        raise UserError(f"preprocessing.resize: {resize!r}: must be null or at least preprocessing.crop ({crop})")
    if merged["interpolation"] not in INTERPOLATIONS:
        raise UserError(
            f"preprocessing.interpolation: {merged['interpolation']!r}: must be one of {', '.join(INTERPOLATIONS)}"
        )
    for key, neutral in (("mean", 0.0), ("std", 1.0)):
        values = merged.get(key) or [neutral] * channels
        if not _are_numbers(values) or len(values) != channels or (key == "std" and min(values) <= 0):
            raise UserError(
                f"preprocessing.{key}: {values!r}: must be {channels} values, one a channel"
                + (", above 0" if key == "std" else "")
            )
        merged[key] = list(map(float, values))
    return {key: merged[key] for key in PREPROCESSING}


def _are_numbers(values: object) -> bool:
    return isinstance(values, list | tuple) and all(
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) for value in values
    )
