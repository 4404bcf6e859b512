import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wshare.quantize import error_feedback as feedback
from wshare.quantize.codebooks import nearest_indices


def covariance(rng: np.random.Generator, columns: int) -> np.ndarray:
    """Of inputs that resemble their neighbours, as those of an image do."""
    gaps = np.abs(np.subtract.outer(np.arange(columns), np.arange(columns)))
    deviation = rng.uniform(0.5, 2, columns)
    return 0.9**gaps * np.outer(deviation, deviation)


def output_error(weights: np.ndarray, shared: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """dw^T C dw of each row; weights are [columns, rows]."""
    change = shared - weights
    return np.einsum("cr,cd,dr->r", change, matrix, change)


def assign(weights, upper, levels, lengths=None, slope=0.0):
    columns, rows = weights.shape
    inverse_std = np.diag(upper).copy() if upper.shape[1] else np.ones(columns)
    lengths = np.zeros(len(levels)) if lengths is None else lengths
    return feedback.assign_with_feedback(weights, upper, levels, lengths, np.full(rows, float(slope)), inverse_std, -1)


@given(st.integers(1, 12), st.integers(0, 2**32))
def test_the_factor_is_upper_and_squares_to_the_inverse(columns, seed):
    rng = np.random.default_rng(seed)
    matrix = covariance(rng, columns)
    upper = feedback.inverse_cholesky(matrix)
    np.testing.assert_array_equal(np.tril(upper, -1), 0)
    assert (np.diag(upper) > 0).all()
    np.testing.assert_allclose(upper.T @ upper @ matrix, np.eye(columns), atol=1e-8)


def test_the_last_diagonal_of_the_factor_is_one_over_the_inputs_own_deviation():
    """Nothing comes after the last column; before it, an input that later ones tell has little spread of its own."""
    matrix = covariance(np.random.default_rng(0), 6)
    upper = feedback.inverse_cholesky(matrix)
    np.testing.assert_allclose(1 / upper[-1, -1] ** 2, matrix[-1, -1])
    rest, own = matrix[1:, 1:], matrix[0, 1:]
    np.testing.assert_allclose(1 / upper[0, 0] ** 2, matrix[0, 0] - own @ np.linalg.solve(rest, own))


@given(st.integers(1, 9), st.integers(1, 30), st.integers(0, 2**32))
def test_without_feedback_and_slope_each_weight_takes_its_nearest_level(k, rows, seed):
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(4, rows))
    levels = np.sort(rng.normal(size=k)).astype(np.float32)
    indices, loss = assign(weights, np.empty((4, 0)), levels)
    assert indices.dtype == np.uint16
    np.testing.assert_array_equal(indices, nearest_indices(weights, levels))
    np.testing.assert_allclose(loss, ((weights - levels[indices]) ** 2).sum(0))


def test_feedback_makes_less_output_error():
    lower = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        matrix = covariance(rng, 16)
        weights = rng.normal(size=(16, 8))
        levels = np.linspace(-2, 2, 7).astype(np.float32)
        plain, _ = assign(weights, np.empty((16, 0)), levels)
        fed, _ = assign(weights, feedback.inverse_cholesky(matrix), levels)
        errors = [output_error(weights, levels[indices], matrix).sum() for indices in (fed, plain)]
        lower.append(errors[0] / errors[1])
    assert np.mean(lower) < 0.6
    assert max(lower) < 1


@given(st.integers(1, 10), st.integers(1, 5), st.floats(0, 1), st.integers(0, 2**32))
def test_the_loss_is_the_output_error(columns, rows, slope, seed):
    """With slopes too, and levels too few to reach all weights."""
    rng = np.random.default_rng(seed)
    matrix = covariance(rng, columns)
    weights = rng.normal(size=(columns, rows)) * 3
    levels = np.sort(rng.normal(size=5)).astype(np.float32)
    indices, loss = assign(weights, feedback.inverse_cholesky(matrix), levels, rng.uniform(0, 8, 5), slope)
    np.testing.assert_allclose(loss, output_error(weights, levels[indices], matrix), rtol=1e-7, atol=1e-9)


