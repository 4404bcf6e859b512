"""Assignment of weights to shared values with feedback of the error to the weights that are still to come."""

import numpy as np
from numba import njit
from scipy.linalg import lapack

# Levels on either side of the nearest one that a shorter code may make the better choice.
REACH = 3
# Levels that one move of the descent may pass, and times it goes through a row's weights at most.
STEPS = 2
SWEEPS = 4
# Columns whose errors are passed on to all those behind them at once: with fewer, memory is waited for.
BLOCK = 256


def inverse_cholesky(covariance: np.ndarray) -> np.ndarray:
    """Upper Cholesky factor U of the inverse, U^T U = C^-1: float64 [columns, columns].

    Row i holds how much of an error of column i the later columns make good: u[i, j] / u[i, i] (Frantar et al.
    2023, "GPTQ", eq. 2 and section 3.3). Its diagonal is one over the standard deviation of each input, given those
    after it.
    """
    # Back to front, the lower factor of C becomes an upper one, V V^T = C, and U is the inverse of V.
    factor = np.linalg.cholesky(covariance[::-1, ::-1].astype(np.float64))[::-1, ::-1]
    return np.ascontiguousarray(lapack.dtrtri(factor)[0])


@njit(cache=True, nogil=True)
def assign_with_feedback(weights, cholesky, levels, lengths, slope, inverse_std, zero):
    """Indices of the shared values, uint16 [columns, rows], and the loss of each row, float64 [rows].

    `weights` is float64 [columns, rows]; `cholesky` is what `inverse_cholesky` gives, of any precision, or [columns, 0]
    for no feedback; `levels` ascend. Each weight takes the level of least
    ((w - c) / inverse_std)^2 + slope * length , with w the weight after the feedback of the columns before it, slope
    [rows] in squared output error a bit, and inverse_std [columns] one over the standard deviation of the column's
    input. Weights of exactly 0 take the level `zero`, unless that is below 0.
    """
    columns, rows = weights.shape
    k = len(levels)
    indices = np.empty((columns, rows), dtype=np.uint16)
    left = weights.copy()
    errors = np.empty((BLOCK, rows))
    loss = np.zeros(rows)
    feedback = cholesky.shape[1] > 0
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        for i in range(start, stop):
            error = errors[i - start]
            for row in range(rows):
                w = left[i, row]
                near = min(max(np.searchsorted(levels, w), 1), k - 1) if k > 1 else 0
                best = np.inf
                choice = 0
                for q in range(max(0, near - REACH), min(k, near + REACH)):
                    miss = (w - levels[q]) / inverse_std[i]
                    cost = miss * miss + slope[row] * lengths[q]
                    if cost < best:
                        best = cost
                        choice = q
                if zero >= 0 and weights[i, row] == 0:
                    choice = zero
                indices[i, row] = choice
                error[row] = (w - levels[choice]) / inverse_std[i]
                loss[row] += error[row] * error[row]
            if feedback:
                for j in range(i + 1, stop):
                    share = cholesky[i, j]
                    for row in range(rows):
                        left[j, row] -= error[row] * share
        if feedback and stop < columns:
            # One product of matrices; a column at a time, all weights would be read for each (GPTQ, section 3.3).
            shares = np.ascontiguousarray(cholesky[start:stop, stop:].T)
            left[stop:] -= np.dot(shares, errors[: stop - start].astype(cholesky.dtype))
    return indices, loss


@njit(cache=True, nogil=True)
def descend(weights, covariance, levels, lengths, slope, indices, zero):
    """Each row's loss, [rows], once `indices` are moved, in place, up or down one at a time while that lowers its cost.

    The cost of a row is (c[q] - w)^T C (c[q] - w) + slope * lengths, with arguments as for `assign_with_feedback`.
    Whether a weight goes up or down is chosen by the output error it makes together with all others, the objective of
    AdaRound (Nagel et al. 2020, eq. 9 and 21), by coordinate descent: there is no relaxation, and neither labels nor
    gradients. Weights of exactly 0 stay where they are, unless the level `zero` is below 0.
    """
    columns, rows = weights.shape
    k = len(levels)
    loss = np.zeros(rows)
    changes = np.empty((rows, columns))
    for row in range(rows):
        for i in range(columns):
            changes[row, i] = levels[indices[i, row]] - weights[i, row]
    gradients = np.dot(changes.astype(covariance.dtype), covariance).astype(np.float64)
    for row in range(rows):
        change, gradient = changes[row], gradients[row]
        for _ in range(SWEEPS):
            still = True
            for i in range(columns):
                if zero >= 0 and weights[i, row] == 0:
                    continue
                old = int(indices[i, row])
                choice = old
                least = -1e-12 * covariance[i, i] * change[i] ** 2
                for q in range(max(0, old - STEPS), min(k, old + STEPS + 1)):
                    step = levels[q] - levels[old]
                    gain = step * (2 * gradient[i] + step * covariance[i, i]) + slope[row] * (lengths[q] - lengths[old])
                    if gain < least:
                        least = gain
                        choice = q
                if choice != old:
                    step = levels[choice] - levels[old]
                    for j in range(columns):
                        gradient[j] += step * covariance[i, j]
                    change[i] += step
                    indices[i, row] = choice
                    still = False
            if still:
                break
        for i in range(columns):
            loss[row] += change[i] * gradient[i]
    return loss


@njit(cache=True, nogil=True)
def codebook_normal(indices, weights, covariance, importance, k):
    """Normal equations of the codebook of least output error: float64 [k, k] and [k].

    Sum over rows of importance * (w - c[q])^T C (w - c[q]); `indices` and `weights` are [columns, rows].
    """
    columns, rows = weights.shape
    matrix = np.zeros((k, k))
    vector = np.zeros(k)
    product = np.empty(columns)
    sums = np.empty((k, columns))
    for row in range(rows):
        # C times each level's indicator, and C times the weights: sums of rows of C.
        sums[:] = 0
        product[:] = 0
        for i in range(columns):
            same = sums[indices[i, row]]
            weight = weights[i, row]
            for j in range(columns):
                same[j] += covariance[i, j]
                product[j] += weight * covariance[i, j]
        for j in range(columns):
            level = indices[j, row]
            vector[level] += importance[row] * product[j]
            for q in range(k):
                matrix[q, level] += importance[row] * sums[q, j]
    return matrix, vector
