import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wshare.errors import UserError
from wshare.evaluation.chances import MAX_KL
from wshare.search.rate_distortion.slope import CLOSE, NEAREST, WIDEST, aim, find, first_guess, guess, within

BUDGET = 0.04
# More slopes than ever are needed.
MANY = 12


class Curve:
    """Divergence as a function of the slope; counts what is measured."""

    def __init__(self, loss: Callable[[float], float], confirmed: Callable[[float], bool] = lambda slope: True):
        self.loss, self.confirmed = loss, confirmed
        self.tried: list[float] = []

    def __call__(self, slope: float) -> tuple[float, float]:
        assert slope not in self.tried, "measured twice"
        self.tried.append(slope)
        return self.loss(slope), 0.5 if self.confirmed(slope) else 1.1

    def run(self, start: float = 1.0, evaluations: int = MANY) -> float:
        slope = find(self, start, BUDGET, evaluations)
        assert len(self.tried) <= evaluations
        assert slope in self.tried
        return slope


@given(st.floats(0.7, 4), st.floats(-3, 3))
def test_a_power_law_is_met_closely_in_few_steps(exponent, distance):
    """However far off the first guess is."""
    curve = Curve(lambda slope: BUDGET * (slope / 10**distance) ** exponent)
    slope = curve.run()
    assert CLOSE * BUDGET <= curve.loss(slope) <= BUDGET
    assert len(curve.tried) <= 8


@given(st.floats(-2, 2), st.floats(0.05, 0.4), st.integers(0, 1000))
def test_a_smooth_curve_of_changing_slope_is_met_closely(distance, wave, seed):
    phase = seed / 100

    def loss(slope: float) -> float:
        x = math.log(slope) - distance
        return BUDGET * math.exp(x + wave * math.sin(2 * x + phase))

    curve = Curve(loss)
    assert CLOSE * BUDGET <= loss(curve.run()) <= BUDGET


@given(st.floats(-2, 2), st.floats(1.5, 1000))
def test_a_jump_over_the_budget_is_approached_from_below(distance, height):
    """Not even the highest slope below it spends the budget."""
    edge = 10**distance
    curve = Curve(lambda slope: 0.3 * BUDGET * min(slope / edge, 1) if slope < edge else height * BUDGET)
    slope = curve.run(evaluations=24)
    assert 0.7 * edge < slope < edge


def test_steps_are_climbed_to_the_last_that_fits():
    curve = Curve(lambda slope: BUDGET * 1.5 ** math.floor(math.log(slope / 0.37, 1.5)) * 0.9)
    slope = curve.run(evaluations=24)
    assert 0.5 * BUDGET < curve.loss(slope) <= BUDGET


@given(st.integers(0, 100), st.floats(0.5, 1.5))
def test_noise_does_not_lead_it_over_the_budget(seed, exponent):
    """Each slope has its own luck; what is chosen fits with the luck that was measured."""
    rng = np.random.default_rng(seed)
    luck: dict[float, float] = {}

    def loss(slope: float) -> float:
        return BUDGET * slope**exponent * luck.setdefault(slope, math.exp(0.05 * rng.normal()))

    curve = Curve(loss)
    slope = curve.run(start=0.1)
    assert 0.75 * BUDGET < loss(slope) <= BUDGET
    assert slope == max(tried for tried in curve.tried if loss(tried) <= BUDGET)


@pytest.mark.parametrize("level", [0.0, -1e-3, 1e-12, 0.3 * BUDGET])
def test_a_loss_that_never_reaches_the_budget_leads_to_the_highest_slope(level):
    curve = Curve(lambda slope: min(level, slope))
    slope = curve.run()
    assert slope == max(curve.tried)
    assert slope > 100


def test_a_loss_that_never_fits_leads_to_the_least():
    curve = Curve(lambda slope: BUDGET * (1.01 + slope))
    slope = curve.run()
    assert slope == min(curve.tried)
    assert slope < 0.1


