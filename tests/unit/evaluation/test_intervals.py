"""How far quality can be told from so many images."""

import math
from bisect import bisect_left
from dataclasses import asdict

import numpy as np
import pytest
from benchmarks.intervals import wrong
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm

from wshare.evaluation import intervals
from wshare.evaluation.chances import TAIL, chance_of_met, least_images, share_of_rate, unconfirmed
from wshare.evaluation.intervals import Counts, deciding_images, interval, margin, predicted_low, tail, verdict

COUNTS = st.builds(Counts, st.integers(1, 400), st.integers(0, 60), st.integers(0, 60), st.integers(0, 200))


def answers(counts: Counts) -> tuple[np.ndarray, np.ndarray]:
    """Correctness after and before, in random order."""
    numbers = list(asdict(counts).values())
    correct, reference = np.repeat([True, True, False, False], numbers), np.repeat([True, False, True, False], numbers)
    order = np.random.default_rng(0).permutation(len(correct))
    return correct[order], reference[order]


def probability(counts: Counts, ratio: float, upper: bool) -> float:
    return float(tail(np.array(list(asdict(counts).values())), ratio, upper))


@given(COUNTS)
def test_counts_are_those_of_the_images(counts):
    correct, reference = answers(counts)
    assert Counts.of(correct, reference) == counts
    assert counts.images == len(correct)
    assert counts.share == (correct.sum() / reference.sum() if reference.any() else 0.0)


WORLDS = [
    (images, right, changed, ratio)
    for images in (10, 50, 200, 400, 1500, 50_000)
    for right in (0.5, 0.8, 0.97, 1.0)
    for changed in (0.001, 0.01, 0.05, 0.2)
    for ratio in (0.9, 0.98, 0.99)
    # Of what changes, at least what is missing was lost, and what was gained was wrong before.
    if right * (1 - ratio) <= changed and (changed - right * (1 - ratio)) / 2 <= 1 - right
]


@pytest.mark.slow
@pytest.mark.parametrize("images", sorted({images for images, *_ in WORLDS}))
def test_no_verdict_is_wrong_more_often_than_its_level(images):
    """Neither "met" nor "missed" where the truth is the target itself, and so a coverage of 0.94 at least."""
    for world in (world for world in WORLDS if world[0] == images):
        met, missed = wrong(*world)
        assert met <= 0.03, world
        assert missed <= 0.03, world


@pytest.mark.parametrize("images", [10, 50, 100, 200, 400, 1500])
@pytest.mark.parametrize("target", [0.9, 0.98, 0.99])
def test_agreement_without_labels_obeys_the_same_levels(images, target):
    def said(kept: int) -> str:
        return verdict(*interval(Counts(kept, 0, images - kept, 0), True), target)

    numbers, order = range(images + 1), ("missed", "undecided", "met")
    # The more are kept, the better the verdict.
    most_missed = bisect_left(numbers, 1, key=lambda kept: order.index(said(kept)))
    least_met = bisect_left(numbers, 2, key=lambda kept: order.index(said(kept)))
    assert binom.cdf(most_missed - 1, images, target) <= TAIL
    assert binom.sf(least_met - 1, images, target) <= TAIL


def test_no_changed_image_is_no_proof():
    """Ten images that all stay as they are say little; a percentile bootstrap would say all."""
    for agreement in (True, False):
        low, high = interval(Counts(10, 0, 0, 0), agreement)
        assert low < 0.7
        assert high >= 1
        assert verdict(low, high, 0.99) == "undecided"


@pytest.mark.parametrize("target", [0.9, 0.98, 0.99, 0.999])
def test_so_many_unchanged_images_are_enough_and_one_fewer_is_not(target):
    least = least_images(target)
    assert verdict(*interval(Counts(least, 0, 0, 0), True), target) == "met"
    assert verdict(*interval(Counts(least - 1, 0, 0, 0), True), target) == "undecided"


def test_a_target_of_one_is_never_met():
    assert least_images(1.0) is None
    assert verdict(*interval(Counts(10**6, 0, 0, 0), True), 1.0) == "undecided"


