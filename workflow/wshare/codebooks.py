"""Codebooks, and weights replaced by their values."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Sweep:
    """Codebooks and inertia of one layer for k = 1 .. K.

    `inertia` and `weighted_inertia` are float64 [K], entry k - 1 for k shared values, in squared
    weight units (times importance). `codebooks` is float32 [K (K + 1) / 2], one codebook after another.
    K is `k_max` or the number of distinct weights, whichever is less.
    """

    inertia: np.ndarray
    weighted_inertia: np.ndarray
    codebooks: np.ndarray

    def codebook(self, k: int) -> np.ndarray:
        """Shared values of the k-value solution: float32 [k], ascending; k is clamped to K."""
        k = min(k, len(self.inertia))
        return self.codebooks[k * (k - 1) // 2 : k * (k + 1) // 2]


def assign(weights: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """Index of the nearest shared value of each weight: uint16, the shape of `weights`; ties go down."""
    wide = codebook.astype(np.float64)
    middles = (wide[1:] + wide[:-1]) / 2
    return np.searchsorted(middles, weights, side="left").astype(np.uint16)


def shared_weight(weight: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """Each weight replaced by its nearest shared value: float32, the shape of `weight`."""
    return codebook[assign(weight, codebook)]
