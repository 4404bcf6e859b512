"""Segmentation: a network gives logits of classes at each pixel, [N, C, H, W], and quality is the share that is right.

One channel, [N, 1, H, W], is a yes or no for each pixel: its logits are 0 and what the network gives. An image counts
as a whole: its score is the share of its pixels that are right, and its divergence a mean over pixels.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from wshare.errors import UserError
from wshare.models.preprocessing import IGNORED
from wshare.tasks import changed, classification, multilabel
from wshare.tasks.classification import are_probabilities, likeliest_temperature, ratio_of_means
from wshare.tasks.task import AGREEMENT, Figure, Score

if TYPE_CHECKING:
    import torch

# Pixels that the temperature is fitted on.
PIXELS = 200_000
FIGURES = (
    Figure("pixel_accuracy", "pixel accuracy"),
    Figure("mean_iou", "mean IoU"),
    Figure("agreement", "pixels as of float32", compares=True),
    Figure("worst", "pixels as of float32 on the image that changed most", compares=True),
)
COLUMNS = ("pixel_accuracy", "mean_iou", "agreement", "worst")
PROFILED = ("pixel_accuracy", "relative_quality", "mean_iou", "kl", "agreement")
PREDICTED = "masks"


def describe(outputs: np.ndarray, settings: dict, name: str) -> dict:
    """The number of `classes`, their `categories` if there is a name for each, `mask`, [H, W], and `outputs`.

    `outputs` are "logits", "probabilities" of a softmax, or "sigmoid" where the settings say so of a single channel.
    UserError if the outputs are not [2, channels, H, W].
    """
    if outputs.ndim != 4 or len(outputs) != 2:
        raise UserError(f"{name}: gives {list(outputs.shape)} for 2 images, not a tensor [2, classes, height, width]")
    channels, categories = outputs.shape[1], settings.get("categories")
    softmax = channels > 1 and are_probabilities(outputs)
    classes = max(channels, 2)
    return {
        "classes": classes,
        "categories": list(categories) if categories and len(categories) == classes else None,
        "mask": list(outputs.shape[2:]),
        "outputs": "probabilities" if softmax else "sigmoid" if channels == 1 and settings.get("sigmoid") else "logits",
    }


def check_labels(labels: np.ndarray | None, description: dict, where: str) -> None:
    """UserError unless the labels are masks [N, H, W] of class indices and IGNORED, none of them all IGNORED."""
    if labels is None:
        return
    mask, classes = description["mask"], description["classes"]
    if list(labels.shape[1:]) != mask:
        raise UserError(
            f"{where}: masks {list(labels.shape[1:])}, but the network gives {mask}; give masks of that size, or leave "
            "them out to go by agreement"
        )
    wrong = (labels < 0) | ((labels >= classes) & (labels != IGNORED))
    if wrong.any():
        raise UserError(
            f"{where}: class index {labels[wrong][0]} in a mask, but the network has classes 0 to {classes - 1} "
            f"({IGNORED} is for pixels that do not count); correct the masks"
        )
    empty = (labels == IGNORED).all((1, 2))
    if empty.any():
        raise UserError(f"{where}: no pixel of mask {int(empty.argmax())} counts ({IGNORED}); leave out its image")


def log_likelihood(output: "torch.Tensor", generator: "torch.Generator") -> "torch.Tensor":
    """Log-likelihood of a mask drawn from the logits [1, C, H, W], over the root of the pixels.

    The divergence is a mean over pixels, and so is then the square of its gradient.
    """
    import torch

    logits = output if output.shape[1] > 1 else torch.cat([torch.zeros_like(output), output], 1)
    pixels = logits.log_softmax(1)[0].flatten(1).T
    drawn = pixels.detach().exp().cpu().multinomial(1, generator=generator).to(pixels.device)
    return pixels.gather(1, drawn).sum() / len(pixels) ** 0.5


def divergence(outputs: "torch.Tensor", reference: "torch.Tensor") -> "torch.Tensor":
    """Mean over pixels of that of Kullback and Leibler between their classes by the logits [N, C, H, W]."""
    told = multilabel if outputs.shape[1] == 1 else classification
    return told.divergence(outputs, reference)


def score(outputs: np.ndarray, reference: np.ndarray, labels: np.ndarray | None, temperature: float = 1.0) -> Score:
    """Quality of logits [N, C, H, W] against the float32 network's `reference` and masks [N, H, W], if any.

    What float32 expects goes by the probabilities that it gives to both networks' classes, as a mean over pixels.
    `mean_iou` is over all pixels of all images: the mean, over the classes that there are, of the pixels that are of a
    class in mask and prediction, over those that are in either.
    """
    rows, confusion = [], 0
    for image, original, mask in _images(outputs, reference, labels):
        compressed, own = _log_softmax(image), _log_softmax(original)
        predicted, first = image.argmax(0), original.argmax(0)
        known = own if temperature == 1 else _log_softmax(original / temperature)
        counted = mask != IGNORED
        kl = (np.exp(own) * (own - compressed)).sum(0).mean(dtype=np.float64)
        kept = np.exp(np.take_along_axis(known, predicted[None], 0)).mean(dtype=np.float64)
        possible = np.exp(known.max(0)).mean(dtype=np.float64)
        rows.append((kl, kept, possible, (predicted == mask)[counted].mean(), (predicted == first).mean()))
        confusion = confusion + _confusion(predicted[counted], mask[counted], len(image))
    kl, kept, possible, scores, same = np.array(rows).T
    expected, residual = ratio_of_means(kept, possible)
    root = np.sqrt(len(kl))
    return Score(
        kl=float(kl.mean()),
        kl_error=float(kl.std() / root),
        expected=expected,
        expected_error=float(residual.std() / root),
        scores=scores,
        figures={
            "pixel_accuracy": float(scores.mean()),
            "mean_iou": _mean_iou(confusion),
            "agreement": float(same.mean()),
            "worst": float(same.min()),
        },
    )


def constant(reference: np.ndarray, labels: np.ndarray | None, temperature: float = 1.0) -> Score:
    """Score of the best map that is the same for all images: each pixel's commonest class and mean probabilities."""
    mean, votes = 0.0, 0
    for _, original, mask in _images(reference, reference, labels):
        mean = mean + np.exp(_log_softmax(original)).astype(np.float64) / len(reference)
        votes = votes + (mask == np.arange(len(original))[:, None, None])
    commonest = votes.argmax(0)
    logits = np.log(np.maximum(mean, np.finfo(np.float32).tiny)).astype(np.float32)
    found = score(np.broadcast_to(logits, (len(reference), *logits.shape)), _two(reference), labels, temperature)
    scores = np.array(
        [(commonest == mask)[mask != IGNORED].mean() for _, _, mask in _images(reference, reference, labels)]
    )
    return replace(found, scores=scores, figures=found.figures | {"pixel_accuracy": float(scores.mean())})