@pytest.mark.slow
@settings(max_examples=15)
@given(COUNTS, st.floats(0.5, 1.2))
def test_the_ends_are_what_the_test_just_does_not_reject(counts, ratio):
    low, high = interval(counts, False)
    assert 0 <= low <= counts.share <= high
    if low > 0:
        assert probability(counts, low, True) == pytest.approx(TAIL, rel=1e-4)
        assert probability(counts, low * 0.999, True) < TAIL
    if high < counts.images:
        assert probability(counts, high, False) == pytest.approx(TAIL, rel=1e-4)
    outside = min(probability(counts, ratio, True), probability(counts, ratio, False)) < TAIL - 1e-6
    assert outside == (ratio < low - 1e-9 or ratio > high + 1e-9) or min(abs(ratio - low), abs(ratio - high)) < 1e-3


def exact(counts: Counts, ratio: float, upper: bool, kept: float, gained: float, lost: float) -> float:
    """Probability of a statistic as far out, by all counts that there are; shares of the kinds are given."""
    n, observed, total = counts.images, counts.kept * (1 - ratio) + counts.gained - ratio * counts.lost, 0.0
    for a in range(n + 1):
        for b in range(n + 1 - a):
            c = np.arange(n + 1 - a - b)
            chance = binom.pmf(a, n, kept) * binom.pmf(b, n - a, gained / (1 - kept))
            chance = chance * binom.pmf(c, n - a - b, lost / (1 - kept - gained))
            statistic = a * (1 - ratio) + b - ratio * c
            out = statistic >= observed - 1e-9 if upper else statistic <= observed + 1e-9
            total += chance[out].sum()
    return float(total)


@pytest.mark.parametrize("counts", [Counts(20, 1, 4, 5), Counts(26, 0, 2, 2), Counts(15, 3, 3, 9)])
@pytest.mark.parametrize("upper", [True, False])
def test_tails_are_never_below_those_of_all_counts_and_near_them(counts, upper):
    ratio = 0.9
    n = counts.images
    # The likeliest shares with that ratio, by brute force.
    grid = np.linspace(0.001, 0.6, 400)
    gained, kept = np.meshgrid(grid, np.linspace(0.2, 0.97, 400))
    lost = ((1 - ratio) * kept + gained) / ratio
    rest = 1 - kept - gained - lost
    with np.errstate(divide="ignore", invalid="ignore"):
        likelihood = sum(
            count * np.log(share)
            for count, share in zip(asdict(counts).values(), (kept, gained, lost, rest), strict=True)
            if count
        )
    best = np.nanargmax(np.where(rest > 0, likelihood, np.nan))
    shares = [float(array.ravel()[best]) for array in (kept, gained, lost)]
    assert n <= 30
    found, wanted = probability(counts, ratio, upper), exact(counts, ratio, upper, *shares)
    assert wanted - 0.01 <= found <= wanted + 0.1


def test_the_normal_tail_of_a_saddlepoint_is_scipys():
    """To the last digit: metrics.json holds what follows from it."""
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet([300, 2, 3, 20], 50)
    values, images = np.array([0.02, 1.0, -0.98, 0.0]), np.full(50, 1500.0)
    mean = probabilities @ values + rng.normal(0, 0.003, 50)
    found = intervals._saddlepoint(probabilities, values, mean, images)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intervals, "ndtr", norm.cdf)
        patch.setattr(intervals, "_density", norm.pdf)
        assert (intervals._saddlepoint(probabilities, values, mean, images) == found).all()


def test_float32_that_is_never_right_leaves_everything_open():
    counts = Counts(0, 3, 0, 7)
    assert counts.share == counts.deviation == predicted_low(counts, 0.9, 10) == 0.0
    assert interval(counts, False) == (0.0, 10.0)
    assert verdict(*interval(counts, False), 0.99) == "undecided"


@given(COUNTS, st.floats(0.5, 0.99), st.integers(50, 2000))
def test_predicted_low_lies_below_the_share_and_falls_with_confidence(counts, confidence, held_out):
    low = predicted_low(counts, confidence, held_out)
    assert low < counts.share or counts.share == 0
    assert predicted_low(counts, (1 + confidence) / 2, held_out) < low or counts.share == 0


@given(COUNTS)
def test_fewer_held_out_images_ask_for_more(counts):
    lows = [predicted_low(counts, 0.9, held_out) for held_out in (100, 400, 1600)]
    assert lows == sorted(lows)


