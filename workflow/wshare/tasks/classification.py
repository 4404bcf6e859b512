"""Classification: a network gives one logit for each class, and quality is the share of right top-1 predictions."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from wshare.errors import UserError
from wshare.tasks.classes import class_names, named
from wshare.tasks.task import AGREEMENT, Figure, Score

if TYPE_CHECKING:
    import torch

FIGURES = (
    Figure("top1", "top-1"),
    Figure("top5", "top-5"),
    Figure("balanced", "top-1, mean over classes"),
    Figure("agreement", "same top-1 prediction as float32", compares=True),
    Figure("correlation", "correlation of log odds with float32", ".4f", compares=True),
)
COLUMNS = ("top1", "agreement", "correlation")
PROFILED = ("top1", "relative_quality", "loss", "kl", "agreement")
PREDICTED = "top-1 predictions"
# Logarithm of the largest temperature, and of the smallest one's inverse: a network beyond tells nothing.
LARGEST_TEMPERATURE = 3.0
# By how much the sum of an image's probabilities may miss one.
SUM_ERROR = 1e-3
# Columns of predictions.csv; a label is empty where the dataset has none.
PREDICTIONS = ["image", "label", "float32", "compressed"]


def describe(outputs: np.ndarray, settings: dict, name: str) -> dict:
    """The number of `classes`, their names as `categories`, in the order of their indices, or None, and `outputs`.

    `outputs` are "logits", or "probabilities" where the network ends in softmax. Names are those of
    `settings["categories"]`, if there is one for each class. UserError if the outputs are not [2, classes] of two
    classes or more, or the number of classes is not `settings["classes"]`.
    """
    if outputs.ndim != 2:
        raise UserError(
            f"{name}: gives {list(outputs.shape)} for 2 images, not a tensor [2, classes]; take another task"
        )
    classes, categories = outputs.shape[1], settings.get("categories")
    if classes == 1:
        raise UserError(
            f"{name}: gives one output an image, [2, 1] for 2 images, so that every top-1 prediction is class 0; for a "
            "yes or no take the task binary"
        )
    if settings.get("classes") not in (None, classes):
        raise UserError(f"classes: {settings['classes']}: {name} gives {classes}; correct or remove the key")
    return {
        "classes": classes,
        "categories": list(categories) if categories and len(categories) == classes else None,
        "outputs": "probabilities" if are_probabilities(outputs) else "logits",
    }


def are_probabilities(outputs: np.ndarray) -> bool:
    """Whether outputs [N, classes, ...] are those of a softmax over classes."""
    return bool((outputs >= 0).all() and (np.abs(outputs.sum(1) - 1) < SUM_ERROR).all())


def check_labels(labels: np.ndarray | None, description: dict, where: str) -> None:
    """UserError unless all labels are class indices of the network, from 0 on."""
    classes = description["classes"]
    if labels is not None and (labels.ndim != 1 or labels.dtype.kind not in "iu"):
        raise UserError(
            f"{where}: labels are {labels.dtype} {list(labels.shape)}; give one class index, an integer, an image"
        )
    if labels is None or 0 <= labels.min() <= labels.max() < classes:
        return
    wrong = labels.min() if labels.min() < 0 else labels.max()
    raise UserError(
        f"{where}: class index {wrong}, but the network has classes 0 to {classes - 1}; correct the labels, or leave "
        "them out to go by agreement"
    )


def log_likelihood(output: "torch.Tensor", generator: "torch.Generator") -> "torch.Tensor":
    """Log-likelihood of a class drawn by the probabilities that the logits [1, classes] give."""
    log_probabilities = output.log_softmax(1)[0]
    label = log_probabilities.detach().exp().cpu().multinomial(1, generator=generator)
    return log_probabilities[label[0]]


def divergence(outputs: "torch.Tensor", reference: "torch.Tensor") -> "torch.Tensor":
    """That of Kullback and Leibler between the probabilities that logits [N, classes, ...] give, over axis 1."""
    original = reference.log_softmax(1)
    return (original.exp() * (original - outputs.log_softmax(1))).sum(1).mean()


def score(outputs: np.ndarray, reference: np.ndarray, labels: np.ndarray | None, temperature: float = 1.0) -> Score:
    """Quality of logits [N, classes] against the float32 network's `reference` and the class indices [N], if any.

    The divergence is that of Kullback and Leibler. What float32 expects goes by the probabilities that it gives, at
    the temperature, to both networks' top-1 classes; its error is that of a ratio of means (Cochran 1977, section
    2.11). Figures: `top1`, `top5` and `agreement` (same top-1 class as the float32 network) are shares, `balanced` is
    the mean over classes of the share that is right, `loss` the mean cross-entropy, and `correlation` that of the
    logarithms of both networks' probabilities, each without its image's and its class's mean: of two classes, that of
    the log odds. A constant network has a correlation of 0.
    """
    # Without labels, the float32 network's own top-1 classes stand for them.
    labels = reference.argmax(1) if labels is None else labels
    compressed, original = _log_softmax(outputs), _log_softmax(reference)
    rows = np.arange(len(labels))
    predicted = outputs.argmax(1)
    best = np.argpartition(-outputs, min(5, outputs.shape[1]) - 1, axis=1)[:, :5]
    correct = predicted == labels
    divergence = (np.exp(original) * (original - compressed)).sum(1)
    probabilities = np.exp(_log_softmax(reference / temperature))
    expected, residual = ratio_of_means(probabilities[rows, predicted], probabilities.max(1))
    return Score(
        kl=float(divergence.mean()),
        kl_error=float(divergence.std() / np.sqrt(len(divergence))),
        expected=expected,
        expected_error=float(residual.std() / np.sqrt(len(residual))),
        scores=correct,
        figures={
            "top1": float(correct.mean()),
            "top5": float((best == labels[:, None]).any(1).mean()),
            "balanced": _balanced(correct, labels),
            "loss": float(-compressed[rows, labels].mean()),
            "agreement": float((predicted == reference.argmax(1)).mean()),
            "correlation": _correlation(compressed, original),
        },
    )


def ratio_of_means(kept: np.ndarray, possible: np.ndarray) -> tuple[float, np.ndarray]:
    """Ratio of two means over images, and each image's residual, both in units of the second mean."""
    expected = kept.mean() / possible.mean()
    return float(expected), (kept - expected * possible) / possible.mean()


