import hashlib
import os
import subprocess
import sys
import tracemalloc

import ckwrap
import kmeans1d
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from wshare.errors import UserError
from wshare.quantize.codebooks import Sweep, nearest_indices
from wshare.quantize.kmeans import sweep

FLOATS = st.floats(-1e3, 1e3, width=32, allow_subnormal=False)
# Few distinct values, many distinct values, and both in one layer.
WEIGHTS = st.one_of(
    st.lists(FLOATS, min_size=1, max_size=40),
    st.lists(st.sampled_from([-1.5, -1.0, 0.0, 0.25, 3.0]), min_size=1, max_size=40),
    st.lists(st.one_of(FLOATS, st.just(0.0)), min_size=1, max_size=40),
).map(lambda values: np.array(values, dtype=np.float32))
SEEDS = st.integers(0, 2**32 - 1)


def inertia_of(weights: np.ndarray, codebook: np.ndarray, importance: np.ndarray | float = 1.0) -> float:
    """Inertia of each weight's nearest value of a codebook, by comparing with all of them."""
    wide = np.ravel(weights).astype(np.float64)
    distances = np.concatenate(
        [np.square(part[:, None] - codebook.astype(np.float64)).min(1) for part in np.array_split(wide, 64)]
    )
    return float((np.ravel(importance) * distances).sum())


def inertia_of_labels(weights: np.ndarray, labels: np.ndarray, mass: np.ndarray | None = None) -> float:
    """Inertia of a partition around the clusters' own means."""
    wide, mass = weights.astype(np.float64), np.ones(len(weights)) if mass is None else mass
    parts = [np.asarray(labels) == label for label in np.unique(labels)]
    return sum(
        float((mass[part] * np.square(wide[part] - np.average(wide[part], weights=mass[part]))).sum()) for part in parts
    )


def ckwrap_labels(weights: np.ndarray, k: int, mass: np.ndarray | None = None) -> np.ndarray:
    """The slowest of its methods is the reference: the faster ones go wrong where values lie very close."""
    return ckwrap.ckmeans(weights.astype(np.float64), k, weights=mass, method="quadratic").labels


def rounding(weights: np.ndarray, mass: float = 1.0) -> float:
    """Inertia that rounding a codebook to float32 may add."""
    return float(mass) * weights.size * (float(np.abs(weights).max()) * 2.0**-23) ** 2


def laplacian(count: int) -> np.ndarray:
    return np.random.default_rng(0).laplace(scale=0.05, size=count).astype(np.float32)


def codebooks(result: Sweep) -> list[np.ndarray]:
    return [result.codebook(k) for k in range(1, len(result.inertia) + 1)]


@pytest.mark.slow
@given(WEIGHTS)
def test_inertia_of_every_k_is_that_of_ckwrap_and_kmeans1d(weights):
    result = sweep(weights, k_max=len(weights))
    assert len(result.inertia) == len(np.unique(weights))
    for k, inertia in enumerate(result.inertia, start=1):
        for labels in (ckwrap_labels(weights, k), kmeans1d.cluster(weights, k).clusters):
            expected = inertia_of_labels(weights, labels)
            assert inertia == pytest.approx(expected, rel=1e-9, abs=1e-9 * result.inertia[0])


@pytest.mark.slow
@given(WEIGHTS, SEEDS, st.sampled_from([1e-38, 1e-12, 1.0, 1e12]))
def test_weighted_inertia_of_every_k_is_that_of_ckwrap(weights, seed, scale):
    """The clustering minimises importance plus a trace of 1e-6 of its mean, and is exact for that measure."""
    importance = (np.random.default_rng(seed).exponential(size=len(weights)) * scale).astype(np.float32)
    result = sweep(weights, importance, k_max=len(weights), weighting="importance")
    mass = importance / importance.mean(dtype=np.float64) + 1e-6
    total = inertia_of_labels(weights, np.zeros(len(weights)), mass)
    for k, codebook in enumerate(codebooks(result), start=1):
        expected = inertia_of_labels(weights, ckwrap_labels(weights, k, mass), mass)
        slack = 1e-9 * total + rounding(weights, mass.max())
        assert inertia_of(weights, codebook, mass) == pytest.approx(expected, rel=1e-9, abs=slack)


