"""Entropy-constrained scalar quantization: the codebook of least distortion plus what its bits cost."""

from dataclasses import dataclass

import numpy as np
from numba import njit

# Bins of equal width over the range of the weights; a cell of a codebook spans tens of them.
BINS = 4096


@dataclass(frozen=True)
class Binned:
    """Values by bin: `sums` is [3, groups + 1], over the bins that hold any values.

    Its rows are prefix sums of their number, of their offsets from `mean`, and of the squares of these.
    """

    sums: np.ndarray
    mean: float


def binned(values: np.ndarray, bins: int = BINS) -> Binned:
    """Values of any shape, in bins of equal width over their range; of one value alone there is one."""
    flat = np.sort(np.ravel(values).astype(np.float64))
    low, high = flat[0], flat[-1]
    if low == high:
        return Binned(np.array([[0.0, len(flat)], [0, 0], [0, 0]]), low)
    place = np.minimum(((flat - low) * (bins / (high - low))).astype(np.int64), bins - 1)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(place)) + 1])
    mass = np.diff(np.append(starts, len(flat))).astype(np.float64)
    # About the middle, so that no digits are lost in the differences.
    mean = flat.mean()
    offset = flat - mean
    sums = np.zeros((3, len(mass) + 1))
    np.cumsum([mass, np.add.reduceat(offset, starts), np.add.reduceat(offset**2, starts)], axis=1, out=sums[:, 1:])
    return Binned(sums, mean)


def codebook(
    values: np.ndarray, slope: float, bits_per_level: float, bins: int = BINS
) -> tuple[np.ndarray, np.ndarray]:
    """Shared values and the ideal code length of each, as `codebook_of` finds them, of values of any shape."""
    return codebook_of(binned(values, bins), slope, bits_per_level)


def codebook_of(values: Binned, slope: float, bits_per_level: float) -> tuple[np.ndarray, np.ndarray]:
    """Shared values, float32 [k], and the ideal code length of each, float64 [k] in bits.

    Minimises  sum (w - c)^2 + slope * (sum of code lengths + bits_per_level * k)  over all codebooks whose cells
    are unions of neighbouring bins; `slope` is in squared weight units a bit. Cells of an optimal quantizer are
    intervals (Gyorgy & Linder 2002), so that the best one is the shortest path from the first bin to the last, with a
    cell for a step and its own cost for the length; k falls out.
    """
    mass, first, second = values.sums
    cuts = _shortest_path(mass, first, second, slope, slope * bits_per_level)
    counts, totals = np.diff(mass[cuts]), np.diff(first[cuts])
    return (totals / counts + values.mean).astype(np.float32), np.log2(mass[-1] / counts)


@njit(cache=True, nogil=True)
def _shortest_path(mass, first, second, slope, per_cell):
    """Cuts between the cells of least cost, int64 [cells + 1], over groups with these prefix sums."""
    groups = len(mass) - 1
    total = mass[groups]
    cost = np.full(groups + 1, np.inf)
    start = np.zeros(groups + 1, dtype=np.int64)
    cost[0] = 0.0
    for j in range(1, groups + 1):
        for i in range(j - 1, -1, -1):
            weight = mass[j] - mass[i]
            gap = first[j] - first[i]
            inertia = second[j] - second[i] - gap * gap / weight
            # The inertia of a cell only grows as it reaches further down; code length and path cost nothing less.
            if inertia > cost[j]:
                break
            way = cost[i] + inertia + slope * weight * np.log2(total / weight) + per_cell
            if way < cost[j]:
                cost[j] = way
                start[j] = i
    cells = 0
    j = groups
    while j > 0:
        j = start[j]
        cells += 1
    cuts = np.empty(cells + 1, dtype=np.int64)
    j = groups
    for cell in range(cells, -1, -1):
        cuts[cell] = j
        j = start[j]
    return cuts
