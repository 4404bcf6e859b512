"""The float32 network's output on one split, kept for all comparisons."""

from pathlib import Path

import numpy as np

from wshare.data.images import Images
from wshare.files.hdf5 import create_h5, open_h5, read_arrays, write_arrays

KIND = "outputs"


def write_outputs(path: Path, outputs: np.ndarray, images: Images, model: str) -> None:
    """Write outputs, float32 [N, ...], of all images of a split; `model` is the SHA-256 of the weights."""
    with create_h5(path, KIND, {}, {"model": model, "images": images.fingerprint}) as file:
        write_arrays(file, outputs=outputs)


def read_outputs(path: Path, images: Images, model: str) -> np.ndarray:
    """Outputs for the given images, float32 [N, ...]; FormatError if they are of other images or another model."""
    with open_h5(path, KIND, {"model": model, "images": images.fingerprint}) as file:
        return read_arrays(file, "outputs")[0][: len(images)]
