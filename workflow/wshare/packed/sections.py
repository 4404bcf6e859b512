"""Sections of a packed file's payload, written and read: shared tensors, folded norms, batch norms, plain arrays.

`wshare.packed.format` describes them. A section's checksum is none of this module's business.
"""

import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from wshare.packed.entropy import decode, encode
from wshare.quantize.batch_norm import BatchNorm, FoldedNorm
from wshare.quantize.codebooks import REACH, Layout, Shared, row_scale
from wshare.quantize.cost import index_bits

TYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")
# Flags of a shared section.
FLOAT16, SCALED, PLACED = 1, 2, 4
# Axis and groups of a layout.
LAYOUT = struct.Struct("<BI")
STEP_LIMIT = 1 << 31


def shared_parts(tensor: Shared, format: str) -> dict[str, bytes]:
    """Parts of a shared section by kind, in their order."""
    k, layout, scaled = len(tensor.codebook), tensor.layout, tensor.exponents is not None
    _check_codebook(tensor.codebook, tensor.exponents)
    if int(tensor.indices.max(initial=0)) >= k:
        raise ValueError("an index points past the codebook")
    if layout.axis:
        _check_layout(layout, tensor.indices.shape)
    with np.errstate(over="ignore"):
        narrow = tensor.codebook.astype("<f2")
    fits = np.array_equal(narrow.astype(np.float32), tensor.codebook)
    scales = b""
    if scaled:
        if not tensor.indices.ndim or tensor.exponents.shape != (layout.outputs(tensor.indices.shape),):
            raise ValueError(f"{tensor.exponents.shape} exponents for a tensor {tensor.indices.shape}")
        scales = _offset(tensor.exponents, "<h", 2 * REACH + 1)
    return {
        "flags": bytes([FLOAT16 * fits | SCALED * scaled | PLACED * bool(layout.axis)]),
        "layout": LAYOUT.pack(layout.axis, layout.groups) if layout.axis else b"",
        "codebooks": raw(narrow if fits else tensor.codebook),
        "length": len(scales).to_bytes(3, "little") if scaled else b"",
        "scales": scales,
        "indices": encode(tensor.indices, index_bits(k) if format == "fixed" else None),
    }


def read_shared(rest: memoryview, shape: list[int], k: int) -> Shared:
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
        _check_layout(layout, shape)
    kind = np.dtype("<f2" if flags & FLOAT16 else "<f4")
    part, rest = cut(rest, k * kind.itemsize)
    codebook, exponents = np.frombuffer(part, kind).astype(np.float32), None
    if flags & SCALED:
        length, rest = cut(rest, 3)
        part, rest = cut(rest, int.from_bytes(length, "little"))
        exponents = _read_offset(part, "<h", layout.outputs(shape), 2 * REACH + 1)
    _check_codebook(codebook, exponents)
    indices = decode(rest, math.prod(shape), k).reshape(shape)
    return Shared(codebook, indices, None if exponents is None else exponents.astype(np.int16), layout)


def _check_layout(layout: Layout, shape: list[int] | tuple[int, ...]) -> None:
    fits = 1 <= layout.axis < len(shape) and 1 <= layout.groups <= max(1, shape[0]) and not shape[0] % layout.groups
    if not fits:
        raise ValueError(f"outputs by axis {layout.axis} in {layout.groups} groups do not fit shape {list(shape)}")


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


def check_folded(norm: FoldedNorm, layer: Shared) -> None:
    """ValueError unless the folded norm can be written behind this layer."""
    shape = layer.indices.shape
    if not shape or norm.steps.shape != (layer.layout.outputs(shape),):
        raise ValueError(f"steps {norm.steps.shape} for a tensor {shape}")
    if norm.steps.size and not -(1 << 31) <= int(norm.steps.min()) <= int(norm.steps.max()) < 1 << 31:
        raise ValueError("a step is not an int32")
    if not np.isfinite(norm.norm(layer.exponents).shift).all():
        raise ValueError("the shifts are not finite")


def folded_part(norm: FoldedNorm) -> bytes:
    """Unit and steps of a folded norm."""
    return struct.pack("<f", norm.unit) + _offset(norm.steps, "<i", STEP_LIMIT)


def read_folded(rest: memoryview, channels: int, eps: float) -> FoldedNorm:
    """Folded norm of a section."""
    unit, rest = cut(rest, 4)
    steps = _read_offset(rest, "<i", channels, STEP_LIMIT)
    if channels and steps.max() >= 1 << 31:
        raise ValueError("a step is not an int32")
    return FoldedNorm("", steps, struct.unpack("<f", unit)[0], *unsigned(eps))


def leaves(name: str, norm: BatchNorm) -> dict[str, np.ndarray]:
    """State of a batch norm by full name; ValueError if it is not finite."""
    if not norm.affine and not norm.scale.all():
        raise ValueError("a scale is 0")
    with np.errstate(over="ignore", invalid="ignore"):
        state = norm.tensors(name)
    if not all(np.isfinite(array).all() for array in state.values()):
        raise ValueError("the batch norm is not finite")
    return state


def _offset(values: np.ndarray, kind: str, limit: int) -> bytes:
    """Least value, as `struct` packs it, and the coded distances from it."""
    least = int(values.min()) if values.size else 0
    distances = values.astype(np.int64) - least
    if int(distances.max(initial=0)) >= limit:
        raise ValueError(f"integers spread over {limit} or more")
    return struct.pack(kind, least) + encode(distances)


def _read_offset(data: memoryview, kind: str, count: int, limit: int) -> np.ndarray:
    """Integers that `_offset` coded: int64 [count]."""
    least, rest = cut(data, struct.calcsize(kind))
    values = decode(rest, count, limit).astype(np.int64)
    values += struct.unpack(kind, least)[0]
    return values


def count(shape: list[int]) -> int:
    """Elements of a shape; ValueError if it is none."""
    if type(shape) is not list or len(shape) > 32 or any(type(axis) is not int or axis < 0 for axis in shape):
        raise ValueError("no shape")
    return math.prod(shape)


def cut(data: memoryview, size: int) -> tuple[memoryview, memoryview]:
    """The first bytes and the rest; ValueError if there are not as many."""
    if type(size) is not int or not 0 <= size <= len(data):
        raise ValueError(f"{size} bytes wanted, {len(data)} left")
    return data[:size], data[size:]


def raw(array: np.ndarray) -> bytes:
    """Bytes in C order, little-endian."""
    return np.asarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def read_raw(data: memoryview, kind: str, shape: list[int]) -> np.ndarray:
    """Array of a type and a shape."""
    if kind == "b1" and max(data, default=0) > 1:
        raise ValueError("a truth value is neither 0 nor 1")
    # A copy in the machine's own byte order.
    return np.frombuffer(data, f"<{kind}").astype(kind).reshape(shape)


def signed(norm: BatchNorm | FoldedNorm) -> float:
    """Eps, negative for a module without weight and bias."""
    eps = float(norm.eps)
    unsigned(eps)
    return eps if norm.affine else -eps


def unsigned(eps: float) -> tuple[float, bool]:
    """Eps and whether the module has weight and bias."""
    if type(eps) not in (int, float) or not abs(eps) < 1e6:
        raise ValueError(f"eps {eps!r}")
    return abs(eps), math.copysign(1, eps) > 0


@contextmanager
def named(name: str) -> Iterator[None]:
    """A ValueError of the block names the tensor."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
