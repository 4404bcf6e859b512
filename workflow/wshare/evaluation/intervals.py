"""How far a share of the float32 quality can be told from so many images, and the verdict.

Of counts, quality is a ratio of paired proportions: both networks are right or wrong on the same images. Of image-wise
scores it is one of means; see `wshare.evaluation.means`. docs/verdict.md explains
the interval, and benchmarks/intervals.py shows how often it is right.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from scipy.special import ndtr

from wshare.evaluation.chances import CONFIDENCE, TAIL, Z, least_images, quantiles
from wshare.evaluation.means import Means
from wshare.tasks.task import Score

# As metrics.json names them: of agreement with float32, and of quality against labels.
METHODS = {
    True: "Clopper-Pearson interval of a proportion",
    False: "score interval of a ratio of paired proportions, saddlepoint tails with continuity correction",
}
# With which what is said to decide a verdict would decide it.
POWER = 0.8
# Halvings of an interval of doubles: no further one changes a number.
HALVINGS = 60
# Beyond it a saddlepoint lies at the edge of what the counts can be.
STEEPEST = 60.0


@dataclass(frozen=True)
class Counts:
    """Images on which both networks are right, only one of them, or neither.

    `gained` are right after compression alone, `lost` before it alone.
    """

    kept: int
    gained: int
    lost: int
    neither: int

    @classmethod
    def of(cls, correct: np.ndarray, reference: np.ndarray) -> "Counts":
        """Counts of what is right, bool [N], after compression and before it."""
        both = np.count_nonzero(correct & reference)
        gained, lost = np.count_nonzero(correct & ~reference), np.count_nonzero(~correct & reference)
        return cls(int(both), int(gained), int(lost), len(correct) - int(both + gained + lost))

    @property
    def images(self) -> int:
        """All of them."""
        return self.kept + self.gained + self.lost + self.neither

    @property
    def share(self) -> float:
        """Quality as a share of float32's; 0 where float32 has nothing right."""
        return (self.kept + self.gained) / (self.kept + self.lost) if self.kept + self.lost else 0.0

    @property
    def deviation(self) -> float:
        """Standard deviation of the share; 0 where float32 has nothing right.

        It is that of a difference of paired proportions, with half an image added to each of the four kinds so that few
        changed images do not pass for none (Agresti & Min 2005).
        """
        if not self.kept + self.lost:
            return 0.0
        images = self.images + 2
        changed, net = (self.gained + self.lost + 1) / images, (self.gained - self.lost) / images
        return math.sqrt((changed - net**2) / images) / ((self.kept + self.lost + 1) / images)


def kept(after: Score, before: Score) -> Counts | Means:
    """What compression keeps of the float32 network's quality on the same images: by counts where scores are bool."""
    if after.number and before.number:
        return Means.of_numbers(after.number, before.number, len(after.scores))
    if after.scores.dtype == before.scores.dtype == bool:
        return Counts.of(after.scores, before.scores)
    return Means.of(after.scores, before.scores)


def margin(error: float) -> float:
    """Half the width of the verdict's interval of a normal estimate with this standard error."""
    return Z.inv_cdf(1 - TAIL) * error


def method_name(found: Counts | Means, agreement: bool) -> str:
    """The interval's name in metrics.json."""
    return found.method if isinstance(found, Means) else METHODS[agreement]


