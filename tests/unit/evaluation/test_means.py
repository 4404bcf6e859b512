"""Intervals of quality that is a mean of image-wise scores."""

import numpy as np
import pytest
from benchmarks.means import wrong

from wshare.evaluation.chances import FEWEST_SCORED
from wshare.evaluation.intervals import Counts, deciding_images, interval, kept, method_name, predicted_low
from wshare.evaluation.means import METHOD, Means
from wshare.tasks.task import Score


def scores(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores after compression and before it."""
    rng = np.random.default_rng(seed)
    before = rng.uniform(0.5, 1, count)
    return before - rng.exponential(0.02, count), before


def score(values: np.ndarray) -> Score:
    return Score(0.0, 0.0, 1.0, 0.0, values, {})


def test_the_share_is_a_ratio_of_means_inside_its_interval():
    after, before = scores(200)
    found = kept(score(after), score(before))
    assert isinstance(found, Means)
    assert found.share == pytest.approx(after.mean() / before.mean())
    assert found.low < found.share < found.high
    assert interval(found, True) == interval(found, False) == (found.low, found.high)
    assert method_name(found, True) == METHOD
    # The deviation is that of the ratio: what a bootstrap of the images gives.
    chosen = np.random.default_rng(1).integers(200, size=(4000, 200))
    drawn = after[chosen].mean(1) / before[chosen].mean(1)
    assert found.deviation == pytest.approx(drawn.std(), rel=0.05)


def test_scores_of_right_and_wrong_are_counts():
    right = np.array([True, False, True])
    assert kept(score(right), score(right)) == Counts(2, 0, 0, 1)
    assert isinstance(kept(score(right.astype(float)), score(right)), Means)


def test_a_skewed_sample_reaches_further_to_the_side_of_its_tail():
    rng = np.random.default_rng(3)
    found = Means.of(1 - rng.lognormal(-4, 1, 100), np.ones(100))
    assert found.share - found.low > 1.2 * (found.high - found.share)
    mirrored = Means.of(1 + (1 - found.share) - (1 - rng.lognormal(-4, 1, 100) - found.share), np.ones(100))
    assert mirrored.share - mirrored.low < mirrored.high - mirrored.share


@pytest.mark.parametrize("images", [2, 10, 500])
def test_a_network_that_changes_nothing_keeps_all(images):
    before = scores(images)[1]
    found = Means.of(before, before)
    assert (found.share, found.low, found.high) == pytest.approx((1, 1, 1))


def test_without_any_quality_of_float32_nothing_is_known():
    found = Means.of(np.ones(10), np.zeros(10))
    assert (found.share, found.low, found.high) == (0, 0, 10)


def test_few_images_reach_far():
    wide, narrow = (Means.of(*scores(count)) for count in (10, 1000))
    assert wide.high - wide.low > 15 * (narrow.high - narrow.low)


@pytest.mark.slow
@pytest.mark.parametrize(("images", "world"), [(50, "exponential"), (100, "one image in ten"), (100, "with labels")])
def test_verdicts_are_seldom_wrong(images, world):
    assert max(wrong(images, world, 400)) <= 0.035


def test_a_search_foresees_the_interval_of_the_held_out_images():
    found = Means.of(*scores(400))
    assert predicted_low(found, None, 400) == found.share
    few, many = predicted_low(found, 0.9, 100), predicted_low(found, 0.9, 10_000)
    assert few < found.low < many < found.share
    assert predicted_low(found, 0.99, 400) < predicted_low(found, 0.5, 400) < found.low


def test_so_many_images_decide():
    found = Means.of(*scores(400))
    near, far = (deciding_images(found, found.share - gap) for gap in (0.001, 0.01))
    assert near == pytest.approx(100 * far, rel=0.1)
    assert deciding_images(found, 0.5) == FEWEST_SCORED