def _balanced(correct: np.ndarray, labels: np.ndarray) -> float:
    """Mean over the classes among the labels of the share of their images that is right."""
    images = np.bincount(labels)
    return float((np.bincount(labels, correct)[images > 0] / images[images > 0]).mean())


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Correlation of two networks' log-probabilities [N, classes], without the means of rows and columns."""
    return correlation_of_centred(*(_centred(_centred(array, 1), 0) for array in (first, second)))


def correlation_of_centred(first: np.ndarray, second: np.ndarray) -> float:
    """Correlation of two arrays without their means; 0 where one of them says nothing."""
    norm = np.linalg.norm(first) * np.linalg.norm(second)
    # What rounding leaves of a network that gives one output is no correlation.
    return float((first * second).sum() / norm) if norm > 1e-9 * first.size else 0.0


def _centred(array: np.ndarray, axis: int) -> np.ndarray:
    return array - array.mean(axis, keepdims=True)


def constant(reference: np.ndarray, labels: np.ndarray | None, temperature: float = 1.0) -> Score:
    """Score of the best constant: the commonest class, and the mean of float32's probabilities.

    The latter has the least divergence of all constants: the mutual information of images and predictions, in nats.
    """
    truth = reference.argmax(1) if labels is None else labels
    mean = np.exp(_log_softmax(reference)).mean(0)
    outputs = np.tile(np.log(np.maximum(mean, np.finfo(float).tiny)), (len(reference), 1))
    commonest, probabilities = np.bincount(truth).argmax(), np.exp(_log_softmax(reference / temperature))
    expected, residual = ratio_of_means(probabilities[:, probabilities.mean(0).argmax()], probabilities.max(1))
    found = score(outputs, reference, truth, temperature)
    correct = truth == commonest
    return replace(
        found,
        expected=expected,
        expected_error=float(residual.std() / np.sqrt(len(residual))),
        scores=correct,
        figures=found.figures | {"top1": float(correct.mean()), "balanced": _balanced(correct, truth)},
    )


