"""The packed file: bit-packed indices, codebooks and kept tensors in a safetensors container.

Layout, version 1. `__metadata__["wshare"]` is JSON:

    {"version": 1,
     "shared": {tensor: [shape, hash]},      stored as `tensor.codebook` F32 [k], `tensor.indices` U8
     "batch_norm": {module: [eps, hash]},    stored as `module.scale`, `module.shift`, F32 or F16 [channels]
     "kept": {tensor: hash},                 stored as `tensor`
     "aliases": {tensor: tensor},            tied tensors, stored once
     "hash": hash}                           of this JSON without this key and without spaces

An index takes ceil(log2 k) bits, lowest bit first, without gaps between indices; the last byte is filled
with zeros. An entry's hash is the SHA-256 over type, shape and bytes of its arrays, in the order above, as
`sha256_arrays` makes it; hashes are written as base64 without padding. `batch_norm` entries with a negative
eps belong to modules without weight and bias.
"""

import base64
import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import nn

from wshare.codebooks import assign
from wshare.cost import index_bits
from wshare.errors import FormatError
from wshare.layers import BATCH_NORMS
from wshare.storage import atomic, sha256_arrays

VERSION = 1
# Indices handled at once; a multiple of 8, so that every block but the last ends on a byte.
BLOCK = 1 << 22


def pack_indices(indices: np.ndarray, bits: int) -> np.ndarray:
    """Bit-packed indices, uint8 [ceil(n bits / 8)], from integers below 2^bits of any shape, in C order."""
    flat = np.ravel(indices)
    places = np.arange(bits, dtype=np.uint16)
    blocks = [
        np.packbits((flat[start : start + BLOCK, None] >> places & 1).astype(np.uint8), bitorder="little")
        for start in range(0, flat.size, BLOCK)
    ]
    return np.concatenate(blocks) if bits and blocks else np.zeros(0, np.uint8)


