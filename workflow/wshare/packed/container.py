"""The container of a packed file, on disk or in memory, and the index in it."""

import hashlib
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
from wshare.packed.hashes import byte_hash
from wshare.packed.header import FORMATS, VERSION, read_header
from wshare.packed.sections import STEPPED, count, named

# Of versions whose index is JSON: kinds of entries, and all keys in their order; "float32" may be absent.
SECTIONS = {1: ("shared", "batch_norm", "kept"), 2: ("shared", "folded", "batch_norm", "kept")}
KEYS = {
    1: ["version", *SECTIONS[1], "aliases", "hash"],
    2: ["version", "form", *SECTIONS[2], "aliases", "float32", "payload", "hash"],
}
# Letters of a number of JSON that is no integer.
LONGEST_NUMBER = 40
# The one tensor of a file of version 3, and the bytes of its hash.
PAYLOAD, CHECK_BYTES = "wshare", 8
KNOWN = f"this wshare reads versions 1 to {VERSION}"
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
            content = _Content(source)
            _check_header(path, source[8 : 8 + int.from_bytes(source[:8], "little")])
            yield content
            return
        with safe_open(source, "numpy") as file:
            with open(source, "rb") as stream:
                _check_header(path, stream.read(int.from_bytes(stream.read(8), "little")))
            yield file
    except FileNotFoundError:
        raise FormatError(f"{path}: no such file; {remedy(path)}") from None
    except (SafetensorError, OSError, TypeError, AttributeError, KeyError) as error:
        # The last three stand for types that numpy does not have.
        raise FormatError(f"{path}: not a whole safetensors file ({error}); {remedy(path)}") from None


def _check_header(path: str, header: bytes) -> None:
    """FormatError unless the container's header holds all that one of a packed file may hold, once each.

    safetensors takes more: unknown keys, keys that are there twice, other metadata.
    """
    try:
        entries = json.loads(header.decode(), object_pairs_hook=_once)
        if list(entries.pop("__metadata__", {"wshare": ""})) != ["wshare"]:
            raise ValueError("metadata of another kind")
        for entry in entries.values():
            if entry.keys() != {"dtype", "shape", "data_offsets"}:
                raise ValueError("unknown keys")
            count(entry["shape"])
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(f"{path}: not a packed file of wshare, or no index in it ({error}); {remedy(path)}") from None


def _once(pairs: list[tuple[str, object]]) -> dict:
    """An object of JSON; ValueError if a name is there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice")
    return found


def _number(text: str) -> float:
    """A number of JSON; ValueError where it is longer than a decoder must be able to read."""
    if len(text) > LONGEST_NUMBER:
        raise ValueError(f"a number of more than {LONGEST_NUMBER} letters")
    return float(text)


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
        claims[name] = _numbers(shape)
        rows.append(max(1, *shape[:1], 1))
    if channels is not None:
        rows = [max(first, outputs) for first, outputs in zip(rows, channels, strict=True)]
    for name, (position, *_) in index.get("folded", {}).items():
        if type(position) is not int or not 0 <= position < len(rows):
            raise ValueError(f"{name!r}: folded into no shared tensor")
        claims[name] = claims.get(name, 0) + 4 * rows[position]
    for name, (shape, _, *coding) in index["kept"].items() if index["version"] == VERSION else ():
        # Coded integers that are all the same take no byte each.
        if coding[0] == STEPPED:
            claims[name] = claims.get(name, 0) + _numbers(shape)
    return sum(claims.values()), max(claims, key=claims.__getitem__)


def _numbers(shape: list[int]) -> int:
    """Numbers that a shape claims. An axis of length 0 must not hide others: exponents take memory for each row."""
    return math.prod(max(1, axis) for axis in shape)


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


def index_of(path: str, file: safe_open | _Content) -> tuple[dict, memoryview | None]:
    """The index, checked against its hash, and the sections of a file of version 3; FormatError if it is another."""
    text = (file.metadata() or {}).get("wshare")
    if text is not None:
        return _index_of_text(path, text), None
    names = list(file.keys())
    if PAYLOAD not in names:
        raise FormatError(f"{path}: not a packed file of wshare (no index in it); {remedy(path)}")
    if len(names) > 1:
        other = next(name for name in names if name != PAYLOAD)
        raise FormatError(f"{path}: {other!r} is not in the index; {remedy(path)}")
    payload = file.get_tensor(PAYLOAD)
    if payload.dtype != np.uint8 or payload.ndim != 1 or len(payload) <= CHECK_BYTES:
        raise FormatError(f"{path}: damaged ({PAYLOAD!r} is not a row of bytes); {remedy(path)}")
    if payload[0] != VERSION:
        raise FormatError(f"{path}: format version {payload[0]}; {KNOWN}; {remedy(path)}")
    content = memoryview(payload)[:-CHECK_BYTES]
    if check_hash(content) != payload[-CHECK_BYTES:].tobytes():
        raise FormatError(f"{path}: damaged (hash differs); {remedy(path)}")
    try:
        return read_header(content)
    except (ValueError, IndexError) as error:
        raise FormatError(f"{path}: damaged index ({error}); {remedy(path)}") from None


def check_hash(content: bytes | memoryview) -> bytes:
    """What a payload ends in: the first bytes of the SHA-256 of all before."""
    return hashlib.sha256(content).digest()[:CHECK_BYTES]


def _index_of_text(path: str, text: str) -> dict:
    """The index of version 1 or 2, checked against its hash: that of the text before its key, and a brace."""
    try:
        index = json.loads(text, object_pairs_hook=_once, parse_float=_number)
        version = index["version"]
        known = type(version) is int and version in SECTIONS
        if known:
            for section in (*SECTIONS[version], "aliases"):
                index[section].items()
            keys = [key for key in KEYS[version] if key != "float32" or key in index]
            if list(index) != keys or type(index.get("float32", "")) is not str:
                raise FormatError(f"{path}: damaged index (keys {list(index)}); {remedy(path)}")
            if version == 2 and not (index["form"] in FORMATS and index["payload"]):
                raise FormatError(f"{path}: damaged index (form {index['form']!r}); {remedy(path)}")
            # A name may be any text that UTF-8 can hold.
            json.dumps(index, ensure_ascii=False).encode()
            if index.pop("hash") != byte_hash((text[: text.rindex(',"hash":')] + "}").encode()):
                raise FormatError(f"{path}: damaged index (hash differs); {remedy(path)}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(f"{path}: damaged index ({error!r}); {remedy(path)}") from None
    if not known:
        raise FormatError(f"{path}: format version {version!r}; {KNOWN}; {remedy(path)}")
    return index
