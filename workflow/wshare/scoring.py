"""Evaluation of a network and statistics on the same images before and after compression."""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch
from torch import nn

from wshare.errors import UserError
from wshare.fusion import fused
from wshare.images import Images

RESAMPLES = 10_000
# The verdict's interval, whatever confidence the search asked for.
CONFIDENCE = 0.95
Z = NormalDist()


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


def predict(model: nn.Module, images: Images, threads: int = 1, half: bool = False) -> np.ndarray:
    """Logits, float32 [N, classes]; model and images are on one device.

    Batches run side by side on `threads` threads, each on one core: the result does not depend on
    their number, unlike that of torch's own parallel sums. `half` computes in float16, for GPUs alone.
    """
    first = images.batch(0)
    network = fused(model, first[:2])

    def logits(start: int) -> np.ndarray:
        batch = images.batch(start) if start else first
        return _forward_half(network, batch) if half else forward(network, batch)

    # A GPU takes one batch at a time, and more of them would only take its memory.
    with ThreadPoolExecutor(1 if first.is_cuda else threads) as pool:
        return np.concatenate(list(pool.map(logits, images.starts())))


def forward(model: nn.Module, batch: torch.Tensor) -> np.ndarray:
    """Logits of one batch, float32 [B, classes]."""
    with torch.inference_mode():
        return model(batch).float().numpy(force=True)


def _forward_half(model: nn.Module, batch: torch.Tensor) -> np.ndarray:
    # Tensor cores take the channels of a pixel in a row.
    with torch.autocast(batch.device.type, torch.float16):
        return forward(model, batch.contiguous(memory_format=torch.channels_last))


def labels_or_reference(labels: np.ndarray | None, reference: np.ndarray) -> np.ndarray:
    """The labels [N], or, without any, the float32 network's own top-1 classes.

    Against those, accuracy is agreement with float32, and the float32 network's own accuracy is 1.
    """
    return reference.argmax(1) if labels is None else labels


def measure_of(labels: np.ndarray | None) -> str:
    """What `score` calls top-1: "accuracy" against labels, "agreement" with float32 without."""
    return "agreement" if labels is None else "accuracy"


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


def relative_accuracy(
    correct: np.ndarray, reference: np.ndarray, confidence: float, seed: int
) -> tuple[float, float, float]:
    """Accuracy as a share of the float32 accuracy on the same images, and its interval's ends.

    `correct` and `reference` are bool [N], image by image. The interval is the paired percentile
    bootstrap (Efron & Tibshirani 1993, chapter 13): images are drawn with replacement, both answers
    together. Only four kinds of image exist, so their counts are drawn from a multinomial.
    """
    both = np.count_nonzero(correct & reference)
    gained = np.count_nonzero(correct & ~reference)
    lost = np.count_nonzero(~correct & reference)
    neither = len(correct) - both - gained - lost
    if both + lost == 0:
        return 0.0, 0.0, 0.0
    shares = np.array([both, gained, lost, neither]) / len(correct)
    draws = np.random.default_rng(seed).multinomial(len(correct), shares, RESAMPLES)
    ratios = (draws[:, 0] + draws[:, 1]) / np.maximum(draws[:, 0] + draws[:, 2], 1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(ratios, [tail, 1 - tail])
    return float((both + gained) / (both + lost)), float(low), float(high)


def predicted_low(correct: np.ndarray, reference: np.ndarray, confidence: float | None) -> tuple[float, float]:
    """Relative accuracy, and the lower end its 95 % interval is expected to have on as many other images.

    Holding on other images takes more than an interval that holds here: their accuracy varies as well, and
    their own interval has a width. The bound is s - (z(0.975) + sqrt(2) z(confidence)) sd, with s and sd of
    `paired_ratio`, so that with probability `confidence` the lower end on other images is no lower. The probability
    is that of one combination: the smallest of many that were measured on the same images holds less often. Without
    `confidence` the bound is s itself.
    """
    share, deviation = paired_ratio(correct, reference)
    if confidence is None:
        return share, share
    return share, share - (Z.inv_cdf(0.975) + math.sqrt(2) * Z.inv_cdf(confidence)) * deviation


def paired_ratio(correct: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Accuracy as a share of float32's on the same images, both bool [N], and its standard deviation.

    It is that of a difference of paired proportions, with half an image added to each of the four kinds so that few
    changed answers do not pass for none (Agresti & Min 2005). Both are 0 where float32 has nothing right.
    """
    both = np.count_nonzero(correct & reference)
    gained = np.count_nonzero(correct & ~reference)
    lost = np.count_nonzero(~correct & reference)
    if both + lost == 0:
        return 0.0, 0.0
    images = len(correct) + 2
    changed, net = (gained + lost + 1) / images, (gained - lost) / images
    deviation = math.sqrt((changed - net**2) / images) / ((both + lost + 1) / images)
    return float((both + gained) / (both + lost)), float(deviation)


def images_needed(top1: float, target: float, confidence: float | None) -> float:
    """Images from which on `predicted_low` of an unchanged network, of accuracy `top1`, reaches the target."""
    if confidence is None:
        return 0
    if target == 1 or top1 == 0:
        return float("inf")
    quantiles = Z.inv_cdf(0.975) + np.sqrt(2) * Z.inv_cdf(confidence)
    return max(0, int(np.ceil((quantiles / (1 - target) - 1) / top1)))


def compare(logits: np.ndarray, reference: np.ndarray, labels: np.ndarray | None, seed: int) -> dict:
    """Quality before and after compression as metrics.json gives it; the arguments are those of `score`."""
    before, after = score(reference, reference, labels), score(logits, reference, labels)
    share, low, high = relative_accuracy(after.correct, before.correct, CONFIDENCE, seed)
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
        "relative_accuracy": share,
        "relative_accuracy_ci95": [low, high],
        "expected_relative_accuracy": after.expected,
        "expected_relative_accuracy_ci95": [after.expected - margin, after.expected + margin],
    }


def check_images(count: int, top1: float, target: float, confidence: float | None) -> None:
    """UserError unless `count` images can confirm the target for a network of accuracy `top1`."""
    needed = images_needed(top1, target, confidence)
    if count < needed:
        raise UserError(
            f"{count} search images cannot confirm a quality target of {target} with "
            f"confidence {confidence}, even for an unchanged network: that takes {needed}; add images, "
            "lower the target or the confidence, or set confidence to null to go by the point estimate alone"
        )


def verdict(low: float, high: float, target: float) -> str:
    """ "met", "missed" or "undecided": where the whole interval lies against the quality target."""
    if low >= target:
        return "met"
    return "missed" if high < target else "undecided"
