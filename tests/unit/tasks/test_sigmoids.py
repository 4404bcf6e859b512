"""The tasks whose networks give a yes or no for an image, for each of several labels, or for each pixel."""

import numpy as np
import pytest
import torch
from torch import nn

import wshare
from wshare.errors import UserError
from wshare.evaluation.verdict import compare
from wshare.models.outputs import SIGMOID, ends_in_sigmoid, with_logits
from wshare.tasks import binary, classification, multilabel
from wshare.tasks.task import own_figures


def logits(*shape: int, seed: int = 0) -> np.ndarray:
    return (3 * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def network(last: nn.Module, outputs: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, outputs), last).eval()


IMAGES = torch.randn(240, 1, 6, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("last", "found"),
    [
        (nn.Sigmoid(), True),
        (nn.Sequential(nn.Sigmoid(), nn.Flatten(0)), True),
        (nn.Identity(), False),
        (nn.Softmax(1), False),
        (nn.Sequential(nn.Sigmoid(), nn.Linear(3, 3)), False),
    ],
)
def test_a_sigmoid_at_the_end_is_seen_even_where_values_tell_nothing(last, found):
    model = network(last, 3).requires_grad_(False)
    with torch.inference_mode():
        assert ends_in_sigmoid(model, IMAGES[:2]) is found


def test_probabilities_of_sigmoids_become_log_odds():
    plain, sure = network(nn.Identity(), 3), network(nn.Sigmoid(), 3)
    given = with_logits(sure, {"outputs": SIGMOID})
    torch.testing.assert_close(given(IMAGES), plain(IMAGES), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        given[3].bias += torch.tensor([200.0, -200, 0])
    assert given(IMAGES).isfinite().all()


@pytest.mark.parametrize("shape", [(90,), (90, 1)])
@pytest.mark.parametrize("labelled", [True, False])
def test_binary_is_classification_with_a_logit_of_nought(shape, labelled):
    outputs, reference = logits(*shape), logits(*shape) + logits(*shape, seed=1) / 3
    labels = np.random.default_rng(2).integers(2, size=shape) if labelled else None
    pairs = [np.stack([np.zeros(90), array.reshape(-1)], 1) for array in (outputs, reference)]
    found = binary.score(outputs, reference, labels, 1.5)
    expected = classification.score(*pairs, None if labels is None else labels.reshape(-1), 1.5)
    # The divergence of two Bernoulli distributions.
    p, q = (1 / (1 + np.exp(-array.reshape(-1).astype(np.float64))) for array in (reference, outputs))
    assert found.kl == pytest.approx(np.mean(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))), rel=1e-6)
    assert (found.kl, found.expected) == pytest.approx((expected.kl, expected.expected), rel=1e-6)
    np.testing.assert_array_equal(found.scores, expected.scores)
    assert found.scores.dtype == bool
    assert found.figures["accuracy"] == found.quality
    assert {figure.key for figure in binary.FIGURES} <= found.figures.keys()
    assert set(binary.COLUMNS) | set(binary.PROFILED) <= found.figures.keys() | {"relative_quality", "kl"}
    assert binary.constant(reference, labels).quality >= 0.5


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, 2]), r"^labels: label 2, but a label of the task binary is 0 or 1"),
        (np.zeros((2, 3), int), r"^labels: \[3\] for each image; give 0 or 1"),
    ],
)
def test_labels_of_binary_are_nought_or_one(labels, message):
    binary.check_labels(np.array([[0], [1]]), {}, "labels")
    with pytest.raises(UserError, match=message):
        binary.check_labels(labels, {}, "labels")
    with pytest.raises(UserError, match=r"^net: gives \[2, 3\] for 2 images, not one number for each; for several"):
        binary.describe(np.zeros((2, 3)), {}, "net")


def test_labels_are_scored_by_their_overlap():
    outputs = np.array([[1, 1, -1], [-1, -1, -1], [1, -1, -1], [-1, 1, 1]], np.float32)
    labels = np.array([[1, 0, 0], [0, 0, 0], [0, 0, 0], [0, 1, 1]])
    found = multilabel.score(outputs, outputs, labels)
    np.testing.assert_allclose(found.scores, [0.5, 1, 0, 1])
    assert found.figures["labels"] == pytest.approx(10 / 12)
    assert found.figures["exact"] == 0.5
    assert {figure.key for figure in multilabel.FIGURES} <= found.figures.keys()
    rows = multilabel.classes(outputs, outputs, labels)
    assert {"class": 1, "images": 1, "float32": 1, "compressed": 1} in rows


