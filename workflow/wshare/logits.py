"""The float32 network's output on one split, kept for all comparisons."""

from pathlib import Path

import numpy as np

from wshare.errors import FormatError
from wshare.images import ImageFile
from wshare.storage import COMPRESSED, create_h5, get_text, open_h5, set_text

KIND = "logits"


def write_logits(path: Path, logits: np.ndarray, images: ImageFile) -> None:
    """Write logits, float32 [N, classes], of all images of a split."""
    with create_h5(path, KIND, {}) as file:
        set_text(file.attrs, images=images.fingerprint)
        file.create_dataset("logits", data=logits, **COMPRESSED)


def read_logits(path: Path, images: ImageFile) -> np.ndarray:
    """Logits of the given images, float32 [N, classes]; FormatError if they belong to other images."""
    with open_h5(path, KIND) as file:
        if get_text(file.attrs, "images") != images.fingerprint:
            raise FormatError(f"{path}: made from other images than {images.path}; delete it and run again")
        return file["logits"][: len(images)]
