"""Analytic size of shared weights."""

import math


def index_bits(k: int) -> int:
    """Bits of one index into a codebook of k values: ceil(log2 k)."""
    return math.ceil(math.log2(k))


def layer_bits(weights: int, k: int | None) -> int:
    """Bits of a layer's weights, analytic: ceil(log2 k) W + 32 k; 32 W if k is None (kept dense)."""
    return 32 * weights if k is None else index_bits(k) * weights + 32 * k
