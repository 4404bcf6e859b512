"""Networks that give one logit for each class."""

from dataclasses import dataclass

import numpy as np

from wshare.evaluation.intervals import CONFIDENCE, Z, relative_quality


@dataclass(frozen=True)
class Score:
    """Quality on a set of N images.

    `top1`, `top5` and `agreement` (same top-1 class as the float32 network) are shares of N; `loss` is
    the mean cross-entropy and `kl` the mean Kullback-Leibler divergence from the float32 network's
    output, in nats, with its standard error `kl_error`. `expected` is the accuracy relative to float32's that the
    float32 network itself expects, by the probabilities it gives to both networks' top-1 classes: it needs no labels,
    and varies less than counts of right answers; `expected_error` is its standard error, that of a ratio of means
    (Cochran 1977, section 2.11). `correct` is bool [N].
    """

    top1: float
    top5: float
    loss: float
    kl: float
    kl_error: float
    expected: float
    expected_error: float
    agreement: float
    correct: np.ndarray


def labels_or_reference(labels: np.ndarray | None, reference: np.ndarray) -> np.ndarray:
    """The labels [N], or, without any, the float32 network's own top-1 classes.

    Against those, accuracy is agreement with float32, and the float32 network's own accuracy is 1.
    """
    return reference.argmax(1) if labels is None else labels


def measure_of(labels: np.ndarray | None) -> str:
    """What `score` calls top-1: "accuracy" against labels, "agreement" with float32 without."""
    return "agreement" if labels is None else "accuracy"


def same_predictions(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two outputs give every image the same top-1 class."""
    return np.array_equal(first.argmax(1), second.argmax(1))


def score(logits: np.ndarray, reference: np.ndarray, labels: np.ndarray | None) -> Score:
    """Quality of `logits` [N, classes] against the float32 network's `reference` and the labels [N], if any."""
    labels = labels_or_reference(labels, reference)
    compressed, original = _log_softmax(logits), _log_softmax(reference)
    rows = np.arange(len(labels))
    predicted = logits.argmax(1)
    best = np.argpartition(-logits, min(5, logits.shape[1]) - 1, axis=1)[:, :5]
    correct = predicted == labels
    divergence = (np.exp(original) * (original - compressed)).sum(1)
    kept, possible = np.exp(original[rows, predicted]), np.exp(original.max(1))
    expected = kept.mean() / possible.mean()
    residual = (kept - expected * possible) / possible.mean()
    return Score(
        top1=float(correct.mean()),
        top5=float((best == labels[:, None]).any(1).mean()),
        loss=float(-compressed[rows, labels].mean()),
        kl=float(divergence.mean()),
        kl_error=float(divergence.std() / np.sqrt(len(divergence))),
        expected=float(expected),
        expected_error=float(residual.std() / np.sqrt(len(residual))),
        agreement=float((predicted == reference.argmax(1)).mean()),
        correct=correct,
    )


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def compare(logits: np.ndarray, reference: np.ndarray, labels: np.ndarray | None, seed: int) -> dict:
    """Quality before and after compression as metrics.json gives it; the arguments are those of `score`."""
    before, after = score(reference, reference, labels), score(logits, reference, labels)
    share, low, high = relative_quality(after.correct, before.correct, CONFIDENCE, seed)
    margin = Z.inv_cdf((1 + CONFIDENCE) / 2) * after.expected_error
    return {
        "measure": measure_of(labels),
        "float32": {"top1": before.top1, "top5": before.top5, "images": len(logits)},
        "compressed": {
            "top1": after.top1,
            "top5": after.top5,
            "images": len(logits),
            "kl": after.kl,
            "agreement": after.agreement,
        },
        "relative_quality": share,
        "relative_quality_ci95": [low, high],
        "expected_relative_quality": after.expected,
        "expected_relative_quality_ci95": [after.expected - margin, after.expected + margin],
    }