@given(WEIGHTS)
def test_codebooks_are_ascending_float32_of_k_values(weights):
    result = sweep(weights, k_max=16)
    for k, codebook in enumerate(codebooks(result), start=1):
        assert codebook.dtype == np.float32
        assert codebook.shape == (k,)
        assert (np.diff(codebook) >= 0).all()
    assert np.array_equal(result.codebook(10_000), codebooks(result)[-1])


@given(WEIGHTS, st.integers(1, 16))
def test_every_weight_is_at_its_nearest_shared_value(weights, k):
    codebook = sweep(weights, k_max=k).codebook(k)
    indices = nearest_indices(weights, codebook)
    assert indices.dtype == np.uint16
    assert indices.shape == weights.shape
    distances = np.abs(weights.astype(np.float64)[:, None] - codebook.astype(np.float64))
    assert np.array_equal(distances[np.arange(len(weights)), indices], distances.min(1))
    assert len(np.unique(codebook[indices])) <= k


def test_ties_go_to_the_lower_shared_value_and_shapes_stay():
    weights = np.array([[-1.0, 0.0], [0.5, 1.0], [2.0, 9.0]], dtype=np.float32)
    assert nearest_indices(weights, np.array([-1.0, 1.0, 3.0], dtype=np.float32)).tolist() == [[0, 0], [1, 1], [1, 2]]
    assert nearest_indices(weights, np.array([4.0], dtype=np.float32)).tolist() == [[0, 0], [0, 0], [0, 0]]


@given(WEIGHTS, st.sampled_from(["none", "importance"]), SEEDS)
def test_inertia_never_rises_with_k(weights, weighting, seed):
    importance = np.random.default_rng(seed).exponential(size=len(weights)).astype(np.float32)
    result = sweep(weights, importance, k_max=len(weights), weighting=weighting)
    falling = result.inertia if weighting == "none" else result.weighted_inertia
    # The trace of mass may trade weighted inertia for plain inertia at a millionth of the cost.
    slack = 1e-12 if weighting == "none" else 1e-5 * max(1.0, result.inertia[0])
    assert (np.diff(falling) <= slack * falling[0]).all()


@pytest.mark.slow
@given(WEIGHTS, SEEDS)
def test_reported_inertia_is_that_of_the_codebook(weights, seed):
    importance = np.random.default_rng(seed).exponential(size=len(weights)).astype(np.float32)
    for weighting in ("none", "importance"):
        result = sweep(weights, importance, k_max=12, weighting=weighting)
        for k, codebook in enumerate(codebooks(result), start=1):
            plain, weighted = result.inertia[k - 1], result.weighted_inertia[k - 1]
            indices = nearest_indices(weights, codebook)
            error = np.square(weights.astype(np.float64) - codebook[indices].astype(np.float64))
            for reported, mass in ((plain, np.ones_like(importance)), (weighted, importance)):
                # The triangle inequality bounds what rounding the codebook to float32 does to it.
                slack = 2 * np.sqrt(reported * rounding(weights, mass.max())) + rounding(weights, mass.max())
                assert reported == pytest.approx((mass * error).sum(), rel=1e-9, abs=slack)
    assert np.array_equal(sweep(weights).inertia, sweep(weights).weighted_inertia)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=60))
def test_as_many_values_as_distinct_weights_lose_nothing_at_any_scale(values):
    # Adding zero turns a negative zero, which no codebook keeps apart, into a positive one.
    weights = np.array(values, dtype=np.float32) + np.float32(0)
    result = sweep(weights, k_max=100)
    codebook = result.codebook(100)
    assert len(codebook) == len(np.unique(weights))
    assert codebook[nearest_indices(weights, codebook)].tobytes() == weights.tobytes()
    assert result.inertia[-1] == 0


def test_an_outlier_and_the_smallest_weights_are_kept_exactly():
    weights = np.array([1e6, 1e-9, -1e-9, 2e-9, 0, 1e-45, -3e38, 1, 1 + 2**-23, 1e6], dtype=np.float32)
    codebook = sweep(weights, k_max=9).codebook(9)
    assert codebook[nearest_indices(weights, codebook)].tobytes() == weights.tobytes()


@pytest.mark.parametrize("count", [1, 2, 1000])
@pytest.mark.parametrize("method", ["exact", "lloyd", "sklearn"])
def test_a_constant_layer_has_one_value_and_no_inertia(count, method):
    result = sweep(np.full((count, 1), 0.1, dtype=np.float32), k_max=8, method=method)
    assert result.inertia.tolist() == [0.0]
    assert result.codebook(8).tolist() == [np.float32(0.1)]


