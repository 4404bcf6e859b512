"""The packed file: coded indices, codebooks and kept tensors in a safetensors container.

Layout, version 2, the only one written. One tensor `payload`, U8, and `__metadata__["wshare"]`, which is JSON:

    {"version": 2,
     "form": "fixed" or "entropy",               how indices were coded; a reader needs it for nothing
     "shared": {tensor: [shape, k, bytes]},
     "folded": {module: [position, eps, bytes]}, position of the layer's tensor in "shared", from 0
     "batch_norm": {module: [channels, eps, type]},
     "kept": {tensor: [shape, type]},
     "aliases": {tensor: tensor},                tied tensors, stored once
     "float32": hash,                            of the weights before sharing, as `weights_hash`; may be absent
     "payload": hash,                            of the payload
     "hash": hash}                               of this JSON without this key and without spaces

Hashes are SHA-256 in base64 without padding. The payload holds a section for every entry of "shared", "folded",
"batch_norm" and "kept", in that order, without gaps. A section starts with the CRC-32 of its rest, u32; `bytes` counts
both. Numbers are little-endian; a type is `f` float, `i` integer, `u` unsigned or `b` bool and its bytes. Then:

    shared        u8 flags: bit 0, the codebook is float16, not float32; bit 1, there are exponents
                  codebook, k values, finite and ascending
                  if bit 1: u24 bytes of the next two, i16 least exponent, coded exponents [shape[0]]
                  coded indices, below k, in C order
    folded        f32 unit, i32 least step, coded steps, below 2^31 [shape[0] of the shared tensor]
    batch_norm    scale, shift [channels]
    kept          the tensor's bytes in C order

`wshare.entropy` describes coded integers; exponents and steps are coded after subtraction of the least. A weight is
codebook[index], times 2^(e/8) of its row as `wshare.codebooks.row_scale` makes it, in float32. Exponents go from -1008
to 1008. A folded shift is step * unit * 2^(e/8), in float64, rounded to float32. A negative eps (-0.0 included)
belongs to a module without weight and bias.

No file may claim more than 2^24 numbers + 1024 for each byte of its tensors: the weights of all shared tensors (an axis
of length 0 counted as 1) plus 4 for each channel of the folded norms.

Layout, version 1, still read. A tensor each, and as index:

    {"version": 1,
     "shared": {tensor: [shape, hash]},      stored as `tensor.codebook` F32 [k], `tensor.indices` U8
     "batch_norm": {module: [eps, hash]},    stored as `module.scale`, `module.shift`, F32 or F16 [channels]
     "kept": {tensor: hash},                 stored as `tensor`
     "aliases": {tensor: tensor},
     "hash": hash}

An index takes ceil(log2 k) bits, lowest bit first, without gaps; the last byte is filled with zeros. An entry's hash is
the SHA-256 over type, shape and bytes of its arrays, in the order above, as `sha256_arrays` makes it.
"""

import json
import math
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from wshare.errors import FormatError
from wshare.files.atomic import atomic, remedy
from wshare.packed.entropy import decode, encode, pack_indices, unpack_indices
from wshare.quantize.batch_norm import BatchNorm, FoldedNorm
from wshare.quantize.codebooks import REACH, Shared, row_scale
from wshare.quantize.cost import index_bits

if TYPE_CHECKING:
    import torch
from wshare.packed.format_v1 import Entry, unpack_v1
from wshare.packed.hashes import byte_hash, compact, index_hash, weights_hash

__all__ = [
    "Layout",
    "load_packed",
    "pack_indices",
    "read_index",
    "read_layout",
    "read_shared",
    "unpack_indices",
    "weights_hash",
    "write_packed",
]


VERSION = 2


SECTIONS = {1: ("shared", "batch_norm", "kept"), 2: ("shared", "folded", "batch_norm", "kept")}


FORMS = ("fixed", "entropy")


TYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")