def test_weights_are_left_as_they_were():
    weights = np.random.default_rng(0).normal(size=(5, 3))
    before = weights.copy()
    assign(
        weights,
        feedback.inverse_cholesky(covariance(np.random.default_rng(1), 5)),
        np.array([-1.0, 1.0], dtype=np.float32),
    )
    np.testing.assert_array_equal(weights, before)


def test_a_slope_pulls_to_shorter_codes():
    weights = np.random.default_rng(0).normal(size=(8, 200))
    levels = np.linspace(-2, 2, 9).astype(np.float32)
    lengths = 1 + np.abs(np.arange(9) - 4.0)
    bits, losses = [], []
    for slope in (0, 0.02, 0.1, 0.5):
        indices, loss = assign(weights, np.empty((8, 0)), levels, lengths, slope)
        bits.append(lengths[indices].sum())
        losses.append(loss.sum())
    assert bits == sorted(bits, reverse=True)
    assert losses == sorted(losses)
    assert bits[-1] < 0.8 * bits[0]


def test_each_row_has_its_slope_and_each_column_its_spread():
    """Halfway to the longer code: dear rows and columns of small inputs take the shorter one."""
    weights = np.full((2, 2), 0.6)
    levels, lengths = np.array([0.0, 1.0], dtype=np.float32), np.array([0.0, 1.0])
    indices, loss = feedback.assign_with_feedback(
        weights, np.empty((2, 0)), levels, lengths, np.array([0.1, 1.0]), np.array([1.0, 2.0]), -1
    )
    # (0.36 - 0.16) / spread^2 against the slope: 0.2 and 0.05 against 0.1 and 1.
    assert indices.tolist() == [[1, 0], [0, 0]]
    np.testing.assert_allclose(loss, [0.16 + 0.09, 0.36 + 0.09])


def test_no_more_levels_than_those_near_are_looked_at():
    """However short a code, an outlier does not jump over more than three levels on its side."""
    levels = np.arange(11, dtype=np.float32)
    lengths = np.full(11, 20.0)
    lengths[0] = lengths[10] = 0
    for weight, lowest, highest in ((5.2, 3, 8), (0.0, 0, 3), (10.0, 7, 10)):
        indices, _ = assign(np.array([[weight]]), np.empty((1, 0)), levels, lengths, 1e9)
        assert lowest <= indices[0, 0] <= highest


@pytest.mark.parametrize("rows", [1, 70])
@pytest.mark.parametrize("k", range(1, 13))
def test_each_weight_takes_the_first_level_of_least_cost_among_those_near(k, rows):
    """One weight and one level after the other; ties go down. Rows are looked at several at once."""
    rng = np.random.default_rng(k)
    weights = rng.integers(-9, 10, (20, rows)) / 4
    levels = np.unique(rng.integers(-3, 4, k) ** 3 / 16).astype(np.float32)
    lengths, slope = rng.integers(0, 9, len(levels)).astype(np.float64), 2.0
    found, _ = assign(weights, np.empty((20, 0)), levels, lengths, slope)
    for place, weight in np.ndenumerate(weights):
        near = min(max(np.searchsorted(levels, weight), 1), max(len(levels) - 1, 1))
        tried = range(max(near - feedback.REACH, 0), min(near + feedback.REACH, len(levels)))
        assert found[place] == min(tried, key=lambda q: (weight - levels[q]) ** 2 + slope * lengths[q])


