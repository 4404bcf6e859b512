"""How often each rule of acceptance leads to each verdict, by simulation: benchmarks/results/acceptance.csv.

    python benchmarks/acceptance.py

The search is the program's own (`slope.find`, `predicted_low`, the verdict's interval); images and networks are made
up. What a divergence does to a network is that of EfficientNet-Lite0 in docs/benchmarks.md: `CHANGED` and `LOST` were
set by the rows of its front, and the rate is read off that front. An image changes at a divergence of its own, so that
networks tried one after the other change the same images: what is tried again on the same images is no new evidence.
"""

import csv
import math
from pathlib import Path

import numpy as np

from wshare.evaluation.chances import CHANGED, LOST, MAX_KL, RIGHT, TAIL, unconfirmed
from wshare.evaluation.intervals import Counts, predicted_low, tail
from wshare.search.rate_distortion.slope import find

RESULTS = Path(__file__).parent / "results" / "acceptance.csv"
RUNS, EVALUATIONS = 1000, 12
# Standard deviation of an image's divergence, over its mean; that of what float32 expects, for a root of a nat.
KL_SPREAD, EXPECTED_SPREAD = 2.5, 0.14
RULES = (None, 0.5, 0.8, 0.9, 0.95, 0.99)
COLUMNS = ["images", "target", "confidence", "refused", "met", "undecided", "missed", "below", "unaccepted", "rate"]


class Sample:
    """Images on which float32 is right or wrong, each with its own divergence from which on it changes."""

    def __init__(self, images: int, rng: np.random.Generator):
        right = rng.binomial(images, RIGHT)
        self.right, self.wrong = np.sort(rng.random(right)), np.sort(rng.random(images - right))

    def counts(self, kl: float) -> Counts:
        """What a network of this divergence, in nats, keeps, gains and loses."""
        changed, net = CHANGED * math.sqrt(kl), RIGHT * LOST * kl
        lost = int(np.searchsorted(self.right, (changed + net) / 2 / RIGHT))
        gained = int(np.searchsorted(self.wrong, (changed - net) / 2 / (1 - RIGHT)))
        return Counts(len(self.right) - lost, gained, lost, len(self.wrong) - gained)


def front() -> tuple[np.ndarray, np.ndarray]:
    """Logarithms of divergence and of rate on disk, of EfficientNet-Lite0."""
    points = [(0.0008, 5.69), (0.0049, 7.48), (0.0095, 8.41), (0.0191, 9.51)]
    points += [(0.0431, 11.16), (0.0842, 13.01), (0.108, 14.29), (0.3188, 18.14)]
    return tuple(np.log(points).T)


def chosen(images: int, target: float, confidence: float | None, rng: np.random.Generator) -> tuple[float, bool]:
    """Divergence that a search of so many images chooses, and as many held out; and whether it accepted it."""
    sample, luck, expecting = Sample(images, rng), rng.standard_normal(), rng.standard_normal()
    accepted = {}

    def measure(kl: float) -> tuple[float, float]:
        error = KL_SPREAD * kl / math.sqrt(images)
        expected = 1 - LOST * kl + EXPECTED_SPREAD * math.sqrt(kl / images) * (expecting - 1.645)
        low = min(predicted_low(sample.counts(kl), confidence, images), expected)
        accepted[kl] = low >= target
        return kl + (luck + 1.645) * error, (1 - low) / (1 - target)

    allowed = MAX_KL * (1 - target)
    kl = find(measure, allowed * math.exp(0.5 * rng.standard_normal()), allowed, EVALUATIONS)
    return kl, accepted[kl]


def row(images: int, target: float, confidence: float | None) -> dict:
    """Shares of RUNS searches and their verdicts on as many held-out images."""
    rng = np.random.default_rng(0)
    known = {"images": images, "target": target, "confidence": "null" if confidence is None else confidence}
    if confidence is not None and unconfirmed(images, images, RIGHT, target, confidence):
        return known | dict.fromkeys(COLUMNS[4:], "") | {"refused": 1}
    runs = [chosen(images, target, confidence, rng) for _ in range(RUNS)]
    counts = [Sample(images, rng).counts(kl) for kl, _ in runs]
    array = np.array([[c.kept, c.gained, c.lost, c.neither] for c in counts])
    met, missed = (tail(array, target, upper) <= TAIL for upper in (True, False))
    kl, rate = front()
    shares = {
        "met": met.mean(),
        "undecided": (~met & ~missed).mean(),
        "missed": missed.mean(),
        "below": np.mean([c.share < target for c in counts]),
        "unaccepted": np.mean([not accepted for _, accepted in runs]),
    }
    rates = np.exp(np.interp(np.log([kl for kl, _ in runs]), kl, rate))
    return (
        known
        | {"refused": 0}
        | {name: round(float(s), 3) for name, s in shares.items()}
        | {"rate": f"{rates.mean():.2f}"}
    )


def main() -> None:
    """Write the table."""
    with open(RESULTS, "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        for images in (400, 2000, 10_000, 50_000):
            for target in (0.98, 0.99):
                for confidence in RULES:
                    table.writerow(row(images, target, confidence))
                    file.flush()


if __name__ == "__main__":
    main()
