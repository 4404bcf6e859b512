"""Version 2 of the packed file, which is still read; `wshare.packed.format` describes it."""

import math
import struct
import zlib
from collections.abc import Callable

import numpy as np

from wshare.errors import FormatError
from wshare.files.atomic import remedy
from wshare.packed import sections
from wshare.packed.container import check_claim, damaged
from wshare.packed.entropy import decode
from wshare.packed.format_v1 import Entry
from wshare.packed.hashes import byte_hash
from wshare.packed.sections import FLOAT16, PLACED, SCALED, STEP_LIMIT, cut
from wshare.quantize.batch_norm import BatchNorm, FoldedNorm
from wshare.quantize.codebooks import REACH, Layout, Shared

# Axis and groups of a layout.
LAYOUT = struct.Struct("<BI")


def unpack_v2(
    path: str, index: dict, tensors: dict[str, np.ndarray], make: Callable[[Shared], Entry]
) -> dict[str, Entry | np.ndarray]:
    """State dict of a file of version 2; takes what it uses out of `tensors`."""
    payload = tensors.pop("payload", np.zeros(0, np.int8))
    if payload.dtype != np.uint8 or payload.ndim != 1:
        raise FormatError(f"{path}: 'payload', bytes in one row, is missing; {remedy(path)}")
    rest, layers = memoryview(payload), []
    state: dict[str, np.ndarray] = {}

    def section(size: int) -> memoryview:
        nonlocal rest
        whole, rest = sections.cut(rest, size)
        checksum, content = sections.cut(whole, 4)
        if zlib.crc32(content) != int.from_bytes(checksum, "little"):
            raise ValueError("damaged (checksum differs)")
        return content

    for name, (shape, k, size) in index["shared"].items():
        with damaged(path, name):
            tensor = _read_shared(section(size), shape, k)
            state |= sections.new(state, {name: make(tensor)})
            # The indices are let go.
            layers.append((sections.channels(tensor), tensor.exponents))
    check_claim(path, index, payload.nbytes, [channels for channels, _ in layers])
    for name, (position, eps, size) in index["folded"].items():
        with damaged(path, name):
            channels, exponents = layers[position]
            state |= sections.new(
                state, sections.leaves(name, _read_folded(section(size), channels, eps).norm(exponents))
            )
    for name, (channels, eps, kind) in index["batch_norm"].items():
        with damaged(path, name):
            if kind not in ("f2", "f4"):
                raise ValueError(f"type {kind!r}")
            both = sections.read_raw(section(4 + 2 * sections.count([channels]) * int(kind[1])), kind, [2, channels])
            state |= sections.new(state, sections.leaves(name, BatchNorm(*both, *sections.unsigned(eps))))
    for name, (shape, kind) in index["kept"].items():
        with damaged(path, name):
            if kind not in sections.TYPES:
                raise ValueError(f"type {kind!r}")
            state |= sections.new(
                state, {name: sections.read_raw(section(4 + sections.count(shape) * int(kind[1])), kind, shape)}
            )
    if len(rest) or byte_hash(payload) != index["payload"]:
        raise FormatError(f"{path}: damaged payload (hash differs); {remedy(path)}")
    return state


def _read_shared(rest: memoryview, shape: list[int], k: int) -> Shared:
    """Shared tensor of a section; ValueError for what a checksum made by an attacker would pass."""
    if type(k) is not int or not 1 <= k <= 1 << 16:
        raise ValueError("a codebook has from 1 to 65,536 values")
    (flags,), rest = cut(rest, 1)
    if flags & ~(FLOAT16 | SCALED | PLACED):
        raise ValueError(f"unknown flags {flags}")
    layout = Layout()
    if flags & PLACED:
        part, rest = cut(rest, LAYOUT.size)
        layout = Layout(*LAYOUT.unpack(part))
        sections.check_layout(layout, shape)
    kind = np.dtype("<f2" if flags & FLOAT16 else "<f4")
    part, rest = cut(rest, k * kind.itemsize)
    codebook, exponents = np.frombuffer(part, kind).astype(np.float32), None
    if flags & SCALED:
        length, rest = cut(rest, 3)
        part, rest = cut(rest, int.from_bytes(length, "little"))
        exponents = _read_offset(part, "<h", layout.outputs(shape), 2 * REACH + 1)
    sections.check_codebook(codebook, exponents)
    indices = decode(rest, math.prod(shape), k).reshape(shape)
    return Shared(codebook, indices, None if exponents is None else exponents.astype(np.int16), layout)


def _read_folded(rest: memoryview, channels: int, eps: float) -> FoldedNorm:
    """Folded norm of a section."""
    unit, rest = cut(rest, 4)
    steps = _read_offset(rest, "<i", channels, STEP_LIMIT)
    if channels and steps.max() >= 1 << 31:
        raise ValueError("a step is not an int32")
    return FoldedNorm("", steps, struct.unpack("<f", unit)[0], *sections.unsigned(eps))


def _read_offset(data: memoryview, kind: str, count: int, limit: int) -> np.ndarray:
    """Integers that `_offset` coded: int64 [count]."""
    least, rest = cut(data, struct.calcsize(kind))
    values = decode(rest, count, limit).astype(np.int64)
    values += struct.unpack(kind, least)[0]
    return values
