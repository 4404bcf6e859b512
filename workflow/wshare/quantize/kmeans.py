"""Optimal one-dimensional k-means for every k in one sweep."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numba import njit

from wshare.errors import UserError
from wshare.quantize.codebooks import Sweep

LLOYD_ITERATIONS = 300
# Mass of the weights of exactly 0, as a multiple of all others', where they are to keep their value: the cluster that
# holds them then has its centroid at 0, but for a part in so many.
PINNED = 1e5


@dataclass(frozen=True)
class _Histogram:
    """Groups of neighbouring weights under one measure (1 or importance), float64 [3, groups] each.

    The rows are mass, mean and within-group inertia. `objective` is what the clustering minimises.
    """

    objective: np.ndarray
    plain: np.ndarray
    weighted: np.ndarray


def sweep(
    weights: np.ndarray,
    importance: np.ndarray | None = None,
    *,
    k_max: int = 256,
    bins: int = 16384,
    method: str = "exact",
    weighting: str = "none",
    seed: int = 0,
    keep_zeros: bool = False,
) -> Sweep:
    """Codebooks of all k up to `k_max` that minimise the (weighted) inertia of `weights`.

    `weights` and `importance` have one shape; importance None means 1. Up to `bins` distinct weights
    the solution is optimal for the weights themselves, above it for `bins` groups of them whose means
    and inertia are kept. `weighting` is "none" or "importance". `method` is "exact" (dynamic
    programming over intervals: Wang & Song 2011, divide and conquer on the monotone argmin: Gronlund
    et al. 2017), "lloyd" (linear initialisation) or "sklearn" (k-means++); the last two find local
    optima and exist for comparison. With `keep_zeros` every codebook of a layer with weights of exactly 0
    holds 0. UserError for an empty layer, a weight that is not finite, or an
    importance that is negative or not finite.
    """
    weights, importance = _checked(weights, importance)
    values = np.sort(weights)
    k_max = min(k_max, len(_first_positions(values, k_max)))
    edges = _group_edges(values, bins)
    first, behind = (int(np.searchsorted(values, 0, side)) for side in ("left", "right"))
    keep_zeros &= first < behind
    if keep_zeros:
        # The zeros are a group of their own.
        edges = np.union1d(edges, values[[first, min(behind, len(values) - 1)]])
    histogram = _build_histogram(values, weights, importance, edges, weighting)
    objective, pinned = histogram.objective, None
    if keep_zeros:
        objective, pinned = _pinned(objective, edges)
    cuts = METHODS[method](objective, k_max, seed)
    codebooks, inertia, weighted = [], [], []
    for k, cut in enumerate(cuts, start=1):
        centroids = _centroids(objective, cut)
        if pinned is not None:
            centroids[np.searchsorted(cut, pinned, side="right") - 1] = 0
        inertia.append(_inertia(histogram.plain, cut, centroids))
        if histogram.weighted is not histogram.plain:
            weighted.append(_inertia(histogram.weighted, cut, centroids))
        # A local method may leave clusters empty: its last value fills the codebook.
        codebooks.append(np.full(k, centroids[-1], dtype=np.float32))
        codebooks[-1][: len(centroids)] = centroids
    return Sweep(np.array(inertia), np.array(weighted or inertia), np.concatenate(codebooks))


def _pinned(groups: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, int]:
    """The groups with so much mass at 0 that a cluster there has no other centroid, and the place of the group of 0."""
    place = int(np.searchsorted(edges, 0))
    groups = groups.copy()
    groups[0, place] += PINNED * groups[0].sum()
    return groups, place


def _checked(weights: np.ndarray, importance: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Weights and importance, flat."""
    flat = np.ravel(weights)
    if flat.size == 0:
        raise UserError("the layer has no weights")
    bad = flat.size - np.count_nonzero(np.isfinite(flat))
    if bad:
        raise UserError(f"{bad} of {flat.size} weights are not finite")
    if importance is None:
        return flat, None
    imp = np.ravel(importance)
    if imp.shape != flat.shape or not np.isfinite(imp).all() or (imp < 0).any():
        raise UserError("the importance must be finite, not negative, and of the weights' shape")
    return flat, imp


