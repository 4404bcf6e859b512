"""What a packed file holds: k, bits and bytes of each shared tensor, and what the rest takes."""

import math
from dataclasses import dataclass
from pathlib import Path

from wshare.packed.container import Source, opened
from wshare.packed.format import is_merged, load_packed, read_index


@dataclass(frozen=True)
class SharedTensor:
    """A shared tensor: `bytes` counts its codebook, indices, frequencies and scales."""

    name: str
    shape: tuple[int, ...]
    k: int
    bytes: int

    @property
    def weights(self) -> int:
        """Values of the tensor."""
        return math.prod(self.shape)

    @property
    def bits(self) -> float:
        """Bits a weight, everything of the tensor counted."""
        return 8 * self.bytes / max(1, self.weights)


@dataclass(frozen=True)
class Contents:
    """A packed file: `format` is "fixed" or "entropy", `bytes` the size of the file.

    `values` counts the numbers of the state dict that it stands for, `dense_bytes` their bytes as plain tensors;
    `kept` holds the numbers in each float tensor that is stored as it is, the most first, and `counters` counts others.
    """

    version: int
    format: str
    shared: tuple[SharedTensor, ...]
    folded_batch_norms: int
    batch_norms: int
    kept: dict[str, int]
    counters: int
    values: int
    dense_bytes: int
    bytes: int

    @property
    def share(self) -> float:
        """Share of all weights that are shared; those of batch norms and merged biases, small as they are, left out."""
        shared = sum(tensor.weights for tensor in self.shared)
        return shared / max(1, shared + sum(self.kept.values()))

    @property
    def other_bytes(self) -> int:
        """Bytes of no shared tensor: folded and kept batch norms, merged biases, kept tensors and the header."""
        return self.bytes - sum(tensor.bytes for tensor in self.shared)


def contents(source: Source) -> Contents:
    """Contents of a packed file, all of which is read and checked; FormatError as for `load_packed`."""
    state = load_packed(source)
    index = read_index(source)
    if index["version"] == 1:
        with opened(source) as file:
            shared = [_shared_v1(file, name, shape) for name, (shape, _) in index["shared"].items()]
    else:
        shared = [
            SharedTensor(name, tuple(shape), k, size)
            for name, (shape, k, size) in index["shared"].items()
            if not is_merged(shape, k)
        ]
    kept = {name: state[name].numel() for name in index["kept"] if state[name].is_floating_point()}
    own = [tensor for name, tensor in state.items() if name not in index["aliases"]]
    return Contents(
        version=index["version"],
        format=index.get("form", "fixed"),
        shared=tuple(shared),
        folded_batch_norms=len(index.get("folded", ())),
        batch_norms=len(index["batch_norm"]),
        kept=dict(sorted(kept.items(), key=lambda item: -item[1])),
        counters=len(index["kept"]) - len(kept),
        values=sum(tensor.numel() for tensor in own),
        dense_bytes=sum(tensor.nbytes for tensor in own),
        bytes=len(source) if isinstance(source, bytes) else Path(source).stat().st_size,
    )


def _shared_v1(file: object, name: str, shape: list[int]) -> SharedTensor:
    """A shared tensor of version 1, which keeps codebook and indices as tensors of their own."""
    parts = [file.get_tensor(f"{name}.{part}") for part in ("codebook", "indices")]
    return SharedTensor(name, tuple(shape), len(parts[0]), sum(part.nbytes for part in parts))
