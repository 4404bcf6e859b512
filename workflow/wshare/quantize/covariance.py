"""Covariance of a layer's inputs, and the factor of its inverse that error feedback goes by, in the memory of one."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numba import njit

from wshare.quantize.error_feedback import inverse_cholesky

# Lines that are mirrored at once: each line of a large matrix lies in a page of its own.
TILE = 32


@dataclass(frozen=True)
class Covariance:
    """Covariance of the inputs of each group.

    `values` is float32 [groups, columns, columns], or [groups, columns] where only the diagonal is known. Covariances
    are symmetric and factors are triangular: once `factor` was asked for, it stands above the diagonal of `values`, and
    the covariance on it and below. Large networks have a gigabyte of both.
    """

    values: np.ndarray

    @property
    def is_diagonal(self) -> bool:
        """Whether only the diagonal is known."""
        return self.values.ndim == 2

    @property
    def diagonal(self) -> np.ndarray:
        """Variance of each input: float32 [groups, columns]."""
        return self.values if self.is_diagonal else np.einsum("gii->gi", self.values)

    @property
    def whole(self) -> np.ndarray:
        """The covariance, symmetric: float32 [groups, columns, columns], made anew; or the diagonal alone."""
        return self.values if self.is_diagonal else _mirrored(self.values)

    @property
    def factor(self) -> np.ndarray:
        """Upper Cholesky factor of the inverse, above its diagonal: float32 [groups, columns, columns].

        What stands on the diagonal and below is no part of it. [groups, columns, 0] where only a diagonal is known:
        there is nothing to feed back.
        """
        if self.is_diagonal:
            return np.empty((*self.values.shape, 0))
        # Computes both.
        _ = self.factor_diagonal
        return self.values

    @cached_property
    def factor_diagonal(self) -> np.ndarray:
        """Diagonal of the factor: one over the deviation of an input given those after it, float32 [groups, columns].

        LinAlgError if a covariance is not positive definite.
        """
        if self.is_diagonal:
            return 1 / np.sqrt(self.values)
        found = np.empty(self.values.shape[:2], self.values.dtype)
        for own, diagonal in zip(self.values, found, strict=True):
            factor = inverse_cholesky(own)
            diagonal[:] = np.diag(factor)
            _put_above(own, factor.T)
        return found


@njit(cache=True, nogil=True)
def shrunk(second, mean, share):
    """A share of the covariance, float32 [groups, columns, columns], computed in float64.

    `second` is the second moment about zero, `mean` is float64 [groups, columns].
    """
    groups, columns, _ = second.shape
    found = np.empty(second.shape, np.float32)
    for group in range(groups):
        for i in range(columns):
            for j in range(columns):
                found[group, i, j] = (second[group, i, j] - mean[group, i] * mean[group, j]) * share
    return found


@njit(cache=True, nogil=True)
def _mirrored(values):
    """What stands on the diagonal and below, above it, too: [groups, columns, columns]."""
    groups, columns, _ = values.shape
    whole = np.empty_like(values)
    for group in range(groups):
        for top in range(0, columns, TILE):
            for left in range(0, top + TILE, TILE):
                for i in range(top, min(top + TILE, columns)):
                    for j in range(left, min(left + TILE, i + 1)):
                        whole[group, i, j] = values[group, i, j]
                        whole[group, j, i] = values[group, i, j]
    return whole


@njit(cache=True, nogil=True)
def _put_above(values, transposed):
    """Write a matrix, given as its transpose, [columns, columns], above the diagonal of `values`."""
    columns = len(values)
    for top in range(0, columns, TILE):
        for left in range(top, columns, TILE):
            for i in range(top, min(top + TILE, columns)):
                for j in range(max(left, i + 1), min(left + TILE, columns)):
                    values[i, j] = transposed[j, i]
