"""JSON files with a version and a checksum, and what files were made from."""

import hashlib
import json
from pathlib import Path

from wshare.errors import FormatError, one_line
from wshare.files.atomic import remedy, write_text

# Of JSON files and of tables.
TEXT_VERSION = 1


def write_json(path: str | Path, value: dict) -> None:
    """Write `value` as indented JSON, with its version and checksum; a NaN or an infinity raises ValueError."""
    sealed = {"version": TEXT_VERSION} | value | {"checksum": _checksum(value)}
    write_text(path, json.dumps(sealed, indent=2, allow_nan=False) + "\n")


def read_json(path: str | Path) -> dict:
    """Content of a file that `write_json` wrote; FormatError if it is missing, damaged or of another version."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_refused)
        version, found = value.pop("version", None), value.pop("checksum")
    except FileNotFoundError:
        raise FormatError(f"{path}: no such file; {remedy(path)}") from None
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise FormatError(f"{path}: damaged JSON ({type(error).__name__}: {one_line(error)}); {remedy(path)}") from None
    check_version(path, version)
    if found != _checksum(value):
        raise FormatError(f"{path}: damaged (checksum differs); {remedy(path)}")
    return value


def _refused(constant: str) -> None:
    # JSON has neither, and `write_json` writes neither.
    raise ValueError(f"{constant} is no number")


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


def check_origin(path: str | Path, found: dict[str, str], expected: dict[str, str]) -> None:
    """FormatError unless a file was made from what is expected, as far as that is known."""
    for name, value in expected.items():
        if found.get(name) != value:
            raise FormatError(f"{path}: made from other {name} than are there now; {remedy(path)}")
