"""What numbers of images can tell, before anything is measured. Plain Python: the plan of a dry run reads it.

Of quality that is no count of right images little is known beforehand: only that few images decide nothing.

The chances are those of a network whose images change with its divergence as EfficientNet-Lite0's do. Simulated
searches fare as well or up to 0.12 better (benchmarks/results/acceptance.csv).
"""

import math
from statistics import NormalDist

Z = NormalDist()
# Of the verdict's interval, whatever confidence the search asked for, and what it leaves on either side.
CONFIDENCE = 0.95
TAIL = (1 - CONFIDENCE) / 2
# Confidence of a search that names none, the schema's default: from 2,000 images on its verdicts keep it, and from
# 10,000 on it costs at most a tenth of the rate (benchmarks/results/acceptance.csv).
ADVISED = 0.9
# A search by one slope makes up to a dozen measurements. They share their images, and so most of their luck: simulated
# searches keep their confidence with two (benchmarks/results/acceptance.csv).
LOOKS = 2
# Divergence allowed, in nats, for each share of quality that may be lost. On EfficientNet-Lite0, and in its peers'
# files, 4 nats lose about all of it on average, so that every second sample of images would miss the target. The rest
# is the margin.
MAX_KL = 2.5
# Of quality that is a mean of image-wise scores: images below which nothing is decided. Fewer often hold none of a kind
# that makes up a tenth of all (benchmarks/results/means.csv).
FEWEST_SCORED = 50
# The same of a number for all images that is no mean of scores.
FEWEST_NUMBERED = 100
# EfficientNet-Lite0: images right in float32; images that change from right to wrong or back, for a root of a nat;
# relative accuracy lost for a nat; power of the divergence with which the rate grows.
RIGHT, CHANGED, LOST, RATE = 0.83, 0.154, 0.2, 0.19


def quantiles(ratio: float, confidence: float) -> float:
    """Deviations that `predicted_low` lies below the share; `ratio` is that of search to held-out images."""
    return Z.inv_cdf(1 - TAIL) * math.sqrt(ratio) + Z.inv_cdf(1 - (1 - confidence) / LOOKS) * math.sqrt(1 + ratio)


def least_images(target: float) -> int | None:
    """Held-out images that all must be kept for "met", where float32 is right on all; None at 1, which none confirm.

    So many images lose none with probability TAIL if the share that is kept is the target.
    """
    return math.ceil(math.log(TAIL) / math.log(target)) if target < 1 else None


def has_given_size(settings: dict) -> bool:
    """Whether a search, complete as in a configuration, is for a size and not for its quality target."""
    return bool(settings["options"].get("compression_rate"))


def goes_by_confidence(settings: dict) -> bool:
    """Whether a search, complete as in a configuration, asks for a confidence: one to a given size does not."""
    return settings["confidence"] is not None and not has_given_size(settings)


def unconfirmed(search: int, held_out: int, quality: float, target: float, confidence: float) -> str | None:
    """A sentence if so many images cannot confirm the target for an unchanged network, right on this share of them.

    None if they can: `predicted_low` of its counts then reaches the target, and so does the verdict's interval.
    """
    ratio, fewest = search / held_out, least_images(target)
    possible = fewest is not None and quality > 0
    right = max((quantiles(ratio, confidence) + 0.5 * ratio) / (1 - target), ratio * fewest) if possible else 0
    least = math.ceil(right / quality) if possible else 0
    if possible and search >= least:
        return None
    takes = f"that takes about {least:,} and {math.ceil(least / ratio):,}" if possible else "no number of images can"
    return (
        f"{search:,} search images and {held_out:,} held-out ones cannot confirm a quality target of {target:g} with "
        f"confidence {confidence:g}, even for an unchanged network: {takes}; add images, lower the target or the "
        "confidence, or set confidence to null to go by the point estimate alone"
    )


def too_few_scores(search: int, held_out: int, fewest: int = FEWEST_SCORED) -> str | None:
    """A sentence if so many images with scores that are no counts decide nothing; None if they do."""
    if min(search, held_out) >= fewest:
        return None
    return (
        f"{search:,} search images and {held_out:,} held-out ones decide nothing: quality that is no count takes "
        f"{fewest} of each; add images, or set confidence to null to go by the point estimate alone"
    )


def chance_of_met(held_out: int, target: float) -> float:
    """Probability of "met" where the divergence allowed is spent and no confidence is asked for."""
    kl = MAX_KL * (1 - target)
    margin = 1 - LOST * kl - target - 0.5 / (held_out * RIGHT)
    return Z.cdf(margin / _deviation(kl, held_out) - Z.inv_cdf(1 - TAIL))


def share_of_rate(search: int, held_out: int, target: float, confidence: float) -> float | None:
    """Rate with a confidence over the rate without; None if so few images confirm nothing."""
    ratio, allowed = search / held_out, MAX_KL * (1 - target)

    def confirmed(kl: float) -> bool:
        low = 1 - LOST * kl - quantiles(ratio, confidence) * _deviation(kl, search) - 0.5 / (held_out * RIGHT)
        return low >= target

    # By steps of a tenth downwards: a plan need not be finer.
    steps = next((step for step in range(100) if confirmed(allowed * 0.9**step)), None)
    return None if steps is None else 0.9 ** (steps * RATE)


def _deviation(kl: float, images: int) -> float:
    """Standard deviation of the share that is kept, on so many images, at a divergence in nats."""
    return math.sqrt(CHANGED * math.sqrt(kl) / images) / RIGHT