# Flags of a shared section.
HALF, SCALED = 1, 2


STEP_LIMIT = 1 << 31


# Numbers that a file may claim: what a file of no size may, and what each byte adds.
FREE_CLAIM, CLAIM_PER_BYTE = 1 << 24, 1024


def write_packed(
    path: str | Path,
    state: dict[str, np.ndarray],
    shared: dict[str, Shared],
    norms: dict[str, BatchNorm],
    folded: dict[str, FoldedNorm],
    aliases: dict[str, str],
    form: str,
    float32: str | None = None,
) -> dict[str, int]:
    """Write a packed file atomically; returns its bytes by kind.

    Kinds: indices (with their frequencies), codebooks, scales, shifts (of folded norms), kept (with batch norms),
    header (all else) and packed, the sum. `state` is the float32 state dict without aliases; what is neither shared
    nor of a batch norm is kept. `form` is 'fixed', ceil(log2 k) bits an index, or 'entropy'; `float32`, from
    `weights_hash`, tells what network the file was made from. ValueError for parts that do not fit together;
    FormatError for more weights than a file of that size may claim.
    """
    if form not in FORMS:
        raise ValueError(f"form {form!r}: use one of {FORMS}")
    sizes = dict.fromkeys(("indices", "codebooks", "scales", "shifts", "kept"), 0)
    sections: list[bytes] = []
    replaced: set[str] = set()
    index: dict = {"version": VERSION, "form": form, "shared": {}, "folded": {}, "batch_norm": {}, "kept": {}}

    def add(**parts: bytes) -> int:
        """Bytes of the section made of parts by kind; others than those in `sizes` count as header."""
        for kind in parts.keys() & sizes.keys():
            sizes[kind] += len(parts[kind])
        rest = b"".join(parts.values())
        sections.append(zlib.crc32(rest).to_bytes(4, "little") + rest)
        return len(sections[-1])

    for name, tensor in shared.items():
        if state[name].shape != tensor.indices.shape:
            raise ValueError(f"{name}: indices {tensor.indices.shape} for a tensor {state[name].shape}")
        with _named(name):
            size = add(**_shared_parts(tensor, form))
        index["shared"][name] = [list(tensor.indices.shape), len(tensor.codebook), size]
    for name, norm in folded.items():
        with _named(name):
            _check_folded(norm, shared[norm.tensor])
            replaced |= _leaves(name, norm.norm(None)).keys()
            size = add(shifts=struct.pack("<f", norm.unit) + _offset(norm.steps, "<i", STEP_LIMIT))
        index["folded"][name] = [list(shared).index(norm.tensor), _signed(norm), size]
    for name, norm in norms.items():
        kind = norm.scale.dtype.str[1:]
        if kind not in ("f2", "f4") or norm.scale.dtype != norm.shift.dtype or norm.scale.shape != norm.shift.shape:
            raise ValueError(f"{name}: a batch norm has one scale and one shift a channel, of one type")
        with _named(name):
            replaced |= _leaves(name, norm).keys()
        add(kept=_raw(norm.scale) + _raw(norm.shift))
        index["batch_norm"][name] = [len(norm.scale), _signed(norm), kind]
    for name, tensor in state.items():
        if name not in shared and name not in replaced:
            if tensor.dtype.str[1:] not in TYPES:
                raise ValueError(f"{name}: type {tensor.dtype} cannot be kept")
            add(kept=_raw(tensor))
            index["kept"][name] = [list(tensor.shape), tensor.dtype.str[1:]]
    payload = b"".join(sections)
    index |= {"aliases": aliases} | ({} if float32 is None else {"float32": float32}) | {"payload": byte_hash(payload)}
    _check_claim(path, index, len(payload))
    with atomic(path, len(payload)) as temporary:
        # One metadata key: the library writes several in no fixed order.
        text = compact(index | {"hash": index_hash(index)})
        save_file({"payload": np.frombuffer(payload, np.uint8)}, temporary, {"wshare": text})
        size = temporary.stat().st_size
    return sizes | {"header": size - sum(sizes.values()), "packed": size}


