"""What a float32 network's outputs must be before anything is compared with them."""

import numpy as np
import pytest
from scipy.stats import binom

from wshare.errors import UserError
from wshare.evaluation.baseline import at_least, by_chance, check_accuracy, check_repeats, guesses, relabelled
from wshare.tasks import classification

from ..tasks import vectors

CLASSES = 10


def outputs_of(predicted: np.ndarray, classes: int = CLASSES) -> np.ndarray:
    return np.eye(classes, dtype=np.float32)[predicted]


def classes_and_predictions(count: int, right: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn evenly, and predictions of which so many are right; the others are drawn evenly, too."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(CLASSES, size=count)
    return labels, np.where(rng.random(count) < right, labels, rng.integers(CLASSES, size=count))


def message(predicted: np.ndarray, labels: np.ndarray, categories: list[str] | None = None) -> str | None:
    try:
        check_accuracy(classification, outputs_of(predicted), labels, categories, "search images")
    except UserError as error:
        return str(error)
    return None


def test_outputs_repeat_but_for_rounding():
    first = np.array([[3.0, -40.0]], np.float32)
    check_repeats(first, first + np.float32(1e-4), "net")
    with pytest.raises(UserError, match=r"^net: gives other outputs for the same images from pass to pass \(by up to "):
        check_repeats(first, first + np.float32(0.1), "net")


def test_labels_that_are_off_by_one_are_told_as_such():
    labels, predicted = classes_and_predictions(200, 0.95)
    assert message(predicted, labels) is None
    found = message((predicted + 1) % CLASSES, labels)
    assert found.startswith("search images: float32 is right on 0.5% of 200 images, where guessing is right on 10.1%; ")
    assert found.endswith("images of class 8 are predicted as 9 most often (24 of 24), so labels may be off by one")
    names = ["plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    assert "images of class ship (8) are predicted as truck (9)" in message((predicted + 1) % CLASSES, labels, names)


def test_permuted_classes_are_told_though_some_stay_in_place():
    labels, predicted = classes_and_predictions(1000, 0.9)
    order = np.array([0, 1, 2, 4, 5, 6, 7, 8, 9, 3])
    assert not guesses(order[predicted], labels)
    found = message(order[predicted], labels)
    # 91 % are right, 3 in 10 of the images are of classes that keep their index.
    assert found.startswith(
        "search images: float32 is right on 27.1% of 1,000 images, and would be on 93.0% if classes"
    )
    assert relabelled(predicted, labels) is None


# Of 30 or 50 images a third can be right by chance.
@pytest.mark.parametrize(
    ("count", "right"),
    [
        (10, 0.3),
        (10, 0.9),
        (30, 0.5),
        (30, 0.9),
        (50, 0.5),
        (50, 0.9),
        (200, 0.3),
        (200, 0.9),
        (5000, 0.1),
        (5000, 0.9),
    ],
)
def test_a_network_that_knows_something_is_not_stopped(count, right):
    told = [
        message(predicted, labels)
        for labels, predicted in (classes_and_predictions(count, right, s) for s in range(40))
    ]
    assert told == [None] * 40


@pytest.mark.parametrize("count", [50, 200, 5000])
def test_a_network_that_guesses_is_stopped(count):
    told = [
        message(predicted, labels) for labels, predicted in (classes_and_predictions(count, 0, s) for s in range(40))
    ]
    assert None not in told
    labels, _ = classes_and_predictions(count, 0)
    constant = message(np.full(count, 7), labels)
    assert constant.endswith("100% of the images are predicted as class 7")
    assert None not in (constant, message((labels + 5) % CLASSES, labels))


@pytest.mark.parametrize("chance", [0.001, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("count", [1, 10, 333])
def test_probabilities_are_those_of_a_binomial_distribution(count, chance):
    right = np.arange(count + 2)
    expected = binom.sf(right - 1, count, chance)
    np.testing.assert_allclose(at_least(right, count, chance), expected, rtol=1e-9, atol=1e-250)


def test_few_images_cannot_tell_a_network_that_guesses():
    labels, predicted = classes_and_predictions(20, 0)
    assert message(predicted, labels) is None


def test_skewed_images_tell_a_network_that_knows_the_rare_class():
    """Of 5,000 images 1 % are of class 1: a network that always says 0 is right on 99 %."""
    rng, labels = np.random.default_rng(0), np.zeros(5000, int)
    labels[:50] = 1
    always = np.zeros(5000, int)
    assert by_chance(always, labels) == pytest.approx(0.99)
    assert message(always, labels).startswith(
        "search images: float32 is right on 99.0% of 5,000 images, where guessing"
    )
    # Right on 40 of the 50, with 80 false alarms: 98.2 %, which is less than always saying 0.
    knows = np.where(labels == 1, rng.permutation(5000) < 4000, 0)
    knows[50:130] = 1
    assert (knows == labels).mean() < 0.99
    assert message(knows, labels) is None
    # As often at random.
    assert message(rng.permutation(knows), labels) is not None
    # 500 images, one of them of class 1, tell neither.
    few = np.zeros(500, int)
    few[0] = 1
    assert message(few, few) is None
    assert message(np.zeros(500, int), few) is None


def test_two_classes_that_the_network_confuses_are_no_other_order():
    labels, predicted = classes_and_predictions(1000, 0.9)
    order = np.array([1, 0, 2, 3, 4, 5, 6, 7, 8, 9])
    assert message(order[predicted], labels) is None


def test_few_images_cannot_tell_another_order():
    labels = np.arange(12) // 2 % 4
    assert message((labels + 1) % 4, labels) is None


def test_a_network_that_knows_two_classes_alone_is_no_other_order():
    """No order of the classes makes a network right that calls nearly all the same."""
    labels = np.arange(1000) // 2 % CLASSES
    predicted = np.where(labels == 1, 1, 0)
    assert not guesses(predicted, labels)
    assert relabelled(predicted, labels) is None


def test_images_of_one_class_cannot_tell():
    _, predicted = classes_and_predictions(400, 0)
    assert message(np.where(np.arange(400) % 3, 2, predicted), np.full(400, 2)) is None
    assert message(np.where(np.arange(400) % 3, 2, predicted), np.full(400, 5)) is None


def test_what_is_no_classification_is_not_judged():
    check_accuracy(vectors, np.zeros((90, 3), np.float32), np.arange(90), None, "search images")
    check_accuracy(classification, outputs_of(np.zeros(90, int)), None, None, "search images")