@pytest.mark.slow
def test_binned_sweep_of_a_million_laplacian_weights_is_within_a_thousandth_of_the_optimum():
    """The optimum at k = 256 is a constant: `kmeans1d.cluster` found it for this very array in six minutes.

    The checksum shows that the array is the same; `test_binned_sweep_is_within_a_thousandth_of_ckwrap`
    does the same on a size where the exact solution takes a second.
    """
    optimum = 0.3260277974056674
    weights = laplacian(1_000_000)
    checksum = "ef0bbc3aa89cfcae69a6f70935d47585d413c78ef66529eac51d3d6522423901"
    assert hashlib.sha256(weights.tobytes()).hexdigest() == checksum
    result = sweep(weights, k_max=256)
    codebook = result.codebook(256)
    real = float(np.square(weights.astype(np.float64) - codebook[nearest_indices(weights, codebook)]).sum())
    assert optimum * (1 - 1e-9) <= real <= result.inertia[255] * (1 + 1e-9) <= 1.001 * optimum


@pytest.mark.slow
def test_binned_sweep_is_within_a_thousandth_of_ckwrap():
    weights = laplacian(30_000)
    assert len(np.unique(weights)) > 16384
    result = sweep(weights, k_max=256)
    for k in (2, 16, 100, 256):
        optimum = inertia_of_labels(weights, ckwrap.ckmeans(weights.astype(np.float64), k).labels)
        real = inertia_of(weights, result.codebook(k))
        assert optimum * (1 - 1e-9) <= real <= result.inertia[k - 1] * (1 + 1e-9) <= 1.001 * optimum


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["one outlier", "outliers", "two clumps", "mostly zero", "cauchy"])
def test_bins_resolve_the_bulk_whatever_lies_far_away(shape):
    """Bins four times as fine gain less than a thousandth, and so does setting the far weights apart by hand."""
    weights = laplacian(200_000)
    if shape == "one outlier":
        weights[7] = 1e6
    elif shape == "outliers":
        weights[:40] = np.geomspace(1, 1e8, 40)
    elif shape == "two clumps":
        weights[:500] += 1e4
    elif shape == "mostly zero":
        weights[:180_000] = 0
    else:
        weights = np.random.default_rng(0).standard_cauchy(200_000).astype(np.float32)
    coarse, fine = sweep(weights), sweep(weights, bins=65536)
    assert len(coarse.inertia) == 256
    for k in (64, 256):
        assert coarse.inertia[k - 1] <= 1.001 * fine.inertia[k - 1]
    if shape == "one outlier":
        apart = sweep(np.delete(weights, 7), k_max=255, bins=65536).inertia[254]
        assert coarse.inertia[255] <= 1.001 * apart


@pytest.mark.slow
def test_binned_weighted_inertia_bounds_that_of_the_codebook():
    weights = laplacian(40_000)
    importance = np.random.default_rng(1).exponential(size=weights.size).astype(np.float32) * 1e-9
    for weighting in ("none", "importance"):
        result = sweep(weights, importance, weighting=weighting)
        for k in (4, 64, 256):
            codebook = result.codebook(k)
            error = np.square(weights.astype(np.float64) - codebook[nearest_indices(weights, codebook)])
            for reported, real in (
                (result.inertia[k - 1], error.sum()),
                (result.weighted_inertia[k - 1], (importance * error).sum()),
            ):
                assert real * (1 - 1e-3) <= reported <= real * (1 + 1e-3)
            upper = (result.inertia if weighting == "none" else result.weighted_inertia)[k - 1]
            mass = 1 if weighting == "none" else importance
            assert (mass * error).sum() <= upper * (1 + 1e-9)