def load_packed(path: str | Path) -> "dict[str, torch.Tensor]":
    """State dict of the compressed network, for `module.load_state_dict`.

    Every entry is checked against its checksum and its bounds; FormatError names the file and the tensor.
    """
    import torch

    return {name: torch.from_numpy(array) for name, array in _read(path, Shared.weight).items()}


def read_shared(path: str | Path) -> tuple[dict[str, Shared], dict[str, np.ndarray]]:
    """Shared tensors as codebook and indices, and all others as arrays, by name in the state dict.

    Nothing is expanded; tied tensors are one object. Checks are those of `load_packed`.
    """
    state = _read(path, lambda tensor: tensor)
    shared = {name: tensor for name, tensor in state.items() if isinstance(tensor, Shared)}
    return shared, {name: array for name, array in state.items() if name not in shared}


def _read(path: str | Path, make: Callable[[Shared], Entry]) -> dict[str, Entry | np.ndarray]:
    """State dict, each shared tensor as `make` gives it; tied tensors are one object."""
    with _opened(path) as file:
        index = _index_of(path, file)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    try:
        _check_claim(path, index, sum(tensor.nbytes for tensor in tensors.values()))
        state = (_unpack if index["version"] == VERSION else unpack_v1)(path, index, tensors, make)
        if tensors:
            raise FormatError(f"{path}: {next(iter(tensors))!r} is not in the index; {remedy(path)}")
        for alias, name in index["aliases"].items():
            if name not in state:
                raise FormatError(f"{path}: alias {alias!r} names {name!r}, which is missing; {remedy(path)}")
            state[alias] = state[name]
        return state
    except MemoryError as error:
        raise FormatError(
            f"{path}: needs more memory than there is ({error}); free some, or take another file"
        ) from None
    except (TypeError, ValueError, OverflowError, IndexError) as error:
        raise FormatError(f"{path}: damaged index ({error}); {remedy(path)}") from None


@contextmanager
def _opened(path: str | Path) -> Iterator[safe_open]:
    """The container; FormatError if it is missing, or not whole."""
    try:
        with safe_open(path, "numpy") as file:
            yield file
    except FileNotFoundError:
        raise FormatError(f"{path}: no such file; {remedy(path)}") from None
    except (SafetensorError, OSError, TypeError, AttributeError) as error:
        # The last two stand for types that numpy does not have.
        raise FormatError(f"{path}: not a whole safetensors file ({error}); {remedy(path)}") from None


@dataclass(frozen=True)
class Layout:
    """What a packed file of this version holds.

    `octets` gives the bytes of each entry, by tensor or batch norm; the header is in none of them. `folded` gives the
    batch norm, with its eps, that is folded into a shared tensor.
    """

    octets: dict[str, int]
    folded: dict[str, tuple[str, float]]


def read_index(path: str | Path) -> dict:
    """The index of a packed file, of whichever version, checked against its hash; FormatError if it is another file."""
    with _opened(path) as file:
        return _index_of(path, file)


def read_layout(path: str | Path) -> Layout:
    """Bytes of each entry, read from the index alone; FormatError for a file of another kind or version."""
    index = read_index(path)
    if index["version"] != VERSION:
        raise FormatError(f"{path}: format version {index['version']}, not {VERSION}; {remedy(path)}")
    octets = {name: size for section in ("shared", "folded") for name, (*_, size) in index[section].items()}
    octets |= {name: 4 + 2 * channels * int(kind[1]) for name, (channels, _, kind) in index["batch_norm"].items()}
    octets |= {name: 4 + math.prod(shape) * int(kind[1]) for name, (shape, kind) in index["kept"].items()}
    tensors = list(index["shared"])
    folded = {tensors[position]: (name, abs(eps)) for name, (position, eps, _) in index["folded"].items()}
    return Layout(octets, folded)