def _build_histogram(
    values: np.ndarray, weights: np.ndarray, importance: np.ndarray | None, edges: np.ndarray, weighting: str
) -> _Histogram:
    # Sorted weights fall into their groups several times as fast; the importance belongs to the unsorted ones.
    plain = _grouped(values, None, edges)
    weighted = plain if importance is None else _grouped(weights, importance, edges)
    if weighting == "none" or importance is None:
        return _Histogram(plain, plain, weighted)
    mean = importance.mean(dtype=np.float64)
    if mean == 0:
        return _Histogram(plain, plain, weighted)
    # A trace of mass gives weights without importance a place and ends ties.
    return _Histogram(_grouped(weights, importance / mean + 1e-6, edges), plain, weighted)


@njit(cache=True)
def _first_positions(values, most):
    """Where the first `most` distinct sorted values begin."""
    positions = np.empty(min(most, len(values)), dtype=np.int64)
    found = 0
    for i in range(len(values)):
        if i == 0 or values[i] != values[i - 1]:
            if found == most:
                break
            positions[found] = i
            found += 1
    return positions[:found]


def _group_edges(values: np.ndarray, bins: int) -> np.ndarray:
    """Least value of each group of the sorted values: distinct values, or bins if they are too many.

    Bins are as dense as the cells of an optimal quantizer, the cube root of the density (Panter & Dite
    1951), so that every cell of every codebook spans about as many bins. A gap between two neighbours
    counts for one bin at most, or a few outliers would take them all.
    """
    starts = _first_positions(values, bins + 1)
    if len(starts) <= bins:
        return values[starts]
    # In place throughout: these are the largest arrays of the sweep.
    steps = np.subtract(values[1:], values[:-1], dtype=np.float64)
    np.square(np.cbrt(steps, out=steps), out=steps)
    total = np.inf
    while steps.sum() < 0.99 * total:
        total = steps.sum()
        np.minimum(steps, total / bins, out=steps)
    position = np.cumsum(steps, out=steps)
    starts = 1 + np.searchsorted(position, np.linspace(0, position[-1], bins + 1)[1:-1])
    return values[np.unique(np.concatenate([[0], starts]))]


def _grouped(weights: np.ndarray, mass: np.ndarray | None, edges: np.ndarray) -> np.ndarray:
    """Mass, mean and within-group inertia, float64 [3, groups]; mass None means 1."""
    total, first, second = _sums(weights, mass, edges)
    shift = np.divide(first, total, out=np.zeros_like(first), where=total > 0)
    return np.stack([total, edges + shift, np.maximum(second - shift * first, 0)])


@njit(cache=True)
def _sums(weights, mass, edges):
    """Sums of mass, mass * x and mass * x^2 of each group, float64 [3, groups]; x counts from the group's edge.

    Offsets from the edge lose no digits, whatever the weights' scale. A loop and not array operations, which
    would need several arrays of the weights' size; the weights may be in any order, so that none is sorted by
    another.
    """
    sums = np.zeros((3, len(edges)))
    low = 0
    for i in range(len(weights)):
        # Where the last one fell, sorted weights fall, too.
        if weights[i] < edges[low] or (low + 1 < len(edges) and edges[low + 1] <= weights[i]):
            low, count = 0, len(edges)
            while count > 1:
                half = count // 2
                if edges[low + half] <= weights[i]:
                    low += half
                count -= half
        x = np.float64(weights[i]) - np.float64(edges[low])
        m = 1.0
        if mass is not None:
            m = np.float64(mass[i])
        sums[0, low] += m
        sums[1, low] += m * x
        sums[2, low] += m * x * x
    return sums


@njit(cache=True)
def _centroids(groups, cuts):
    """Centroids, float64 [clusters], of the groups between neighbouring cuts."""
    mass, mean, _ = groups
    centroids = np.empty(len(cuts) - 1)
    for cluster in range(len(centroids)):
        origin = mean[cuts[cluster]]
        total = 0.0
        offset = 0.0
        for group in range(cuts[cluster], cuts[cluster + 1]):
            total += mass[group]
            offset += mass[group] * (mean[group] - origin)
        centroids[cluster] = origin + offset / total
    return centroids


@njit(cache=True)
def _inertia(groups, cuts, centroids):
    mass, mean, within = groups
    total = 0.0
    for cluster in range(len(centroids)):
        for group in range(cuts[cluster], cuts[cluster + 1]):
            total += within[group] + mass[group] * (mean[group] - centroids[cluster]) ** 2
    return total