def interval(counts: Counts | Means, agreement: bool) -> tuple[float, float]:
    """Ends of the verdict's interval of the share of float32's quality.

    Of `agreement` with float32 it is the exact interval of one proportion (Clopper & Pearson 1934). Where both networks
    can be wrong its ends are the ratios that a two-sided test of level 1 - CONFIDENCE just does not reject; see `tail`.
    Where float32 has nothing right nothing is known: the interval reaches from 0 to the number of images, the largest
    ratio there is. Of means it is theirs.
    """
    if isinstance(counts, Means):
        return counts.low, counts.high
    if agreement:
        # Not at the top: it takes a second, as long as many a job.
        from scipy.stats import binomtest

        exact = binomtest(counts.kept, counts.images).proportion_ci(CONFIDENCE, "exact")
        return float(exact.low), float(exact.high)
    array, share, most = np.array(list(asdict(counts).values())), counts.share, float(counts.images)
    if not counts.kept + counts.lost:
        return 0.0, most

    def excess(ratio: float, upper: bool) -> float:
        return float(tail(array, ratio, upper)) - TAIL

    # Half as long.
    from scipy.optimize import brentq

    # Ratios of counts are never nearer to 0 than this.
    least = 1 / (2 * most)
    low = 0.0 if share < least or excess(least, True) > 0 else brentq(excess, least, share, args=(True,))
    high = most if excess(most, False) > 0 else brentq(excess, max(share, least), most, args=(False,))
    return float(low), float(high)


def tail(counts: np.ndarray, ratio: float, upper: bool) -> np.ndarray:
    """Probability of counts as far above a ratio of the two qualities as these, or further (or below it).

    `counts` are those of `Counts`, [..., 4] in its order; the result is [...]. The statistic is that of the score test,
    (kept + gained) - ratio (kept + lost), a sum over images that are kept, gained, lost or neither with the likeliest
    probabilities for that ratio (Nam & Blackwelder 2002; Tang, Tang & Chan 2003). A normal distribution is wrong for it
    where few images changed, so its tail is taken at the saddlepoint (Lugannani & Rice 1980), half an image towards the
    middle because counts are whole numbers (Daniels 1987). In simulations no more sets of
    images than the level says are rejected (benchmarks/results/intervals.csv).
    """
    counts = np.asarray(counts, dtype=np.float64)
    images, values = counts.sum(-1), np.array([1 - ratio, 1.0, -ratio, 0.0])
    probabilities = _likeliest(counts, ratio)
    mean = (counts @ values + (-0.5 if upper else 0.5)) / images
    # What the statistic can be: a kind of image that is impossible does not count.
    possible = np.where(probabilities > 0, values, np.nan)
    lowest, highest = np.nanmin(possible, -1), np.nanmax(possible, -1)
    inside = (mean > lowest) & (mean < highest)
    above = np.where(mean <= lowest, 1.0, 0.0)
    if np.any(inside):
        above[inside] = _saddlepoint(probabilities[inside], values, mean[inside], images[inside])
    return above if upper else 1 - above


