"""CIFAR-10, from its archive."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wshare.data.dataset import Dataset, from_arrays, source_folder
from wshare.errors import FormatError, UserError, one_line

CIFAR10_BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")


def open_cifar10(settings: Mapping[str, Any]) -> Dataset:
    """All 60,000 images of a folder that is, or holds, the unpacked archive, as pickles or binary."""
    root = source_folder(settings)
    readers = {"": _read_cifar10_pickle, ".bin": _read_cifar10_binary}
    for folder in (root, root / "cifar-10-batches-py", root / "cifar-10-batches-bin"):
        for suffix, reader in readers.items():
            if (folder / f"{CIFAR10_BATCHES[0]}{suffix}").is_file():
                batches = [reader(folder / f"{name}{suffix}") for name in CIFAR10_BATCHES]
                pixels = np.concatenate([pixels for pixels, _ in batches])
                images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
                labels = np.concatenate([labels for _, labels in batches])
                return from_arrays(images, labels, str(folder), classes=10)
    raise UserError(f"{root}: no CIFAR-10 here; 'path' must be or hold cifar-10-batches-py or cifar-10-batches-bin")


def _read_cifar10_binary(path: Path) -> tuple[np.ndarray, np.ndarray]:
    content = np.frombuffer(_read_batch(path), np.uint8)
    if content.size == 0 or content.size % 3073:
        raise FormatError(f"{path}: {content.size} bytes, not a multiple of CIFAR-10's 3,073; fetch it again")
    records = content.reshape(-1, 3073)
    return records[:, 1:], records[:, 0]


def _read_cifar10_pickle(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with _open_batch(path) as file:
        try:
            batch = _Cifar10Unpickler(file, encoding="bytes").load()
            _, shape, kind, is_fortran, content = batch[b"data"].state
            if kind.arguments[0] not in ("u1", b"u1"):
                raise ValueError("pixels are not bytes")
            pixels = np.frombuffer(content, np.uint8).reshape(shape, order="F" if is_fortran else "C")
            labels = np.array(batch[b"labels"])
            if pixels.shape != (len(labels), 3072) or labels.dtype.kind != "i":
                raise ValueError(f"{pixels.shape} pixels for {labels.shape} labels")
        # A pickle that is not what it should be can raise almost anything.
        except Exception as error:
            raise FormatError(f"{path}: not a CIFAR-10 batch ({one_line(error)}); fetch it again") from None
    return pixels, labels


class _Recorded:
    """What stands for a numpy object in a pickle: it keeps what it is given and does nothing."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Cifar10Unpickler(pickle.Unpickler):
    """Reads containers, numbers and bytes; the names a numpy array needs are recorded, never called."""

    def find_class(self, module: str, name: str) -> type:
        if (module.replace("numpy._core", "numpy.core"), name) in (
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
        ):
            return _Recorded
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is refused")


def _read_batch(path: Path) -> bytes:
    with _open_batch(path) as file:
        return file.read()


def _open_batch(path: Path) -> Any:
    try:
        return open(path, "rb")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; CIFAR-10 has {', '.join(CIFAR10_BATCHES)}") from None
