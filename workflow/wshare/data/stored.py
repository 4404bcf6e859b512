"""How a file of images holds them: of one shape in one array, or of different sizes one after another."""

import hashlib
from pathlib import Path

import h5py
import numpy as np

from wshare.files.atomic import check_space

# A checksum covers a chunk: small ones cost calls, large ones cost reading more than a batch.
CHUNK_BYTES = 1 << 16


def image_hash(image: np.ndarray) -> bytes:
    """SHA-256 of an image as it is stored, by which copies of it are found."""
    return hashlib.sha256(image.tobytes()).digest()


class Stack:
    """Images of one shape, written one by one into an array [N, ...] of at most `count`."""

    def __init__(self, file: h5py.File, path: Path, count: int):
        self._file, self._path, self._count = file, path, count
        self._stored: h5py.Dataset | None = None
        self._written = 0

    def add(self, image: np.ndarray) -> None:
        """One image more."""
        if self._stored is None:
            check_space(self._path, self._count * image.nbytes)
            shape = (self._count, *image.shape)
            chunk = (min(self._count, max(1, CHUNK_BYTES // image.nbytes)), *image.shape)
            self._stored = self._file.create_dataset("images", shape, _type(image), chunks=chunk, fletcher32=True)
        self._stored[self._written] = image
        self._written += 1

    def finish(self) -> dict[str, np.ndarray]:
        """Cut off what was not written; the arrays that a reader needs beside it, by name."""
        self._stored.resize(self._written, axis=0)
        return {}


class Row:
    """Images of different sizes, written one by one into an array of all their values."""

    def __init__(self, file: h5py.File, path: Path):
        self._file, self._path = file, path
        self._stored: h5py.Dataset | None = None
        self._shapes: list[tuple[int, ...]] = []

    def add(self, image: np.ndarray) -> None:
        """One image more."""
        check_space(self._path, image.nbytes)
        if self._stored is None:
            chunk = (CHUNK_BYTES // image.itemsize,)
            self._stored = self._file.create_dataset(
                "images", (0,), _type(image), maxshape=(None,), chunks=chunk, fletcher32=True
            )
        start = len(self._stored)
        self._stored.resize(start + image.size, axis=0)
        self._stored[start:] = image.ravel()
        self._shapes.append(image.shape)

    def finish(self) -> dict[str, np.ndarray]:
        """The arrays that a reader needs beside it, by name: `shapes`, [N, 3]."""
        return {"shapes": np.array(self._shapes, np.int64)}


def starts_of(shapes: np.ndarray) -> np.ndarray:
    """Where each image begins in a row of images of these shapes, and where the last one ends: int64 [N + 1]."""
    return np.concatenate([[0], shapes.prod(1).cumsum()])


def image_at(file: h5py.File, place: int) -> np.ndarray:
    """One image of a file, of either form."""
    if "shapes" not in file:
        return file["images"][place]
    shapes = file["shapes"][: place + 1]
    first, stop = starts_of(shapes)[place:]
    return file["images"][first:stop].reshape(shapes[place])


def _type(image: np.ndarray) -> str:
    return "u1" if image.dtype == np.uint8 else "<f4"
