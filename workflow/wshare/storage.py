"""Files that are either whole or absent: atomic writes and checked reads."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from wshare.errors import FormatError

SCHEMA_VERSION = 1
# Fletcher-32 turns a flipped bit into a read error; shuffle makes gzip worth its time on floats.
COMPRESSED = {"compression": "gzip", "compression_opts": 1, "shuffle": True, "fletcher32": True}


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Temporary path beside `path` that takes its name when the block ends without error.

    The temporary file is removed if the block raises, so a failed job leaves nothing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _sync(temporary)
        # mkstemp makes files that only their owner reads; results are ordinary files.
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON; a NaN or an infinity raises ValueError."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Content of a JSON file; FormatError if it is missing or damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FormatError(f"{path}: no such file") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise FormatError(f"{path}: damaged JSON ({error}); delete it and run again") from None


def sha256_file(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_arrays(*arrays: np.ndarray) -> str:
    """Hexadecimal SHA-256 over type, shape and bytes of arrays, in order."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


@contextmanager
def create_h5(path: str | Path, kind: str, settings: dict) -> Iterator[h5py.File]:
    """New HDF5 file of a `kind`, marked complete and renamed when the block ends.

    `settings` is what the content was made from; it is kept as JSON in an attribute.
    """
    # From this version of the format on, HDF5 has checksums on its own structures too.
    with atomic(path) as temporary, h5py.File(temporary, "w", libver=("v110", "v110")) as file:
        set_text(file.attrs, kind=kind, settings=json.dumps(settings, sort_keys=True))
        file.attrs["version"] = SCHEMA_VERSION
        yield file
        file.attrs["complete"] = True


@contextmanager
def open_h5(path: str | Path, kind: str) -> Iterator[h5py.File]:
    """HDF5 file opened for reading, after its kind, version and completeness were checked.

    FormatError names the file and the cure, also for a damaged block met while reading.
    """
    try:
        with h5py.File(path, "r") as file:
            found = (get_text(file.attrs, "kind") if "kind" in file.attrs else None, file.attrs.get("version"))
            if found != (kind, SCHEMA_VERSION) or not file.attrs.get("complete", False):
                raise FormatError(
                    f"{path}: holds {found}, not a complete {(kind, SCHEMA_VERSION)}; delete it and run again"
                )
            yield file
    except FileNotFoundError:
        raise FormatError(f"{path}: no such file") from None
    except (OSError, KeyError, RuntimeError, UnicodeDecodeError) as error:
        raise FormatError(f"{path}: damaged ({error}); delete it and run again") from None


def set_text(attributes: h5py.AttributeManager, **texts: str) -> None:
    """Set text attributes, as bytes of fixed length.

    HDF5 keeps text of variable length on a heap that has no checksum: one wrong byte there changes the text
    unseen, or makes a read go on for ever.
    """
    for name, text in texts.items():
        attributes[name] = np.bytes_(text.encode())


def get_text(attributes: h5py.AttributeManager, name: str) -> str:
    """Text of an attribute that `set_text` wrote; KeyError if there is none."""
    value = attributes[name]
    if not isinstance(value, np.bytes_):
        raise KeyError(f"attribute {name!r} is not text")
    return value.decode()