@pytest.mark.parametrize("k", [1, 4])
def test_the_normal_equations_are_those_of_an_explicit_least_squares(k):
    rng = np.random.default_rng(k)
    columns, rows = 6, 5
    matrix = covariance(rng, columns)
    importance = rng.uniform(0.1, 2, rows)
    weights = rng.normal(size=(columns, rows))
    indices = rng.integers(k, size=(columns, rows)).astype(np.uint16)
    found, vector = feedback.codebook_normal(indices, weights, matrix, importance, k)
    expected, right = np.zeros((k, k)), np.zeros(k)
    for row in range(rows):
        choice = np.eye(k)[indices[:, row]]
        expected += importance[row] * choice.T @ matrix @ choice
        right += importance[row] * choice.T @ matrix @ weights[:, row]
    np.testing.assert_allclose(found, expected)
    np.testing.assert_allclose(vector, right, atol=1e-12)
    # Its solution is where the loss is least.
    levels = np.linalg.solve(found, vector)
    least = importance @ output_error(weights, levels[indices], matrix)
    for step in 1e-3 * np.eye(k):
        assert importance @ output_error(weights, (levels + step)[indices], matrix) > least
        assert importance @ output_error(weights, (levels - step)[indices], matrix) > least


def cost_of(weights, matrix, levels, lengths, slope, indices):
    """Cost of each row, [rows]."""
    change = levels[indices] - weights
    return np.einsum("ir,ij,jr->r", change, matrix, change) + slope * lengths[indices].sum(0)


@pytest.mark.parametrize("slope", [0.0, 0.3])
def test_descent_ends_where_no_single_move_lowers_the_cost(slope):
    rng = np.random.default_rng(3)
    columns, rows, k = 8, 20, 5
    matrix = covariance(rng, columns)
    weights = rng.normal(size=(columns, rows))
    levels, lengths = np.sort(rng.normal(size=k)), rng.uniform(1, 4, k)
    indices = rng.integers(k, size=(columns, rows)).astype(np.uint16)
    slopes = np.full(rows, slope)
    before = cost_of(weights, matrix, levels, lengths, slopes, indices)
    while True:
        last = indices.copy()
        loss, growth = feedback.descend(weights, matrix, levels, lengths, slopes, indices, -1)
        if (indices == last).all():
            break
    after = cost_of(weights, matrix, levels, lengths, slopes, indices)
    np.testing.assert_allclose(loss + slope * lengths[indices].sum(0), after)
    before_and_after = (np.einsum("ir,ij,jr->r", w, matrix, w) for w in (weights, levels[indices]))
    np.testing.assert_allclose(growth, -np.subtract(*before_and_after), atol=1e-9)
    assert (after < before).all()
    for column, step in itertools.product(range(columns), (-2, -1, 1, 2)):
        moved = indices.astype(int)
        moved[column] = np.clip(moved[column] + step, 0, k - 1)
        assert (cost_of(weights, matrix, levels, lengths, slopes, moved) >= after - 1e-9).all()


def test_descent_makes_less_output_error_than_feedback_alone():
    """Rows as long as a small layer's, inputs that resemble each other."""
    rng = np.random.default_rng(5)
    columns, rows = 40, 30
    matrix = covariance(rng, columns)
    weights = rng.normal(size=(columns, rows))
    levels, lengths = np.linspace(-2, 2, 5).astype(np.float32), np.zeros(5)
    upper = feedback.inverse_cholesky(matrix)
    slopes = np.zeros(rows)
    indices, _ = feedback.assign_with_feedback(weights, upper, levels, lengths, slopes, np.diag(upper).copy(), -1)
    fed = output_error(weights, levels[indices], matrix)
    descended, _ = feedback.descend(weights, matrix, levels.astype(np.float64), lengths, slopes, indices, -1)
    np.testing.assert_allclose(descended, output_error(weights, levels[indices], matrix))
    assert (descended <= fed * (1 + 1e-9)).all()
    assert descended.sum() < 0.97 * fed.sum()


def test_descent_leaves_exact_weights_alone():
    levels = np.array([-1.0, 0.5])
    indices = np.array([[0, 1], [1, 1]], dtype=np.uint16)
    matrix = np.array([[1.0, 0.9], [0.9, 1.0]])
    kept = indices.copy()
    loss, growth = feedback.descend(levels[indices], matrix, levels, np.zeros(2), np.zeros(2), indices, -1)
    assert not loss.any()
    assert not growth.any()
    assert (indices == kept).all()
