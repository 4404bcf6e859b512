"""Yes or no: a network gives one logit an image, [N] or [N, 1], and quality is the share of right answers.

It is classification with two classes, whose logits are 0 and what the network gives: softmax of both is its sigmoid.
"""

from typing import TYPE_CHECKING

import numpy as np

from wshare.errors import UserError
from wshare.tasks import classification, multilabel
from wshare.tasks.task import Figure, Score

if TYPE_CHECKING:
    import torch

FIGURES = (
    Figure("accuracy", "accuracy"),
    Figure("balanced", "accuracy, mean over yes and no"),
    Figure("agreement", "same answer as float32", compares=True),
    Figure("correlation", "correlation of log odds with float32", ".4f", compares=True),
)
COLUMNS = ("accuracy", "agreement", "correlation")
PROFILED = ("accuracy", "relative_quality", "loss", "kl", "agreement")
PREDICTED = "answers"

measure = classification.measure


def describe(outputs: np.ndarray, settings: dict, name: str) -> dict:
    """Two `classes`, their `categories` if the settings name two, and `outputs`: "logits", or "sigmoid" by them.

    UserError if the outputs are neither [2] nor [2, 1].
    """
    if outputs.shape not in ((2,), (2, 1)):
        raise UserError(
            f"{name}: gives {list(outputs.shape)} for 2 images, not one number for each; for several labels an image "
            "take the task multilabel, for classes that exclude each other classification"
        )
    categories = settings.get("categories")
    return {
        "classes": 2,
        "categories": list(categories) if categories and len(categories) == 2 else None,
        "outputs": "sigmoid" if settings.get("sigmoid") else "logits",
    }


def check_labels(labels: np.ndarray | None, description: dict, where: str) -> None:
    """UserError unless the labels are 0 or 1, one for each image."""
    if labels is None:
        return
    if labels.size != len(labels):
        raise UserError(f"{where}: {list(labels.shape[1:])} for each image; give 0 or 1 for each")
    if not np.isin(labels, (0, 1)).all():
        wrong = labels[~np.isin(labels, (0, 1))][0]
        raise UserError(f"{where}: label {wrong}, but a label of the task binary is 0 or 1; correct the labels")


def log_likelihood(output: "torch.Tensor", generator: "torch.Generator") -> "torch.Tensor":
    """Log-likelihood of an answer drawn by the probability that the logit gives."""
    import torch

    logit = output.reshape(1)
    return classification.log_likelihood(torch.stack([torch.zeros_like(logit), logit], 1), generator)


def divergence(outputs: "torch.Tensor", reference: "torch.Tensor") -> "torch.Tensor":
    """That of Kullback and Leibler between yes and no by the logits [N] or [N, 1]."""
    return multilabel.divergence(outputs, reference)


def score(outputs: np.ndarray, reference: np.ndarray, labels: np.ndarray | None, temperature: float = 1.0) -> Score:
    """Quality of logits [N] or [N, 1], as that of the two classes."""
    return _named(classification.score(_pairs(outputs), _pairs(reference), _flat(labels), temperature))


def constant(reference: np.ndarray, labels: np.ndarray | None, temperature: float = 1.0) -> Score:
    """Score of the commoner answer, and of the mean of float32's probabilities."""
    return _named(classification.constant(_pairs(reference), _flat(labels), temperature))


def temperature(outputs: np.ndarray, labels: np.ndarray | None) -> float:
    """What logits are to be divided by so that the labels are likeliest; 1 without labels."""
    return classification.temperature(_pairs(outputs), _flat(labels))


def classes(outputs: np.ndarray, reference: np.ndarray, labels: np.ndarray | None) -> list[dict[str, int]]:
    """A row for yes and one for no."""
    return classification.classes(_pairs(outputs), _pairs(reference), _flat(labels))


def top_classes(outputs: np.ndarray) -> np.ndarray:
    """The answer to each image, 0 or 1, int64 [N]."""
    return _pairs(outputs).argmax(1)


def same_predictions(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether the answers are the same."""
    return classification.same_predictions(_pairs(first), _pairs(second))


def predictions(
    outputs: np.ndarray, reference: np.ndarray, labels: np.ndarray | None, keys: list[str]
) -> tuple[list[str], list[dict]]:
    """Columns and rows of predictions.csv: label and both networks' answers."""
    return classification.predictions(_pairs(outputs), _pairs(reference), _flat(labels), keys)


def changes(
    rows: list[dict[str, str]], description: dict, source: str | None
) -> tuple[str, list[tuple[int, tuple[str, ...]]]]:
    """How many answers changed, and of each image that changed its place and both answers."""
    words, shown = classification.changes(rows, description, source)
    return words.replace("top-1 prediction", "answer"), shown


def _pairs(outputs: np.ndarray) -> np.ndarray:
    """Logits of no and yes, [N, 2]."""
    logits = outputs.reshape(-1)
    return np.stack([np.zeros_like(logits), logits], 1)


def _flat(labels: np.ndarray | None) -> np.ndarray | None:
    return None if labels is None else labels.reshape(-1).astype(np.int64)


def _named(found: Score) -> Score:
    figures = {"accuracy" if name == "top1" else name: value for name, value in found.figures.items() if name != "top5"}
    return Score(found.kl, found.kl_error, found.expected, found.expected_error, found.scores, figures)
