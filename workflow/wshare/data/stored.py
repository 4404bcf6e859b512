"""Images in an HDF5 file, written once in order: of one shape in one array, or of different sizes one after another.

Nothing here imports torch, which takes longer than to write a thousand small images.
"""

import hashlib
import json
import zlib
from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np

from wshare.files.atomic import check_space
from wshare.files.hdf5 import create_h5, set_text, write_arrays
from wshare.files.sealed import sha256_text

KIND = "images"

# A checksum covers a chunk: small ones cost calls, large ones cost reading more than a batch.
CHUNK_BYTES = 1 << 16


def write_images(
    path: str | Path,
    images: Iterable[np.ndarray | None],
    labels: np.ndarray | None,
    keys: list[str],
    preprocessing: dict,
    settings: dict,
    held_out: int = 0,
) -> str:
    """Write decoded images one by one; returns their fingerprint.

    `held_out` is the number of images that the dataset holds out: a search goes by how fine a verdict they allow.

    Each image is uint8 [C, H, W], or float32 as a network takes it, all of one shape unless `preprocessing` has a
    `crop` of None, or None if it is skipped: it is counted, and left out with its label and its key. `labels` is [N,
    ...] of whole numbers or float32, or None; `keys` names each image. `preprocessing` gives "mean" and "std" per
    channel on the [0, 1] scale, for the readers. The fingerprint is the SHA-256 over all pixels and, where there are
    any, labels, in order.
    """
    digest = hashlib.sha256()
    checksums, kept = [], []
    with create_h5(path, KIND, settings, {"preprocessing": preprocessing_hash(preprocessing)}) as file:
        stored = Row(file, Path(path)) if _any_size(preprocessing) else Stack(file, Path(path), len(keys))
        # Strict: a reader would take an image that was never written for a black one.
        for position, (image, _) in enumerate(zip(images, keys, strict=True)):
            if image is None:
                continue
            stored.add(image)
            kept.append(position)
            checksums.append(zlib.crc32(image.tobytes()))
            digest.update(image.tobytes())
        shapes = stored.finish()
        if labels is not None:
            if len(labels) != len(keys):
                raise ValueError(f"{len(labels)} labels for {len(keys)} images")
            labels = stored_labels(np.asarray(labels))[kept]
            digest.update(labels.tobytes())
        table = {"keys": np.array([keys[i].encode() for i in kept]), "checksums": np.array(checksums, np.uint32)}
        given = {} if labels is None else {"labels": labels}
        write_arrays(file, **table, **given, **shapes)
        set_text(file.attrs, fingerprint=digest.hexdigest(), labels="none" if labels is None else "given")
        # In one attribute: HDF5 keeps more than eight of them where no checksum covers them.
        counts = np.array([len(keys) - len(kept), held_out])
        file.attrs.update(mean=preprocessing["mean"], std=preprocessing["std"], skipped_and_held_out=counts)
    return digest.hexdigest()


def image_hash(image: np.ndarray) -> bytes:
    """SHA-256 of an image as it is stored, by which copies of it are found."""
    return hashlib.sha256(image.tobytes()).digest()


def preprocessing_hash(preprocessing: dict) -> str:
    """What a file of images says of the preprocessing that it was written for."""
    return sha256_text(json.dumps(preprocessing, sort_keys=True))


def stored_labels(labels: np.ndarray) -> np.ndarray:
    """Labels as files and fingerprints have them: whole numbers, or numbers of a regression."""
    return labels.astype("<f4" if labels.dtype.kind == "f" else "<i8")


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


def _any_size(preprocessing: dict) -> bool:
    return "crop" in preprocessing and preprocessing["crop"] is None