def _shared_parts(tensor: Shared, form: str) -> dict[str, bytes]:
    """Parts of a shared section by kind, in their order."""
    k = len(tensor.codebook)
    _check_codebook(tensor.codebook, tensor.exponents)
    if int(tensor.indices.max(initial=0)) >= k:
        raise ValueError("an index points past the codebook")
    with np.errstate(over="ignore"):
        half = tensor.codebook.astype("<f2")
    fits = np.array_equal(half.astype(np.float32), tensor.codebook)
    scales = b""
    if tensor.exponents is not None:
        if tensor.exponents.shape != tensor.indices.shape[:1] or not tensor.indices.ndim:
            raise ValueError(f"{tensor.exponents.shape} exponents for a tensor {tensor.indices.shape}")
        scales = _offset(tensor.exponents, "<h", 2 * REACH + 1)
    return {
        "flags": bytes([HALF * fits | SCALED * (tensor.exponents is not None)]),
        "codebooks": _raw(half if fits else tensor.codebook),
        "length": b"" if tensor.exponents is None else len(scales).to_bytes(3, "little"),
        "scales": scales,
        "indices": encode(tensor.indices, index_bits(k) if form == "fixed" else None),
    }


def _read_shared(rest: memoryview, shape: list[int], k: int) -> Shared:
    """Shared tensor of a section; ValueError for what a checksum made by an attacker would pass."""
    if type(k) is not int or not 1 <= k <= 1 << 16:
        raise ValueError("a codebook has from 1 to 65,536 values")
    (flags,), rest = _cut(rest, 1)
    if flags & ~(HALF | SCALED):
        raise ValueError(f"unknown flags {flags}")
    kind = np.dtype("<f2" if flags & HALF else "<f4")
    octets, rest = _cut(rest, k * kind.itemsize)
    codebook, exponents = np.frombuffer(octets, kind).astype(np.float32), None
    if flags & SCALED:
        length, rest = _cut(rest, 3)
        octets, rest = _cut(rest, int.from_bytes(length, "little"))
        exponents = _read_offset(octets, "<h", shape[0], 2 * REACH + 1)
    _check_codebook(codebook, exponents)
    indices = decode(rest, math.prod(shape), k).reshape(shape)
    return Shared(codebook, indices, None if exponents is None else exponents.astype(np.int16))


def _check_codebook(codebook: np.ndarray, exponents: np.ndarray | None) -> None:
    if codebook.dtype != np.float32 or codebook.ndim != 1 or not 1 <= len(codebook) <= 1 << 16:
        raise ValueError("a codebook is float32 [k] with k from 1 to 65,536")
    if not np.isfinite(codebook).all() or (codebook[1:] < codebook[:-1]).any():
        raise ValueError("the codebook is not finite and ascending")
    if exponents is None or not exponents.size:
        return
    if exponents.min() < -REACH or exponents.max() > REACH:
        raise ValueError(f"exponents go from {-REACH} to {REACH}")
    largest = float(np.abs(codebook).max()) * float(row_scale(exponents.max()[None])[0])
    if largest > float(np.finfo(np.float32).max):
        raise ValueError("the weights are not finite")


def _check_folded(norm: FoldedNorm, layer: Shared) -> None:
    if norm.steps.shape != layer.indices.shape[:1] or not layer.indices.ndim:
        raise ValueError(f"steps {norm.steps.shape} for a tensor {layer.indices.shape}")
    if norm.steps.size and not -(1 << 31) <= int(norm.steps.min()) <= int(norm.steps.max()) < 1 << 31:
        raise ValueError("a step is not an int32")
    if not np.isfinite(norm.norm(layer.exponents).shift).all():
        raise ValueError("the shifts are not finite")


