"""How far a share of the float32 quality can be told from so many images, and the verdict."""

import math
from statistics import NormalDist

import numpy as np

from wshare.errors import UserError

RESAMPLES = 10_000
# The verdict's interval, whatever confidence the search asked for.
CONFIDENCE = 0.95
Z = NormalDist()


def margin(error: float) -> float:
    """Half the width of the verdict's interval of a normal estimate with this standard error."""
    return Z.inv_cdf((1 + CONFIDENCE) / 2) * error


def relative_quality(correct: np.ndarray, reference: np.ndarray, seed: int) -> tuple[float, float, float]:
    """Quality as a share of float32's on the same images, and the ends of the verdict's interval.

    `correct` and `reference` are bool [N], image by image. The interval is the paired percentile
    bootstrap (Efron & Tibshirani 1993, chapter 13): images are drawn with replacement, both results
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
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(ratios, [tail, 1 - tail])
    return float((both + gained) / (both + lost)), float(low), float(high)


def predicted_low(correct: np.ndarray, reference: np.ndarray, confidence: float | None) -> tuple[float, float]:
    """Relative quality, and the lower end its interval is expected to have on as many other images.

    Holding on other images takes more than an interval that holds here: their quality varies as well, and
    their own interval has a width. The bound is s - (z(0.975) + sqrt(2) z(confidence)) sd, with s and sd of
    `paired_ratio`, so that with probability `confidence` the lower end on other images is no lower. The probability
    is that of one combination: the smallest of many that were measured on the same images holds less often. Without
    `confidence` the bound is s itself.
    """
    share, deviation = paired_ratio(correct, reference)
    if confidence is None:
        return share, share
    return share, share - (Z.inv_cdf((1 + CONFIDENCE) / 2) + math.sqrt(2) * Z.inv_cdf(confidence)) * deviation


def paired_ratio(correct: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Quality as a share of float32's on the same images, both bool [N], and its standard deviation.

    It is that of a difference of paired proportions, with half an image added to each of the four kinds so that few
    changed images do not pass for none (Agresti & Min 2005). Both are 0 where float32 has nothing right.
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


def images_needed(quality: float, target: float, confidence: float | None) -> float:
    """Images from which on `predicted_low` of an unchanged network, right on this share, reaches the target."""
    if confidence is None:
        return 0
    if target == 1 or quality == 0:
        return float("inf")
    quantiles = Z.inv_cdf((1 + CONFIDENCE) / 2) + np.sqrt(2) * Z.inv_cdf(confidence)
    return max(0, int(np.ceil((quantiles / (1 - target) - 1) / quality)))


def check_images(count: int, quality: float, target: float, confidence: float | None) -> None:
    """UserError unless `count` images can confirm the target for a network that is right on this share of them."""
    needed = images_needed(quality, target, confidence)
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
