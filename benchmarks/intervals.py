"""How often the verdict's interval is wrong, by simulation: benchmarks/results/intervals.csv.

    python benchmarks/intervals.py

In each world the true share of float32's quality is the target, so that "met" and "missed" are both wrong.
"""

import csv
import math
from pathlib import Path

import numpy as np

from wshare.evaluation.chances import TAIL
from wshare.evaluation.intervals import tail

RESULTS = Path(__file__).parent / "results" / "intervals.csv"
COLUMNS = ["images", "right", "changed", "target", "met", "missed"]
DRAWS = 20_000


def wrong(images: int, right: float, changed: float, target: float) -> tuple[float, float]:
    """How often the verdict is "met", and how often "missed"; float32 is right on a share, and a share changes."""
    net = right * (1 - target)
    lost, gained = (changed + net) / 2, (changed - net) / 2
    shares = [right - lost, gained, lost, max(1 - right - gained, 0)]
    drawn = np.random.default_rng(images).multinomial(images, shares, DRAWS)
    drawn = drawn[drawn[:, 0] + drawn[:, 2] > 0]
    # What lies within a standard deviation of the truth is never rejected.
    distance = (1 - target) * drawn[:, 0] + drawn[:, 1] - target * drawn[:, 2]
    deviation = math.sqrt(images * ((1 - target) ** 2 * shares[0] + gained + target**2 * lost))
    found = []
    for upper, sign in ((True, 1), (False, -1)):
        kinds, times = np.unique(drawn[sign * distance > deviation], axis=0, return_counts=True)
        found.append(float(times[tail(kinds, target, upper) <= TAIL].sum() / DRAWS) if len(kinds) else 0.0)
    return found[0], found[1]


def main() -> None:
    """Write the table, a row a world."""
    with open(RESULTS, "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        for images in (10, 20, 50, 100, 200, 400, 1500, 10_000, 50_000):
            for right in (0.5, 0.65, 0.8, 0.9, 0.97, 1.0):
                for changed in (0.001, 0.003, 0.01, 0.03, 0.1, 0.2):
                    for target in (0.9, 0.95, 0.98, 0.99, 0.999):
                        net = right * (1 - target)
                        # Of what changes, at least what is missing is lost; what is gained was wrong before.
                        if net <= changed and (changed - net) / 2 <= 1 - right:
                            world = (images, right, changed, target)
                            table.writerow(dict(zip(COLUMNS, (*world, *wrong(*world)), strict=True)))


if __name__ == "__main__":
    main()
