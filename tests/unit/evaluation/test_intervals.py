"""How far quality can be told from so many images."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from wshare.evaluation.intervals import images_needed, predicted_low, relative_quality, verdict


def answers(both: int, gained: int, lost: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Correctness after and before, in random order."""
    counts = [both, gained, lost, neither]
    correct, reference = np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)
    order = np.random.default_rng(0).permutation(len(correct))
    return correct[order], reference[order]


@pytest.mark.parametrize("counts", [(900, 20, 40, 40), (95, 3, 1, 1), (50, 0, 0, 50), (180, 60, 60, 200)])
def test_interval_is_that_of_a_paired_bootstrap_of_the_images(counts):
    correct, reference = answers(*counts)
    share, low, high = relative_quality(correct, reference, seed=3)
    assert share == correct.sum() / reference.sum()
    rng = np.random.default_rng(11)
    draws = rng.integers(len(correct), size=(10_000, len(correct)), dtype=np.int32)
    ratios = correct[draws].sum(1) / reference[draws].sum(1)
    expected = np.quantile(ratios, [0.025, 0.975])
    # Both are quantiles of 10,000 draws: their own error is a few hundredths of a standard deviation.
    assert [low, high] == pytest.approx(expected, abs=0.12 * ratios.std() + 1e-12)


def test_interval_is_seeded():
    correct, reference = answers(800, 30, 50, 120)
    found = relative_quality(correct, reference, seed=0)
    assert found == relative_quality(correct, reference, seed=0)
    assert found != relative_quality(correct, reference, seed=1)


@pytest.mark.parametrize("counts", [(0, 0, 0, 10), (0, 5, 0, 5)])
def test_a_float32_network_that_is_never_right_has_no_share(counts):
    correct, reference = answers(*counts)
    assert relative_quality(correct, reference, seed=0) == (0.0, 0.0, 0.0)
    assert predicted_low(correct, reference, 0.9) == (0.0, 0.0)


def test_one_right_answer_gives_an_interval():
    """Many resamples have no right answer at all."""
    share, low, high = relative_quality(*answers(1, 0, 0, 9), seed=0)
    assert (share, low, high) == (1.0, 0.0, 1.0)


COUNTS = st.tuples(st.integers(1, 400), st.integers(0, 60), st.integers(0, 60), st.integers(0, 200))


@given(COUNTS, st.floats(0.5, 0.99))
def test_predicted_low_lies_below_the_share_and_falls_with_confidence(counts, confidence):
    share, low = predicted_low(*answers(*counts), confidence)
    assert share == (counts[0] + counts[1]) / (counts[0] + counts[2])
    assert low < share
    assert predicted_low(*answers(*counts), (1 + confidence) / 2)[1] < low


@given(COUNTS)
def test_predicted_low_rises_with_each_answer_that_is_not_lost(counts):
    both, gained, lost, neither = counts
    worse = predicted_low(*answers(both, gained, lost + 1, neither), 0.9)[1]
    assert worse < predicted_low(*answers(both + 1, gained, lost, neither), 0.9)[1]


def test_predicted_low_nears_the_share_with_many_images():
    gaps = []
    for factor in (1, 4, 16):
        share, low = predicted_low(*answers(900 * factor, 10 * factor, 20 * factor, 70 * factor), 0.9)
        gaps.append(share - low)
    assert gaps[0] / gaps[1] == pytest.approx(2, rel=0.1)
    assert gaps[1] / gaps[2] == pytest.approx(2, rel=0.05)
    # z(0.975) + sqrt(2) z(0.9) standard deviations of the difference of two proportions on the same images.
    deviation = np.sqrt((30 / 1000 - (10 / 1000) ** 2) / 16000) / (920 / 1000)
    assert gaps[2] == pytest.approx((norm.ppf(0.975) + np.sqrt(2) * norm.ppf(0.9)) * deviation, rel=0.01)


@pytest.mark.slow
def test_predicted_low_is_held_with_the_confidence_asked_for():
    """On other images from the same source, the interval's lower end is no lower in about 90 % of cases."""
    rng = np.random.default_rng(0)
    shares = [0.93, 0.01, 0.02, 0.04]
    held = []
    for _ in range(400):
        seen, other = (answers(*rng.multinomial(1500, shares)) for _ in range(2))
        held.append(relative_quality(*other, seed=0)[1] >= predicted_low(*seen, 0.9)[1])
    assert 0.86 <= np.mean(held) <= 0.96


def test_without_a_confidence_the_share_itself_counts():
    correct, reference = answers(800, 10, 30, 160)
    assert predicted_low(correct, reference, None) == (810 / 830, 810 / 830)
    # Plain numbers, which JSON can hold.
    assert {type(value) for value in predicted_low(correct, reference, None)} == {float}
    assert {type(value) for value in relative_quality(correct, reference, seed=0)} == {float}
    assert images_needed(0.9, 0.99, None) == 0


@given(st.integers(1, 20), st.floats(0.5, 0.995), st.floats(0.5, 0.99))
def test_an_unchanged_network_reaches_the_target_from_the_images_needed_on(twentieths, target, confidence):
    needed = images_needed(twentieths / 20, target, confidence)
    for images in (-(-needed // 20) * 20, (needed - 1) // 20 * 20):
        right = images * twentieths // 20
        if right > 0:
            reached = predicted_low(*answers(right, 0, 0, images - right), confidence)[1] >= target - 1e-12
            assert reached == (images >= needed)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.991, 1.0, "met"),
        (0.99, 1.0, "met"),
        (0.98, 0.995, "undecided"),
        (0.98, 0.99, "undecided"),
        (0.97, 0.9899, "missed"),
    ],
)
def test_verdict_tells_where_the_whole_interval_lies(low, high, expected):
    assert verdict(low, high, 0.99) == expected