@pytest.mark.parametrize("bins", [64, 16384])
def test_importance_stays_with_its_weight_in_any_order(bins):
    """Below 16384 distinct weights each is a group of its own, above 64 they are binned; there are ties in both."""
    weights = np.round(laplacian(20_000), 4)
    importance = np.random.default_rng(1).exponential(size=weights.size).astype(np.float32)
    order = np.argsort(weights)
    for weighting in ("none", "importance"):
        given, ordered = (
            sweep(weights[rows], importance[rows], k_max=16, bins=bins, weighting=weighting)
            for rows in (slice(None), order)
        )
        assert np.array_equal(given.codebooks, ordered.codebooks)
        assert given.inertia == pytest.approx(ordered.inertia, rel=1e-12)
        assert given.weighted_inertia == pytest.approx(ordered.weighted_inertia, rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("weighting", [None, "none", "importance"])
def test_a_large_layer_takes_a_few_arrays_of_its_own_size(weighting):
    """VGG16 has a layer of 103 million weights: 4 bytes sorted and 8 of steps or mass each, beside the input."""
    weights = laplacian(2_000_000)
    importance = None if weighting is None else np.ones_like(weights)
    tracemalloc.start()
    try:
        sweep(weights, importance, k_max=2, weighting=weighting or "none")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Twice the steps would be above the limit.
    assert peak <= 18 * weights.size


@pytest.mark.parametrize("bins", [16384, 256])
@pytest.mark.parametrize("zeros", [0.0, 0.5])
def test_weighting_by_importance_lowers_weighted_inertia(bins, zeros):
    rng = np.random.default_rng(2)
    weights = rng.normal(size=(40, 50)).astype(np.float32)
    importance = rng.exponential(size=weights.shape) * (rng.random(weights.shape) >= zeros) * (1 + 9 * (weights > 0))
    plain, weighted = (
        sweep(weights, importance.astype(np.float32), k_max=32, bins=bins, weighting=weighting)
        for weighting in ("none", "importance")
    )
    assert (weighted.weighted_inertia[1:] < plain.weighted_inertia[1:]).all()
    assert (weighted.inertia[1:] > plain.inertia[1:]).all()


@pytest.mark.parametrize("method", ["exact", "lloyd"])
def test_importance_of_zero_everywhere_gives_the_plain_solution(method):
    weights = np.random.default_rng(3).normal(size=300).astype(np.float32)
    plain = sweep(weights, k_max=16, method=method)
    zero = sweep(weights, np.zeros_like(weights), k_max=16, method=method, weighting="importance")
    assert np.array_equal(zero.codebooks, plain.codebooks)
    assert np.array_equal(zero.inertia, plain.inertia)
    assert not zero.weighted_inertia.any()


@pytest.mark.parametrize("scale", [1e-44, 1e-39, 1e30])
def test_importance_may_be_as_small_or_large_as_float32_allows(scale):
    rng = np.random.default_rng(4)
    weights = rng.normal(size=300).astype(np.float32)
    importance = np.where(rng.random(300) < 0.5, 0, 1.0)
    small = sweep(weights, (importance * scale).astype(np.float32), k_max=8, weighting="importance")
    assert np.array_equal(small.codebooks, sweep(weights, importance, k_max=8, weighting="importance").codebooks)


@pytest.mark.parametrize("weighting", ["none", "importance"])
def test_exact_is_never_above_lloyd_and_sklearn(weighting):
    rng = np.random.default_rng(5)
    weights = rng.standard_t(3, size=2000).astype(np.float32)
    importance = rng.exponential(size=2000).astype(np.float32)
    exact, lloyd, sklearn = (
        sweep(weights, importance, k_max=12, method=method, weighting=weighting)
        for method in ("exact", "lloyd", "sklearn")
    )
    for local in (lloyd, sklearn):
        assert len(local.inertia) == 12
        if weighting == "none":
            assert (exact.inertia <= local.inertia * (1 + 1e-9)).all()
        else:
            # Exact for importance plus its trace.
            objective = [s.weighted_inertia / importance.mean() + 1e-6 * s.inertia for s in (exact, local)]
            assert (objective[0] <= objective[1] * (1 + 1e-6)).all()
        assert all((np.diff(codebook) >= 0).all() for codebook in codebooks(local))
    assert exact.inertia[11] < lloyd.inertia[11] or weighting == "importance"


@pytest.mark.parametrize("distribution", ["normal", "laplace", "uniform"])
def test_never_above_scikit_learn(distribution):
    weights = getattr(np.random.default_rng(6), distribution)(size=3000).astype(np.float32)
    result = sweep(weights, k_max=32)
    for k in (2, 3, 8, 32):
        model = KMeans(k, n_init=3, random_state=0).fit(weights[:, None].astype(np.float64))
        assert result.inertia[k - 1] <= model.inertia_ * (1 + 1e-9)


def test_lloyd_pads_the_codebook_of_empty_clusters():
    """Between two clumps the linear start leaves most clusters empty."""
    weights = np.concatenate([np.linspace(0, 1, 50), [1000.0]]).astype(np.float32)
    result = sweep(weights, k_max=20, method="lloyd")
    assert all(len(codebook) == k for k, codebook in enumerate(codebooks(result), start=1))
    assert (np.diff(result.codebook(20)) == 0).any()


@pytest.mark.slow
def test_same_bytes_whatever_the_number_of_threads():
    program = """if True:
        import hashlib, numpy as np
        from wshare.quantize.kmeans import sweep
        rng = np.random.default_rng(0)
        weights, importance = rng.normal(size=30000).astype("f4"), rng.exponential(size=30000).astype("f4")
        digest = hashlib.sha256()
        for method, k_max in (("exact", 64), ("lloyd", 8)):
            result = sweep(weights, importance, k_max=k_max, method=method, weighting="importance")
            for array in (result.inertia, result.weighted_inertia, result.codebooks):
                digest.update(array.tobytes())
        print(digest.hexdigest())
    """
    names = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    hashes = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | dict.fromkeys(names, str(threads)),
            check=True,
            capture_output=True,
        ).stdout
        for threads in (1, 4)
    }
    assert len(hashes) == 1


