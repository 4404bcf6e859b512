"""Histograms of a layer's weights, with the shared values that took their place."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import safe_open

from wshare.names import tensor_of_layer
from wshare.packed.format import Sizes
from wshare.quantize.batch_norm import norm_scale
from wshare.quantize.codebooks import Shared, row_scale

BINS = 60


@dataclass(frozen=True)
class Histogram:
    """Counts of a layer's weights between edges [BINS + 1], and the shared values, ascending.

    `role` says why this layer is shown. `scaled` tells that weights and shared values are relative to the scale of
    their output, batch norm folded in.
    """

    layer: str
    role: str
    weights: int
    counts: np.ndarray
    edges: np.ndarray
    values: np.ndarray
    scaled: bool


def histogram(layer: str, role: str, weights: Path, shared: Shared, sizes: Sizes) -> Histogram:
    """Histogram of a layer; `weights` is the float32 network, `shared` and `sizes` are the packed file's."""
    tensor = tensor_of_layer(layer, sizes.nbytes)
    with safe_open(weights, "numpy") as file:
        values = file.get_tensor(tensor).astype(np.float64)
        if tensor in sizes.folded:
            values *= shared.layout.per_output(_norm_scale(file, *sizes.folded[tensor]), values.shape)
    if shared.exponents is not None:
        values /= shared.layout.per_output(row_scale(shared.exponents), values.shape)
    counts, edges = np.histogram(values, BINS)
    used = shared.codebook[np.unique(shared.indices)]
    scaled = shared.exponents is not None or tensor in sizes.folded
    return Histogram(layer, role, values.size, counts, edges, used, scaled)


def _norm_scale(file: safe_open, norm: str, eps: float) -> np.ndarray:
    """Scale of a batch norm of the network: float64 [channels]."""
    weight = f"{norm}.weight"
    # The library's file has no `in`.
    given = file.get_tensor(weight) if weight in file.keys() else None  # noqa: SIM118
    return norm_scale(file.get_tensor(f"{norm}.running_var"), given, eps)