def test_a_network_that_breaks_at_once_is_survived():
    """Divergence of float32's probabilities is bounded by nothing."""
    curve = Curve(lambda slope: 1e30 if slope > 1e-3 else BUDGET * slope / 1e-3)
    slope = curve.run(evaluations=24)
    assert 0.8e-3 < slope <= 1e-3


@given(st.floats(0.1, 1), st.floats(0.7, 4))
def test_accuracy_that_asks_for_more_is_followed_down(share, exponent):
    """Confirmed only below a share of the budget."""
    curve = Curve(lambda p: BUDGET * p**exponent, lambda p: BUDGET * p**exponent < share * BUDGET)
    slope = curve.run(start=3.0, evaluations=30)
    assert curve.confirmed(slope)
    # What is near enough, and what closeness leaves.
    assert curve.loss(slope) >= 0.83 * share * BUDGET


def test_where_accuracy_never_confirms_it_is_the_least_loss():
    curve = Curve(lambda slope: BUDGET * slope, lambda slope: False)
    slope = curve.run(start=5.0)
    assert slope == min(curve.tried)
    assert slope < 0.5


def test_accuracy_alone_does_not_confirm_what_is_over_the_budget():
    curve = Curve(lambda slope: BUDGET * slope)
    assert curve.run(start=1.3) <= 1


def test_a_refusal_by_a_hair_lowers_the_budget_by_a_fifth_and_no_more():
    losses = []

    def measure(slope: float) -> tuple[float, float]:
        losses.append(BUDGET * slope)
        return losses[-1], 1.01

    find(measure, 0.97, BUDGET, 4)
    for before, after in pairwise(losses):
        assert 0.7 * before < after < 0.81 * before


@pytest.mark.parametrize("unsure", [5.0, 16.0])
def test_quality_that_is_far_off_is_reached_in_few_steps(unsure):
    """Predictions change as the root of the divergence: so that no dozen of evaluations ends before it is small."""
    tried = []

    def measure(slope: float) -> tuple[float, float]:
        tried.append(slope)
        return BUDGET * slope, unsure * math.sqrt(slope)

    slope = find(measure, 1.0, BUDGET, 12)
    assert 0.5 < unsure * math.sqrt(slope) <= 1
    assert sum(unsure * math.sqrt(slope) > 1 for slope in tried[:4]) < 4


@pytest.mark.parametrize("edge", [0.1, 0.3, 0.8])
def test_from_what_is_confirmed_it_climbs_to_what_is_refused(edge):
    """However far the first refusal throws it back, and though losses jump: fixed widths of indices make steps."""
    tried = []

    def measure(slope: float) -> tuple[float, float]:
        loss = BUDGET * 1.15 ** math.floor(math.log(slope, 1.15))
        tried.append(loss)
        return loss, 2.4 if loss > edge * BUDGET else 0.5

    slope = find(measure, 0.97, BUDGET, 12)
    loss = BUDGET * 1.15 ** math.floor(math.log(slope, 1.15))
    assert edge / 1.15**2 < loss / BUDGET <= edge
    assert len(set(tried)) > len(tried) / 2


def test_slopes_are_of_three_digits_so_that_last_bits_of_sums_decide_nothing():
    curves = [Curve(lambda p, off=off: BUDGET * (p * (1 + off)) ** 1.3) for off in (0, 1e-9)]
    assert curves[0].run(0.123456) == curves[1].run(0.123456)
    assert curves[0].tried == curves[1].tried
    assert all(slope == float(f"{slope:.3g}") for slope in curves[0].tried)


@pytest.mark.parametrize("evaluations", [1, 2, 3])
def test_few_evaluations_are_kept_to(evaluations):
    curve = Curve(lambda slope: BUDGET * slope**2)
    slope = curve.run(start=50.0, evaluations=evaluations)
    assert len(curve.tried) == evaluations
    if evaluations == 1:
        assert slope == 50.0


@given(st.floats(1e-4, 1), st.integers(1, 10**9))
def test_the_first_guess_is_right_where_loss_falls_by_six_decibels_a_bit(max_kl, weights):
    slope = first_guess(max_kl, weights)
    # One bit more for each weight leaves a quarter of the loss: a small step tells the slope.
    step = 1e-6
    np.testing.assert_allclose(max_kl * (1 - 4**-step) / (weights * step), slope, rtol=1e-4)