def _offset(values: np.ndarray, kind: str, limit: int) -> bytes:
    """Least value, as `struct` packs it, and the coded distances from it."""
    least = int(values.min()) if values.size else 0
    distances = values.astype(np.int64) - least
    if int(distances.max(initial=0)) >= limit:
        raise ValueError(f"integers spread over {limit} or more")
    return struct.pack(kind, least) + encode(distances)


def _read_offset(octets: memoryview, kind: str, count: int, limit: int) -> np.ndarray:
    """Integers that `_offset` coded: int64 [count]."""
    least, rest = _cut(octets, struct.calcsize(kind))
    values = decode(rest, count, limit).astype(np.int64)
    values += struct.unpack(kind, least)[0]
    return values


def _unpack(
    path: str | Path, index: dict, tensors: dict[str, np.ndarray], make: Callable[[Shared], Entry]
) -> dict[str, Entry | np.ndarray]:
    """State dict; takes what it uses out of `tensors`."""
    payload = tensors.pop("payload", np.zeros(0, np.int8))
    if payload.dtype != np.uint8 or payload.ndim != 1:
        raise FormatError(f"{path}: 'payload', bytes in one row, is missing; {remedy(path)}")
    rest, scales = memoryview(payload), []
    state: dict[str, np.ndarray] = {}

    def section(size: int) -> memoryview:
        nonlocal rest
        octets, rest = _cut(rest, size)
        checksum, content = _cut(octets, 4)
        if zlib.crc32(content) != int.from_bytes(checksum, "little"):
            raise ValueError("damaged (checksum differs)")
        return content

    for name, (shape, k, size) in index["shared"].items():
        with _damaged(path, name):
            tensor = _read_shared(section(size), shape, k)
            state |= _new(state, {name: make(tensor)})
            scales.append((len(shape) and shape[0], tensor.exponents))
    for name, (position, eps, size) in index["folded"].items():
        with _damaged(path, name):
            channels, exponents = scales[position]
            state |= _new(state, _leaves(name, _read_folded(section(size), channels, eps).norm(exponents)))
    for name, (channels, eps, kind) in index["batch_norm"].items():
        with _damaged(path, name):
            if kind not in ("f2", "f4"):
                raise ValueError(f"type {kind!r}")
            both = _read_raw(section(4 + 2 * _count([channels]) * int(kind[1])), kind, [2, channels])
            state |= _new(state, _leaves(name, BatchNorm(*both, *_unsigned(eps))))
    for name, (shape, kind) in index["kept"].items():
        with _damaged(path, name):
            if kind not in TYPES:
                raise ValueError(f"type {kind!r}")
            state |= _new(state, {name: _read_raw(section(4 + _count(shape) * int(kind[1])), kind, shape)})
    if len(rest) or byte_hash(payload) != index["payload"]:
        raise FormatError(f"{path}: damaged payload (hash differs); {remedy(path)}")
    return state


def _read_folded(rest: memoryview, channels: int, eps: float) -> FoldedNorm:
    unit, rest = _cut(rest, 4)
    steps = _read_offset(rest, "<i", channels, STEP_LIMIT)
    if channels and steps.max() >= 1 << 31:
        raise ValueError("a step is not an int32")
    return FoldedNorm("", steps, struct.unpack("<f", unit)[0], *_unsigned(eps))


def _leaves(name: str, norm: BatchNorm) -> dict[str, np.ndarray]:
    """State of a batch norm by full name; ValueError if it is not finite."""
    if not norm.affine and not norm.scale.all():
        raise ValueError("a scale is 0")
    with np.errstate(over="ignore", invalid="ignore"):
        state = norm.tensors(name)
    if not all(np.isfinite(array).all() for array in state.values()):
        raise ValueError("the batch norm is not finite")
    return state


