"""Sections of a packed file, written and read: shared tensors, folded norms, batch norms, plain arrays.

`wshare.packed.format` describes them.
"""

import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from wshare.packed.entropy import decode, encode, row_length
from wshare.packed.varint import read_varint, unzigzag, varint, zigzag
from wshare.quantize.batch_norm import BatchNorm, FoldedNorm
from wshare.quantize.codebooks import REACH, Layout, Shared, row_scale
from wshare.quantize.cost import index_bits

TYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")
# Flags of a shared section.
FLOAT16, SCALED, PLACED, GRID = 1, 2, 4, 8
STEP_LIMIT = 1 << 31
MOST_AXES = 32
MOST_LEVELS = 1 << 16
# A grid's least place is at most this.
LEAST_LIMIT = 1 << 31
# How a kept tensor is written: as it is, as float16, or as multiples of a power of two; the last two for float32 alone.
PLAIN, HALVED, STEPPED = 0, 1, 2


def shared_parts(tensor: Shared, format: str) -> dict[str, bytes]:
    """Parts of a shared section by kind, in their order."""
    layout, shape = tensor.layout, tensor.indices.shape
    check_codebook(tensor.codebook, tensor.exponents)
    if int(tensor.indices.max(initial=0)) >= len(tensor.codebook):
        raise ValueError("an index points past the codebook")
    if layout.axis:
        check_layout(layout, shape)
    scales = b""
    if tensor.exponents is not None:
        if not shape or tensor.exponents.shape != (layout.outputs(shape),):
            raise ValueError(f"{tensor.exponents.shape} exponents for a tensor {shape}")
        scales = _offset(tensor.exponents, 2 * REACH + 1)
    flags, codebook, indices = _shortest(_coded(tensor, format))
    flags |= SCALED * (tensor.exponents is not None) | PLACED * bool(layout.axis)
    return {
        "flags": bytes([flags]),
        "layout": varint(layout.axis) + varint(layout.groups) if layout.axis else b"",
        "codebooks": codebook,
        "length": varint(len(scales)) if tensor.exponents is not None else b"",
        "scales": scales,
        "indices": indices,
    }


def _coded(tensor: Shared, format: str) -> Iterator[tuple[int, bytes, bytes]]:
    """Flags, codebook and indices in each way that they can be written."""
    k = len(tensor.codebook)
    with np.errstate(over="ignore"):
        narrow = tensor.codebook.astype("<f2")
    fits = np.array_equal(narrow.astype(np.float32), tensor.codebook)
    codebook = raw(narrow if fits else tensor.codebook)
    yield FLOAT16 * fits, codebook, encode(tensor.indices, index_bits(k) if format == "fixed" else None)
    places = None if tensor.step is None or format == "fixed" else grid_places(tensor)
    if places is not None:
        head = struct.pack("<f", tensor.step)[2:] + varint(zigzag(int(places[0])))
        yield GRID, head, encode((places - places[0]).astype(np.uint16)[tensor.indices])


def _shortest(ways: Iterator[tuple[int, bytes, bytes]]) -> tuple[int, bytes, bytes]:
    return min(ways, key=lambda way: len(way[1]) + len(way[2]))


def grid_places(tensor: Shared) -> np.ndarray | None:
    """Multiples of the step that the shared values are: int64 [k]; None if a reader would not get them from these."""
    step = np.float32(tensor.step)
    if not (np.isfinite(step) and step > 0) or step.view(np.uint32) & 0xFFFF:
        return None
    places = np.rint(tensor.codebook.astype(np.float64) / step).astype(np.int64)
    same = np.array_equal(grid_levels(step, places).view(np.uint32), tensor.codebook.view(np.uint32))
    used = np.bincount(np.ravel(tensor.indices), minlength=len(places)).all()
    return places if same and used and places[-1] - places[0] < MOST_LEVELS else None


def grid_levels(step: np.float32, places: np.ndarray) -> np.ndarray:
    """Shared values, float32 [k]: multiples of the step."""
    return (places.astype(np.float64) * np.float64(step)).astype(np.float32)