def _exact_cuts(groups: np.ndarray, k_max: int, seed: int) -> Iterator[np.ndarray]:
    mass, first = _prefix_sums(groups)
    k_max = min(k_max, len(mass) - 1)
    last_cut = _last_cuts(mass, first, k_max)
    for k in range(1, k_max + 1):
        yield _all_cuts(last_cut, k)


def _prefix_sums(groups: np.ndarray) -> np.ndarray:
    """Sums of mass and mass * x over the first j groups, float64 [2, groups + 1]; x counts from the mean."""
    mass, mean, _ = groups
    sums = np.zeros((2, len(mass) + 1))
    np.cumsum([mass, mass * (mean - np.average(mean, weights=mass))], axis=1, out=sums[:, 1:])
    return sums


@njit(cache=True)
def _last_cuts(mass, first, k_max):
    """Start of the last of k + 1 clusters over the first j groups, int32 [k_max, groups + 1].

    The inertia is the sum of mass * x^2, the same for all clusterings, less that of (mass * x)^2 / mass of the
    clusters. Row k follows from row k - 1. The best start grows with j, so each j searches only between the
    starts of its neighbours that are already known, from coarse strides of j to fine; it also never
    lies before the best start with one cluster less.
    """
    groups = len(mass) - 1
    starts = np.zeros((k_max, groups + 1), dtype=np.int32)
    before = np.empty(groups + 1)
    now = np.empty(groups + 1)
    before[0] = np.inf
    for j in range(1, groups + 1):
        before[j] = -first[j] * first[j] / mass[j]
    stride_top = 1
    while stride_top <= groups:
        stride_top *= 2
    for k in range(1, k_max):
        now[: k + 1] = np.inf
        stride = stride_top
        while stride >= 1:
            for j in range(stride, groups + 1, 2 * stride):
                if j <= k:
                    continue
                low = max(k, starts[k - 1, j])
                if j - stride > k:
                    low = max(low, starts[k, j - stride])
                high = j - 1
                if j + stride <= groups:
                    high = min(high, starts[k, j + stride])
                best = np.inf
                best_start = low
                for i in range(low, high + 1):
                    gap = first[j] - first[i]
                    cost = before[i] - gap * gap / (mass[j] - mass[i])
                    if cost < best:
                        best = cost
                        best_start = i
                now[j] = best
                starts[k, j] = best_start
            stride //= 2
        before[:] = now
    return starts


@njit(cache=True)
def _all_cuts(starts, k):
    """Cuts of k clusters over all groups, int64 [k + 1], from the starts of last clusters."""
    cuts = np.empty(k + 1, dtype=np.int64)
    cuts[k] = starts.shape[1] - 1
    for row in range(k - 1, -1, -1):
        cuts[row] = starts[row, cuts[row + 1]]
    return cuts


def _lloyd_cuts(groups: np.ndarray, k_max: int, seed: int) -> Iterator[np.ndarray]:
    """Lloyd's iterations from values spaced evenly over the range, as in the paper."""
    means = groups[1]
    for k in range(1, k_max + 1):
        cuts = _nearest_cuts(means, np.linspace(means[0], means[-1], k))
        for _ in range(LLOYD_ITERATIONS):
            moved = _nearest_cuts(means, _centroids(groups, cuts))
            if np.array_equal(moved, cuts):
                break
            cuts = moved
        yield cuts


def _sklearn_cuts(groups: np.ndarray, k_max: int, seed: int) -> Iterator[np.ndarray]:
    from sklearn.cluster import KMeans

    mass, means, _ = groups
    for k in range(1, k_max + 1):
        model = KMeans(n_clusters=min(k, len(means)), n_init=1, random_state=seed)
        model.fit(means[:, None], sample_weight=mass)
        yield _nearest_cuts(means, np.sort(model.cluster_centers_[:, 0]))


def _nearest_cuts(means: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Cuts between the groups of neighbouring centres; a centre without groups drops out."""
    middles = (centres[1:] + centres[:-1]) / 2
    cuts = np.concatenate([[0], np.searchsorted(means, middles, side="right"), [len(means)]])
    return np.unique(cuts)


METHODS = {"exact": _exact_cuts, "lloyd": _lloyd_cuts, "sklearn": _sklearn_cuts}