def temperature(outputs: np.ndarray, labels: np.ndarray | None) -> float:
    """What logits are to be divided by so that the masks are likeliest, on some pixels of all images; 1 without."""
    if labels is None:
        return 1.0
    step = max(1, labels.size // PIXELS)
    pixels = np.concatenate([image.reshape(len(image), -1).T[::step] for image, *_ in _images(outputs, outputs, None)])
    truth = np.concatenate([mask.reshape(-1)[::step] for mask in labels])
    pixels, truth = pixels[truth != IGNORED], truth[truth != IGNORED].astype(np.int64)

    def loss(temperature: float) -> float:
        likelihood = np.take_along_axis(_log_softmax(pixels.T / temperature), truth[None], 0)
        return float(-likelihood.mean(dtype=np.float64))

    return likeliest_temperature(loss)


def classes(outputs: np.ndarray, reference: np.ndarray, labels: np.ndarray | None) -> list[dict[str, int]]:
    """An image is of no one class."""
    return []


def top_classes(outputs: np.ndarray) -> None:
    """An image is of no one class."""
    return


def same_predictions(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether the masks of all images are the same."""
    return all(np.array_equal(one.argmax(0), other.argmax(0)) for one, other, _ in _images(first, second, None))


def measure(labels: np.ndarray | None) -> str:
    """What quality is called."""
    return AGREEMENT if labels is None else "pixel accuracy"


def predictions(
    outputs: np.ndarray, reference: np.ndarray, labels: np.ndarray | None, keys: list[str]
) -> tuple[list[str], list[dict]]:
    """Columns and rows of predictions.csv: the share of pixels that changed, and with masks both pixel accuracies."""
    moved = 1 - score(outputs, reference, None).scores
    known = [None, None]
    if labels is not None:
        known = [score(array, reference, labels).scores for array in (reference, outputs)]
    return changed.COLUMNS, changed.rows_of(keys, moved, *known)


def changes(
    rows: list[dict[str, str]], description: dict, source: str | None
) -> tuple[str, list[tuple[int, tuple[str, ...]]]]:
    """How many pixels changed, and those images where most did."""

    def told(row: dict[str, str]) -> list[str]:
        right = [f"{name}: {float(row[name]):.2%} right" for name in ("float32", "compressed") if row[name]]
        return [f"{float(row['changed']):.2%} of the pixels changed", *right]

    return changed.most_changed(
        rows,
        lambda median, most, images: (
            f"Of the pixels {median} changed on the median of {images} held-out images, and {most} on the one that "
            "changed most."
        ),
        told,
    )


def _images(
    outputs: np.ndarray, reference: np.ndarray, labels: np.ndarray | None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Both networks' logits [C, H, W] of two classes or more, and the mask [H, W], of one image after another."""
    for place, (image, original) in enumerate(zip(outputs, reference, strict=True)):
        pair = (_two(image[None])[0], _two(original[None])[0])
        yield *pair, pair[1].argmax(0) if labels is None else labels[place]


def _two(outputs: np.ndarray) -> np.ndarray:
    """Logits of two classes or more, [N, C, H, W]."""
    return outputs if outputs.shape[1] > 1 else np.concatenate([np.zeros_like(outputs), outputs], 1)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    """Over the first axis, float32: of as many numbers as pixels have, double precision costs more than it tells."""
    shifted = logits.astype(np.float32) - logits.max(0).astype(np.float32)
    return shifted - np.log(np.exp(shifted).sum(0))


def _confusion(predicted: np.ndarray, mask: np.ndarray, classes: int) -> np.ndarray:
    """Pixels [C, C] by class in the mask and class that is predicted."""
    pairs = mask.astype(np.int64) * classes + predicted
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def _mean_iou(confusion: np.ndarray) -> float:
    both = np.diag(confusion)
    either = confusion.sum(0) + confusion.sum(1) - both
    return float((both[either > 0] / either[either > 0]).mean())
