"""How far a share of the float32 quality can be told where quality is a mean of image-wise scores, and no count."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import skew, t

from wshare.evaluation.chances import LOOKS, TAIL, Z

# As metrics.json names it.
METHOD = "interval of a ratio of means over images, t with Hall's correction for skewness and one image of the worst"
# Of a number that is no mean of scores.
RESAMPLED = "bootstrap over images, the wider of its percentiles and of its standard deviation"
DRAWS, SEED = 400, 0
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
    def resampled(
        cls, after: Callable[[np.ndarray], float], before: Callable[[np.ndarray], float], images: int
    ) -> "Means":
        """The share of two numbers that functions work out for the images at some places; both draw the same images.

        A bootstrap (Efron 1979) of DRAWS samples, the same each time: the ends are the percentiles of the share, or lie
        as far from it as a t interval with the deviation of the samples, whichever is wider on that side. Few
        images give too little variance by a factor of 1 - 1/N, which is made up for. Samples for which a
        function gives no finite number, or none above 0 for float32, tell nothing.
        """
        whole, rng = np.arange(images), np.random.default_rng(SEED)
        quality = before(whole)
        if quality <= 0:
            return cls(0.0, 0.0, images, 0.0, float(images), RESAMPLED)
        share, shares = after(whole) / quality, []
        for _ in range(DRAWS):
            places = rng.integers(images, size=images)
            first, second = after(places), before(places)
            if math.isfinite(first) and math.isfinite(second) and second > 0:
                shares.append(first / second)
        deviation = float(np.std(shares, ddof=1)) * math.sqrt(images / max(images - 1, 1)) if len(shares) > 1 else 0.0
        reach = float(t.ppf(1 - TAIL, max(images - 1, 1))) * deviation
        low, high = np.quantile(shares, (TAIL, 1 - TAIL)) if shares else (share, share)
        ends = min(float(low), share - reach), max(float(high), share + reach)
        return cls(float(share), deviation, images, *ends, RESAMPLED)

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
        further = 1 + FARTHER / images
        low, high = (
            share + _end(np.append(residuals, further * furthest), sign)
            for furthest, sign in ((residuals.min(), 1), (residuals.max(), -1))
        )
        return cls(share, deviation, images, float(low), float(high))

    def predicted_low(self, confidence: float, held_out: int) -> float:
        """Lower end that the interval of `held_out` other images is expected to have, with this confidence.

        As `wshare.evaluation.intervals.predicted_low`, with the interval's own distance from the share.
        """
        ratio = self.images / held_out
        chance = Z.inv_cdf(1 - (1 - confidence) / LOOKS) * math.sqrt(1 + ratio) * self.deviation
        return self.share - (self.share - self.low) * math.sqrt(ratio) - chance


def _end(values: np.ndarray, sign: int) -> float:
    """Lower end (sign 1) or upper end (-1) of the interval of the values' mean."""
    images, quantile = len(values), sign * float(t.ppf(1 - TAIL, len(values) - 1))
    error = values.std(ddof=1) / math.sqrt(images)
    # Values that are all the same have no skewness.
    skewness = float(skew(values)) / math.sqrt(images) if error > 1e-12 else 0.0
    if abs(skewness) > 1e-6:
        quantile = 3 / skewness * (math.cbrt(1 + skewness * (quantile - skewness / 6)) - 1)
    return float(values.mean() - quantile * error)
