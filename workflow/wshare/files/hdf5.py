"""HDF5 files that are either whole or absent, whose content has a checksum."""

import hashlib
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from wshare.errors import FormatError
from wshare.files.atomic import atomic, remedy
from wshare.files.sealed import check_origin, sha256_text

SCHEMA_VERSION = 2
# Fletcher-32 turns a flipped bit into a read error, but takes 00 00 for ff ff, so that content has a checksum of its
# own. Shuffle makes gzip worth its time on floats.
COMPRESSED = {"compression": "gzip", "compression_opts": 1, "shuffle": True, "fletcher32": True}


def sha256_arrays(*arrays: np.ndarray) -> str:
    """Hexadecimal SHA-256 over type, shape and bytes of arrays, in order."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


@contextmanager
def create_h5(path: str | Path, kind: str, settings: dict, made_from: dict[str, str]) -> Iterator[h5py.File]:
    """New HDF5 file of a `kind`, marked complete and renamed when the block ends.

    `settings` is what the content was made with, `made_from` the hashes of what it was made from by name, such as
    "model" and "images"; both are kept as JSON in attributes.
    """
    with atomic(path) as temporary, _Disk(temporary, "w+") as disk:
        # From this version of the format on, HDF5 has checksums on its own structures too.
        with h5py.File(disk, "w", libver=("v110", "v110")) as file:
            set_text(file.attrs, kind=kind, settings=json.dumps(settings, sort_keys=True))
            set_text(file.attrs, made_from=json.dumps(made_from))
            file.attrs["version"] = SCHEMA_VERSION
            yield file
            file.attrs["complete"] = True
        if disk.error:
            raise disk.error


class _Disk(io.FileIO):
    """File that keeps the first error of a write in `error`, and drops what is written after it.

    HDF5 must not see a write fail: it cannot close the file then, and crashes the process in the end.
    """

    error: OSError | None = None

    def write(self, data: memoryview) -> int:
        rest = data
        while len(rest) and not self.error:
            try:
                rest = rest[super().write(rest) :]
            except OSError as error:
                self.error = error
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return self.tell() if size is None else size


@contextmanager
def open_h5(path: str | Path, kind: str, made_from: dict[str, str] | None = None) -> Iterator[h5py.File]:
    """HDF5 file opened for reading, after its kind, version, completeness and origin were checked.

    `made_from` holds what the reader knows of the hashes that `create_h5` was given. FormatError names the file and
    the cure, also for a damaged block met while reading.
    """
    try:
        with h5py.File(path, "r") as file:
            found = (get_text(file.attrs, "kind") if "kind" in file.attrs else None, file.attrs.get("version"))
            if found != (kind, SCHEMA_VERSION) or not file.attrs.get("complete", False):
                raise FormatError(f"{path}: holds {found}, not a complete {(kind, SCHEMA_VERSION)}; {remedy(path)}")
            check_origin(path, origin(file), made_from or {})
            yield file
    except FileNotFoundError:
        raise FormatError(f"{path}: no such file; {remedy(path)}") from None
    except (OSError, KeyError, RuntimeError, UnicodeDecodeError) as error:
        raise FormatError(f"{path}: damaged ({error}); {remedy(path)}") from None


def origin(file: h5py.File) -> dict[str, str]:
    """What `create_h5` was given as `made_from`."""
    return json.loads(get_text(file.attrs, "made_from"))


def read_settings(path: str | Path, kind: str) -> dict:
    """What `create_h5` was given as `settings`."""
    with open_h5(path, kind) as file:
        return json.loads(get_text(file.attrs, "settings"))


def write_arrays(group: h5py.Group, compressed: bool = True, **arrays: np.ndarray) -> None:
    """Write arrays as datasets, and the checksum of all of them; noise leaves nothing to compress."""
    for name, array in arrays.items():
        group.create_dataset(name, data=array, chunks=True, **(COMPRESSED if compressed else {"fletcher32": True}))
    set_text(group.attrs, sha256=sha256_arrays(*arrays.values()))


def read_arrays(group: h5py.Group, *names: str) -> list[np.ndarray]:
    """Arrays that `write_arrays` wrote, all in their order; FormatError if the checksum differs."""
    arrays = [group[name][:] for name in names]
    if sha256_arrays(*arrays) != get_text(group.attrs, "sha256"):
        path = group.file.filename
        raise FormatError(f"{path}: {', '.join(names)} damaged (checksum differs); {remedy(path)}")
    return arrays


def content_hash(path: str | Path, kind: str) -> str:
    """SHA-256 over the settings of an HDF5 file and the checksums of all its arrays, for `made_from` of another file.

    Unlike a hash of the file it does not change with what no reader looks at.
    """
    with open_h5(path, kind) as file:
        groups: list[h5py.HLObject] = [file]
        file.visititems(lambda _, found: groups.append(found))
        sums = [get_text(group.attrs, "sha256") for group in groups if "sha256" in group.attrs]
        return sha256_text(json.dumps([get_text(file.attrs, "settings"), *sums]))


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