def unpack_indices(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Indices, uint16 [count], of bytes made by `pack_indices`."""
    indices = np.zeros(count, dtype=np.uint16)
    for start in range(0, count if bits else 0, BLOCK):
        stop = min(start + BLOCK, count)
        octets = packed[start * bits // 8 : -(-stop * bits // 8)]
        stream = np.unpackbits(octets, count=(stop - start) * bits, bitorder="little").reshape(-1, bits)
        for place in range(bits):
            indices[start:stop] |= stream[:, place].astype(np.uint16) << np.uint16(place)
    return indices


@dataclass(frozen=True)
class BatchNorm:
    """Batch norm as inference needs it: y = scale x + shift, float32 [channels] each."""

    scale: np.ndarray
    shift: np.ndarray
    eps: float
    affine: bool

    @classmethod
    def of(cls, module: nn.Module) -> "BatchNorm":
        """Scale and shift of a module in evaluation mode (Ioffe & Szegedy 2015, algorithm 2)."""
        variance, mean = module.running_var.double(), module.running_mean.double()
        weight = module.weight.detach().double() if module.affine else torch.ones_like(variance)
        bias = module.bias.detach().double() if module.affine else torch.zeros_like(variance)
        scale = weight / torch.sqrt(variance + module.eps)
        return cls(scale.float().numpy(), (bias - mean * scale).float().numpy(), module.eps, module.affine)

    def fits_half(self) -> bool:
        """Whether float16 holds every scale and shift, none as infinity and no scale as zero that is not."""
        half = self.halved()
        finite = np.isfinite(half.scale).all() and np.isfinite(half.shift).all()
        return bool(finite and ((half.scale == 0) == (self.scale == 0)).all())

    def halved(self) -> "BatchNorm":
        """The same in float16."""
        # A value out of range becomes infinite; `fits_half` tells.
        with np.errstate(over="ignore"):
            scale, shift = self.scale.astype(np.float16), self.shift.astype(np.float16)
        return BatchNorm(scale, shift, self.eps, self.affine)

    def state(self) -> dict[str, np.ndarray]:
        """Entries of the module's state dict that give this scale and shift."""
        scale, shift = self.scale.astype(np.float32), self.shift.astype(np.float32)
        counter = {"num_batches_tracked": np.zeros((), np.int64)}
        if not self.affine:
            mean, variance = -shift / scale, 1 / scale**2 - np.float32(self.eps)
            return {"running_mean": mean, "running_var": variance} | counter
        unit = np.full_like(scale, 1 - self.eps)
        return {"weight": scale, "bias": shift, "running_mean": np.zeros_like(scale), "running_var": unit} | counter


def batch_norms(model: nn.Module) -> dict[str, BatchNorm]:
    """Batch norms of a model by module name; those without running statistics or bias alone stay as they are."""
    return {
        name: BatchNorm.of(module)
        for name, module in model.named_modules()
        if isinstance(module, BATCH_NORMS)
        and module.track_running_stats
        and (module.weight is None) == (module.bias is None)
    }


def write_packed(
    path: str | Path,
    state: dict[str, np.ndarray],
    codebooks: dict[str, np.ndarray],
    norms: dict[str, BatchNorm],
    aliases: dict[str, str],
) -> dict[str, int]:
    """Write a packed file atomically; returns its bytes by kind: indices, codebooks, kept, header, packed.

    `state` is the float32 state dict without aliases; `codebooks` maps names of shared tensors to
    float32 [k]; every other tensor is kept, batch norms as scale and shift.
    """
    stored: dict[str, np.ndarray] = {}
    index: dict = {"version": VERSION, "shared": {}, "batch_norm": {}, "kept": {}, "aliases": aliases}
    for name, codebook in codebooks.items():
        octets = pack_indices(assign(state[name], codebook), index_bits(len(codebook)))
        stored[f"{name}.codebook"], stored[f"{name}.indices"] = codebook, octets
        index["shared"][name] = [list(state[name].shape), _hash(codebook, octets)]
    for name, norm in norms.items():
        stored[f"{name}.scale"], stored[f"{name}.shift"] = norm.scale, norm.shift
        index["batch_norm"][name] = [norm.eps if norm.affine else -float(norm.eps), _hash(norm.scale, norm.shift)]
    folded = {f"{name}.{leaf}" for name, norm in norms.items() for leaf in norm.state()}
    for name, tensor in state.items():
        if name not in codebooks and name not in folded:
            stored[name] = tensor
            index["kept"][name] = _hash(tensor)
    # The library writes the memory of an array as it lies, whatever its strides.
    stored = {name: np.asarray(tensor, order="C") for name, tensor in stored.items()}
    with atomic(path) as temporary:
        # One metadata key: the library writes several in no fixed order.
        save_file(stored, temporary, {"wshare": _compact(index | {"hash": _index_hash(index)})})
        size = temporary.stat().st_size
    indices = sum(stored[f"{name}.indices"].nbytes for name in codebooks)
    tables = sum(codebook.nbytes for codebook in codebooks.values())
    total = sum(tensor.nbytes for tensor in stored.values())
    return {
        "indices": indices,
        "codebooks": tables,
        "kept": total - indices - tables,
        "header": size - total,
        "packed": size,
    }


def load_packed(path: str | Path) -> dict[str, torch.Tensor]:
    """State dict of the compressed network, for `module.load_state_dict`.

    Every entry is checked against its hash and its bounds; FormatError names the file and the tensor.
    """
    try:
        with safe_open(path, "numpy") as file:
            index = _read_index(path, (file.metadata() or {}).get("wshare"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise FormatError(f"{path}: no such file") from None
    except (SafetensorError, OSError, TypeError, AttributeError) as error:
        # The last two stand for types that numpy does not have.
        raise FormatError(f"{path}: not a whole safetensors file ({error}); pack it again") from None
    state = _unpack(path, index, tensors)
    if tensors:
        raise FormatError(f"{path}: {next(iter(tensors))!r} is not in the index; pack it again")
    return {name: torch.from_numpy(array) for name, array in state.items()}


def _read_index(path: str | Path, text: str | None) -> dict:
    if text is None:
        raise FormatError(f"{path}: not a packed file of wshare (no index in its metadata)")
    try:
        index = json.loads(text)
        version = index["version"]
        if version == VERSION:
            for section in ("shared", "batch_norm", "kept", "aliases"):
                index[section].items()
            found = index.pop("hash")
            if found != _index_hash(index):
                raise FormatError(f"{path}: damaged index (hash differs); pack it again")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"{path}: damaged index ({error!r}); pack it again") from None
    if version != VERSION:
        raise FormatError(f"{path}: format version {version!r}; this wshare reads version {VERSION}")
    return index


def _unpack(path: str | Path, index: dict, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """State dict; takes what it uses out of `tensors`."""

    def take(entry: str, names: Iterable[str], expected: str) -> list[np.ndarray]:
        try:
            arrays = [tensors.pop(name) for name in names]
        except KeyError as error:
            raise FormatError(f"{path}: {error} is missing; pack it again") from None
        if _hash(*arrays) != expected:
            raise FormatError(f"{path}: {entry!r} is damaged (hash differs); pack it again")
        return arrays

    state: dict[str, np.ndarray] = {}
    try:
        for name, (shape, expected) in index["shared"].items():
            codebook, octets = take(name, (f"{name}.codebook", f"{name}.indices"), expected)
            state[name] = _share(f"{path}: {name!r}", codebook, octets, shape)
        for name, (eps, expected) in index["batch_norm"].items():
            scale, shift = take(name, (f"{name}.scale", f"{name}.shift"), expected)
            if scale.dtype not in (np.float16, np.float32) or scale.ndim != 1 or scale.shape != shift.shape:
                raise FormatError(f"{path}: {name!r}: a batch norm has one scale and one shift a channel")
            norm = BatchNorm(scale, shift, abs(eps), math.copysign(1, eps) > 0)
            state |= {f"{name}.{leaf}": array for leaf, array in norm.state().items()}
        for name, expected in index["kept"].items():
            (state[name],) = take(name, (name,), expected)
        for alias, name in index["aliases"].items():
            if name not in state:
                raise FormatError(f"{path}: alias {alias!r} names {name!r}, which is missing; pack it again")
            state[alias] = state[name]
    except (TypeError, ValueError, OverflowError, MemoryError) as error:
        raise FormatError(f"{path}: damaged index ({error}); pack it again") from None
    return state


def _share(where: str, codebook: np.ndarray, octets: np.ndarray, shape: list[int]) -> np.ndarray:
    """Weights, float32 of `shape`, after the checks that a hash made by an attacker would pass."""
    count = math.prod(shape)
    if codebook.dtype != np.float32 or codebook.ndim != 1 or not 1 <= len(codebook) <= 1 << 16:
        raise FormatError(f"{where}: a codebook is float32 [k] with k from 1 to 65,536")
    if not np.isfinite(codebook).all() or (np.diff(codebook) < 0).any():
        raise FormatError(f"{where}: the codebook is not finite and ascending")
    bits = index_bits(len(codebook))
    size = -(-count * bits // 8)
    if octets.dtype != np.uint8 or octets.shape != (size,) or min(shape, default=1) < 0:
        raise FormatError(f"{where}: {octets.size} bytes of indices do not fit shape {shape} with {bits} bits each")
    indices = unpack_indices(octets, bits, count)
    if indices.size and indices.max() >= len(codebook):
        raise FormatError(f"{where}: an index points past the codebook")
    return codebook[indices].reshape(shape)


def _hash(*arrays: np.ndarray) -> str:
    return _text(bytes.fromhex(sha256_arrays(*arrays)))


def _index_hash(index: dict) -> str:
    return _text(hashlib.sha256(_compact(index).encode()).digest())


def _text(digest: bytes) -> str:
    return base64.b64encode(digest).rstrip(b"=").decode()


def _compact(index: dict) -> str:
    return json.dumps(index, separators=(",", ":"))
