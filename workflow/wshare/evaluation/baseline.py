"""Whether the float32 network's own outputs make sense: checked before anything is compared with them."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy.special import bdtr, bdtrc

from wshare.errors import UserError
from wshare.tasks.classes import named
from wshare.tasks.task import Task, own_figures

# Largest difference between two passes over the same images, as a share of the largest output: a GPU may sum in another
# order, dropout changes far more.
TOLERANCE = 1e-4
# Probability with which a network that guesses passes for one that does not, and with which one that is right half-way
# between guessing and always is stopped.
GUESSED, STOPPED = 1e-3, 1e-2
# Share of all predictions from which on one class counts as nearly all of them.
NEARLY_ALL = 0.9


def check_repeats(first: np.ndarray, second: np.ndarray, where: str) -> None:
    """UserError, opening with `where`, if outputs [N, ...] of the same images differ between two passes."""
    difference, largest = np.abs(first - second).max(), np.abs(first).max()
    if difference > TOLERANCE * largest:
        raise UserError(
            f"{where}: gives other outputs for the same images from pass to pass (by up to {difference:.2g}, where the "
            f"largest is {largest:.2g}), so nothing can be compared with them; dropout and other randomness must end "
            "in evaluation mode, as F.dropout(x, training=self.training) does"
        )


def check_accuracy(
    task: Task, outputs: np.ndarray, labels: np.ndarray | None, categories: Sequence[str] | None, where: str
) -> None:
    """UserError, opening with `where`, if the float32 outputs [N, ...] tell nothing of the labels, or of others.

    `categories` are names of the classes, if there are any. Nothing is said where there are no labels, or too few
    images to tell. Where labels are no classes, float32 must be better than one output for all images.
    """
    if labels is None:
        return
    predicted = task.top_classes(outputs)
    if predicted is None:
        _check_better_than_constant(task, outputs, labels, where)
        return
    names = {str(index): name for index, name in enumerate(categories or ())}
    count, right, chance = len(labels), int((predicted == labels).sum()), by_chance(predicted, labels)
    told = f"{where}: float32 is right on {right / count:.1%} of {count:,} images"
    if guesses(predicted, labels):
        raise UserError(
            f"{told}, where guessing is right on {chance:.1%}; check labels, order of classes and "
            f"preprocessing: {confusion(predicted, labels, names)}"
        )
    renamed = relabelled(predicted, labels)
    if renamed:
        raise UserError(
            f"{told}, and would be on {renamed:.1%} if classes had other indices; check order of classes and labels: "
            f"{confusion(predicted, labels, names)}"
        )


def _check_better_than_constant(task: Task, outputs: np.ndarray, labels: np.ndarray, where: str) -> None:
    score = task.score(outputs, outputs, labels)
    quality, constant = score.quality, task.constant(outputs, labels).quality
    # Of counts a constant may well be as good: the verdict says so.
    if score.scores.dtype == bool or quality > constant:
        return
    first, other = own_figures(task)[0], round(constant, 6) + 0.0
    raise UserError(
        f"{where}: float32 has {first.label} {first.text(quality)}, where one output for all {len(labels):,} images "
        f"has {first.text(other)}; check labels, their units and preprocessing, or leave labels out to go by agreement"
    )


def by_chance(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Share of images that would be right if predictions had nothing to do with labels, and were as frequent.

    The chance agreement of Cohen's kappa (Cohen 1960). For a network that predicts one class alone, it is that class's
    share, so that skewed data makes no such network look good.
    """
    frequent = Counter(labels.tolist())
    return sum(number * frequent[index] for index, number in Counter(predicted.tolist()).items()) / len(labels) ** 2


def guesses(predicted: np.ndarray, labels: np.ndarray) -> bool:
    """Whether classes [N] are right no more often than by chance, and there are images enough to tell.

    One-sided exact binomial test at GUESSED. Enough are so many that a network which is right half-way between
    guessing and always, with predictions as frequent as these labels, passes it but for a probability of STOPPED.
    """
    count = len(labels)
    if at_least(int((predicted == labels).sum()), count, by_chance(predicted, labels)) < GUESSED:
        return False
    chance = by_chance(labels, labels)
    # With one image more than there are the probability is 0.
    fewest = int(np.argmax(at_least(np.arange(count + 2), count, chance) <= GUESSED))
    return bool(bdtr(fewest - 1, count, (1 + chance) / 2) < STOPPED)


def at_least(right: int | np.ndarray, count: int, chance: float) -> float | np.ndarray:
    """Probability that so many of `count` images are right, or more."""
    return bdtrc(right - 1, count, chance)


def relabelled(predicted: np.ndarray, labels: np.ndarray) -> float | None:
    """Share of images that would be right if each class had another index, where that at least doubles it; else None.

    Every second image tells which index a class is mostly predicted as, one for each class; the others, of which this
    is the share, must confirm it (sign test at GUESSED).
    """
    learnt = Counter(zip(labels[::2].tolist(), predicted[::2].tolist(), strict=True))
    index: dict[int, int] = {}
    for label, other in (pair for pair, _ in sorted(learnt.items(), key=lambda item: (-item[1], item[0]))):
        if label not in index and other not in index.values():
            index[label] = other
    rest, expected = predicted[1::2], labels[1::2]
    before = rest == expected
    after = rest == np.array([index.get(label, label) for label in expected.tolist()], dtype=np.int64)
    gained, lost = after & ~before, before & ~after
    # One class alone may well be hard for the network.
    if len(np.unique(expected[gained])) < 2 or after.sum() < 2 * before.sum():
        return None
    certain = at_least(int(gained.sum()), int(gained.sum() + lost.sum()), 0.5) < GUESSED
    return float(after.mean()) if certain else None


def confusion(predicted: np.ndarray, labels: np.ndarray, names: dict[str, str]) -> str:
    """The mistake that tells most, in words; `names` are those of classes by index, as text."""
    most, number = Counter(predicted.tolist()).most_common(1)[0]
    if number >= NEARLY_ALL * len(labels):
        return f"{number / len(labels):.0%} of the images are predicted as class {named(str(most), names)}"
    wrong = predicted != labels
    pairs = Counter(zip(labels[wrong].tolist(), predicted[wrong].tolist(), strict=True))
    (label, other), number = min(pairs.items(), key=lambda item: (-item[1], item[0]))
    text = (
        f"images of class {named(str(label), names)} are predicted as {named(str(other), names)} most often "
        f"({number} of {(labels == label).sum()})"
    )
    shift = Counter((predicted - labels)[wrong].tolist()).most_common(1)[0]
    if abs(shift[0]) == 1 and 2 * shift[1] > len(labels):
        text += ", so labels may be off by one"
    return text