@pytest.mark.parametrize(
    ("weights", "importance", "message"),
    [
        ([], None, "no weights"),
        ([1.0, np.nan], None, "1 of 2 weights are not finite"),
        ([1.0, np.inf, -np.inf], None, "2 of 3 weights are not finite"),
        ([1.0, 2.0], [1.0, -1e-9], "importance"),
        ([1.0, 2.0], [1.0, np.nan], "importance"),
        ([1.0, 2.0], [1.0, np.inf], "importance"),
        ([1.0, 2.0], [1.0], "importance"),
    ],
)
def test_what_cannot_be_clustered_is_refused(weights, importance, message):
    with pytest.raises(UserError, match=message):
        sweep(np.array(weights, dtype=np.float32), None if importance is None else np.array(importance, np.float32))


@pytest.mark.parametrize("method", ["exact", "lloyd", "sklearn"])
@pytest.mark.parametrize("bins", [16384, 64])
@pytest.mark.parametrize("weighting", ["none", "importance"])
def test_zeros_are_kept(method, bins, weighting):
    rng = np.random.default_rng(0)
    weights = (rng.normal(size=400) + 0.3).astype(np.float32)
    zeros = rng.random(400) < 0.6
    weights[zeros] = 0
    importance = rng.random(400).astype(np.float32)
    found = sweep(weights, importance, k_max=12, bins=bins, method=method, weighting=weighting, keep_zeros=True)
    for k in range(1, 13):
        codebook = found.codebook(k)
        shared = codebook[nearest_indices(weights, codebook)]
        assert (shared[zeros] == 0).all()
        assert (np.diff(codebook) >= 0).all()
        # Cells of other methods, and of weighted ones, are not those of the nearest values.
        exact = method == "exact" and weighting == "none"
        assert found.inertia[k - 1] == pytest.approx(((shared - weights) ** 2).sum(), rel=0.02 if exact else 0.05)


def test_values_beside_kept_zeros_are_those_of_least_squared_error():
    weights = np.repeat(np.array([0, 2, 5], np.float32), [1, 5, 3])
    # 0 and 2 are the nearest neighbours, but 2 as 0 costs more than 2 and 5 as their mean.
    assert sweep(weights, k_max=2, keep_zeros=True).codebook(2).tolist() == [0, 3.125]
    assert sweep(weights, k_max=2).codebook(2).tolist() == [np.float32(5 / 3), 5]


def test_keeping_zeros_changes_nothing_where_there_are_none():
    weights = np.random.default_rng(0).normal(size=300).astype(np.float32)
    found, expected = (sweep(weights, k_max=8, keep_zeros=keep) for keep in (True, False))
    np.testing.assert_array_equal(found.codebooks, expected.codebooks)


def test_bins_keep_zeros_apart_from_what_is_near_them():
    rng = np.random.default_rng(0)
    weights = np.concatenate([np.zeros(50), rng.uniform(0.001, 1, 200), [9]]).astype(np.float32)
    binned, exact = (sweep(weights, k_max=2, bins=bins, keep_zeros=True).inertia[1] for bins in (16, 16384))
    assert binned == pytest.approx(exact, rel=0.002)
