"""Assignment of weights to shared values with feedback of the error to the weights that are still to come."""

import numpy as np
from numba import njit
from scipy.linalg import lapack

# Levels on either side of the nearest one that a shorter code may make the better choice.
REACH = 3
# Levels that one move of the descent may pass, and times it goes through a row's weights at most.
STEPS = 2
SWEEPS = 4
# Columns that get the errors of all those before them at once, and of those before them in a block: with fewer, memory
# is waited for, and with more, a column at a time takes longer.
BLOCK, STRIP = 256, 32


def inverse_cholesky(covariance: np.ndarray) -> np.ndarray:
    """Upper Cholesky factor U of the inverse, U^T U = C^-1: float64 [columns, columns].

    Row i holds how much of an error of column i the later columns make good: u[i, j] / u[i, i] (Frantar et al.
    2023, "GPTQ", eq. 2 and section 3.3). Its diagonal is one over the standard deviation of each input, given those
    after it. LinAlgError if the covariance is not positive definite.
    """
    # Back to front, the lower factor of C becomes an upper one, V V^T = C, and U is the inverse of V. LAPACK counts
    # columns first: what it takes for the upper factor is the lower one. All is done in one array, since copies of a
    # large one would take half as long as what is computed.
    factor, failed = lapack.dpotrf(_back_to_front(covariance).T, overwrite_a=1)
    if failed:
        raise np.linalg.LinAlgError("a covariance is not positive definite")
    _reflect(factor.T)
    return lapack.dtrtri(factor, overwrite_c=1)[0]


@njit(cache=True, nogil=True)
def _back_to_front(matrix):
    """A symmetric matrix with rows and columns in reverse order: float64, on the diagonal and below alone."""
    columns = len(matrix)
    found = np.empty((columns, columns))
    for i in range(columns):
        for j in range(i + 1):
            found[i, j] = matrix[columns - 1 - i, columns - 1 - j]
    return found


@njit(cache=True, nogil=True)
def _reflect(lower):
    """Turn a lower triangular matrix, in place, about its other diagonal: the transpose back to front."""
    last = len(lower) - 1
    for top in range(0, last + 1, STRIP):
        for left in range(0, top + 1, STRIP):
            for i in range(top, min(top + STRIP, last + 1)):
                for j in range(left, min(left + STRIP, i + 1, last - i)):
                    lower[i, j], lower[last - j, last - i] = lower[last - j, last - i], lower[i, j]


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
    indices = np.empty((columns, rows), dtype=np.uint16)
    loss = np.zeros(rows)
    start_of = _starts(levels)
    wide_levels, wide_lengths = _bordered(levels, np.inf), _bordered(lengths, 0.0)
    feedback = cholesky.shape[1] > 0
    errors = np.empty((columns, rows), dtype=cholesky.dtype)
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        block = weights[start:stop].copy()
        # One product of matrices; a column at a time, all weights would be read for each (GPTQ, section 3.3).
        if feedback and start:
            block -= np.dot(_transposed(cholesky[:start, start:stop]), errors[:start])
        for first in range(start, stop, STRIP):
            last = min(first + STRIP, stop)
            strip = block[first - start : last - start]
            if feedback and first > start:
                strip -= np.dot(_transposed(cholesky[start:first, first:last]), errors[start:first])
            for i in range(first, last):
                own = strip[i - first]
                std = 1 / inverse_std[i]
                choices = _cheapest(own, wide_levels, wide_lengths, slope, std, start_of)
                for row in range(rows):
                    choice = zero if zero >= 0 and weights[i, row] == 0 else choices[row]
                    indices[i, row] = choice
                    error = (own[row] - levels[choice]) * std
                    errors[i, row] = error
                    loss[row] += error * error
                if feedback:
                    for j in range(i + 1, last):
                        share = cholesky[i, j]
                        for row in range(rows):
                            strip[j - first, row] -= errors[i, row] * share
    return indices, loss


@njit(cache=True, nogil=True)
def _starts(levels):
    """For each of equal parts of the levels' range, the first level that is not below it: int64 [4 k]."""
    parts = 4 * len(levels)
    edges = levels[0] + (levels[-1] - levels[0]) / parts * np.arange(parts)
    return np.searchsorted(levels, edges)


@njit(cache=True, nogil=True)
def _bordered(values, border):
    """Values with REACH copies of `border` on either side: float64 [k + 2 REACH]."""
    wide = np.full(len(values) + 2 * REACH, border)
    wide[REACH : REACH + len(values)] = values
    return wide


