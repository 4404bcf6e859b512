"""What the indices of a packed file take, coded in one way or another."""

import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from wshare.quantize.codebooks import Shared
from wshare.quantize.cost import index_bits


def fixed_bytes(shared: Iterable[Shared]) -> float:
    """Bytes of all indices, each of ceil(log2 k) bits, k the length of its layer's codebook."""
    return sum(index_bits(len(layer.codebook)) * layer.indices.size for layer in shared) / 8


def entropy_bytes(shared: Iterable[Shared]) -> float:
    """Bytes of all indices at the entropy of their own layer (Shannon 1948), which no code for single indices beats."""
    bits = 0.0
    for layer in shared:
        counts = np.bincount(layer.indices.reshape(-1))
        counts = counts[counts > 0]
        bits += float(counts @ np.log2(layer.indices.size / counts))
    return bits / 8


def zipped_bytes(path: Path) -> int:
    """Bytes of a file after deflate (zlib, level 9), as in a zip archive."""
    return len(zlib.compress(path.read_bytes(), 9))
