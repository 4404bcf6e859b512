import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from torch.nn import functional

from wshare.evaluation.intervals import images_needed, predicted_low, relative_quality, verdict
from wshare.evaluation.predict import predict
from wshare.models.forward import forward
from wshare.models.fusion import fused
from wshare.models.zoo import NETWORKS
from wshare.tasks.classification import compare, labels_or_reference, measure_of, score

SEEDS = st.integers(0, 2**32 - 1)


def random_logits(count: int, classes: int, seed: int, scale: float = 3.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(count, classes)) * scale).astype(np.float32)


def answers(both: int, gained: int, lost: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Correctness after and before, in random order."""
    counts = [both, gained, lost, neither]
    correct, reference = np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)
    order = np.random.default_rng(0).permutation(len(correct))
    return correct[order], reference[order]


@given(SEEDS, st.integers(2, 12), st.sampled_from([0.1, 3.0, 300.0]))
def test_score_agrees_with_torch(seed, classes, scale):
    logits, reference = random_logits(40, classes, seed, scale), random_logits(40, classes, seed + 1, scale)
    labels = np.random.default_rng(seed).integers(classes, size=40)
    found = score(logits, reference, labels)
    one, two, truth = torch.from_numpy(logits).double(), torch.from_numpy(reference).double(), torch.from_numpy(labels)
    assert found.loss == pytest.approx(functional.cross_entropy(one, truth).item(), rel=1e-9)
    divergence = functional.kl_div(one.log_softmax(1), two.log_softmax(1), reduction="batchmean", log_target=True)
    assert found.kl == pytest.approx(divergence.item(), rel=1e-9, abs=1e-12)
    top5 = one.topk(min(5, classes), 1).indices
    assert found.top5 == pytest.approx((top5 == truth[:, None]).any(1).double().mean().item())
    assert np.array_equal(found.correct, (one.argmax(1) == truth).numpy())
    assert found.top1 == pytest.approx(found.correct.mean())
    assert found.agreement == pytest.approx((one.argmax(1) == two.argmax(1)).double().mean().item())


def test_the_float32_network_agrees_with_itself():
    logits = random_logits(30, 10, 0)
    found = score(logits, logits, np.zeros(30, np.int64))
    assert (found.kl, found.kl_error, found.agreement) == (0.0, 0.0, 1.0)
    assert (found.expected, found.expected_error) == (1.0, 0.0)


def test_what_float32_expects_of_other_answers_is_what_it_gives_them():
    """Two of three images get another class; labels do not count."""
    reference = np.log(np.array([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.1, 0.3, 0.6]], dtype=np.float32))
    logits = np.array([[9, 1, 1], [1, 9, 1], [9, 1, 1]], dtype=np.float32)
    for labels in (None, np.array([2, 2, 2])):
        found = score(logits, reference, labels)
        assert found.expected == pytest.approx((0.7 + 0.4 + 0.1) / (0.7 + 0.5 + 0.6), rel=1e-6)


def test_the_standard_error_of_what_float32_expects_is_that_of_resampled_images():
    reference = random_logits(400, 10, 0)
    logits = reference + random_logits(400, 10, 1, scale=1.0)
    found = score(logits, reference, None)
    assert 0.5 < found.agreement < 0.9
    draws = np.random.default_rng(0).integers(400, size=(2000, 400))
    resampled = [score(logits[draw], reference[draw], None).expected for draw in draws]
    assert found.expected_error == pytest.approx(np.std(resampled), rel=0.05)
    told = compare(logits, reference, None, 0)
    assert told["expected_relative_quality"] == found.expected
    ends = np.quantile(resampled, [0.025, 0.975])
    # Both ends are quantiles of 2,000 draws, with an error of some hundredths of a deviation, and of a skewed sample.
    assert told["expected_relative_quality_ci95"] == pytest.approx(ends, abs=0.2 * np.std(resampled))


def test_the_standard_error_of_the_divergence_is_that_of_its_mean():
    reference = np.log(np.array([[0.5, 0.5], [0.5, 0.5], [0.9, 0.1]], dtype=np.float32))
    logits = np.log(np.array([[0.5, 0.5], [0.8, 0.2], [0.6, 0.4]], dtype=np.float32))
    each = [
        0.0,
        0.5 * np.log(0.5 / 0.8) + 0.5 * np.log(0.5 / 0.2),
        0.9 * np.log(0.9 / 0.6) + 0.1 * np.log(0.1 / 0.4),
    ]
    found = score(logits, reference, None)
    assert found.kl == pytest.approx(np.mean(each), rel=1e-6)
    assert found.kl_error == pytest.approx(np.std(each) / np.sqrt(3), rel=1e-6)


def test_without_labels_accuracy_is_agreement_with_float32():
    reference = random_logits(50, 10, 0)
    logits = reference + random_logits(50, 10, 1)
    found, own = score(logits, reference, None), score(reference, reference, None)
    same = logits.argmax(1) == reference.argmax(1)
    assert 0 < same.sum() < 50
    assert found.top1 == found.agreement == same.mean()
    assert np.array_equal(found.correct, same)
    assert (own.top1, own.top5) == (1.0, 1.0)
    labels = np.arange(50) % 10
    assert labels_or_reference(labels, reference) is labels
    assert np.array_equal(labels_or_reference(None, reference), reference.argmax(1))
    assert (measure_of(labels), measure_of(None)) == ("accuracy", "agreement")


@pytest.mark.parametrize("classes", [2, 3, 5, 6])
def test_top5_counts_the_five_best_or_all_classes(classes):
    logits = np.tile(np.arange(classes, dtype=np.float32), (classes, 1))
    assert score(logits, logits, np.arange(classes)).top5 == min(5, classes) / classes


def test_logits_far_apart_neither_overflow_nor_lose_the_loss():
    logits = np.array([[1e4, -1e4], [0, 1e4]], dtype=np.float32)
    found = score(logits, logits, np.array([1, 1]))
    assert found.loss == pytest.approx(1e4)
    assert found.kl == 0.0


@pytest.mark.parametrize("counts", [(900, 20, 40, 40), (95, 3, 1, 1), (50, 0, 0, 50), (180, 60, 60, 200)])
def test_interval_is_that_of_a_paired_bootstrap_of_the_images(counts):
    correct, reference = answers(*counts)
    share, low, high = relative_quality(correct, reference, 0.95, seed=3)
    assert share == correct.sum() / reference.sum()
    rng = np.random.default_rng(11)
    draws = rng.integers(len(correct), size=(10_000, len(correct)), dtype=np.int32)
    ratios = correct[draws].sum(1) / reference[draws].sum(1)
    expected = np.quantile(ratios, [0.025, 0.975])
    # Both are quantiles of 10,000 draws: their own error is a few hundredths of a standard deviation.
    assert [low, high] == pytest.approx(expected, abs=0.12 * ratios.std() + 1e-12)


def test_interval_is_seeded_and_narrows_with_lower_confidence():
    correct, reference = answers(800, 30, 50, 120)
    wide = relative_quality(correct, reference, 0.95, seed=0)
    assert wide == relative_quality(correct, reference, 0.95, seed=0)
    assert wide != relative_quality(correct, reference, 0.95, seed=1)
    narrow = relative_quality(correct, reference, 0.5, seed=0)
    assert wide[1] < narrow[1] < narrow[0] < narrow[2] < wide[2]


@pytest.mark.parametrize("counts", [(0, 0, 0, 10), (0, 5, 0, 5)])
def test_a_float32_network_that_is_never_right_has_no_share(counts):
    correct, reference = answers(*counts)
    assert relative_quality(correct, reference, 0.95, seed=0) == (0.0, 0.0, 0.0)
    assert predicted_low(correct, reference, 0.9) == (0.0, 0.0)


def test_one_right_answer_gives_an_interval():
    """Many resamples have no right answer at all."""
    share, low, high = relative_quality(*answers(1, 0, 0, 9), 0.95, seed=0)
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


def test_predicted_low_is_held_with_the_confidence_asked_for():
    """On other images from the same source, the interval's lower end is no lower in about 90 % of cases."""
    rng = np.random.default_rng(0)
    shares = [0.93, 0.01, 0.02, 0.04]
    held = []
    for _ in range(400):
        seen, other = (answers(*rng.multinomial(1500, shares)) for _ in range(2))
        held.append(relative_quality(*other, 0.95, seed=0)[1] >= predicted_low(*seen, 0.9)[1])
    assert 0.86 <= np.mean(held) <= 0.96


def test_without_a_confidence_the_share_itself_counts():
    correct, reference = answers(800, 10, 30, 160)
    assert predicted_low(correct, reference, None) == (810 / 830, 810 / 830)
    # Plain numbers, which JSON can hold.
    assert {type(value) for value in predicted_low(correct, reference, None)} == {float}
    assert {type(value) for value in relative_quality(correct, reference, 0.95, seed=0)} == {float}
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


@pytest.mark.parametrize("name", ["lenet5", "resnet_ds"])
def test_predict_gives_the_same_bits_on_any_number_of_threads(name, random_images):
    torch.manual_seed(0)
    model = NETWORKS[name]().eval()
    images = random_images(323, (1, 28, 28))
    assert len(images.starts()) > 5
    logits = predict(model, images, threads=1)
    assert logits.dtype == np.float32
    assert logits.shape == (len(images), 10)
    for threads in (2, 5, 16):
        assert predict(model, images, threads).tobytes() == logits.tobytes()
    second = images.batch_size
    network = fused(model, images.batch(0)[:2])
    assert forward(network, images.batch(second)).tobytes() == logits[second : 2 * second].tobytes()