def read_shared(rest: memoryview, shape: list[int], k: int) -> Shared:
    """Shared tensor of a section; ValueError for what a hash made by an attacker would pass."""
    if not 1 <= k <= MOST_LEVELS:
        raise ValueError("a codebook has from 1 to 65,536 values")
    (flags,), rest = cut(rest, 1)
    if flags & ~(FLOAT16 | SCALED | PLACED | GRID) or flags & (FLOAT16 | GRID) == FLOAT16 | GRID:
        raise ValueError(f"unknown flags {flags}")
    layout = Layout()
    if flags & PLACED:
        axis, rest = read_varint(rest)
        groups, rest = read_varint(rest)
        layout = Layout(axis, groups)
        check_layout(layout, shape)
    step, least, codebook, exponents = None, 0, None, None
    if flags & GRID:
        part, rest = cut(rest, 2)
        (step,) = struct.unpack("<f", bytes(2) + part)
        least, rest = read_varint(rest)
    else:
        kind = np.dtype("<f2" if flags & FLOAT16 else "<f4")
        part, rest = cut(rest, k * kind.itemsize)
        codebook = np.frombuffer(part, kind).astype(np.float32)
    if flags & SCALED:
        length, rest = read_varint(rest)
        part, rest = cut(rest, length)
        exponents = _read_offset(part, layout.outputs(shape), 2 * REACH + 1)
        check_exponents(exponents)
        exponents = exponents.astype(np.int16)
    if codebook is not None:
        check_codebook(codebook, exponents)
    indices = decode(rest, math.prod(shape), MOST_LEVELS if step is not None else k, row_length(shape))
    if codebook is None:
        codebook, indices = _read_grid(np.float32(step), unzigzag(least), indices, k)
        check_codebook(codebook, exponents)
    return Shared(codebook, indices.reshape(shape), exponents, layout, step)