@njit(cache=True, nogil=True)
def _cheapest(weights, levels, lengths, slope, std, start_of):
    """Level of least cost among those next to each weight of a column: int32 [rows].

    Levels have a border of infinite ones, which cost infinitely much, so that as many are looked at for each weight.
    Each of these is looked at for all rows before the next, since a processor does several rows at once.
    """
    rows, k = len(weights), len(levels) - 2 * REACH
    near, best, choices = np.empty(rows, np.int32), np.full(rows, np.inf), np.full(rows, REACH, np.int32)
    lowest, parts = levels[REACH], 0.0
    if k > 1:
        parts = len(start_of) / (levels[REACH + k - 1] - lowest)
    for row in range(rows):
        weight = weights[row]
        place = start_of[int(min(max((weight - lowest) * parts, 0), len(start_of) - 1))]
        # The part may be off by one, by rounding.
        while place < k and levels[REACH + place] < weight:
            place += 1
        while place > 0 and levels[REACH + place - 1] >= weight:
            place -= 1
        near[row] = min(max(place, 1), k - 1)
    for q in range(2 * REACH):
        for row in range(rows):
            place = near[row] + np.int32(q)
            miss = (weights[row] - levels[np.uint32(place)]) * std
            cost = miss * miss + slope[row] * lengths[np.uint32(place)]
            better = cost < best[row]
            best[row] = cost if better else best[row]
            choices[row] = place if better else choices[row]
    return choices - np.int32(REACH)


@njit(cache=True, nogil=True)
def descend(weights, covariance, levels, lengths, slope, indices, zero):
    """Move `indices`, in place, up or down one at a time while that lowers a row's cost.

    Gives the loss of each row, d^T C d with d the change of its weights, and the growth of its output's variance,
    2 w^T C d + d^T C d: float64 [rows] each. The cost of a row is (c[q] - w)^T C (c[q] - w) + slope * lengths, with
    arguments as for `assign_with_feedback`. Whether a weight goes up or down is chosen by the output error it makes
    together with all others, the objective of AdaRound (Nagel et al. 2020, eq. 9 and 21), by coordinate descent: there
    is no relaxation, and neither labels nor gradients. Weights of exactly 0 stay where they are, unless the level
    `zero` is below 0.
    """
    columns, rows = weights.shape
    k = len(levels)
    loss, growth = np.zeros(rows), np.zeros(rows)
    # A row of an array after the other is read from memory once, a column by column as often as it is long.
    own_weights, own_indices = _transposed(weights), _transposed(indices)
    variances = np.diag(covariance).copy()
    changes = np.empty((rows, columns))
    for row in range(rows):
        for i in range(columns):
            changes[row, i] = levels[own_indices[row, i]] - own_weights[row, i]
    gradients = np.dot(changes.astype(covariance.dtype), covariance).astype(np.float64)
    for row in range(rows):
        own, index, change, gradient = own_weights[row], own_indices[row], changes[row], gradients[row]
        for _ in range(SWEEPS):
            still = True
            for i in range(columns):
                if zero >= 0 and own[i] == 0:
                    continue
                old = int(index[i])
                choice = old
                variance = variances[i]
                least = -1e-12 * variance * change[i] ** 2
                for q in range(max(0, old - STEPS), min(k, old + STEPS + 1)):
                    step = levels[q] - levels[old]
                    gain = step * (2 * gradient[i] + step * variance) + slope[row] * (lengths[q] - lengths[old])
                    if gain < least:
                        least = gain
                        choice = q
                if choice != old:
                    step = levels[choice] - levels[old]
                    for j in range(columns):
                        gradient[j] += step * covariance[i, j]
                    change[i] += step
                    index[i] = choice
                    indices[i, row] = choice
                    still = False
            if still:
                break
        for i in range(columns):
            loss[row] += change[i] * gradient[i]
            growth[row] += (change[i] + 2 * own[i]) * gradient[i]
    return loss, growth


@njit(cache=True, nogil=True)
def _transposed(matrix):
    """The transpose, in C order; square by square, since every line of a large matrix lies in a page of its own."""
    columns, rows = matrix.shape
    turned = np.empty((rows, columns), dtype=matrix.dtype)
    for left in range(0, columns, STRIP):
        for top in range(0, rows, STRIP):
            for i in range(left, min(left + STRIP, columns)):
                for row in range(top, min(top + STRIP, rows)):
                    turned[row, i] = matrix[i, row]
    return turned


@njit(cache=True, nogil=True)
def codebook_normal(indices, weights, covariance, importance, k):
    """Normal equations of the codebook of least output error: float64 [k, k] and [k].

    Sum over rows of importance * (w - c[q])^T C (w - c[q]); `indices` and `weights` are [columns, rows].
    """
    columns, rows = weights.shape
    matrix = np.zeros((k, k))
    vector = np.zeros(k)
    product = np.empty(columns)
    # Of the levels that a row takes, in the order in which it does: few of many, where there are few columns.
    place = np.empty(k, dtype=np.int64)
    taken = np.empty(columns, dtype=np.int64)
    sums = np.empty((min(k, columns), columns))
    for row in range(rows):
        # C times each level's indicator, and C times the weights: sums of rows of C.
        place[:] = -1
        product[:] = 0
        count = 0
        for i in range(columns):
            level = indices[i, row]
            if place[level] < 0:
                place[level], taken[count] = count, level
                sums[count] = 0
                count += 1
            same = sums[place[level]]
            weight = weights[i, row]
            for j in range(columns):
                same[j] += covariance[i, j]
                product[j] += weight * covariance[i, j]
        for j in range(columns):
            level = indices[j, row]
            vector[level] += importance[row] * product[j]
        for q in range(count):
            line, same = matrix[taken[q]], sums[q]
            for j in range(columns):
                line[indices[j, row]] += importance[row] * same[j]
    return matrix, vector
