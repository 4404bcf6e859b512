"""Images of noise, in files and in datasets."""

import pickle
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from wshare.data.dataset import Dataset

TENCH, GOLDFISH, TOILET_TISSUE = "n01440764", "n01443537", "n15075141"  # classes 0, 1 and 999


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, pixels: np.ndarray | PIL.Image.Image, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, PIL.Image.Image) else PIL.Image.fromarray(pixels)
    image.save(path, **options)
    return path


def pixels_of(dataset: Dataset) -> np.ndarray:
    return np.stack([np.asarray(dataset.read(index)) for index in range(len(dataset.keys))])


def assert_sound(dataset: Dataset) -> None:
    assert dataset.labels.dtype == np.int64
    assert dataset.labels.shape == (len(dataset.keys),)
    assert len(set(dataset.keys)) == len(dataset.keys)
    assert dataset.read(0).mode in ("L", "RGB")
    pickle.loads(pickle.dumps(dataset.read))  # loader processes get it this way


def one_line(error: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)
