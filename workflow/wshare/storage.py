"""Files that are either whole or absent: atomic writes and checked reads."""

import errno
import fcntl
import hashlib
import io
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import h5py
import numpy as np
from safetensors import SafetensorError

from wshare.errors import COMMAND, FormatError, UserError

SCHEMA_VERSION = 2
# Of JSON files and of tables.
TEXT_VERSION = 1
# Fletcher-32 turns a flipped bit into a read error, but takes 00 00 for ff ff, so that content has a checksum of its
# own. Shuffle makes gzip worth its time on floats.
COMPRESSED = {"compression": "gzip", "compression_opts": 1, "shuffle": True, "fletcher32": True}
# What a disk answers that does not take a file, and what helps.
CURES = {
    errno.ENOSPC: "free space on its disk",
    errno.EDQUOT: "free space within the quota",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f)",
    errno.EIO: "check its disk",
    errno.EROFS: "make its folder writable",
    errno.EACCES: "make its folder writable",
    errno.EPERM: "make its folder writable",
}
# safetensors tells the system's error in words of its own.
SYSTEM_ERROR = re.compile(r"os error (\d+)")


@contextmanager
def atomic(path: str | Path, octets: int = 0) -> Iterator[Path]:
    """Temporary path that takes the name `path` when the block ends without error.

    It lies in a folder of its own beside `path`, which is gone afterwards: a failed job leaves nothing, and what a
    killed one leaves is removed when `path` is written next. A second writer of the same file waits. UserError, in one
    line, if the disk is full or does not take the file; before anything is written if `octets`, the size, is known.
    """
    path = Path(path)
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone_in(path.with_name(f".{path.name}.tmp")) as folder:
            check_space(path, octets)
            temporary = folder / path.name
            yield temporary
            _sync(temporary)
            # Libraries make files that only their owner reads; results are ordinary files.
            temporary.chmod(0o666 & ~_umask())
            os.replace(temporary, path)
            _sync(path.parent)


@contextmanager
def _alone_in(folder: Path) -> Iterator[Path]:
    """Empty folder that no other process uses, removed in the end."""
    lock = folder / "lock"
    try:
        handle = _locked(lock)
        try:
            for left in folder.iterdir():
                if left != lock:
                    left.unlink()
            yield folder
        finally:
            for left in folder.iterdir():
                left.unlink()
            os.close(handle)
    finally:
        # Not if the next process has made its lock there meanwhile.
        with suppress(OSError):
            folder.rmdir()


def _locked(lock: Path) -> int:
    """Handle that holds the lock file, which is made with its folder; it is free again however its process ends."""
    while True:
        lock.parent.mkdir(exist_ok=True)
        # A process that is through removes folder and lock, even in between these lines.
        try:
            handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            # Some network file systems have no locks: Snakemake's own lock has to do there.
            if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP):
                os.close(handle)
                raise
        with suppress(FileNotFoundError):
            if os.path.samestat(lock.stat(), os.fstat(handle)):
                return handle
        os.close(handle)


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """UserError, in one line with the cure, if the disk does not take what the block writes to `path`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        number, name = getattr(error, "errno", None), getattr(error, "filename", None)
        if told := SYSTEM_ERROR.search(str(error)):
            number = int(told[1])
        # An error with a name may be about another file, one that was read meanwhile.
        ours = name is None or path.is_relative_to(name) or Path(name).is_relative_to(path.parent)
        if number not in CURES or not ours:
            raise
        reason = os.strerror(number)
        raise UserError(f"{path}: cannot be written ({reason}); {CURES[number]} and run again") from None


def check_space(path: Path, octets: int) -> None:
    """UserError if the disk that `path` is about to be written to has less than `octets` bytes left."""
    free = shutil.disk_usage(path.parent).free
    if free < octets:
        raise UserError(
            f"{path}: needs {octets / 1e6:.1f} MB, and its disk has {free / 1e6:.1f} MB left; free space and run again"
        )


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


def remedy(path: str | Path) -> str:
    """The command that makes a file of the workflow again, as the end of a message."""
    if Path(path).parts[:1] != ("results",):
        return "make or get it again"
    command = os.environ.get(COMMAND, "snakemake --cores all")
    return f"remake it with: {command} --forcerun {shlex.quote(str(path))}"


def write_json(path: str | Path, value: dict) -> None:
    """Write `value` as indented JSON, with its version and checksum; a NaN or an infinity raises ValueError."""
    sealed = {"version": TEXT_VERSION} | value | {"checksum": _checksum(value)}
    write_text(path, json.dumps(sealed, indent=2, allow_nan=False) + "\n")


def read_json(path: str | Path) -> dict:
    """Content of a file that `write_json` wrote; FormatError if it is missing, damaged or of another version."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
        version, found = value.pop("version", None), value.pop("checksum")
    except FileNotFoundError:
        raise FormatError(f"{path}: no such file; {remedy(path)}") from None
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise FormatError(f"{path}: damaged JSON ({error!r}); {remedy(path)}") from None
    check_version(path, version)
    if found != _checksum(value):
        raise FormatError(f"{path}: damaged (checksum differs); {remedy(path)}")
    return value


def check_version(path: str | Path, found: object) -> None:
    """FormatError unless a JSON file or a table is of the version that is written."""
    if found != TEXT_VERSION:
        raise FormatError(f"{path}: of version {found}, and this wshare reads {TEXT_VERSION}; {remedy(path)}")


def _checksum(value: dict) -> str:
    """Hexadecimal SHA-256 of a value as JSON, however it is laid out in a file."""
    return sha256_text(json.dumps(value, separators=(",", ":")))


def sha256_text(text: str) -> str:
    """Hexadecimal SHA-256 of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: str | Path, expected: str, spec: str | Path) -> None:
    """FormatError unless there is a file of the SHA-256 that `spec` gives it."""
    try:
        found = sha256_file(path)
    except FileNotFoundError:
        raise FormatError(f"{path}: no such file; {remedy(path)}") from None
    if found != expected:
        raise FormatError(f"{path}: not the file that {spec} describes, or damaged; {remedy(path)}")


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


def check_origin(path: str | Path, found: dict[str, str], expected: dict[str, str]) -> None:
    """FormatError unless a file was made from what is expected, as far as that is known."""
    for name, value in expected.items():
        if found.get(name) != value:
            raise FormatError(f"{path}: made from other {name} than are there now; {remedy(path)}")


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
