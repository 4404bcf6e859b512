"""The float32 network's output on one split, kept for all comparisons."""

from pathlib import Path

import numpy as np

from wshare.data.images import Images
from wshare.files.hdf5 import create_h5, open_h5, read_arrays, write_arrays

KIND = "logits"


def write_outputs(path: Path, logits: np.ndarray, images: Images, model: str) -> None:
    """Write logits, float32 [N, classes], of all images of a split; `model` is the SHA-256 of the weights."""
    with create_h5(path, KIND, {}, {"model": model, "images": images.fingerprint}) as file:
        write_arrays(file, logits=logits)


def read_outputs(path: Path, images: Images, model: str) -> np.ndarray:
    """Logits of the given images, float32 [N, classes]; FormatError if they are of other images or another model."""
    with open_h5(path, KIND, {"model": model, "images": images.fingerprint}) as file:
        return read_arrays(file, "logits")[0][: len(images)]
