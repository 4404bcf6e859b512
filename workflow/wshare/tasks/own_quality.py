"""A quality of the user's own in the place of a task's: a function of outputs and labels, such as mAP, F1 or PSNR.

It gives one number for all images, or a score for each. All else stays that of the task: what is taken of the outputs,
their divergence, and what predictions.csv tells.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from wshare.errors import UserError
from wshare.models.functions import function_of
from wshare.tasks.task import Figure, Score, Task, fitted

# Before the name of a function in a configuration.
PREFIX = "python:"
KEY = "own_quality"

# Outputs [N, ...], or of several by path, and labels [N, ...]; one number, or one for each image.
Function = Callable[[Any, np.ndarray], Any]


def name_of(function: Function | str) -> str:
    """The function as a configuration names it, `python:module:function`."""
    if isinstance(function, str):
        return function
    return f"{PREFIX}{function.__module__}:{getattr(function, '__qualname__', type(function).__name__)}"


@dataclass(frozen=True)
class OwnQuality:
    """A task whose quality is the value of a function.

    `QUALITY` is the name of the function, which is imported when it is first called unless it is `given`. `outputs` are
    path and shape of each of several outputs, for the function. What is not here is that of the `base`.
    """

    base: Task
    QUALITY: str
    given: Function | None = None
    outputs: tuple[tuple[str, tuple[int, ...]], ...] = ()

    # The task's own may tie divergence and its own quality closer.
    MOST_RELATIVE_KL = 4.0

    @cached_property
    def FIGURES(self) -> tuple[Figure, ...]:
        """The user's figure, and those of the task."""
        return (Figure(KEY, self.label, ".4g"), *self.base.FIGURES)

    @cached_property
    def COLUMNS(self) -> tuple[str, ...]:
        """Its column, and those of the task."""
        return (KEY, *self.base.COLUMNS)

    @cached_property
    def PROFILED(self) -> tuple[str, ...]:
        """Its column, and those of the task."""
        return (KEY, *self.base.PROFILED)

    @property
    def label(self) -> str:
        """The function's own name."""
        return self.QUALITY.rpartition(":")[2]

    def __getattr__(self, name: str) -> Any:
        if name == "base":
            # Of an object that is only being made, as by a copy.
            raise AttributeError(name)
        return getattr(self.base, name)

    def fitted(self, outputs: np.ndarray, labels: np.ndarray | None = None) -> "OwnQuality":
        """With the scales of the task, if it goes by scales; labels may be anything."""
        return replace(self, base=fitted(self.base, outputs))

    def check_labels(self, labels: np.ndarray | None, description: dict, where: str) -> None:
        """UserError if there are no labels: the function needs them. What they are like is its own business."""
        if labels is None:
            raise UserError(f"{where}: {self.label} needs labels; give labels, or leave out the quality of your own")

    def measure(self, labels: np.ndarray | None) -> str:
        """The function's own name."""
        return self.label

    def top_classes(self, outputs: np.ndarray) -> None:
        """Labels may be anything."""
        return

    def temperature(self, outputs: np.ndarray, labels: np.ndarray | None) -> float:
        """1: labels may be anything."""
        return 1.0

    def classes(self, outputs: np.ndarray, reference: np.ndarray, labels: np.ndarray | None) -> list[dict[str, int]]:
        """None: labels may be anything."""
        return []

    def predictions(
        self, outputs: np.ndarray, reference: np.ndarray, labels: np.ndarray | None, keys: list[str]
    ) -> tuple[list[str], list[dict]]:
        """Those of the task, without labels."""
        return self.base.predictions(outputs, reference, None, keys)

    def score(
        self, outputs: np.ndarray, reference: np.ndarray, labels: np.ndarray | None, temperature: float = 1.0
    ) -> Score:
        """The task's divergence and figures against float32, and the user's quality against the labels.

        float32 expects nothing of a function it does not know: `expected` is what was measured. Without labels, as
        where divergence alone counts, quality is the task's own.
        """
        found = self.base.score(outputs, reference, None)
        if labels is None:
            return replace(found, figures=found.figures | {KEY: found.quality})
        own = self._valued(found, outputs, labels)
        # Of an output that is the reference itself the share is 1.
        before = own if outputs is reference else self._valued(found, reference, labels)
        share = own.quality / before.quality if before.quality > 0 else 0.0
        return replace(own, expected=share, expected_error=0.0)

    def constant(self, reference: np.ndarray, labels: np.ndarray | None, temperature: float = 1.0) -> Score:
        """The task's divergence of the best constant, and the user's quality of the mean output."""
        found = self.base.constant(reference, None)
        if labels is None:
            return replace(found, figures=found.figures | {KEY: found.quality})
        mean = np.broadcast_to(reference.mean(0, dtype=np.float64).astype(np.float32), reference.shape)
        return self._valued(found, mean, labels, of_constant=True)

    def _valued(self, found: Score, outputs: np.ndarray, labels: np.ndarray, of_constant: bool = False) -> Score:
        value = np.asarray(self._function(self._given(outputs), labels))
        if value.shape not in ((), (len(outputs),)) or value.dtype.kind not in "biuf":
            raise UserError(
                f"quality: {self.label} gives {value.dtype} {list(value.shape)} for {len(outputs)} images; give one "
                "number, or one for each image"
            )
        if of_constant:
            # A correlation and the like are not defined there, and such a network is worth nothing.
            value = np.nan_to_num(value, nan=0.0, posinf=0.0, neginf=0.0)
        if not np.isfinite(value).all():
            raise UserError(f"quality: {self.label} gives NaN or an infinite value; give a finite number")
        if value.ndim:
            scores = value if value.dtype == bool else value.astype(np.float64)
            return replace(found, scores=scores, figures=found.figures | {KEY: float(scores.mean())})

        def number(places: np.ndarray) -> float:
            return float(self._function(self._given(outputs[places]), labels[places]))

        scores = np.full(len(outputs), float(value))
        return replace(found, scores=scores, number=number, figures=found.figures | {KEY: float(value)})

    def _given(self, outputs: np.ndarray) -> Any:
        """What the function gets: one array, or of several outputs a mapping of arrays by path."""
        if len(self.outputs) < 2:
            return outputs
        sizes = [math.prod(shape) for _, shape in self.outputs]
        parts = np.split(outputs, np.cumsum(sizes)[:-1], 1)
        return {path: part.reshape(-1, *shape) for (path, shape), part in zip(self.outputs, parts, strict=True)}

    @cached_property
    def _function(self) -> Function:
        if self.given is not None:
            return self.given
        return function_of(self.QUALITY.removeprefix(PREFIX), "quality")


def with_own_quality(task: Task, description: Mapping[str, Any], given: Function | None = None) -> Task:
    """The task with the function that the entry `quality` of a description names, if it names one."""
    if not description.get("quality"):
        return task
    outputs = tuple((output["path"], tuple(output["shape"])) for output in description.get("structure") or ())
    return OwnQuality(task, description["quality"], given, outputs)