def test_a_guess_grows_with_the_loss_allowed_and_goes_no_further_than_the_bracket():
    assert guess(1e-6, 0.1, 0.02) == pytest.approx(2e-7)
    assert guess(1e-6, 0.0, 0.02) == pytest.approx(1e-6 * WIDEST)
    assert guess(1e-6, 1e9, 0.02) == pytest.approx(1e-6 / WIDEST)


def test_probes_aim_between_a_slope_that_is_too_high_and_one_that_is_too_low():
    assert aim([(1e-6, 0.1)], 0.02) == pytest.approx(2e-7)
    # The loss of a broken network, then next to none: the guess from it would be above the first slope.
    assert aim([(1e-6, 2.0), (1e-8, 1e-6)], 0.02) == pytest.approx(1e-7)
    assert aim([(1e-6, 2.0), (1e-8, 1e-3)], 0.02) == pytest.approx(2e-7)
    assert aim([(1e-6, 0.02)], 0.02) == pytest.approx(1e-6)


def test_probes_on_one_side_alone_aim_at_a_slope_above_0():
    # So little is allowed that the step is cut short, and ends below what was probed first.
    assert aim([(1e-2, 1e-15), (1e-8, 1e-14)], 1e-14) == pytest.approx(1e-2)
    assert aim([(1e-8, 0.1), (1e-2, 0.021)], 0.02) == pytest.approx(1e-8)
    assert aim([(5.76e-22, 1.3e-15)], 2.7e-15) < math.inf


def test_an_accuracy_of_99_percent_allows_a_fortieth_of_a_nat():
    allowed = MAX_KL * (1 - 0.99)
    assert allowed == pytest.approx(0.025)


@given(st.floats(1, 30), st.floats(-1.5, 1.5), st.floats(0.2, 0.8))
def test_the_lowest_slope_of_a_size_is_found_in_few_steps(weight_bits, distance, share):
    """However far off the first guess is; bits fall by a half for each doubling of the slope, then level off."""
    tried = []

    def bits(slope: float) -> float:
        tried.append(slope)
        return weight_bits / (1 + math.sqrt(slope / 10**distance))

    most = share * weight_bits
    slope = within(bits, most, 1.0)
    exact = 10**distance * (1 / share - 1) ** 2
    assert bits(slope) <= most
    assert 0.999 * exact <= slope <= (1 + 2 * NEAREST) * exact
    assert len(tried) < 30


def test_a_size_that_no_slope_reaches_is_refused():
    with pytest.raises(UserError, match=r"no slope makes the layers as small as 1,000 bytes; lower"):
        within(lambda slope: 8001.0, 8000, 1.0)


def test_steps_in_the_size_never_end_above_it():
    """A codebook that loses a level makes a step."""
    slope = within(lambda slope: 10 - math.floor(math.log(slope) * 3), 7.5, 0.1)
    assert 10 - math.floor(math.log(slope) * 3) <= 7.5
    assert math.isclose(slope, math.e, rel_tol=2 * NEAREST)


def test_a_slope_that_is_aimed_at_lies_above_the_highest_that_fits():
    # The last probe, far off, alone would aim a little below it.
    probed = [(0.1, BUDGET / 40), (1.0, BUDGET / 2), (4.0, BUDGET * 2), (0.001, BUDGET / 990)]
    assert 1 <= aim(probed, BUDGET) <= 4


def test_what_is_confirmed_near_to_what_is_refused_ends_the_search():
    curve = Curve(lambda slope: 0.01 * slope, lambda slope: slope < 0.95)
    curve.run(1.0)
    confirmed = max(curve.loss(slope) for slope in curve.tried if slope < 0.95)
    refused = min(curve.loss(slope) for slope in curve.tried if slope >= 0.95)
    assert confirmed >= 0.9 * refused
    assert len(curve.tried) <= 6