def _new(state: dict[str, np.ndarray], entries: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`entries`, none of which `state` may have."""
    if twice := state.keys() & entries.keys():
        raise ValueError(f"{min(twice)!r} is there twice")
    return entries


def _count(shape: list[int]) -> int:
    """Elements of a shape; ValueError if it is none."""
    if type(shape) is not list or len(shape) > 32 or any(type(axis) is not int or axis < 0 for axis in shape):
        raise ValueError("no shape")
    return math.prod(shape)


def _claim(index: dict) -> tuple[int, str]:
    """Numbers that the file claims to hold beyond its bytes, and the entry that claims most.

    ValueError or TypeError if a shape or a position is none.
    """
    claims: dict[str, int] = {"": 0}
    rows = []
    for name, (shape, *_) in index["shared"].items():
        with _named(repr(name)):
            _count(shape)
        # An axis of length 0 must not hide others: exponents take memory for each row.
        claims[name] = math.prod(max(1, axis) for axis in shape)
        rows.append(max(1, *shape[:1], 1))
    for name, (position, *_) in index.get("folded", {}).items():
        if type(position) is not int or not 0 <= position < len(rows):
            raise ValueError(f"{name!r}: folded into no shared tensor")
        claims[name] = claims.get(name, 0) + 4 * rows[position]
    return sum(claims.values()), max(claims, key=claims.__getitem__)


def _check_claim(path: str | Path, index: dict, octets: int) -> None:
    """FormatError if the file claims more than one of that many bytes of tensors may."""
    (claim, name), allowed = _claim(index), FREE_CLAIM + CLAIM_PER_BYTE * octets
    if claim > allowed:
        claimed = f"claims {claim} numbers, most for {name!r}; with its size it may {allowed}"
        raise FormatError(f"{path}: {claimed}; {remedy(path)}")


def _cut(octets: memoryview, size: int) -> tuple[memoryview, memoryview]:
    """The first bytes and the rest; ValueError if there are not as many."""
    if type(size) is not int or not 0 <= size <= len(octets):
        raise ValueError(f"{size} bytes wanted, {len(octets)} left")
    return octets[:size], octets[size:]


def _raw(array: np.ndarray) -> bytes:
    return np.asarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def _read_raw(octets: memoryview, kind: str, shape: list[int]) -> np.ndarray:
    if kind == "b1" and max(octets, default=0) > 1:
        raise ValueError("a truth value is neither 0 nor 1")
    # A copy in the machine's own byte order.
    return np.frombuffer(octets, f"<{kind}").astype(kind).reshape(shape)


def _signed(norm: BatchNorm | FoldedNorm) -> float:
    eps = float(norm.eps)
    _unsigned(eps)
    return eps if norm.affine else -eps


def _unsigned(eps: float) -> tuple[float, bool]:
    """Eps and whether the module has weight and bias."""
    if type(eps) not in (int, float) or not abs(eps) < 1e6:
        raise ValueError(f"eps {eps!r}")
    return abs(eps), math.copysign(1, eps) > 0


@contextmanager
def _named(name: str) -> Iterator[None]:
    """A ValueError of the block names the tensor."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


@contextmanager
def _damaged(path: str | Path, name: str) -> Iterator[None]:
    """Any error of the block that damage can cause becomes a FormatError that names the tensor."""
    try:
        yield
    except (TypeError, ValueError, OverflowError, IndexError, struct.error) as error:
        raise FormatError(f"{path}: {name!r}: {error}; {remedy(path)}") from None


def _index_of(path: str | Path, file: safe_open) -> dict:
    text = (file.metadata() or {}).get("wshare")
    if text is None:
        raise FormatError(f"{path}: not a packed file of wshare (no index in its metadata); {remedy(path)}")
    try:
        index = json.loads(text)
        version = index["version"]
        if version in SECTIONS:
            for section in (*SECTIONS[version], "aliases"):
                index[section].items()
            if version == VERSION and not (index["form"] in FORMS and index["payload"]):
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
