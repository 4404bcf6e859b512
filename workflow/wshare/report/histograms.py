"""Histograms of a layer's weights, with the shared values that took their place."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import safe_open

from wshare.packed.format import Layout
from wshare.quantize.codebooks import Shared, row_scale

BINS = 60


@dataclass(frozen=True)
class Histogram:
    """Counts of a layer's weights between edges [BINS + 1], and the shared values, ascending.

    `role` says why this layer is shown. `scaled` tells that weights and shared values are relative to the scale of
    their row, batch norm folded in.
    """

    layer: str
    role: str
    weights: int
    counts: np.ndarray
    edges: np.ndarray
    values: np.ndarray
    scaled: bool


def histogram(layer: str, role: str, weights: Path, shared: Shared, layout: Layout) -> Histogram:
    """Histogram of a layer; `weights` is the float32 network, `shared` and `layout` are the packed file's."""
    tensor = f"{layer}.weight"
    with safe_open(weights, "numpy") as file:
        values = file.get_tensor(tensor).astype(np.float64)
        if tensor in layout.folded:
            values *= _column(_norm_scale(file, *layout.folded[tensor]), values)
    if shared.exponents is not None:
        values /= _column(row_scale(shared.exponents), values)
    counts, edges = np.histogram(values, BINS)
    used = shared.codebook[np.unique(shared.indices)]
    scaled = shared.exponents is not None or tensor in layout.folded
    return Histogram(layer, role, values.size, counts, edges, used, scaled)


def _norm_scale(file: safe_open, norm: str, eps: float) -> np.ndarray:
    """Scale of a batch norm in evaluation mode (Ioffe & Szegedy 2015, algorithm 2): float64 [channels]."""
    deviation = np.sqrt(file.get_tensor(f"{norm}.running_var").astype(np.float64) + eps)
    if f"{norm}.weight" not in file.keys():  # noqa: SIM118
        return 1 / deviation
    return file.get_tensor(f"{norm}.weight") / deviation


def _column(rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    """One number a row, to be multiplied with all of the row."""
    return rows.reshape(-1, *[1] * (values.ndim - 1))
