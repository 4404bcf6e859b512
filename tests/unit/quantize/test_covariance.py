import numpy as np
import pytest

from wshare.quantize.covariance import Covariance, shrunk
from wshare.quantize.error_feedback import inverse_cholesky


def covariances(groups: int, columns: int) -> np.ndarray:
    """Of random inputs, float32 [groups, columns, columns]."""
    inputs = np.random.default_rng(columns).normal(size=(groups, columns, 2 * columns + 1))
    return (inputs @ inputs.transpose(0, 2, 1)).astype(np.float32)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("columns", [1, 2, 31, 32, 33, 70])
def test_covariance_and_factor_share_one_array(groups, columns):
    given = covariances(groups, columns)
    made = Covariance(given.copy())
    factors = np.stack([inverse_cholesky(own) for own in given]).astype(np.float32)
    assert made.factor is made.values
    np.testing.assert_array_equal(np.triu(made.factor, 1), np.triu(factors, 1))
    np.testing.assert_array_equal(made.factor_diagonal, np.einsum("gii->gi", factors))
    # Asked for again, neither is made of what the other has left.
    np.testing.assert_array_equal(np.triu(made.factor, 1), np.triu(factors, 1))
    np.testing.assert_array_equal(made.whole, given)
    np.testing.assert_array_equal(made.diagonal, np.einsum("gii->gi", given))


def test_a_diagonal_has_no_factor_but_deviations():
    made = Covariance(np.array([[4.0, 0.25]], np.float32))
    assert made.is_diagonal
    assert made.factor.shape == (1, 2, 0)
    np.testing.assert_array_equal(made.factor_diagonal, [[0.5, 2]])
    np.testing.assert_array_equal(made.whole, made.values)
    np.testing.assert_array_equal(made.diagonal, made.values)


def test_a_share_of_the_covariance_is_rounded_once():
    second = covariances(2, 5)
    mean = np.random.default_rng(0).normal(size=(2, 5))
    expected = (second.astype(np.float64) - mean[:, :, None] * mean[:, None, :]) * 0.7
    np.testing.assert_array_equal(shrunk(second, mean, 0.7), expected.astype(np.float32))
