"""Files that are either whole or absent."""

import errno
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from wshare.errors import COMMAND, UserError

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
def atomic(path: str | Path, nbytes: int = 0) -> Iterator[Path]:
    """Temporary path that takes the name `path` when the block ends without error.

    It lies in a folder of its own beside `path`, which is gone afterwards: a failed job leaves nothing, and what a
    killed one leaves is removed when `path` is written next. A second writer of the same file waits. UserError, in one
    line, if the disk is full or does not take the file; before anything is written if `nbytes`, the size, is known.
    """
    path = Path(path)
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone_in(path.with_name(f".{path.name}.tmp")) as folder:
            check_space(path, nbytes)
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
    try:
        # Not at the top: Windows has none, and packed files can be read there.
        import fcntl
    except ModuleNotFoundError:
        raise UserError(
            f"{lock.parent.parent}: files are written under Unix file locks, which {sys.platform} lacks; run wshare in "
            "WSL or a Linux container (packed files can be read here)"
        ) from None
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
    except Exception as error:
        # safetensors' error is known by its name: what reads and writes text alone does without that package.
        if not isinstance(error, OSError) and type(error).__name__ != "SafetensorError":
            raise
        number, name = getattr(error, "errno", None), getattr(error, "filename", None)
        if told := SYSTEM_ERROR.search(str(error)):
            number = int(told[1])
        # An error with a name may be about another file, one that was read meanwhile.
        ours = name is None or path.is_relative_to(name) or Path(name).is_relative_to(path.parent)
        if number not in CURES or not ours:
            raise
        reason = os.strerror(number)
        raise UserError(f"{path}: cannot be written ({reason}); {CURES[number]} and run again") from None


def check_space(path: Path, nbytes: int) -> None:
    """UserError if the disk that `path` is about to be written to has less than `nbytes` bytes left."""
    free = shutil.disk_usage(path.parent).free
    if free < nbytes:
        raise UserError(
            f"{path}: needs {nbytes / 1e6:.1f} MB, and its disk has {free / 1e6:.1f} MB left; free space and run again"
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


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write `content` to `path` atomically."""
    with atomic(path, len(content)) as temporary:
        temporary.write_bytes(content)


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