def _read_grid(step: np.float32, least: int, values: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Shared values and indices of integers that count steps from the least."""
    counts = np.bincount(values, minlength=1)
    places = np.flatnonzero(counts)
    if not step > 0 or abs(least) > LEAST_LIMIT or len(places) != k or places[0]:
        raise ValueError(f"a grid of {len(places)} values, not {k}")
    ranks = np.zeros(len(counts), np.uint16)
    ranks[places] = np.arange(k, dtype=np.uint16)
    with np.errstate(over="ignore", invalid="ignore"):
        return grid_levels(step, places + least), ranks[values]


def check_layout(layout: Layout, shape: list[int] | tuple[int, ...]) -> None:
    """ValueError unless a tensor of this shape can have this layout, which is not the usual one."""
    fits = 1 <= layout.axis < len(shape) and 1 <= layout.groups <= max(1, shape[0]) and not shape[0] % layout.groups
    if not fits:
        raise ValueError(f"outputs by axis {layout.axis} in {layout.groups} groups do not fit shape {list(shape)}")


def check_codebook(codebook: np.ndarray, exponents: np.ndarray | None) -> None:
    """ValueError unless these are shared values, and all weights that they make with the exponents are finite."""
    if codebook.dtype != np.float32 or codebook.ndim != 1 or not 1 <= len(codebook) <= MOST_LEVELS:
        raise ValueError("a codebook is float32 [k] with k from 1 to 65,536")
    if not np.isfinite(codebook).all() or (codebook[1:] < codebook[:-1]).any():
        raise ValueError("the codebook is not finite and ascending")
    if exponents is None or not exponents.size:
        return
    check_exponents(exponents)
    largest = float(np.abs(codebook).max()) * float(row_scale(exponents.max()[None])[0])
    if largest > float(np.finfo(np.float32).max):
        raise ValueError("the weights are not finite")


def check_exponents(exponents: np.ndarray) -> None:
    """ValueError unless the exponents, of any integer type, are within their bounds."""
    if exponents.size and not -REACH <= exponents.min() <= exponents.max() <= REACH:
        raise ValueError(f"exponents go from {-REACH} to {REACH}")


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
    return struct.pack("<f", norm.unit) + _offset(norm.steps, STEP_LIMIT)


def read_folded(rest: memoryview, channels: int, eps: float) -> FoldedNorm:
    """Folded norm of a section."""
    unit, rest = cut(rest, 4)
    steps = _read_offset(rest, channels, STEP_LIMIT)
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


def _offset(values: np.ndarray, limit: int) -> bytes:
    """Least value, low bits that all distances from it have as 0, and the coded rest of the distances."""
    least = int(values.min()) if values.size else 0
    distances = values.astype(np.int64) - least
    if int(distances.max(initial=0)) >= limit:
        raise ValueError(f"integers spread over {limit} or more")
    together = int(np.bitwise_or.reduce(distances)) if values.size else 0
    shift = (together & -together).bit_length() - 1 if together else 0
    return varint(zigzag(least)) + bytes([shift]) + encode(distances >> shift)


def _read_offset(data: memoryview, count: int, limit: int) -> np.ndarray:
    """Integers that `_offset` coded: int64 [count]."""
    least, rest = read_varint(data)
    (shift,), rest = cut(rest, 1)
    if shift > 31 or least > 1 << 32:
        raise ValueError("the least integer or its shift is out of bounds")
    values = decode(rest, count, (limit - 1 >> shift) + 1).astype(np.int64)
    return (values << shift) + unzigzag(least)


def kept_part(tensor: np.ndarray) -> tuple[int, bytes]:
    """How a kept tensor is written in the fewest bytes, and these."""
    ways = [(PLAIN, raw(tensor))]
    if tensor.dtype == np.float32 and tensor.size:
        with np.errstate(over="ignore"):
            half = tensor.astype(np.float16)
        ways += [(HALVED, raw(half))] if _same(half.astype(np.float32), tensor) else []
        steps = _steps(tensor)
        ways += [(STEPPED, steps)] if steps is not None else []
    return min(ways, key=lambda way: len(way[1]))


def _steps(tensor: np.ndarray) -> bytes | None:
    """A power of two and the coded multiples of it that the values are; None if these are too many."""
    if not np.isfinite(tensor).all():
        return None
    mantissa, exponent = np.frexp(tensor.astype(np.float64))
    odd = np.ldexp(mantissa, 24).astype(np.int64)
    # Of each value the power of two of its lowest bit that is not 0.
    lowest = (exponent - 24 + np.log2(np.maximum(odd & -odd, 1)).astype(np.int64))[odd != 0]
    unit = int(lowest.min()) if lowest.size else 0
    steps = np.ldexp(tensor.astype(np.float64), -unit)
    if np.abs(steps).max() >= STEP_LIMIT // 2 or not _same(_stepped(steps.astype(np.int64), unit), tensor):
        return None
    return varint(zigzag(unit)) + _offset(steps.astype(np.int64).ravel(), STEP_LIMIT)


def _stepped(steps: np.ndarray, unit: int) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.ldexp(steps.astype(np.float64), unit).astype(np.float32)


def _same(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two float32 arrays have the same bits."""
    return np.array_equal(first.view(np.uint32), second.view(np.uint32))


def read_kept(data: memoryview, kind: str, shape: list[int], coding: int) -> np.ndarray:
    """Kept tensor of a section."""
    if coding == PLAIN:
        return read_raw(data, kind, shape)
    if kind != "f4" or coding not in (HALVED, STEPPED):
        raise ValueError(f"a tensor of type {kind!r} coded as {coding}")
    if coding == HALVED:
        return read_raw(data, "f2", shape).astype(np.float32)
    unit, rest = read_varint(data)
    unit = unzigzag(unit)
    if not -149 <= unit < 128:
        raise ValueError(f"a unit of 2^{unit}")
    found = _stepped(_read_offset(rest, math.prod(shape), STEP_LIMIT), unit).reshape(shape)
    if not np.isfinite(found).all():
        raise ValueError("a value is not finite")
    return found


def kept_bytes(shape: list[int], kind: str, coding: int, size: int | None) -> int:
    """Bytes of a kept tensor's section; `size` is what the index says of those that do not follow from the shape."""
    if size is not None:
        return size
    return count(shape) * (2 if coding == HALVED else int(kind[1]))


def channels(tensor: Shared) -> int:
    """Outputs of a shared tensor; none where it has no axes."""
    return tensor.layout.outputs(tensor.indices.shape) if tensor.indices.ndim else 0


def new(state: dict[str, np.ndarray], entries: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`entries`, none of which `state` may have."""
    if twice := state.keys() & entries.keys():
        raise ValueError(f"{min(twice)!r} is there twice")
    return entries


def count(shape: list[int]) -> int:
    """Elements of a shape; ValueError if it is none."""
    if type(shape) is not list or len(shape) > MOST_AXES or any(type(axis) is not int or axis < 0 for axis in shape):
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
