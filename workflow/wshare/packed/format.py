"""The packed file: coded indices, codebooks and kept tensors in a safetensors container.

Layout, version 3, the only one written. One tensor, `wshare`, U8, without metadata: header, sections without gaps, and
the first 8 bytes of the SHA-256 of both. Numbers are little-endian; a varint has 7 bits a byte, the lowest first; a
signed one is the varint of 2 n, or of -2 n - 1 below 0. The header:

    u8 3, u8 form       bit 0: indices were entropy-coded, which no reader needs to know; bit 1: a hash follows
    9 bytes             if bit 1: first of `weights_hash` of the weights before sharing
    5 varints           number of entries of the kinds shared, folded, batch_norm, kept, and of aliases
    varint, f64 ...     all epsilons
    names               of all entries, and of each alias two: its own and what it stands for (tied tensors)
    shared              shape, varint k, varint bytes of the section
    folded              varint position of the layer's tensor among the shared ones, varint place of eps, varint bytes
    batch_norm          varint channels, varint place of eps, u8 type
    kept                u8 type + 16 coding, shape, varint bytes if the coding is 2

A name is varints back, first, last and own, and `own` bytes: the first bytes of the name so far back, these, and the
last bytes of that name. A shape is a varint number of axes and a varint each; a type a place in `sections.TYPES`. An
eps is negative (-0.0 included) for a module without weight and bias. The sections, in the order of the header:

    shared        u8 flags: bit 0, the codebook is float16, not float32; bit 1, there are exponents; bit 2, outputs are
                  counted by another axis than the first; bit 3, the codebook is a grid
                  if bit 2: varint that axis, varint groups
                  if bit 3: u16, the upper half of a float32, the step, and signed varint least place
                  else codebook, k values, finite and ascending
                  if bit 1: varint bytes of the next, offset integers: exponents [outputs]
                  coded integers in C order, in rows of the first axis: indices below k, or, of a grid, places less the
                  least, below 2^16, of which k differ; a shared value is step * place
    folded        f32 unit, offset integers: steps [outputs of the shared tensor]
    batch_norm    scale, shift [channels]
    kept          by coding: 0, the tensor's bytes in C order; 1, float32 as float16; 2, float32 as signed varint u and
                  offset integers, which count 2^u

Offset integers are a signed varint, the least, u8 shift, and coded integers: their distances from the least >> shift.
Exponents stay within 2016 of the least, others within 2^31. `wshare.packed.entropy` describes coded integers. A weight
is codebook[index], times 2^(e/8) of its output as `wshare.quantize.codebooks.row_scale` makes it, in float32. Exponents
go from -1008 to 1008. Outputs are shape[0], or, by another axis, groups * shape[axis], counted as `Layout` does. A
folded shift is step * unit * 2^(e/8), in float64, rounded to float32. A bias that became a part of a folded shift is
shared with one value, 0.

No file may claim more than 2^24 numbers + 1024 for each byte of its sections: the weights of all shared tensors (an
axis of length 0 counted as 1), plus 4 for each channel of the folded norms, plus the values of kept tensors of coding
2.

The hash finds damage of any kind before anything is decoded; nothing here is a signature. That of the float32 weights
tells a wrong network to compare with.

Layout, version 2, still read. One tensor `payload`, U8, and `__metadata__["wshare"]`, which is JSON:

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
both. A type is `f` float, `i` integer, `u` unsigned or `b` bool and its bytes. Then:

    shared        u8 flags: bit 0, the codebook is float16, not float32; bit 1, there are exponents; bit 2, outputs are
                  counted by another axis than the first
                  if bit 2: u8 that axis, u32 groups
                  codebook, k values, finite and ascending
                  if bit 1: u24 bytes of the next two, i16 least exponent, coded exponents [outputs]
                  coded indices, below k, in C order
    folded        f32 unit, i32 least step, coded steps, below 2^31 [outputs of the shared tensor]
    batch_norm    scale, shift [channels]
    kept          the tensor's bytes in C order

Exponents and steps are coded after subtraction of the least. What the parts mean is as in version 3, and so is what a
file may claim.

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

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import save

from wshare.errors import FormatError
from wshare.files.atomic import remedy, write_bytes
from wshare.packed import sections
from wshare.packed.container import PAYLOAD, Source, check_claim, check_hash, damaged, index_of, opened, where
from wshare.packed.format_v1 import Entry, unpack_v1
from wshare.packed.format_v2 import unpack_v2
from wshare.packed.header import FORMATS, HASH_LETTERS, VERSION, write_header
from wshare.quantize.batch_norm import BatchNorm, FoldedNorm
from wshare.quantize.codebooks import Shared

if TYPE_CHECKING:
    import torch


@dataclass
class _Payload:
    """Sections written so far, and their bytes by kind; parts of other kinds count as header."""

    parts: list[bytes] = field(default_factory=list)
    sizes: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("indices", "codebooks", "scales", "shifts", "kept"), 0)
    )

    def add(self, **parts: bytes) -> int:
        """Bytes of a new section of these parts, named by kind."""
        for kind in parts.keys() & self.sizes.keys():
            self.sizes[kind] += len(parts[kind])
        self.parts.append(b"".join(parts.values()))
        return len(self.parts[-1])


def pack(
    state: dict[str, np.ndarray],
    shared: dict[str, Shared],
    norms: dict[str, BatchNorm],
    folded: dict[str, FoldedNorm],
    aliases: dict[str, str],
    format: str,
    float32: str | None = None,
) -> tuple[bytes, dict[str, int]]:
    """Content of a packed file, and its bytes by kind.

    Kinds: indices (with their frequencies), codebooks, scales, shifts (of folded norms), kept (with batch norms),
    header (all else) and packed, the sum. `state` is the float32 state dict without aliases; what is neither shared
    nor of a batch norm is kept. `format` is 'fixed', ceil(log2 k) bits an index, or 'entropy'; `float32`, from
    `weights_hash`, tells what network the file was made from. ValueError for parts that do not fit together;
    FormatError for more weights than a file of that size may claim.
    """
    if format not in FORMATS:
        raise ValueError(f"format {format!r}: use one of {FORMATS}")
    written = _Payload()
    index: dict = {"version": VERSION, "form": format}
    index["shared"] = {name: _add_shared(written, name, tensor, state, format) for name, tensor in shared.items()}
    index["folded"] = {name: _add_folded(written, name, norm, shared) for name, norm in folded.items()}
    index["batch_norm"] = {name: _add_norm(written, name, norm) for name, norm in norms.items()}
    replaced = {key for name, norm in folded.items() for key in norm.norm(None).tensors(name)}
    replaced |= {key for name, norm in norms.items() for key in norm.tensors(name)}
    index["kept"] = {
        name: _add_kept(written, name, tensor)
        for name, tensor in state.items()
        if name not in shared and name not in replaced
    }
    index["aliases"] = aliases
    if float32 is not None:
        index["float32"] = float32[:HASH_LETTERS]
    rest = b"".join(written.parts)
    check_claim("packed file", index, len(rest), [sections.channels(tensor) for tensor in shared.values()])
    payload = write_header(index) + rest
    content = save({PAYLOAD: np.frombuffer(payload + check_hash(payload), np.uint8)})
    nbytes = len(content)
    return content, written.sizes | {"header": nbytes - sum(written.sizes.values()), "packed": nbytes}


def write_packed(
    path: str | Path,
    state: dict[str, np.ndarray],
    shared: dict[str, Shared],
    norms: dict[str, BatchNorm],
    folded: dict[str, FoldedNorm],
    aliases: dict[str, str],
    format: str,
    float32: str | None = None,
) -> dict[str, int]:
    """Write a packed file atomically; returns its bytes by kind. Arguments and errors are those of `pack`."""
    content, sizes = pack(state, shared, norms, folded, aliases, format, float32)
    write_bytes(path, content)
    return sizes


def _add_shared(written: _Payload, name: str, tensor: Shared, state: dict[str, np.ndarray], format: str) -> list:
    if state[name].shape != tensor.indices.shape:
        raise ValueError(f"{name}: indices {tensor.indices.shape} for a tensor {state[name].shape}")
    with sections.named(name):
        size = written.add(**sections.shared_parts(tensor, format))
    return [list(tensor.indices.shape), len(tensor.codebook), size]


def _add_folded(written: _Payload, name: str, norm: FoldedNorm, shared: dict[str, Shared]) -> list:
    with sections.named(name):
        sections.check_folded(norm, shared[norm.tensor])
        sections.leaves(name, norm.norm(None))
        size = written.add(shifts=sections.folded_part(norm))
    return [list(shared).index(norm.tensor), sections.signed(norm), size]


def _add_norm(written: _Payload, name: str, norm: BatchNorm) -> list:
    kind = norm.scale.dtype.str[1:]
    if kind not in ("f2", "f4") or norm.scale.dtype != norm.shift.dtype or norm.scale.shape != norm.shift.shape:
        raise ValueError(f"{name}: a batch norm has one scale and one shift a channel, of one type")
    with sections.named(name):
        sections.leaves(name, norm)
    written.add(kept=sections.raw(norm.scale) + sections.raw(norm.shift))
    return [len(norm.scale), sections.signed(norm), kind]


def _add_kept(written: _Payload, name: str, tensor: np.ndarray) -> list:
    if tensor.dtype.str[1:] not in sections.TYPES:
        raise ValueError(f"{name}: type {tensor.dtype} cannot be kept")
    coding, part = sections.kept_part(tensor)
    size = written.add(kept=part)
    return [list(tensor.shape), tensor.dtype.str[1:], coding, size if coding == sections.STEPPED else None]


def is_merged(shape: Sequence[int], k: int) -> bool:
    """Whether a shared tensor is a bias that was merged into a batch norm: one axis, and one value for all."""
    return len(shape) == 1 and k == 1


def load_packed(source: Source) -> "dict[str, torch.Tensor]":
    """State dict of the compressed network, for `module.load_state_dict`, from a packed file or its content.

    Every entry is checked against its checksum and its bounds; FormatError names the file and the tensor.
    """
    import torch

    return {name: torch.from_numpy(array) for name, array in _read(source, Shared.weight).items()}


def read_shared(source: Source) -> tuple[dict[str, Shared], dict[str, np.ndarray]]:
    """Shared tensors as codebook and indices, and all others as arrays, by name in the state dict.

    Nothing is expanded but merged biases; tied tensors are one object. Checks are those of `load_packed`.
    """

    def made(tensor: Shared) -> Entry:
        return tensor.weight() if is_merged(tensor.indices.shape, len(tensor.codebook)) else tensor

    state = _read(source, made)
    shared = {name: tensor for name, tensor in state.items() if isinstance(tensor, Shared)}
    return shared, {name: array for name, array in state.items() if name not in shared}


def _read(source: Source, make: Callable[[Shared], Entry]) -> dict[str, Entry | np.ndarray]:
    """State dict, each shared tensor as `make` gives it; tied tensors are one object."""
    path = where(source)
    with opened(source) as file:
        index, rest = index_of(path, file)
        tensors = {} if rest is not None else {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    try:
        check_claim(path, index, sum(tensor.nbytes for tensor in tensors.values()) if rest is None else rest.nbytes)
        if rest is not None:
            state = _unpack(path, index, rest, make)
        else:
            state = {1: unpack_v1, 2: unpack_v2}[index["version"]](path, index, tensors, make)
        if tensors:
            raise FormatError(f"{path}: {next(iter(tensors))!r} is not in the index; {remedy(path)}")
        for alias, name in index["aliases"].items():
            if name not in state:
                raise FormatError(f"{path}: alias {alias!r} names {name!r}, which is missing; {remedy(path)}")
            state |= sections.new(state, {alias: state[name]})
        return state
    except MemoryError as error:
        raise FormatError(
            f"{path}: needs more memory than there is ({error}); free some, or take another file"
        ) from None
    except (TypeError, ValueError, OverflowError, IndexError) as error:
        raise FormatError(f"{path}: damaged index ({error}); {remedy(path)}") from None


@dataclass(frozen=True)
class Sizes:
    """What the entries of a packed file of this version take.

    `nbytes` gives the bytes of each entry, by tensor or batch norm; the header is in none of them. `folded` gives the
    batch norm, with its eps, that is folded into a shared tensor.
    """

    nbytes: dict[str, int]
    folded: dict[str, tuple[str, float]]


def read_index(source: Source) -> dict:
    """The index of a packed file, of whichever version, checked against its hash; FormatError if it is another file."""
    with opened(source) as file:
        return index_of(where(source), file)[0]


def read_layout(source: Source) -> Sizes:
    """Bytes of each entry, read from the index alone; FormatError for a file of another kind or version."""
    index, path = read_index(source), where(source)
    if index["version"] != VERSION:
        raise FormatError(f"{path}: format version {index['version']}, not {VERSION}; {remedy(path)}")
    nbytes = {name: size for section in ("shared", "folded") for name, (*_, size) in index[section].items()}
    nbytes |= {name: 2 * channels * int(kind[1]) for name, (channels, _, kind) in index["batch_norm"].items()}
    nbytes |= {name: sections.kept_bytes(*entry) for name, entry in index["kept"].items()}
    tensors = list(index["shared"])
    folded = {tensors[position]: (name, abs(eps)) for name, (position, eps, _) in index["folded"].items()}
    return Sizes(nbytes, folded)


def _unpack(path: str, index: dict, rest: memoryview, make: Callable[[Shared], Entry]) -> dict[str, Entry | np.ndarray]:
    """State dict of the sections, `rest`."""
    nbytes, layers = rest.nbytes, []
    state: dict[str, np.ndarray] = {}

    def section(size: int) -> memoryview:
        nonlocal rest
        content, rest = sections.cut(rest, size)
        return content

    for name, (shape, k, size) in index["shared"].items():
        with damaged(path, name):
            tensor = sections.read_shared(section(size), shape, k)
            state |= sections.new(state, {name: make(tensor)})
            # The indices are let go.
            layers.append((sections.channels(tensor), tensor.exponents))
    check_claim(path, index, nbytes, [channels for channels, _ in layers])
    for name, (position, eps, size) in index["folded"].items():
        with damaged(path, name):
            channels, exponents = layers[position]
            norm = sections.read_folded(section(size), channels, eps).norm(exponents)
            state |= sections.new(state, sections.leaves(name, norm))
    for name, (channels, eps, kind) in index["batch_norm"].items():
        with damaged(path, name):
            if kind not in ("f2", "f4"):
                raise ValueError(f"type {kind!r}")
            both = sections.read_raw(section(2 * channels * int(kind[1])), kind, [2, channels])
            state |= sections.new(state, sections.leaves(name, BatchNorm(*both, *sections.unsigned(eps))))
    for name, (shape, kind, coding, size) in index["kept"].items():
        with damaged(path, name):
            part = section(sections.kept_bytes(shape, kind, coding, size))
            state |= sections.new(state, {name: sections.read_kept(part, kind, shape, coding)})
    if len(rest):
        raise FormatError(f"{path}: damaged ({len(rest)} bytes behind the last section); {remedy(path)}")
    return state
