"""Classification: what its outputs mean, how they are compared, and what is said of them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from wshare.errors import UserError
from wshare.evaluation.verdict import compare
from wshare.tasks import classification
from wshare.tasks.classification import (
    changes,
    check_labels,
    describe,
    measure,
    predictions,
    same_predictions,
    score,
)

SEEDS = st.integers(0, 2**32 - 1)


def random_logits(count: int, classes: int, seed: int, scale: float = 3.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(count, classes)) * scale).astype(np.float32)


@given(SEEDS, st.integers(2, 12), st.sampled_from([0.1, 3.0, 300.0]))
def test_score_agrees_with_torch(seed, classes, scale):
    logits, reference = random_logits(40, classes, seed, scale), random_logits(40, classes, seed + 1, scale)
    labels = np.random.default_rng(seed).integers(classes, size=40)
    found = score(logits, reference, labels)
    one, two, truth = torch.from_numpy(logits).double(), torch.from_numpy(reference).double(), torch.from_numpy(labels)
    assert found.figures["loss"] == pytest.approx(functional.cross_entropy(one, truth).item(), rel=1e-9)
    divergence = functional.kl_div(one.log_softmax(1), two.log_softmax(1), reduction="batchmean", log_target=True)
    assert found.kl == pytest.approx(divergence.item(), rel=1e-9, abs=1e-12)
    top5 = one.topk(min(5, classes), 1).indices
    assert found.figures["top5"] == pytest.approx((top5 == truth[:, None]).any(1).double().mean().item())
    assert np.array_equal(found.scores, (one.argmax(1) == truth).numpy())
    assert found.figures["top1"] == pytest.approx(found.scores.mean())
    assert found.figures["agreement"] == pytest.approx((one.argmax(1) == two.argmax(1)).double().mean().item())


def test_the_float32_network_agrees_with_itself():
    logits = random_logits(30, 10, 0)
    found = score(logits, logits, np.zeros(30, np.int64))
    assert (found.kl, found.kl_error, found.figures["agreement"]) == (0.0, 0.0, 1.0)
    assert (found.expected, found.expected_error) == (1.0, 0.0)


def test_what_float32_expects_of_other_answers_is_what_it_gives_them():
    """Two of three images get another class; labels do not count."""
    reference = np.log(np.array([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.1, 0.3, 0.6]], dtype=np.float32))
    logits = np.array([[9, 1, 1], [1, 9, 1], [9, 1, 1]], dtype=np.float32)
    for labels in (None, np.array([2, 2, 2])):
        found = score(logits, reference, labels)
        assert found.expected == pytest.approx((0.7 + 0.4 + 0.1) / (0.7 + 0.5 + 0.6), rel=1e-6)


@pytest.mark.slow
def test_the_standard_error_of_what_float32_expects_is_that_of_resampled_images():
    reference = random_logits(400, 10, 0)
    logits = reference + random_logits(400, 10, 1, scale=1.0)
    found = score(logits, reference, None)
    assert 0.5 < found.figures["agreement"] < 0.9
    draws = np.random.default_rng(0).integers(400, size=(2000, 400))
    resampled = [score(logits[draw], reference[draw], None).expected for draw in draws]
    assert found.expected_error == pytest.approx(np.std(resampled), rel=0.05)
    told = compare(classification, logits, reference, None)
    assert told["expected_relative_quality"] == found.expected
    ends = np.quantile(resampled, [0.025, 0.975])
    # Both ends are quantiles of 2,000 draws, with an error of some hundredths of a deviation, and of a skewed sample.
    assert told["expected_relative_quality_ci95"] == pytest.approx(ends, abs=0.2 * np.std(resampled))


def test_the_standard_error_of_what_float32_expects_goes_by_what_was_possible_of_each_image():
    """A ratio of means: an image that loses as large a share as all others brings no error."""
    reference = np.log(np.array([[0.8, 0.2], [0.6, 0.4], [0.9, 0.1]], dtype=np.float32))
    logits = reference[:, ::-1]
    found = score(logits, reference, None)
    kept, possible = np.array([0.2, 0.4, 0.1]), np.array([0.8, 0.6, 0.9])
    residual = (kept - kept.mean() / possible.mean() * possible) / possible.mean()
    assert found.expected_error == pytest.approx(residual.std() / np.sqrt(3), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("truth", [0.5, 0.85, 1.0, 1.5, 3.0])
def test_a_temperature_is_that_at_which_labels_were_drawn(truth):
    """Above 1 of a network that is too sure of itself, below it of one that is not sure enough."""
    logits = random_logits(60_000, 10, 0)
    chances = np.exp(logits / truth) / np.exp(logits / truth).sum(1, keepdims=True)
    labels = (chances.cumsum(1) > np.random.default_rng(1).random((len(logits), 1))).argmax(1)
    found = classification.temperature(logits, labels)
    assert found == pytest.approx(truth, rel=0.03)
    changed = logits + random_logits(len(logits), 10, 2, scale=1.0)
    right = {name: (array.argmax(1) == labels).mean() for name, array in (("before", logits), ("after", changed))}
    share = right["after"] / right["before"]
    assert score(changed, logits, labels, found).expected == pytest.approx(share, abs=0.01)
    told = score(changed, logits, labels).expected
    # What it says itself is too good where it is not sure enough, and too bad where it is too sure.
    if truth in (0.5, 3.0):
        assert (told - share > 0.02) == (truth < 1)
        assert abs(told - share) > 0.02


def test_without_labels_the_temperature_is_one():
    assert classification.temperature(random_logits(10, 3, 0), None) == 1.0


@pytest.mark.parametrize("labelled", [True, False])
def test_no_constant_is_better_than_the_best(labelled):
    reference = random_logits(200, 4, 0) + np.array([1, 0, 0, 0], dtype=np.float32)
    labels = np.random.default_rng(0).choice(4, 200, p=[0.2, 0.5, 0.2, 0.1]) if labelled else None
    best = classification.constant(reference, labels, 1.3)
    for seed in range(20):
        other = score(np.tile(random_logits(1, 4, seed, 2.0), (200, 1)), reference, labels, 1.3)
        assert other.kl >= best.kl
        assert other.quality <= best.quality
        assert other.expected <= best.expected + 1e-12
        assert other.figures["correlation"] == 0.0
    assert best.figures["correlation"] == 0.0
    # It is right on a class, and on no other.
    assert best.figures["balanced"] == 0.25


def test_the_divergence_of_the_best_constant_is_the_information_of_images_about_predictions():
    certain = np.repeat(np.eye(4, dtype=np.float32) * 100, 5, axis=0)
    assert classification.constant(certain, None).kl == pytest.approx(np.log(4))
    assert classification.constant(np.zeros((9, 4), np.float32), None).kl == pytest.approx(0, abs=1e-12)


def test_correlation_of_two_classes_is_that_of_log_odds():
    reference, logits = random_logits(300, 2, 0), random_logits(300, 2, 1) + random_logits(300, 2, 0)
    odds = [np.diff(array.astype(np.float64), axis=1)[:, 0] for array in (reference, logits)]
    found = score(logits, reference, None)
    assert found.figures["correlation"] == pytest.approx(np.corrcoef(*odds)[0, 1], rel=1e-6)
    assert score(reference, reference, None).figures["correlation"] == pytest.approx(1)
    # A shift of all images, or of all classes of an image, is none.
    assert score(reference + 5, reference, None).figures["correlation"] == pytest.approx(1)


def test_balanced_accuracy_counts_each_class_once():
    labels = np.repeat([0, 1, 3], [8, 2, 10])
    logits = np.eye(4, dtype=np.float32)[np.where(np.arange(20) % 2, labels, 2)]
    assert score(logits, logits, labels).figures["balanced"] == pytest.approx((4 / 8 + 1 / 2 + 5 / 10) / 3)
    rows = classification.classes(logits[:, ::-1], np.eye(4, dtype=np.float32)[labels], labels)
    assert {row["class"]: row["images"] for row in rows} == {0: 8, 1: 2, 3: 10}
    assert rows[0] == {"class": 0, "images": 8, "float32": 8, "compressed": 0}
    lost = [(row["compressed"] - row["float32"]) / row["images"] for row in rows]
    assert lost == sorted(lost)


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
    assert found.figures["top1"] == found.figures["agreement"] == same.mean()
    assert np.array_equal(found.scores, same)
    assert (own.figures["top1"], own.figures["top5"]) == (1.0, 1.0)
    labels = np.arange(50) % 10
    assert (measure(labels), measure(None)) == ("accuracy", "agreement")


@pytest.mark.parametrize("classes", [2, 3, 5, 6])
def test_top5_counts_the_five_best_or_all_classes(classes):
    logits = np.tile(np.arange(classes, dtype=np.float32), (classes, 1))
    assert score(logits, logits, np.arange(classes)).figures["top5"] == min(5, classes) / classes


def test_logits_far_apart_neither_overflow_nor_lose_the_loss():
    logits = np.array([[1e4, -1e4], [0, 1e4]], dtype=np.float32)
    found = score(logits, logits, np.array([1, 1]))
    assert found.figures["loss"] == pytest.approx(1e4)
    assert found.kl == 0.0


def test_the_quality_is_the_first_figure_and_the_mean_of_what_each_image_adds():
    logits, reference = random_logits(50, 10, 0), random_logits(50, 10, 1)
    found = score(logits, reference, np.arange(50) % 10)
    assert found.quality == found.scores.mean() == found.figures[classification.FIGURES[0].key]
    assert {figure.key for figure in classification.FIGURES} | set(classification.COLUMNS) <= found.figures.keys()
    assert set(classification.PROFILED) - found.figures.keys() == {"relative_quality", "kl"}


def test_it_is_described_by_the_number_and_the_names_of_its_classes():
    outputs = random_logits(2, 3, 0)
    assert describe(outputs, {}, "net") == {"classes": 3, "categories": None, "outputs": "logits"}
    named = {"classes": 3, "categories": ("a", "b", "c")}
    assert describe(outputs, named, "net") == {"classes": 3, "categories": ["a", "b", "c"], "outputs": "logits"}
    # Names of other classes than the network's are none of its own.
    assert describe(outputs, {"categories": ["a", "b"]}, "net")["categories"] is None
    with pytest.raises(UserError, match=r"^classes: 4: net gives 3; correct or remove the key$"):
        describe(outputs, {"classes": 4}, "net")
    with pytest.raises(UserError, match=r"^net: gives \[2, 1, 8, 8\] for 2 images, not a tensor \[2, classes\]; "):
        describe(np.zeros((2, 1, 8, 8), np.float32), {}, "net")


def test_labels_are_classes_of_the_network():
    for labels in (None, np.array([0, 2])):
        check_labels(labels, {"classes": 3}, "labels")
    for wrong in (-1, 3):
        with pytest.raises(UserError, match=f"^labels: class index {wrong}, but the network has classes 0 to 2; "):
            check_labels(np.array([0, wrong, 1]), {"classes": 3}, "labels")


def test_a_label_is_drawn_as_likely_as_the_network_says():
    logits = torch.tensor([[0.0, 1.0, 3.0]], requires_grad=True)
    expected = logits.log_softmax(1)[0]
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([classification.log_likelihood(logits, generator) for _ in range(2000)])
    assert drawn.requires_grad
    for value in expected:
        share = torch.isclose(drawn, value).double().mean().item()
        assert share == pytest.approx(value.exp().item(), abs=0.03)


def test_predictions_are_the_same_if_no_top1_class_changes():
    logits = random_logits(50, 10, 0)
    assert same_predictions(logits, 2 * logits)
    other = logits.copy()
    other[7, logits[7].argmin()] = 99
    assert not same_predictions(logits, other)


def as_text(rows: list[dict]) -> list[dict[str, str]]:
    """Rows as a table read from a file has them."""
    return [{key: str(value) for key, value in row.items()} for row in rows]


def test_predictions_and_what_changed_of_them():
    reference = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 3]]
    outputs = np.eye(4, dtype=np.float32)[[0, 2, 1, 3, 0]]
    columns, rows = predictions(outputs, reference, np.array([0, 1, 1, 3, 3]), list("abcde"))
    assert columns == ["image", "label", "float32", "compressed"]
    assert as_text(rows)[1] == {"image": "b", "label": "1", "float32": "1", "compressed": "2"}
    words, changed = changes(as_text(rows), {"categories": None}, None)
    assert words == (
        "The top-1 prediction changed for 3 of 5 held-out images: 2 were right before, 1 are right now. "
        "Classes are indices."
    )
    assert [place for place, _ in changed] == [1, 2, 4]
    assert changed[0][1] == ("label: 1", "float32: 1", "compressed: 2")
    words, changed = changes(as_text(rows), {"categories": ["w", "x", "y", "z"]}, None)
    assert words.endswith("1 are right now.")
    assert changed[2][1] == ("label: z (3)", "float32: z (3)", "compressed: w (0)")


def test_the_class_that_lost_most_is_named():
    reference = np.eye(3, dtype=np.float32)[[0, 0, 0, 1]]
    outputs = np.eye(3, dtype=np.float32)[[1, 1, 0, 0]]
    _, rows = predictions(outputs, reference, np.array([0, 0, 0, 1]), list("abcd"))
    words, _ = changes(as_text(rows), {"categories": ["cat", "dog", "cow"]}, None)
    assert words.endswith("3 were right before, 0 are right now; class cat (0) lost most, 2.")


def test_without_labels_only_predictions_are_compared():
    reference = np.eye(3, dtype=np.float32)[[0, 1]]
    _, rows = predictions(reference[[0, 0]], reference, None, ["a", "b"])
    words, changed = changes(as_text(rows), {}, "mnist")
    assert words == "The top-1 prediction changed for 1 of 2 held-out images. Classes are indices."
    assert changed == [(1, ("float32: 1", "compressed: 0"))]
    _, same = predictions(reference, reference, None, ["a", "b"])
    assert changes(as_text(same), {}, None) == ("No top-1 prediction of 2 held-out images changed.", [])
