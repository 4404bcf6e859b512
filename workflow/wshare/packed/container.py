"""The container of a packed file, on disk or in memory, and the index in it."""

import json
import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load

from wshare.errors import FormatError
from wshare.files.atomic import remedy
from wshare.packed.hashes import index_hash
from wshare.packed.sections import count, named

VERSION = 2
SECTIONS = {1: ("shared", "batch_norm", "kept"), 2: ("shared", "folded", "batch_norm", "kept")}
FORMATS = ("fixed", "entropy")
# Numbers that a file may claim: what a file of no size may, and what each byte adds.
FREE_CLAIM, CLAIM_PER_BYTE = 1 << 24, 1024
# A packed file: its path, or its content.
Source = str | Path | bytes


def where(source: Source) -> str:
    """What messages call a packed file."""
    return "packed file" if isinstance(source, bytes) else str(source)


class _Content:
    """What `safe_open` gives, for a container in memory."""

    def __init__(self, content: bytes):
        self._tensors = load(content)
        length = int.from_bytes(content[:8], "little")
        self._metadata = json.loads(content[8 : 8 + length]).get("__metadata__")

    def metadata(self) -> dict[str, str] | None:
        return self._metadata

    def keys(self) -> list[str]:
        return list(self._tensors)

    def get_tensor(self, name: str) -> np.ndarray:
        return self._tensors[name]


@contextmanager
def opened(source: Source) -> Iterator[safe_open | _Content]:
    """The container; FormatError if it is missing, or not whole."""
    path = where(source)
    try:
        if isinstance(source, bytes):
            yield _Content(source)
            return
        with safe_open(source, "numpy") as file:
            yield file
    except FileNotFoundError:
        raise FormatError(f"{path}: no such file; {remedy(path)}") from None
    except (SafetensorError, OSError, TypeError, AttributeError, KeyError) as error:
        # The last three stand for types that numpy does not have.
        raise FormatError(f"{path}: not a whole safetensors file ({error}); {remedy(path)}") from None


def _claim(index: dict, channels: list[int] | None) -> tuple[int, str]:
    """Numbers that the file claims to hold beyond its bytes, and the entry that claims most.

    `channels` are the outputs of each shared tensor; None, before sections are read, stands for its first axis.
    ValueError or TypeError if a shape or a position is none.
    """
    claims: dict[str, int] = {"": 0}
    rows = []
    for name, (shape, *_) in index["shared"].items():
        with named(repr(name)):
            count(shape)
        # An axis of length 0 must not hide others: exponents take memory for each row.
        claims[name] = math.prod(max(1, axis) for axis in shape)
        rows.append(max(1, *shape[:1], 1))
    if channels is not None:
        rows = [max(first, outputs) for first, outputs in zip(rows, channels, strict=True)]
    for name, (position, *_) in index.get("folded", {}).items():
        if type(position) is not int or not 0 <= position < len(rows):
            raise ValueError(f"{name!r}: folded into no shared tensor")
        claims[name] = claims.get(name, 0) + 4 * rows[position]
    return sum(claims.values()), max(claims, key=claims.__getitem__)


def check_claim(path: str, index: dict, nbytes: int, channels: list[int] | None = None) -> None:
    """FormatError if the file claims more numbers than one of that many bytes of tensors may."""
    (claim, name), allowed = _claim(index, channels), FREE_CLAIM + CLAIM_PER_BYTE * nbytes
    if claim > allowed:
        claimed = f"claims {claim} numbers, most for {name!r}; with its size it may {allowed}"
        raise FormatError(f"{path}: {claimed}; {remedy(path)}")


@contextmanager
def damaged(path: str, name: str) -> Iterator[None]:
    """Any error of the block that damage can cause becomes a FormatError that names the tensor."""
    try:
        yield
    except (TypeError, ValueError, OverflowError, IndexError, struct.error) as error:
        raise FormatError(f"{path}: {name!r}: {error}; {remedy(path)}") from None


def index_of(path: str, file: safe_open | _Content) -> dict:
    """The index, checked against its hash."""
    text = (file.metadata() or {}).get("wshare")
    if text is None:
        raise FormatError(f"{path}: not a packed file of wshare (no index in its metadata); {remedy(path)}")
    try:
        index = json.loads(text)
        version = index["version"]
        if version in SECTIONS:
            for section in (*SECTIONS[version], "aliases"):
                index[section].items()
            if version == VERSION and not (index["form"] in FORMATS and index["payload"]):
                raise FormatError(f"{path}: damaged index (form {index['form']!r}); {remedy(path)}")
            found = index.pop("hash")
            if found != index_hash(index):
                raise FormatError(f"{path}: damaged index (hash differs); {remedy(path)}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(f"{path}: damaged index ({error!r}); {remedy(path)}") from None
    if version not in SECTIONS:
        known = f"this wshare reads versions 1 and {VERSION}"
        raise FormatError(f"{path}: format version {version!r}; {known}; {remedy(path)}")
    return index