def _likeliest(counts: np.ndarray, ratio: float) -> np.ndarray:
    """Probabilities [..., 4] of the four kinds, the likeliest of those whose qualities have this ratio.

    Lagrange's condition makes each its share over 1 + multiplier x value; the ratio then decides the multiplier. Kinds
    of which there is no image take what the ratio leaves for them.
    """
    kept, gained, lost, neither = np.moveaxis(counts / counts.sum(-1, keepdims=True), -1, 0)

    def excess(multiplier: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            parts = (
                kept * (1 - ratio) / (1 + multiplier * (1 - ratio)),
                gained / (1 + multiplier),
                lost * -ratio / (1 - multiplier * ratio),
            )
        return sum(np.where(share > 0, part, 0.0) for share, part in zip((kept, gained, lost), parts, strict=True))

    multiplier = _root(excess, np.full(kept.shape, -1.0), np.full(kept.shape, 1 / ratio))
    with np.errstate(divide="ignore", invalid="ignore"):
        kept = kept / (1 + multiplier * (1 - ratio))
        gained = np.where(gained > 0, gained / (1 + multiplier), 0.0)
        lost = np.where(lost > 0, lost / (1 - multiplier * ratio), np.maximum((1 - ratio) * kept + gained, 0) / ratio)
    gained = np.where(gained > 0, gained, np.maximum(ratio * lost - (1 - ratio) * kept, 0))
    # What rounding leaves is no possibility.
    gained, lost = (np.where(kind > 1e-15, kind, 0.0) for kind in (gained, lost))
    found = np.stack([kept, gained, lost, neither], -1)
    return found / found.sum(-1, keepdims=True)


def _saddlepoint(probabilities: np.ndarray, values: np.ndarray, mean: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Probability that the mean of `images` values is `mean` or more; mean is strictly inside the range."""

    def moments(tilt: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        weights = probabilities * np.exp(tilt[..., None] * values)
        total = weights.sum(-1)
        first = (weights * values).sum(-1) / total
        return np.log(total), first, (weights * values**2).sum(-1) / total - first**2

    steepest = np.full(mean.shape, STEEPEST / max(1.0, -values.min()))
    tilt = _root(lambda at: mean - moments(at)[1], -steepest, steepest)
    cumulant, _, variance = moments(tilt)
    distance = np.sign(tilt) * np.sqrt(np.maximum(2 * images * (tilt * mean - cumulant), 0))
    slope = tilt * np.sqrt(images * variance)
    # At the centre the correction is 0/0; its limit is smaller than what is left of it there.
    central = np.abs(distance) < 1e-4
    with np.errstate(divide="ignore", invalid="ignore"):
        correction = _density(distance) * (1 / slope - 1 / distance)
    return np.clip(ndtr(-distance) + np.where(central, 0.0, correction), 0.0, 1.0)


def _density(values: np.ndarray) -> np.ndarray:
    """Density of the standard normal distribution."""
    return np.exp(-(values**2) / 2) / math.sqrt(2 * math.pi)


def _root(falling: Callable[[np.ndarray], np.ndarray], low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Where a falling function, elementwise, is 0; an end where it is not."""
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        positive = falling(middle) > 0
        low, high = np.where(positive, middle, low), np.where(positive, high, middle)
    return (low + high) / 2


def predicted_low(counts: Counts | Means, confidence: float | None, held_out: int) -> float:
    """Lower end that the interval of `held_out` other images is expected to have, by counts of search images.

    Holding on other images takes more than an interval that holds here: their quality varies as well, and their own
    interval has a width. With s the share on n search images and d its deviation, on m others the share deviates by
    d sqrt(n/m), and differs from s by d sqrt(1 + n/m). So with probability p the lower end there is no less than
    s - z(0.975) d sqrt(n/m) - z(p) d sqrt(1 + n/m), less half an image, the interval's correction for continuity. A
    search takes the smallest of several networks that it looked at on the same images, which flatter it: p leaves
    1/LOOKS of the doubt that `confidence` leaves. Without `confidence` the bound is s itself.
    """
    share = counts.share
    if confidence is None or not share:
        return share
    if isinstance(counts, Means):
        return counts.predicted_low(confidence, held_out)
    ratio = counts.images / held_out
    return share - quantiles(ratio, confidence) * counts.deviation - 0.5 * ratio / (counts.kept + counts.lost)


def deciding_images(counts: Counts | Means, target: float) -> int | None:
    """Held-out images that would decide with probability POWER if the true share is the one that was measured.

    The two-sided test of a normal share: ((z(0.975) + z(POWER)) d sqrt(n) / (share - target)) squared, with the
    deviation d on n images. None where the share is the target itself, or so near that no number decides.
    """
    gap = abs(counts.share - target)
    if gap < 1e-6:
        return None
    deviation = counts.deviation * math.sqrt(counts.images)
    least = counts.fewest if isinstance(counts, Means) else least_images(target) or 0
    return max(math.ceil(((Z.inv_cdf(1 - TAIL) + Z.inv_cdf(POWER)) * deviation / gap) ** 2), least)


def verdict(low: float, high: float, target: float) -> str:
    """ "met", "missed" or "undecided": where the whole interval lies against the quality target."""
    if low >= target:
        return "met"
    return "missed" if high < target else "undecided"
