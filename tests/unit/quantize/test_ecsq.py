import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wshare.quantize.codebooks import nearest_indices
from wshare.quantize.ecsq import codebook


def cost(values: np.ndarray, levels: np.ndarray, lengths: np.ndarray, slope: float, per_level: float) -> float:
    """What `codebook` minimises, each value with its nearest of the levels that are meant for it."""
    miss = (values[:, None] - levels.astype(np.float64)) ** 2 + slope * lengths
    return float(miss.min(1).sum() + slope * per_level * len(levels))


def brute_force(values: np.ndarray, slope: float, per_level: float) -> float:
    """Least cost over all ways to cut the sorted distinct values into intervals."""
    distinct = np.unique(values)
    best = np.inf
    for size in range(len(distinct)):
        for cuts in itertools.combinations(range(1, len(distinct)), size):
            cells = [values[np.isin(values, part)] for part in np.split(distinct, cuts)]
            cost = sum(
                ((cell - cell.mean()) ** 2).sum() + slope * (len(cell) * np.log2(len(values) / len(cell)) + per_level)
                for cell in cells
            )
            best = min(best, cost)
    return best


def intervals(values: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """The sorted values cut into cells of the sizes that the code lengths tell."""
    sizes = len(values) / 2**lengths
    np.testing.assert_allclose(sizes, np.round(sizes), rtol=1e-9)
    return np.split(np.sort(values), np.cumsum(np.round(sizes).astype(int))[:-1])


@pytest.mark.slow
@given(
    st.lists(
        st.tuples(st.integers(-60, 60), st.integers(1, 6)), min_size=1, max_size=9, unique_by=lambda pair: pair[0]
    ),
    st.floats(1e-3, 1e3),
    st.sampled_from([0.0, 1.0, 32.0]),
)
def test_it_is_the_best_of_all_partitions(counted, slope, per_level):
    values = np.repeat(*np.array(counted, dtype=np.float64).T.astype(int)).astype(np.float64) / 8
    levels, lengths = codebook(values, slope, per_level)
    cells = intervals(values, lengths)
    assert len(cells) == len(levels)
    np.testing.assert_allclose(levels, [cell.mean() for cell in cells], rtol=1e-5, atol=1e-6)
    found = sum(((cell - cell.mean()) ** 2).sum() for cell in cells)
    found += slope * (sum(len(cell) * np.log2(len(values) / len(cell)) for cell in cells) + per_level * len(cells))
    np.testing.assert_allclose(found, brute_force(values, slope, per_level), rtol=1e-9, atol=1e-9)


def test_the_higher_the_slope_the_fewer_bits_and_the_more_distortion():
    values = np.random.default_rng(0).laplace(size=3000)
    bits, misses, counts = [], [], []
    for slope in 10.0 ** np.arange(-4, 3):
        levels, lengths = codebook(values, slope, 32)
        cells = intervals(values, lengths)
        bits.append(sum(len(cell) * length for cell, length in zip(cells, lengths, strict=True)) + 32 * len(levels))
        misses.append(sum(((cell - level) ** 2).sum() for cell, level in zip(cells, levels, strict=True)))
        counts.append(len(levels))
    assert bits == sorted(bits, reverse=True)
    assert misses == sorted(misses)
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > 50
    assert counts[-1] == 1


@pytest.mark.parametrize("value", [0.0, -3.5, 1e-30, 7e37])
@pytest.mark.parametrize("count", [1, 5])
def test_one_value_is_one_level_without_bits(value, count):
    levels, lengths = codebook(np.full((count, 1), value, dtype=np.float32), 0.1, 32)
    assert levels.dtype == np.float32
    assert levels.tolist() == [np.float32(value)]
    assert lengths.tolist() == [0.0]


def test_code_lengths_are_those_of_the_cells_and_levels_ascend():
    values = np.random.default_rng(1).normal(size=(20, 5, 10)).astype(np.float32)
    levels, lengths = codebook(values, 0.01, 32)
    assert 4 < len(levels) < 60
    assert (np.diff(levels) > 0).all()
    np.testing.assert_allclose(2.0**-lengths @ np.ones(len(levels)), 1, rtol=1e-12)
    cells = intervals(values.ravel(), lengths)
    np.testing.assert_allclose(levels, [cell.mean(dtype=np.float64) for cell in cells], rtol=1e-6)
    # Values that are frequent have short codes.
    assert lengths[np.abs(levels).argmin()] < lengths[0]


def test_few_bins_cost_little():
    values = np.random.default_rng(2).standard_t(4, size=5000)
    slope = 0.01 * values.var()
    fine, coarse = (cost(values, *codebook(values, slope, 32, bins=bins), slope, 32) for bins in (4096, 512))
    assert fine <= coarse * (1 + 1e-6)
    assert coarse < 1.01 * fine
    # Against a quantizer that knows nothing of code lengths, of as many levels.
    levels, lengths = codebook(values, slope, 32)
    even = np.quantile(values, (np.arange(len(levels)) + 0.5) / len(levels)).astype(np.float32)
    counts = np.bincount(nearest_indices(values, even), minlength=len(even))
    assert cost(values, levels, lengths, slope, 32) < cost(values, even, np.log2(5000 / counts), slope, 32)


@given(st.integers(-30, 30), st.integers(0, 2**32))
def test_units_do_not_matter(exponent, seed):
    """Powers of two scale exactly: the same cells, whatever the unit of the weights."""
    values = np.random.default_rng(seed).normal(size=200)
    levels, lengths = codebook(values, 0.05, 8)
    scaled, same = codebook(values * 2.0**exponent, 0.05 * 4.0**exponent, 8)
    assert same.tolist() == lengths.tolist()
    assert scaled.tolist() == (levels * np.float32(2.0**exponent)).tolist()


def test_values_far_from_zero_lose_no_digits():
    values = 1e6 + np.random.default_rng(3).normal(size=500)
    far, lengths = codebook(values, 0.05, 8)
    _, near = codebook(values - 1e6, 0.05, 8)
    assert len(far) > 3
    np.testing.assert_allclose(lengths, near, rtol=1e-6)
