"""Regression: a network gives numbers of any shape for each image, such as a vector, a map, or several of them.

Numbers are measured by how much they vary from image to image. Each output has a scale for each of its channels, the
standard deviation over images, and an image's error is the mean over all numbers of an output, and over the outputs, of
(difference / scale) squared. So the error is 0 for the same outputs and on average 1 for the mean output, whatever the
units and however many numbers there are: a map of a million pixels is worth no more than a vector.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from wshare.errors import UserError
from wshare.tasks import changed
from wshare.tasks.task import AGREEMENT, Figure, Score

if TYPE_CHECKING:
    import torch

# Numbers squared at once: what an image costs in memory beyond its outputs.
BLOCK = 1 << 24
# Variance of a channel, as a share of its mean square or of its output's mean variance, from which on it varies by more
# than rounding. What does not is measured by its output's mean variance.
VARIES = 1e-10
# Error of an image whose outputs are no numbers any more.
LOST = 1e6
# Error at which outputs are the same but for rounding.
SAME = 1e-6


@dataclass(frozen=True)
class Scales:
    """What each number's squared difference counts, float64 [D]: weight of the number over variance of its channel.

    `weights` [D] are 1 over the numbers of the output, over the number of outputs that vary: they sum to 1.
    """

    factors: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, arrays: np.ndarray, shapes: Sequence[Sequence[int]]) -> "Scales":
        """Those of outputs or labels [N, ...], which hold outputs of these shapes side by side.

        UserError if none of the outputs varies from image to image.
        """
        mean, square, variance = _moments(arrays)
        variances, weights, first = np.ones(len(mean)), np.zeros(len(mean)), 0
        for shape in shapes:
            place = slice(first, first := first + int(np.prod(shape, dtype=int)))
            own, squares = (_by_channel(array[place].reshape(shape)) for array in (variance, square))
            varies = own > VARIES * np.maximum(squares, own.mean())
            if varies.any():
                variances[place] = np.where(varies, own, own[varies].mean()).reshape(-1)
                weights[place] = 1 / own.size
        if not weights.any():
            raise UserError(
                "regression: gives the same for every image, so nothing can be told; check images and preprocessing"
            )
        weights /= weights.sum()
        return cls(weights / variances, weights)


@dataclass(frozen=True)
class Regression:
    """The task `regression`.

    `shapes` are those of the outputs that lie side by side in one array [N, D], none for an array that is one output.
    `scales` are those of the float32 network's outputs, and `label_scales` those of the labels, once it is fitted.
    """

    shapes: tuple[tuple[int, ...], ...] = ()
    scales: Scales | None = None
    label_scales: Scales | None = None

    FIGURES = (
        Figure("variance_kept", "share of variance explained"),
        Figure("error", "error, as a share of the outputs' spread", ".3%", compares=True),
        Figure("worst", "variance kept on the image that changed most", compares=True),
    )
    COLUMNS = ("variance_kept", "error", "worst")
    PROFILED = ("variance_kept", "relative_quality", "kl", "error")
    PREDICTED = "outputs"
    # Divergence and quality are of the same errors: a share of one lost is that share of the other.
    MOST_RELATIVE_KL = 1.0
    SEVERAL = True

    def of(self, description: Mapping[str, Any]) -> "Regression":
        """The task of a network with the `structure` that its description tells, if it gives several outputs."""
        shapes = [tuple(output["shape"]) for output in description.get("structure") or ()]
        return replace(self, shapes=tuple(shapes) if len(shapes) > 1 else ())

    def fitted(self, outputs: np.ndarray, labels: np.ndarray | None = None) -> "Regression":
        """The task with the scales of the float32 network's outputs [N, ...], and of the labels."""
        label_scales = None if labels is None else self._scales(labels)
        return replace(self, scales=self._scales(outputs), label_scales=label_scales)

    def _scales(self, arrays: np.ndarray) -> Scales:
        return Scales.of(arrays, self.shapes or (arrays.shape[1:],))

    def describe(self, outputs: np.ndarray, settings: dict, name: str) -> dict:
        """The `shape` of an image's outputs; UserError if they are not [2, ...]."""
        if not outputs.ndim or len(outputs) != 2:
            raise UserError(f"{name}: gives {list(outputs.shape)} for 2 images, not numbers for each")
        return {"shape": list(outputs.shape[1:])}

    def check_labels(self, labels: np.ndarray | None, description: dict, where: str) -> None:
        """UserError unless the labels are finite numbers, as many for each image as the network gives."""
        if labels is None:
            return
        shape = description["shape"]
        if list(labels.shape[1:]) != shape:
            raise UserError(
                f"{where}: {list(labels.shape[1:])} for each image, but the network gives {shape}; correct the labels, "
                "or leave them out to go by agreement"
            )
        if labels.dtype.kind not in "iuf" or not np.isfinite(labels).all():
            raise UserError(f"{where}: hold what is no finite number; correct them, or leave them out")

    def log_likelihood(self, output: "torch.Tensor", generator: "torch.Generator") -> "torch.Tensor":
        """Log-likelihood of numbers drawn from the Gaussian around the output [1, ...], whose divergence `score` tells.

        Its variance is that of the channel over the weight of the number; what does not vary is not drawn.
        """
        import torch

        factors = torch.from_numpy(self.scales.factors).to(output.device, output.dtype)
        flat = output.reshape(-1)
        noise = torch.randn(flat.shape, generator=generator).to(output.device, output.dtype)
        drawn = flat.detach() + torch.where(factors > 0, noise * factors.clamp_min(1e-38).rsqrt(), 0)
        return -0.5 * (factors * (drawn - flat).square()).sum()

    def divergence(self, outputs: "torch.Tensor", reference: "torch.Tensor") -> "torch.Tensor":
        """That of Kullback and Leibler between the Gaussians of `score`, as a mean over numbers."""
        import torch

        factors = torch.from_numpy(self.scales.factors).to(outputs.device, outputs.dtype)
        return 0.5 * (factors * (outputs - reference).reshape(len(outputs), -1).square()).sum(1).mean()

    def score(
        self, outputs: np.ndarray, reference: np.ndarray, labels: np.ndarray | None, temperature: float = 1.0
    ) -> Score:
        """Quality of outputs [N, ...] against the float32 network's `reference` and labels of the same shape, if any.

        With e an image's error (see the module), its score is 1 - e, so that quality is the share of variance that is
        explained (R squared, Wright 1921): of the labels, or without any of the float32 network's own outputs. The
        divergence in nats is e / 2 against the float32 network: that of Kullback and Leibler between Gaussians around
        both outputs, with the scales as standard deviations, as a mean over numbers. What float32 expects to keep is
        1 - e: so it is where labels lie around its outputs, and vary by that much more.
        """
        found = self if self.scales else self.fitted(reference, labels)
        moved = _errors(outputs, reference, found.scales)
        against = moved if labels is None else _errors(outputs, labels, found.label_scales)
        root, scores = np.sqrt(len(moved)), 1 - against
        return Score(
            kl=float(moved.mean() / 2),
            kl_error=float(moved.std() / 2 / root),
            expected=float(1 - moved.mean()),
            expected_error=float(moved.std() / root),
            scores=scores,
            figures={
                "variance_kept": float(scores.mean()),
                "error": float(np.sqrt(moved.mean())),
                "worst": float(1 - moved.max()),
            },
        )

    def constant(self, reference: np.ndarray, labels: np.ndarray | None, temperature: float = 1.0) -> Score:
        """Score of the mean output: it explains no variance, and loses half a nat. Its quality is of the mean label."""
        found = self if self.scales else self.fitted(reference, labels)
        score = found.score(_mean(reference), reference, None)
        if labels is None:
            return score
        scores = 1 - _errors(_mean(labels), labels, found.label_scales)
        return replace(score, scores=scores, figures=score.figures | {"variance_kept": float(scores.mean())})

    def temperature(self, outputs: np.ndarray, labels: np.ndarray | None) -> float:
        """1: the outputs are no probabilities."""
        return 1.0

    def classes(self, outputs: np.ndarray, reference: np.ndarray, labels: np.ndarray | None) -> list[dict[str, int]]:
        """No kinds of image are told apart."""
        return []

    def top_classes(self, outputs: np.ndarray) -> None:
        """Numbers are no classes."""
        return

    def same_predictions(self, first: np.ndarray, second: np.ndarray) -> bool:
        """Whether the outputs of every image are the same but for rounding."""
        return bool((_errors(second, first, self._scales(first)) < SAME).all())

    def measure(self, labels: np.ndarray | None) -> str:
        """What quality is called."""
        return AGREEMENT if labels is None else "explained variance"

    def predictions(
        self, outputs: np.ndarray, reference: np.ndarray, labels: np.ndarray | None, keys: list[str]
    ) -> tuple[list[str], list[dict]]:
        """Columns and rows of predictions.csv: roots of an image's errors, as shares of the outputs' spread.

        `changed` is that of compression; `float32` and `compressed` are against labels, empty where there are none.
        """
        found, against = self.fitted(reference, labels), [None, None]
        if labels is not None:
            against = [np.sqrt(_errors(array, labels, found.label_scales)) for array in (reference, outputs)]
        return changed.COLUMNS, changed.rows_of(keys, np.sqrt(_errors(outputs, reference, found.scales)), *against)

    def changes(
        self, rows: list[dict[str, str]], description: dict, source: str | None
    ) -> tuple[str, list[tuple[int, tuple[str, ...]]]]:
        """By how much the outputs changed, and those images where they changed most, the first of them most."""
        return changed.most_changed(
            rows,
            lambda median, most, images: (
                f"The outputs changed by {median} of their spread on the median of {images} held-out images, and by "
                f"{most} on the one that changed most."
            ),
            _told,
        )