def temperature(outputs: np.ndarray, labels: np.ndarray | None) -> float:
    """What logits [N, classes] are to be divided by so that the labels are likeliest; 1 without labels.

    One number for all images (Guo et al. 2017, "On calibration of modern neural networks"): above 1 for a network that
    is too sure of itself.
    """
    if labels is None:
        return 1.0
    rows = np.arange(len(labels))

    def loss(temperature: float) -> float:
        return float(-_log_softmax(outputs / temperature)[rows, labels].mean())

    return likeliest_temperature(loss)


def likeliest_temperature(loss: Callable[[float], float]) -> float:
    """The temperature at which `loss` of it, the mean cross-entropy of labels, is least; four digits."""
    # Not at the top: it takes half a second, and few jobs fit a temperature.
    from scipy.optimize import minimize_scalar

    bounds = (-LARGEST_TEMPERATURE, LARGEST_TEMPERATURE)
    found = minimize_scalar(lambda logarithm: loss(math.exp(logarithm)), bounds=bounds, method="bounded")
    # Digits beyond these hang on the machine, and say nothing.
    return float(f"{math.exp(found.x):.4g}")


def classes(outputs: np.ndarray, reference: np.ndarray, labels: np.ndarray | None) -> list[dict[str, int]]:
    """A row for each class among the labels, or among float32's top-1 classes, with how many of its images are right.

    Those that lost the largest share come first.
    """
    truth = reference.argmax(1) if labels is None else labels
    counts = [
        np.bincount(truth[chosen.argmax(1) == truth], minlength=truth.max() + 1) for chosen in (reference, outputs)
    ]
    return class_rows(np.bincount(truth), counts)


def class_rows(images: np.ndarray, right: Sequence[np.ndarray]) -> list[dict[str, int]]:
    """A row for each class that has images, by numbers of these and of those that both networks have right, [classes].

    Those that lost the largest share come first.
    """
    rows = [
        {"class": int(index), "images": int(images[index])}
        | {name: int(counts[index]) for name, counts in zip(("float32", "compressed"), right, strict=True)}
        for index in np.flatnonzero(images)
    ]
    return sorted(rows, key=lambda row: ((row["compressed"] - row["float32"]) / row["images"], row["class"]))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def top_classes(outputs: np.ndarray) -> np.ndarray:
    """Top-1 class of each image, int64 [N]."""
    return outputs.argmax(1)


def same_predictions(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether the top-1 class of every image is the same in two networks' logits [N, classes]."""
    return np.array_equal(first.argmax(1), second.argmax(1))


def measure(labels: np.ndarray | None) -> str:
    """What quality is called: "accuracy" against labels, "agreement" with float32 without."""
    return AGREEMENT if labels is None else "accuracy"


def predictions(
    outputs: np.ndarray, reference: np.ndarray, labels: np.ndarray | None, keys: list[str]
) -> tuple[list[str], list[dict]]:
    """Columns and rows of predictions.csv: label and both networks' top-1 classes of each image."""
    known = [""] * len(keys) if labels is None else labels
    rows = zip(keys, known, reference.argmax(1), outputs.argmax(1), strict=True)
    return PREDICTIONS, [dict(zip(PREDICTIONS, row, strict=True)) for row in rows]


def changes(
    rows: list[dict[str, str]], description: dict, source: str | None
) -> tuple[str, list[tuple[int, tuple[str, ...]]]]:
    """How many top-1 predictions changed, and of each image that changed its place and both predictions."""
    changed = [(place, row) for place, row in enumerate(rows) if row["float32"] != row["compressed"]]
    if not changed:
        return f"No top-1 prediction of {len(rows):,} held-out images changed.", []
    names = class_names(description.get("categories"), source, rows)
    words = f"The top-1 prediction changed for {len(changed):,} of {len(rows):,} held-out images"
    shown = ("float32", "compressed")
    if any(row["label"] for _, row in changed):
        shown = ("label", *shown)
        lost = [row for _, row in changed if row["float32"] == row["label"]]
        gained = sum(row["compressed"] == row["label"] for _, row in changed)
        words += f": {len(lost):,} were right before, {gained:,} are right now"
        if lost:
            worst, count = min(Counter(row["label"] for row in lost).items(), key=lambda item: (-item[1], item[0]))
            if count > 1:
                words += f"; class {named(worst, names)} lost most, {count}"
    words += "." if names else ". Classes are indices."
    return words, [
        (place, tuple(f"{column}: {named(row[column], names)}" for column in shown)) for place, row in changed
    ]
