"""Several labels an image, or none: a network gives a logit for each, [N, L], and each is a yes or no of its own.

An image's score is the overlap of the predicted labels and the right ones: how many are in both over how many are in
either (Jaccard's index; Godbole & Sarawagi 2004), 1 where both are empty. Unlike the share of right labels it gives
nothing for the many labels that an image does not have.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from wshare.errors import UserError
from wshare.tasks.classes import named
from wshare.tasks.classification import (
    class_rows,
    correlation_of_centred,
    likeliest_temperature,
    ratio_of_means,
)
from wshare.tasks.task import AGREEMENT, Figure, Score

if TYPE_CHECKING:
    import torch

FIGURES = (
    Figure("overlap", "overlap of labels"),
    Figure("labels", "labels that are right"),
    Figure("exact", "images with all labels right"),
    Figure("average_precision", "mean average precision"),
    Figure("agreement", "labels as of float32", compares=True),
    Figure("correlation", "correlation of log odds with float32", ".4f", compares=True),
)
COLUMNS = ("overlap", "agreement", "correlation")
PROFILED = ("overlap", "relative_quality", "loss", "kl", "agreement")
PREDICTED = "labels"
PREDICTIONS = ["image", "label", "float32", "compressed"]
# Sets of the commonest labels that are tried as the best constant.
MOST_COMMON = 50


def describe(outputs: np.ndarray, settings: dict, name: str) -> dict:
    """The number of `labels`, their names as `categories` if there is one for each, and `outputs`.

    `outputs` are "logits", or "sigmoid" where the settings say that the network ends in one. UserError if the outputs
    are not [2, labels].
    """
    if outputs.ndim != 2:
        raise UserError(f"{name}: gives {list(outputs.shape)} for 2 images, not a tensor [2, labels]")
    labels, categories = outputs.shape[1], settings.get("categories")
    return {
        "labels": labels,
        "categories": list(categories) if categories and len(categories) == labels else None,
        "outputs": "sigmoid" if settings.get("sigmoid") else "logits",
    }


def check_labels(labels: np.ndarray | None, description: dict, where: str) -> None:
    """UserError unless the labels are 0 or 1, [N, L]."""
    if labels is None:
        return
    count = description["labels"]
    if labels.shape[1:] != (count,):
        raise UserError(
            f"{where}: {list(labels.shape)}, but the network gives {count} labels; give 0 or 1 for each, [images, "
            f"{count}], or leave labels out to go by agreement"
        )
    if not np.isin(labels, (0, 1)).all():
        raise UserError(f"{where}: {labels[~np.isin(labels, (0, 1))][0]}, but each label is 0 or 1; correct the labels")


def log_likelihood(output: "torch.Tensor", generator: "torch.Generator") -> "torch.Tensor":
    """Log-likelihood of labels drawn from the logits [1, L], over the root of L: the divergence is a mean over labels.

    The square of its gradient is then the mean over labels of single labels' squares.
    """
    from torch.nn import functional

    drawn = output.detach().float().sigmoid().cpu().bernoulli(generator=generator).to(output.device, output.dtype)
    likelihood = -functional.binary_cross_entropy_with_logits(output, drawn, reduction="sum")
    return likelihood / output.numel() ** 0.5


def divergence(outputs: "torch.Tensor", reference: "torch.Tensor") -> "torch.Tensor":
    """Mean over labels of that of Kullback and Leibler between yes and no by the logits [N, L]."""
    from torch.nn import functional

    def mean_code(logits: "torch.Tensor") -> "torch.Tensor":
        return functional.binary_cross_entropy_with_logits(logits, reference.sigmoid())

    return mean_code(outputs) - mean_code(reference)


def score(outputs: np.ndarray, reference: np.ndarray, labels: np.ndarray | None, temperature: float = 1.0) -> Score:
    """Quality of logits [N, L] against the float32 network's `reference` and labels [N, L] of 0 and 1, if any.

    The divergence is the mean over labels of that of Kullback and Leibler between both networks' yes and no. What
    float32 expects goes by the probabilities that it gives to the predicted labels, as a mean over labels.
    """
    predicted, own = outputs > 0, reference > 0
    truth = own if labels is None else labels.astype(bool)
    divergence = _divergence(outputs, reference)
    likely = _sigmoid(np.abs(reference.astype(np.float64)) / temperature)
    kept = np.where(predicted == own, likely, 1 - likely).mean(1)
    expected, residual = ratio_of_means(kept, likely.mean(1))
    root, scores, right = np.sqrt(len(outputs)), _overlap(predicted, truth), predicted == truth
    return Score(
        kl=float(divergence.mean()),
        kl_error=float(divergence.std() / root),
        expected=expected,
        expected_error=float(residual.std() / root),
        scores=scores,
        figures={
            "overlap": float(scores.mean()),
            "labels": float(right.mean()),
            "exact": float(right.all(1).mean()),
            "average_precision": _average_precision(outputs, truth),
            "loss": _loss(outputs, truth),
            "agreement": float((predicted == own).mean()),
            "correlation": _correlation(outputs, reference),
        },
    )


def constant(reference: np.ndarray, labels: np.ndarray | None, temperature: float = 1.0) -> Score:
    """Score of the best set of commonest labels, and of the mean of float32's probabilities."""
    truth = reference > 0 if labels is None else labels.astype(bool)
    mean = _sigmoid(reference.astype(np.float64)).mean(0)
    tiny = np.finfo(np.float32).tiny
    logits = np.log(np.maximum(mean, tiny)) - np.log(np.maximum(1 - mean, tiny))
    found = score(np.broadcast_to(logits, reference.shape), reference, labels, temperature)
    order = np.argsort(-truth.mean(0), kind="stable")
    best = max((_overlap(_only(order[:count], truth), truth) for count in range(MOST_COMMON + 1)), key=np.mean)
    return replace(found, scores=best, figures=found.figures | {"overlap": float(best.mean())})


