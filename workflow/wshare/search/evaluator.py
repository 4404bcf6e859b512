"""Quality of compressed networks on the search images, each measured once."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import nn

from wshare.data.images import Images, JoinedImages
from wshare.errors import UserError
from wshare.evaluation.chances import FEWEST_NUMBERED, FEWEST_SCORED, goes_by_confidence, too_few_scores, unconfirmed
from wshare.evaluation.intervals import Counts, Z, kept, predicted_low
from wshare.evaluation.means import Means
from wshare.evaluation.predict import predict
from wshare.evaluation.resumed import Resumed
from wshare.evaluation.verdict import LEAST_INFORMATION
from wshare.models.layers import replaced
from wshare.names import layer_of_tensor
from wshare.packed.compressed import Compressed
from wshare.quantize.statistics import Calibration
from wshare.tasks.task import Score, Task, fitted

# Fewest images that rule anything out, and the standard errors by which they must miss.
FEWEST = 100
CERTAIN = 3.0
# Divergence allowed for each share of quality that may be lost, as a share of what the images tell. Networks of ten and
# of a thousand classes at their targets lie well below it; a network of two classes, 499 in 500 images of one of them,
# that says the same of every image lies above it at any target from 0.75 on.
MOST_RELATIVE_KL = 4.0
# Share of quality that counts as allowed there at least: a target of 1 asks for the same predictions, not for the same
# probabilities.
LEAST_LOST = 0.01
# Numbers that outputs are multiplied by, how exactly they are found, and outputs, in numbers, that tell them.
SCALES, SCALE_ERROR = (0.8, 1.25), 1e-3
SCALED_NUMBERS = 1 << 22
# Normal quantile of the one-sided 95 % bounds on what is measured without labels.
BOUND = Z.inv_cdf(0.95)

# What was measured: a name or a combination, and whatever else tells one measurement from another; JSON can hold it.
Key = tuple

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """Images from `first` up to `stop`, and what the network is compressed to for them."""

    first: int
    stop: int
    compressed: Compressed


def check_target(task: Task, reference: np.ndarray, labels: np.ndarray | None, held_out: int, settings: dict) -> None:
    """UserError if so many search images and held-out ones cannot confirm the target with the confidence asked for.

    Or if the float32 network gives the same for all images. It costs nothing, so it comes before all that does.
    """
    if (nats := task.constant(reference, labels).kl) < LEAST_INFORMATION:
        raise UserError(
            f"the outputs of the float32 network are the same for all {len(reference)} search images (they tell "
            f"{nats:.1g} nats), so that nothing tells a compressed network from it; check its weights and preprocessing"
        )
    if goes_by_confidence(settings):
        score, target = task.score(reference, reference, labels), settings["quality_target"]
        if score.scores.dtype == bool:
            told = unconfirmed(len(reference), held_out, score.quality, target, settings["confidence"])
        else:
            told = too_few_scores(len(reference), held_out, FEWEST_NUMBERED if score.number else FEWEST_SCORED)
        if told:
            raise UserError(told)


@dataclass(frozen=True)
class Further:
    """Images without labels on which divergence is measured beside the search images.

    `reference` holds the float32 network's outputs for them [N, ...]. `border` and `search_border` are the numbers of
    further and of search images in the first halves.
    """

    images: Images
    reference: np.ndarray
    border: int
    search_border: int

    @classmethod
    def of(cls, model: nn.Module, images: Images, calibration: Calibration, threads: int) -> "Further":
        """The images that calibration statistics were measured on beside the search images."""
        reference = predict(model, images, threads)
        return cls(images, reference, calibration.further_border, calibration.border)


def measured_anew(key: Key, measure: Callable[[], dict]) -> dict:
    """The measurement: what a search without a journal remembers with."""
    return measure()


class Evaluator:
    """Measures compressed networks on the search images, against the float32 network.

    `reference` holds the float32 network's outputs [N, ...], and `held_out` tells of how many images the verdict will
    be. `settings` is a search of the configuration, whose target and confidence count. `remember(key, measure)` returns
    what was measured under the key before, or measures it. `float16` tells whether searches may measure in it: on a
    GPU. Divergence, and it alone, is measured on `further` images, too.

    `images` are the search images; with further ones the search images of the first half, the further ones of that
    half, and those of the second half alike. `reference` goes by them.
    `temperature` is the float32 network's on these images, and `most_kl` the divergence, in nats, beyond which a
    network has lost too much of what they tell to be accepted, whatever its top-1 predictions.
    """

    def __init__(
        self,
        task: Task,
        model: nn.Module,
        images: Images,
        reference: np.ndarray,
        held_out: int,
        settings: dict,
        threads: int,
        remember: Callable[[Key, Callable[[], dict]], dict] = measured_anew,
        float16: bool = False,
        further: Further | None = None,
    ):
        self.task, self._labels = fitted(task, reference, images.labels), images.labels
        self.images, self.reference, self._searched = _ordered(images, reference, further)
        self._model, self._threads, self._remember = model, threads, remember
        self._target, self._confidence = settings["quality_target"], settings["confidence"]
        self._held_out = held_out
        self.temperature = self.task.temperature(reference, images.labels)
        self._original = self.task.score(reference, reference, images.labels, self.temperature)
        told = self.task.constant(reference, images.labels).kl
        most = getattr(task, "MOST_RELATIVE_KL", MOST_RELATIVE_KL)
        self.most_kl = most * max(1 - self._target, LEAST_LOST) * told
        self.measured: dict[Key, dict] = {}
        self._float16 = float16
        self._probed: Resumed | None = None

    def accepts(self, row: dict) -> bool:
        """Whether a measurement confirms the target, as far as these images can, and tells what float32 tells."""
        return min(row["low"], row["expected_low"]) >= self._target and row["kl"] <= self.most_kl

    def measure(
        self,
        key: Key,
        parts: Callable[[], Sequence[Part]],
        max_kl: float | None = None,
        float16: bool = False,
        scaled: bool = False,
    ) -> dict:
        """Quality and analytic bits of a compressed network, and the number of shared values of each layer.

        `pooled_kl` is the divergence on search images and further ones together, `pooled_kl_high` its upper bound.
        The parts cover all images, in order; the last one tells bits and shared values. With `max_kl`, the divergence
        allowed in nats, measuring stops after the first 1/8, 1/4, ... of the images of each part, no fewer than FEWEST
        in all, if these rule out `max_kl` or the target. That can only reject: what passes has passed on all images,
        and passes wrongly no more often (a futility bound that does not bind; Jennison & Turnbull 2000, chapter 5).

        With `scaled` the outputs of either of two parts are multiplied by the number that suits those of the other
        best, if that lowers the divergence; `output_scale` is the number for both, and 1 where there is none.
        """
        if key not in self.measured:
            self.measured[key] = self._remember(key, lambda: self._measure(key, parts(), max_kl, float16, scaled))
        return self.measured[key]

    def probe(self, key: Key, compressed: Callable[[], Compressed], images: int) -> float:
        """Divergence, in nats, of the network with some layers compressed, on the first images."""

        def measured() -> dict:
            # Layers are probed in the network's order, on the same images.
            if self._probed is None or len(self._probed.images) != images:
                self._probed = Resumed(self._model, self.images.part(0, images), self._threads)
            outputs = self._probed.predict(compressed().tensors())
            return {"kl": self.task.score(outputs, self.reference[:images], None).kl}

        return self._remember(key, measured)["kl"]

    def _measure(self, key: Key, parts: Sequence[Part], max_kl: float | None, float16: bool, scaled: bool) -> dict:
        tensors = [part.compressed.tensors() for part in parts]
        outputs, seen = np.empty_like(self.reference), np.zeros(len(self.images), dtype=bool)
        for share in self._looks() if max_kl is not None else (1.0,):
            for part, changed in zip(parts, tensors, strict=True):
                start = part.first + np.count_nonzero(seen[part.first : part.stop])
                stop = min(part.stop, part.first + self._whole_batches(share * (part.stop - part.first)))
                if start < stop:
                    with replaced(self._model, changed):
                        outputs[start:stop] = predict(
                            self._model, self.images.part(start, stop), self._threads, float16
                        )
                    seen[start:stop] = True
            if float16 and not np.isfinite(outputs[seen]).all():
                # Activations of a network that is broken may grow beyond its range.
                _log.info("%s is measured in float32: it gives values beyond the range of float16", key)
                return self._measure(key, parts, max_kl, False, scaled)
            given, scale = self._scaled(outputs, seen, parts) if scaled else (outputs, 1.0)
            score, pooled = self._scores(given, seen)
            if max_kl is not None and self._ruled_out(score, pooled, seen, max_kl):
                break
        return self._row(score, pooled, seen, parts[-1].compressed) | {"output_scale": scale}

    def _scores(self, outputs: np.ndarray, seen: np.ndarray) -> tuple[Score, Score]:
        """Score on the search images among those that were seen, and on all of them, without labels."""
        searched = seen & self._searched
        labels = None if self._labels is None else self._labels[seen[self._searched]]
        score = self.task.score(outputs[searched], self.reference[searched], labels, self.temperature)
        if (searched == seen).all():
            return score, score
        return score, self.task.score(outputs[seen], self.reference[seen], None)

    def _scaled(self, outputs: np.ndarray, seen: np.ndarray, parts: Sequence[Part]) -> tuple[np.ndarray, float]:
        """Outputs of both parts, each times the number that suits the other's, and the number for both.

        Shared values are about the means of what they stand for, so that outputs vary less than those of float32.
        Neither part's number has looked at what it is applied to.
        """
        first, second = (part.first + np.flatnonzero(seen[part.first : part.stop]) for part in parts)
        scales = [self._scale(outputs[places], self.reference[places]) for places in (first, second)]
        found = outputs.copy()
        found[first] *= scales[1]
        found[second] *= scales[0]
        before, after = (self.task.score(given[seen], self.reference[seen], None).kl for given in (outputs, found))
        return (found, math.sqrt(scales[0] * scales[1])) if after < before else (outputs, 1.0)

    def _scale(self, outputs: np.ndarray, reference: np.ndarray) -> float:
        """The number by which outputs [N, ...] come nearest to the float32 network's, by divergence."""
        # Not at the top: it takes long, and recipes are applied without.
        from scipy.optimize import minimize_scalar

        few = slice(max(1, SCALED_NUMBERS // outputs[0].size))
        found = minimize_scalar(
            lambda factor: self.task.score(factor * outputs[few], reference[few], None).kl,
            bounds=SCALES,
            method="bounded",
            options={"xatol": SCALE_ERROR},
        )
        # Digits beyond differ between machines.
        return round(float(found.x), 3)

    def _kept(self, score: Score, seen: np.ndarray) -> Counts | Means:
        return kept(score, self._original.part(np.flatnonzero(seen[self._searched])))

    def _row(self, score: Score, pooled: Score, seen: np.ndarray, compressed: Compressed) -> dict:
        found = self._kept(score, seen)
        figures = {name: score.figures[name] for name in self.task.COLUMNS}
        return {
            "bits": compressed.bits,
            "images": int(np.count_nonzero(seen)),
            **figures,
            "relative_quality": found.share,
            "low": predicted_low(found, self._confidence, self._held_out),
            "expected": score.expected,
            "expected_low": score.expected - BOUND * score.expected_error,
            "kl": score.kl,
            "kl_high": score.kl + BOUND * score.kl_error,
            "pooled_kl": pooled.kl,
            "pooled_kl_high": pooled.kl + BOUND * pooled.kl_error,
            "k": {layer_of_tensor(name): len(tensor.codebook) for name, tensor in compressed.shared.items()},
        }

    def _ruled_out(self, score: Score, pooled: Score, seen: np.ndarray, max_kl: float) -> bool:
        """Whether divergence, relative quality or expected quality is on the wrong side by CERTAIN standard errors.

        The divergence is skewed to the right, so that a mean far too high is rarer than of a normal distribution.
        """
        found = self._kept(score, seen)
        return (
            pooled.kl - CERTAIN * pooled.kl_error > max_kl
            or found.share + CERTAIN * found.deviation < self._target
            or score.expected + CERTAIN * score.expected_error < self._target
        )

    @cached_property
    def float16_loss(self) -> float:
        """Divergence, in nats, by which float16 changes the float32 network; infinite where it cannot be used."""
        if not self._float16:
            return math.inf
        try:
            outputs = predict(self._model, self.images, self._threads, True)
        except RuntimeError as error:
            # A network may run any operator, and some know no float16.
            _log.info("float16 cannot be used: %s", str(error).strip().splitlines()[0])
            return math.inf
        # A value beyond its range makes outputs infinite, or no number.
        return self.task.score(outputs, self.reference, None).kl if np.isfinite(outputs).all() else math.inf

    def _looks(self) -> list[float]:
        """Shares of the images after which to look, ascending, the last one 1."""
        halvings = int(math.log2(max(len(self.images) / FEWEST, 1)))
        return [0.5**halving for halving in range(halvings, -1, -1)]

    def _whole_batches(self, images: float) -> int:
        """So many images, in whole batches: on a CPU they are then the batches of a pass over all images."""
        return math.ceil(images / self.images.batch_size) * self.images.batch_size


def _ordered(images: Images, reference: np.ndarray, further: Further | None) -> tuple[Images, np.ndarray, np.ndarray]:
    """Images by halves, the float32 network's outputs for them, and which of them are search images: bool [N].

    UserError if the outputs of both have different shapes.
    """
    if further is None:
        return images, reference, np.ones(len(images), dtype=bool)
    shapes = [list(outputs.shape[1:]) for outputs in (reference, further.reference)]
    if shapes[0] != shapes[1]:
        raise UserError(
            f"calibration: the network's outputs are {shapes[1]} for these images, and {shapes[0]} for the search "
            "images; give images of one size (preprocessing.crop)"
        )
    first, second = further.search_border, further.border
    parts = [
        *(images.part(0, first), further.images.part(0, second)),
        *(images.part(first, len(images)), further.images.part(second, len(further.images))),
    ]
    outputs = reference[:first], further.reference[:second], reference[first:], further.reference[second:]
    searched = np.repeat([True, False, True, False], [len(part) for part in parts])
    return JoinedImages(parts), np.concatenate(outputs), searched
