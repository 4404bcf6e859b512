"""What a task is: the meaning of a network's outputs, how two outputs diverge, and how quality is counted.

A task is a module of this package, or an object TASK in one where it remembers something, and a row of
`wshare.tasks.table`; `Task` lists what it gives. It imports neither torch nor what evaluates, searches or reports:
reports import tasks where there is no torch. An output is whatever the network gives an image, so outputs are float32
[N, ...].
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    import torch

# What every task calls its quality where there are no labels: it is then counted against the float32 network's own
# outputs, and the float32 network's own quality is 1.
AGREEMENT = "agreement"


@dataclass(frozen=True)
class Score:
    """Quality on a set of N images.

    `kl` is the mean divergence of the outputs from the float32 network's, in nats, and `kl_error` its standard error.
    `expected` is the quality relative to float32's that the float32 network itself expects: it needs no labels, and
    varies less than counts; `expected_error` is its standard error. `scores` [N] is what each image adds to quality:
    bool where it is right or wrong and quality a count, else float. `figures` holds what else the task counts, by name;
    all of its shown figures among them.

    Where quality is one number for all images and no mean of scores, `number` works it out for the images at some
    places, and `scores` hold it for each.
    """

    kl: float
    kl_error: float
    expected: float
    expected_error: float
    scores: np.ndarray
    figures: dict[str, float]
    number: Callable[[np.ndarray], float] | None = None

    @property
    def quality(self) -> float:
        """Mean over the images; of counts the share that is right."""
        return float(self.scores[0] if self.number else self.scores.mean())

    def part(self, places: np.ndarray) -> "Score":
        """The images at these places, as far as their own scores go; the means stay those of all."""
        if self.number is None:
            return replace(self, scores=self.scores[places])
        whole = self.number
        scores = np.full(len(places), whole(places))
        return replace(self, scores=scores, number=lambda chosen: whole(places[chosen]))


@dataclass(frozen=True)
class Figure:
    """A figure that reports show: its key in `Score.figures`, its name for readers, and how its number is written.

    `compares` tells that it holds two networks against each other, so that the float32 network alone has none.
    """

    key: str
    label: str
    format: str = ".2%"
    compares: bool = False

    def text(self, value: float) -> str:
        """A number of this figure, as a terminal shows it."""
        return f"{value:{self.format}}"


class Task(Protocol):
    """What a task gives.

    `FIGURES` are shown by reports and held by metrics.json; the first is the quality itself, the mean of
    `Score.scores`. `COLUMNS` are the keys of the figures that front.csv has, among them all that are shown of the
    search images: the quality, and those that compare. `PROFILED` are the columns of sensitivity.csv: keys of figures,
    and `relative_quality` and `kl`, which every task has. `PREDICTED` names, in the plural, what agreement compares.

    Two more methods are there where a task needs them. `of(description)` returns the task of a described network, by
    its model.json. `fitted(outputs, labels)` returns it with the scales of the float32 network's outputs [N, ...] and
    of the labels; without, `score` and `constant` take those of their own images. Parts of the images are scored
    by a task that is fitted to all. `MOST_RELATIVE_KL` is the divergence that a search allows for each share of quality
    that may be lost, as a share of what the images tell, where it is not `wshare.search.evaluator.MOST_RELATIVE_KL`.
    `SEVERAL` is true of a task that takes all tensors of a network which gives several; its outputs are then [N, D].
    """

    FIGURES: tuple[Figure, ...]
    COLUMNS: tuple[str, ...]
    PROFILED: tuple[str, ...]
    PREDICTED: str

    def describe(self, outputs: np.ndarray, settings: dict, name: str) -> dict:
        """What model.json says of the network beside its task, from the outputs [2, ...] of two images.

        `settings` are those of the model in the configuration, and what its source knows, such as `categories`.
        UserError, which opens with `name`, if the outputs are none of this task, or not what the settings say.
        """

    def check_labels(self, labels: np.ndarray | None, description: dict, where: str) -> None:
        """UserError, which opens with `where`, unless the labels [N] are such as the described network can give."""

    def log_likelihood(self, output: "torch.Tensor", generator: "torch.Generator") -> "torch.Tensor":
        """Log-likelihood, a scalar with a gradient, of a label drawn from the output [1, ...] of one image itself."""

    def divergence(self, outputs: "torch.Tensor", reference: "torch.Tensor") -> "torch.Tensor":
        """Mean divergence of outputs [N, ...] from the float32 network's, in nats, as `score` tells it.

        It is a scalar with a gradient.
        """

    def score(
        self, outputs: np.ndarray, reference: np.ndarray, labels: np.ndarray | None, temperature: float = 1.0
    ) -> Score:
        """Quality of outputs [N, ...] against the float32 network's `reference` and the labels [N], if any.

        What the float32 network expects goes by its outputs at this `temperature`.
        """

    def constant(self, reference: np.ndarray, labels: np.ndarray | None, temperature: float = 1.0) -> Score:
        """Score of the best network that gives one output whatever the image, each figure by the output best for it.

        Its divergence is what these images tell at all, in nats.
        """

    def temperature(self, outputs: np.ndarray, labels: np.ndarray | None) -> float:
        """Temperature at which the float32 network's outputs tell best how often it is right; 1 without labels."""

    def classes(self, outputs: np.ndarray, reference: np.ndarray, labels: np.ndarray | None) -> list[dict[str, int]]:
        """Of each kind of image that the task tells apart: its `class`, how many `images`, and how many are right.

        `float32` and `compressed` count the latter; those that lost most come first. Empty where there are no kinds.
        """

    def top_classes(self, outputs: np.ndarray) -> np.ndarray | None:
        """The class that each image is predicted as, int64 [N]; None for a task whose labels are no classes."""

    def same_predictions(self, first: np.ndarray, second: np.ndarray) -> bool:
        """Whether two networks' outputs predict the same of every image."""

    def measure(self, labels: np.ndarray | None) -> str:
        """What quality is called: AGREEMENT without labels."""

    def predictions(
        self, outputs: np.ndarray, reference: np.ndarray, labels: np.ndarray | None, keys: list[str]
    ) -> tuple[list[str], list[dict]]:
        """Columns and rows of predictions.csv, a row an image; `keys` name the images, in the column `image`."""

    def changes(
        self, rows: list[dict[str, str]], description: dict, source: str | None
    ) -> tuple[str, list[tuple[int, tuple[str, ...]]]]:
        """What compression changed, in sentences, and of each image that changed its place and lines that tell how.

        `rows` are those of predictions.csv as text, `description` is model.json, `source` that of the dataset.
        """


def fitted(task: Task, outputs: np.ndarray, labels: np.ndarray | None = None) -> Task:
    """The task with the scales of the float32 network's outputs [N, ...] and of the labels, if it goes by scales."""
    return task.fitted(outputs, labels) if hasattr(task, "fitted") else task


def own_figures(task: Task) -> list[Figure]:
    """The figures that each network has by itself, the quality first."""
    return [figure for figure in task.FIGURES if not figure.compares]