@pytest.mark.slow
@pytest.mark.parametrize(("search", "held_out"), [(1500, 1500), (1500, 375), (750, 3000)])
@pytest.mark.parametrize("confidence", [0.5, 0.9])
def test_predicted_low_is_held_with_the_confidence_asked_for_and_little_more(search, held_out, confidence):
    """On other images from the same source, whatever their number, the interval's lower end is no lower."""
    rng, shares, held, runs = np.random.default_rng(0), [0.81, 0.015, 0.025, 0.15], 0, 150
    for _ in range(runs):
        seen, other = (Counts(*map(int, rng.multinomial(images, shares))) for images in (search, held_out))
        held += probability(other, predicted_low(seen, confidence, held_out), True) <= TAIL
    # The confidence asked for leaves half the doubt, for a search's other looks (`chances.LOOKS`).
    assert held / runs >= 1 - (1 - confidence) / 2 - 3 * math.sqrt(confidence * (1 - confidence) / runs)


def test_predicted_low_is_the_formula_of_its_description():
    counts, held_out = Counts(900, 10, 20, 70), 250
    spread = (norm.ppf(0.975) * 2 + norm.ppf(0.95) * math.sqrt(5)) * counts.deviation
    assert predicted_low(counts, 0.9, held_out) == pytest.approx(counts.share - spread - 0.5 * 4 / 920)
    assert predicted_low(counts, None, held_out) == counts.share == 910 / 920
    # Half an image is added to each of the four kinds.
    images = 1002
    changed = (31 / images - (10 / images) ** 2) / images
    assert counts.deviation == pytest.approx(math.sqrt(changed) / (921 / images))


@pytest.mark.parametrize("quality", [0.5, 0.83, 1.0])
@pytest.mark.parametrize(("ratio", "target", "confidence"), [(1, 0.99, 0.9), (4, 0.98, 0.95), (0.5, 0.97, 0.5)])
def test_an_unchanged_network_confirms_from_the_images_that_are_named_on(quality, ratio, target, confidence):
    def confirms(search: int) -> bool:
        return unconfirmed(search, round(search / ratio), quality, target, confidence) is None

    least = next(search for search in range(4, 10**5, 4) if confirms(search))
    for search in (least, 2 * least, 10 * least):
        right = round(search * quality)
        reached = predicted_low(Counts(right, 0, 0, search - right), confidence, round(search / ratio))
        assert reached >= target - 2e-4
    right = round(least * quality * 0.95)
    low = predicted_low(Counts(right, 0, 0, least - right), confidence, round(least / ratio))
    # So few held-out images would leave the verdict undecided though none of them changed.
    assert low < target or right / ratio < least_images(target)
    told = unconfirmed(least - 8, round((least - 8) / ratio), quality, target, confidence)
    assert told.startswith(
        f"{least - 8:,} search images and {round((least - 8) / ratio):,} held-out ones cannot confirm"
    )


def test_no_number_of_images_confirms_a_target_of_one():
    assert "no number of images can" in unconfirmed(10**9, 10**9, 0.9, 1.0, 0.9)


def test_what_would_decide_does_so_four_times_in_five():
    """In the world that was measured, and not with a quarter of the images."""
    counts, target = Counts(3180, 40, 68, 712), 0.98
    needed = deciding_images(counts, target)
    rng, shares = np.random.default_rng(0), np.array(list(asdict(counts).values())) / counts.images
    decided = {
        images: np.mean(tail(rng.multinomial(images, shares, 300), target, True) <= TAIL)
        for images in (needed, needed // 4)
    }
    assert decided[needed] == pytest.approx(0.8, abs=0.08)
    assert decided[needed // 4] < 0.45


def test_where_the_share_is_the_target_nothing_decides():
    assert deciding_images(Counts(99, 0, 1, 0), 0.99) is None


def test_no_fewer_images_are_said_to_decide_than_unchanged_ones_need():
    assert deciding_images(Counts(100, 0, 0, 0), 0.99) >= least_images(0.99)


def test_chances_before_a_run_rise_with_images_and_cost_falls():
    chances = [chance_of_met(images, 0.99) for images in (400, 2000, 10_000, 50_000)]
    assert chances == sorted(chances)
    # Simulated: 0.087, 0.258, 0.799, 1 (benchmarks/results/acceptance.csv).
    assert chances == pytest.approx([0.087, 0.258, 0.799, 1], abs=0.12)
    kept = [share_of_rate(images, images, 0.99, 0.9) for images in (2000, 10_000, 50_000)]
    assert kept == pytest.approx([6.55 / 9.73, 8.99 / 9.88, 1], abs=0.12)
    assert share_of_rate(20, 20, 0.99, 0.9) is None


def test_a_margin_is_half_a_normal_interval():
    assert margin(2.0) == pytest.approx(2 * 1.959964)


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
