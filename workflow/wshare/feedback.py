"""Assignment of weights to shared values with feedback of the error to the weights that are still to come."""

import numpy as np
from numba import njit

# Levels on either side of the nearest one that a shorter code may make the better choice.
REACH = 3
# Levels that one move of the descent may pass, and times it goes through a row's weights at most.
STEPS = 2
SWEEPS = 4


def factor(covariance: np.ndarray) -> np.ndarray:
    """Upper Cholesky factor U of the inverse, U^T U = C^-1: float64 [columns, columns].

    Row i holds how much of an error of column i the later columns make good: u[i, j] / u[i, i] (Frantar et al.
    2023, "GPTQ", eq. 2 and section 3.3). Its diagonal is one over the spread of each input given those after it.
    """
    return np.ascontiguousarray(np.linalg.cholesky(np.linalg.inv(covariance)).T)


@njit(cache=True, nogil=True)
def assign(weights, upper, levels, lengths, price, spread):
    """Indices of the shared values, uint16 [columns, rows], and the loss of each row, float64 [rows].

    `weights` is float64 [columns, rows], `upper` from `factor`, or [columns, 0] for no feedback; `levels` ascend.
    Each weight takes the level of least  ((w - c) / spread)^2 + price * length , price [rows] and spread [columns],
    with w the weight after the feedback of the columns before it.
    """
    columns, rows = weights.shape
    k = len(levels)
    indices = np.empty((columns, rows), dtype=np.uint16)
    left = weights.copy()
    error = np.empty(rows)
    loss = np.zeros(rows)
    feedback = upper.shape[1] > 0
    for i in range(columns):
        for row in range(rows):
            w = left[i, row]
            near = min(max(np.searchsorted(levels, w), 1), k - 1) if k > 1 else 0
            best = np.inf
            choice = 0
            for q in range(max(0, near - REACH), min(k, near + REACH)):
                miss = (w - levels[q]) / spread[i]
                cost = miss * miss + price[row] * lengths[q]
                if cost < best:
                    best = cost
                    choice = q
            indices[i, row] = choice
            error[row] = (w - levels[choice]) / spread[i]
            loss[row] += error[row] * error[row]
        if feedback:
            for j in range(i + 1, columns):
                share = upper[i, j]
                for row in range(rows):
                    left[j, row] -= error[row] * share
    return indices, loss


@njit(cache=True, nogil=True)
def descend(weights, covariance, levels, lengths, price, indices):
    """Each row's loss, [rows], once `indices` are moved, in place, up or down one at a time while that lowers its cost.

    The cost of a row is (c[q] - w)^T C (c[q] - w) + price * lengths, arguments as for `assign`. Whether a weight goes
    up or down is chosen by the output error it makes together with all others, the objective of AdaRound (Nagel et al.
    2020, eq. 9 and 21), by coordinate descent: there is no relaxation, and neither labels nor gradients.
    """
    columns, rows = weights.shape
    k = len(levels)
    loss = np.zeros(rows)
    change = np.empty(columns)
    slope = np.empty(columns)
    for row in range(rows):
        for i in range(columns):
            change[i] = levels[indices[i, row]] - weights[i, row]
        slope[:] = 0
        # A library's product might sum in another order on another number of threads.
        for i in range(columns):
            for j in range(columns):
                slope[j] += change[i] * covariance[i, j]
        for _ in range(SWEEPS):
            still = True
            for i in range(columns):
                old = int(indices[i, row])
                choice = old
                least = -1e-12 * covariance[i, i] * change[i] ** 2
                for q in range(max(0, old - STEPS), min(k, old + STEPS + 1)):
                    step = levels[q] - levels[old]
                    gain = step * (2 * slope[i] + step * covariance[i, i]) + price[row] * (lengths[q] - lengths[old])
                    if gain < least:
                        least = gain
                        choice = q
                if choice != old:
                    step = levels[choice] - levels[old]
                    for j in range(columns):
                        slope[j] += step * covariance[i, j]
                    change[i] += step
                    indices[i, row] = choice
                    still = False
            if still:
                break
        for i in range(columns):
            loss[row] += change[i] * slope[i]
    return loss


@njit(cache=True, nogil=True)
def codebook_normal(indices, weights, covariance, importance, k):
    """Normal equations of the codebook of least output error: float64 [k, k] and [k].

    Sum over rows of importance * (w - c[q])^T C (w - c[q]); `indices` and `weights` are [columns, rows].
    """
    columns, rows = weights.shape
    matrix = np.zeros((k, k))
    vector = np.zeros(k)
    for i in range(columns):
        for j in range(columns):
            shared = covariance[i, j]
            for row in range(rows):
                value = importance[row] * shared
                matrix[indices[i, row], indices[j, row]] += value
                vector[indices[i, row]] += value * weights[j, row]
    return matrix, vector
