"""How far a share of the float32 quality can be told where quality is a mean of image-wise scores, and no count."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from wshare.errors import UserError
from wshare.evaluation.chances import FEWEST_NUMBERED, FEWEST_SCORED, LOOKS, TAIL, Z

# As metrics.json names them: of scores, and of a number that is no mean of scores.
METHOD = "t interval of a ratio of means over images, corrected for skewness and for few images"
OF_NUMBERS = "t interval of a jackknife over images, corrected for skewness and for few images"
# Parts that are left out one after another, each an image where there are no more; SEED deals the images to them.
PARTS, SEED = 400, 0
# The image that is added lies as far out as the furthest of the n that there are, and FARTHER / n as far again. By
# simulation (benchmarks/results/means.csv): the least that keeps wrong verdicts of skewed scores near the level.
FARTHER = 20.0


@dataclass(frozen=True)
class Means:
    """Quality as a share of float32's, from image-wise scores: a ratio of two means over the same images.

    `deviation` is the standard deviation of the share, `low` and `high` are the ends of the verdict's interval.
    """

    share: float
    deviation: float
    images: int
    low: float
    high: float
    method: str = METHOD

    @classmethod
    def of_numbers(
        cls, after: Callable[[np.ndarray], float], before: Callable[[np.ndarray], float], images: int
    ) -> "Means":
        """The share of two numbers that functions work out for the images at some places.

        A jackknife (Quenouille 1956; Tukey 1958): what the share loses without a part of the images is the part's
        residual, and the ends are those of the residuals' mean as in `of`. Of numbers that are means it is the same. In
        simulations a bootstrap of as many samples was wrong twice as often. UserError if a function gives no finite
        number for a part, or none above 0 for float32.
        """
        whole = np.arange(images)
        quality = before(whole)
        if quality <= 0 or images < 2:
            return cls(0.0, 0.0, images, 0.0, float(images), OF_NUMBERS)
        share = after(whole) / quality
        parts = np.array_split(np.random.default_rng(SEED).permutation(images), min(images, PARTS))
        values = np.empty(len(parts))
        for place, part in enumerate(parts):
            left = np.delete(whole, part)
            first, second = after(left), before(left)
            if not (math.isfinite(first) and math.isfinite(second) and second > 0):
                raise UserError(
                    f"quality: gives {first:g} after and {second:g} before compression for {len(left)} of {images} "
                    "images; give a function that is finite, and above 0 for float32, for most of the images"
                )
            values[place] = len(parts) * share - (len(parts) - 1) * first / second
        residuals = values - values.mean()
        deviation = float(residuals.std(ddof=1) / math.sqrt(len(parts)))
        return cls(float(share), deviation, images, *_ends(float(share), residuals), OF_NUMBERS)

    @classmethod
    def of(cls, after: np.ndarray, before: np.ndarray) -> "Means":
        """The share by scores [N] after compression and before it; 0 where float32 has no quality at all.

        The ends come from the residuals after - share x before, whose mean is 0 at the share itself (Fieller's
        idea; Cochran 1977, section 2.11), by the t interval with Hall's cubic correction for skewness (Hall 1992, "On
        the removal of skewness by transformation"). Few images hold few of the worst; so each end is that of the sample
        with one image more, as far out as the furthest of that side and further: see FARTHER.
        """
        after, before = (np.asarray(scores, dtype=np.float64) for scores in (after, before))
        images, quality = len(after), before.mean()
        if quality <= 0:
            return cls(0.0, 0.0, images, 0.0, float(images))
        share = float(after.mean() / quality)
        residuals = (after - share * before) / quality
        deviation = float(residuals.std(ddof=1) / math.sqrt(images)) if images > 1 else 0.0
        return cls(share, deviation, images, *_ends(share, residuals))

    @property
    def fewest(self) -> int:
        """Images below which nothing is decided."""
        return FEWEST_NUMBERED if self.method == OF_NUMBERS else FEWEST_SCORED

    def predicted_low(self, confidence: float, held_out: int) -> float:
        """Lower end that the interval of `held_out` other images is expected to have, with this confidence.

        As `wshare.evaluation.intervals.predicted_low`, with the interval's own distance from the share.
        """
        ratio = self.images / held_out
        chance = Z.inv_cdf(1 - (1 - confidence) / LOOKS) * math.sqrt(1 + ratio) * self.deviation
        return self.share - (self.share - self.low) * math.sqrt(ratio) - chance


def _ends(share: float, residuals: np.ndarray) -> tuple[float, float]:
    further = 1 + FARTHER / len(residuals)
    sides = ((residuals.min(), 1), (residuals.max(), -1))
    low, high = (share + _end(np.append(residuals, further * furthest), sign) for furthest, sign in sides)
    return low, high


def _end(values: np.ndarray, sign: int) -> float:
    """Lower end (sign 1) or upper end (-1) of the interval of the values' mean."""
    # Not at the top: it takes a second, and quality is a count as a rule.
    from scipy.stats import skew, t

    images, quantile = len(values), sign * float(t.ppf(1 - TAIL, len(values) - 1))
    error = values.std(ddof=1) / math.sqrt(images)
    # Values that are all the same have no skewness.
    skewness = float(skew(values)) / math.sqrt(images) if error > 1e-12 else 0.0
    if abs(skewness) > 1e-6:
        quantile = 3 / skewness * (math.cbrt(1 + skewness * (quantile - skewness / 6)) - 1)
    return float(values.mean() - quantile * error)