def temperature(outputs: np.ndarray, labels: np.ndarray | None) -> float:
    """What logits [N, L] are to be divided by so that the labels are likeliest; 1 without labels."""
    if labels is None:
        return 1.0
    truth = labels.astype(bool)
    return likeliest_temperature(lambda temperature: _loss(outputs / temperature, truth))


def classes(outputs: np.ndarray, reference: np.ndarray, labels: np.ndarray | None) -> list[dict[str, int]]:
    """A row for each label that an image has, with how many of its images are predicted to have it."""
    truth = reference > 0 if labels is None else labels.astype(bool)
    return class_rows(truth.sum(0), [((array > 0) & truth).sum(0) for array in (reference, outputs)])


def top_classes(outputs: np.ndarray) -> None:
    """Labels do not exclude each other, so none is the first."""
    return


def same_predictions(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether the labels of every image are the same."""
    return np.array_equal(first > 0, second > 0)


def measure(labels: np.ndarray | None) -> str:
    """What quality is called."""
    return AGREEMENT if labels is None else "overlap of labels"


def predictions(
    outputs: np.ndarray, reference: np.ndarray, labels: np.ndarray | None, keys: list[str]
) -> tuple[list[str], list[dict]]:
    """Columns and rows of predictions.csv: indices of an image's labels, and of those that both networks predict."""
    known = [""] * len(keys) if labels is None else _indices(labels)
    rows = zip(keys, known, _indices(reference), _indices(outputs), strict=True)
    return PREDICTIONS, [dict(zip(PREDICTIONS, row, strict=True)) for row in rows]


def changes(
    rows: list[dict[str, str]], description: dict, source: str | None
) -> tuple[str, list[tuple[int, tuple[str, ...]]]]:
    """How many images have other labels, and of each its place and both networks' labels."""
    changed = [(place, row) for place, row in enumerate(rows) if row["float32"] != row["compressed"]]
    if not changed:
        return f"No label of {len(rows):,} held-out images changed.", []
    names = {str(index): name for index, name in enumerate(description.get("categories") or ())}
    words = f"The labels changed for {len(changed):,} of {len(rows):,} held-out images."
    shown = [column for column in PREDICTIONS[1:] if column != "label" or any(row["label"] for _, row in changed)]

    def told(row: dict[str, str]) -> tuple[str, ...]:
        lists = (", ".join(named(index, names) for index in row[column].split()) for column in shown)
        return tuple(f"{column}: {listed or 'none'}" for column, listed in zip(shown, lists, strict=True))

    return words, [(place, told(row)) for place, row in changed]


def _overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Jaccard's index of each image's labels, float64 [N]."""
    either = (first | second).sum(1)
    return np.where(either > 0, (first & second).sum(1) / np.maximum(either, 1), 1.0)


def _only(chosen: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The same labels for each image."""
    labels = np.zeros(truth.shape[1], dtype=bool)
    labels[chosen] = True
    return np.broadcast_to(labels, truth.shape)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -logits))


def _divergence(outputs: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Mean over labels of the divergence, float64 [N]."""
    first, second = reference.astype(np.float64), outputs.astype(np.float64)
    yes = _sigmoid(first) * (np.logaddexp(0, -second) - np.logaddexp(0, -first))
    no = _sigmoid(-first) * (np.logaddexp(0, second) - np.logaddexp(0, first))
    return (yes + no).mean(1)


def _loss(outputs: np.ndarray, truth: np.ndarray) -> float:
    """Mean cross-entropy over images and labels."""
    return float(np.logaddexp(0, np.where(truth, -1, 1) * outputs.astype(np.float64)).mean())


def _average_precision(outputs: np.ndarray, truth: np.ndarray) -> float:
    """Mean over the labels that an image has of the mean precision at each of its images, by descending logits."""
    order = np.argsort(-outputs, axis=0, kind="stable")
    right = np.take_along_axis(truth, order, 0)
    precision = right.cumsum(0) / np.arange(1, len(right) + 1)[:, None]
    images = right.sum(0)
    there = images > 0
    return float(((precision * right).sum(0)[there] / images[there]).mean()) if there.any() else 0.0


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Correlation of two networks' log odds, each without the mean of its label."""
    centred = (array.astype(np.float64) - array.mean(0, dtype=np.float64) for array in (first, second))
    return correlation_of_centred(*centred)


def _indices(values: np.ndarray) -> list[str]:
    return [" ".join(map(str, np.flatnonzero(row > 0))) for row in values]
