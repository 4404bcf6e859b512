"""Version 1 of the packed file, which is still read."""

import math
from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np

from wshare.errors import FormatError
from wshare.files.atomic import remedy
from wshare.packed import sections
from wshare.packed.container import damaged
from wshare.packed.entropy import unpack_indices
from wshare.packed.hashes import array_hash
from wshare.quantize.batch_norm import BatchNorm
from wshare.quantize.codebooks import Shared
from wshare.quantize.cost import index_bits

# What a shared tensor is read as.
Entry = TypeVar("Entry")


def unpack_v1(
    path: str, index: dict, tensors: dict[str, np.ndarray], make: Callable[[Shared], Entry]
) -> dict[str, Entry | np.ndarray]:
    """State dict of a file of version 1; takes what it uses out of `tensors`."""

    def take(entry: str, names: Iterable[str], expected: str) -> list[np.ndarray]:
        try:
            arrays = [tensors.pop(name) for name in names]
        except KeyError as error:
            raise FormatError(f"{path}: {error} is missing; {remedy(path)}") from None
        if array_hash(*arrays) != expected:
            raise FormatError(f"{path}: {entry!r} is damaged (hash differs); {remedy(path)}")
        return arrays

    state: dict[str, np.ndarray] = {}
    for name, (shape, expected) in index["shared"].items():
        codebook, packed = take(name, (f"{name}.codebook", f"{name}.indices"), expected)
        state |= sections.new(state, {name: make(_share_v1(f"{path}: {name!r}", codebook, packed, shape))})
    for name, (eps, expected) in index["batch_norm"].items():
        scale, shift = take(name, (f"{name}.scale", f"{name}.shift"), expected)
        floats = {scale.dtype, shift.dtype} <= {np.dtype(np.float16), np.dtype(np.float32)}
        if not floats or scale.ndim != 1 or scale.shape != shift.shape:
            raise FormatError(f"{path}: {name!r}: a batch norm has one scale and one shift a channel, of floats")
        with damaged(path, name):
            norm = BatchNorm(scale, shift, *sections.unsigned(eps))
            state |= sections.new(state, sections.leaves(name, norm))
    for name, expected in index["kept"].items():
        (kept,) = take(name, (name,), expected)
        with damaged(path, name):
            state |= sections.new(
                state, {name: sections.read_raw(memoryview(kept.tobytes()), kept.dtype.str[1:], kept.shape)}
            )
    return state


def _share_v1(where: str, codebook: np.ndarray, packed: np.ndarray, shape: list[int]) -> Shared:
    """Shared tensor of `shape`, after the checks that a hash made by an attacker would pass."""
    count = math.prod(shape)
    if codebook.dtype != np.float32 or codebook.ndim != 1 or not 1 <= len(codebook) <= 1 << 16:
        raise FormatError(f"{where}: a codebook is float32 [k] with k from 1 to 65,536")
    if not np.isfinite(codebook).all() or (np.diff(codebook) < 0).any():
        raise FormatError(f"{where}: the codebook is not finite and ascending")
    bits = index_bits(len(codebook))
    size = -(-count * bits // 8)
    if packed.dtype != np.uint8 or packed.shape != (size,) or min(shape, default=1) < 0:
        raise FormatError(f"{where}: {packed.size} bytes of indices do not fit shape {shape} with {bits} bits each")
    if count * bits % 8 and packed[-1] >> count * bits % 8:
        raise FormatError(f"{where}: the bits after the last index are not zero")
    indices = unpack_indices(packed, bits, count)
    if indices.size and indices.max() >= len(codebook):
        raise FormatError(f"{where}: an index points past the codebook")
    return Shared(codebook, indices.reshape(shape))