def _told(row: Mapping[str, str]) -> list[str]:
    off = [f"{name}: {float(row[name]):.2%} off the label" for name in ("float32", "compressed") if row[name]]
    return [f"changed by {float(row['changed']):.2%} of the spread", *off]


def _blocks(arrays: np.ndarray) -> Iterator[slice]:
    """Places of so many images that their numbers fit into memory in float64 beside the outputs."""
    images = max(1, BLOCK // max(1, int(np.prod(arrays.shape[1:], dtype=int))))
    return (slice(first, first + images) for first in range(0, len(arrays), images))


def _flat(arrays: np.ndarray) -> np.ndarray:
    return arrays.reshape(len(arrays), -1).astype(np.float64)


def _moments(arrays: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, mean square and variance over images of each number, float64 [D]."""
    blocks = list(_blocks(arrays))
    mean = sum(_flat(arrays[block]).sum(0) for block in blocks) / len(arrays)
    variance = sum(np.square(_flat(arrays[block]) - mean).sum(0) for block in blocks) / len(arrays)
    return mean, mean**2 + variance, variance


def _by_channel(variance: np.ndarray) -> np.ndarray:
    """Variances of one output, each the mean of its channel: numbers of a channel have one unit.

    Each number of a vector is a channel. Those of a map [C, H, W] are on its first axis; of [A, B] on the shorter one,
    as detectors give a few numbers for many places, in either order.
    """
    if variance.ndim < 2:
        return variance
    axis = int(np.argmin(variance.shape)) if variance.ndim == 2 else 0
    others = tuple(other for other in range(variance.ndim) if other != axis)
    return np.broadcast_to(variance.mean(others, keepdims=True), variance.shape)


def _errors(first: np.ndarray, second: np.ndarray, scales: Scales) -> np.ndarray:
    """Error of each image, float64 [N], between two arrays [N, ...]."""
    found = np.empty(len(first))
    with np.errstate(over="ignore", invalid="ignore"):
        for block in _blocks(first):
            found[block] = np.square(_flat(first[block]) - _flat(second[block])) @ scales.factors
    return np.minimum(np.nan_to_num(found, nan=LOST, posinf=LOST), LOST)


def _mean(arrays: np.ndarray) -> np.ndarray:
    """The mean array for each image, [N, ...], in the memory of one."""
    return np.broadcast_to(arrays.mean(0, dtype=np.float64), arrays.shape)


TASK = Regression()