def test_average_precision_is_the_mean_precision_at_each_hit():
    outputs = np.array([[0.9], [0.8], [0.7], [0.6]])
    labels = np.array([[1], [0], [1], [0]])
    assert multilabel.score(outputs, outputs, labels).figures["average_precision"] == pytest.approx((1 + 2 / 3) / 2)


def test_the_divergence_of_labels_is_their_mean():
    outputs, reference = logits(70, 5), logits(70, 5, seed=1)
    single = [binary.score(outputs[:, i], reference[:, i], None).kl for i in range(5)]
    found = multilabel.score(outputs, reference, None)
    assert found.kl == pytest.approx(np.mean(single))
    assert multilabel.score(reference, reference, None).quality == 1
    assert multilabel.constant(reference, None).kl < multilabel.score(np.zeros((70, 5)), reference, None).kl


def test_the_best_constant_labels_are_the_commonest():
    labels = np.array([[1, 0, 0]] * 8 + [[1, 1, 0]] * 2)
    reference = np.where(labels > 0, 2.0, -2.0)
    assert multilabel.constant(reference, labels).quality == pytest.approx((8 + 2 / 2) / 10)


@pytest.mark.slow
@pytest.mark.parametrize(("task", "count"), [(binary, 1), (multilabel, 4)])
def test_fisher_information_is_that_of_the_divergence(task, count):
    output, generator = torch.tensor(logits(1, count)).requires_grad_(), torch.Generator().manual_seed(0)
    squares = torch.zeros(1, count, dtype=torch.float64)
    for _ in range(3000):
        (gradient,) = torch.autograd.grad(task.log_likelihood(output, generator), output)
        squares += gradient.double() ** 2 / 3000
    step = np.float32(0.05)
    divergence = task.score(output.detach().numpy() + step, output.detach().numpy(), None).kl
    assert float(squares.sum()) * step**2 / 2 == pytest.approx(divergence, rel=0.1)


def test_a_temperature_that_labels_tell():
    sure = logits(4000, 3)
    labels = (np.random.default_rng(3).random(sure.shape) < 1 / (1 + np.exp(-sure / 2))).astype(int)
    assert multilabel.temperature(sure, labels) == pytest.approx(2, rel=0.1)
    assert multilabel.temperature(sure, None) == 1


def test_labels_are_refused_unless_there_is_one_for_each_output():
    description = multilabel.describe(np.zeros((2, 3)), {"categories": ["a", "b", "c"], "sigmoid": True}, "net")
    assert description == {"labels": 3, "categories": ["a", "b", "c"], "outputs": "sigmoid"}
    with pytest.raises(UserError, match=r"^labels: \[5\], but the network gives 3 labels; give 0 or 1 for each"):
        multilabel.check_labels(np.zeros(5, int), description, "labels")
    with pytest.raises(UserError, match=r"^labels: 3, but each label is 0 or 1"):
        multilabel.check_labels(np.full((5, 3), 3), description, "labels")


def test_predictions_list_labels_and_the_report_names_them():
    reference, outputs = np.array([[1, -1, 1.0], [-1, -1, -1]]), np.array([[1, -1, -1.0], [-1, -1, -1]])
    _, rows = multilabel.predictions(outputs, reference, None, ["a", "b"])
    assert rows[0] == {"image": "a", "label": "", "float32": "0 2", "compressed": "0"}
    told, shown = multilabel.changes(rows, {"categories": ["cat", "dog", "sky"]}, None)
    assert told == "The labels changed for 1 of 2 held-out images."
    assert shown == [(0, ("float32: cat (0), sky (2)", "compressed: cat (0)"))]


@pytest.mark.parametrize(("task", "outputs"), [("binary", 1), ("multilabel", 3)])
def test_a_network_is_compressed(task, outputs):
    model = network(nn.Sigmoid(), outputs)
    options = {"evaluations": 3, "probe_images": 0}
    result = wshare.compress(model, IMAGES, quality=0.8, confidence=None, task=task, options=options)
    assert result.metrics["task"] == task
    kind = binary if task == "binary" else multilabel
    first = own_figures(kind)[0]
    assert result.metrics["compressed"][first.key] == pytest.approx(result.metrics["relative_quality"])
    # The user's network gives what it gave.
    assert 0 <= result.model(IMAGES).detach().numpy().min() <= result.model(IMAGES).detach().numpy().max() <= 1
    assert compare(kind, logits(60, outputs), logits(60, outputs), None)["relative_quality"] == 1
