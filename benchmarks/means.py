"""How often the verdict on a mean of image-wise scores is wrong, by simulation: benchmarks/results/means.csv.

    python benchmarks/means.py

In each world the true share of float32's quality is the target, so that "met" and "missed" are both wrong.
"""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np

from wshare.evaluation.means import Means

RESULTS = Path(__file__).parent / "results" / "means.csv"
COLUMNS = ["images", "world", "met", "missed"]
SIZES = (10, 20, 50, 100, 200, 500, 2000)
DRAWS = 4000
# Mean loss of an image's score.
LOSS = 0.02

Drawn = tuple[np.ndarray, np.ndarray]


def _losses(draw: Callable[[np.random.Generator, int], np.ndarray]) -> Callable[[np.random.Generator, int], Drawn]:
    """Scores after compression, and before it all 1, of losses whose mean is 1 in units of LOSS."""
    return lambda rng, images: (1 - LOSS * draw(rng, images), np.ones(images))


def _labelled(rng: np.random.Generator, images: int) -> Drawn:
    before = 1 - 0.3 * rng.exponential(size=images)
    lost = rng.normal(LOSS * 0.7, 0.02, images)
    return before - lost, before


# An image's loss is more skewed from world to world; in the first float32's score differs from image to image too.
WORLDS: dict[str, Callable[[np.random.Generator, int], Drawn]] = {
    "with labels": _labelled,
    "lognormal, sigma 0.5": _losses(lambda rng, n: np.exp(rng.normal(-0.125, 0.5, n))),
    "exponential": _losses(lambda rng, n: rng.exponential(size=n)),
    "lognormal, sigma 1": _losses(lambda rng, n: np.exp(rng.normal(-0.5, 1, n))),
    "lognormal, sigma 1.5": _losses(lambda rng, n: np.exp(rng.normal(-1.125, 1.5, n))),
    "one image in ten": _losses(lambda rng, n: 10 * (rng.random(n) < 0.1) * rng.exponential(size=n)),
}


def wrong(images: int, world: str, draws: int = DRAWS) -> tuple[float, float]:
    """How often the interval lies above the true share, and how often below."""
    rng = np.random.default_rng(images)
    found = [Means.of(*WORLDS[world](rng, images)) for _ in range(draws)]
    true = 1 - LOSS
    return sum(one.low > true for one in found) / draws, sum(one.high < true for one in found) / draws


def main() -> None:
    """Write the table, a row a world."""
    with open(RESULTS, "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        for world in WORLDS:
            for images in SIZES:
                table.writerow(dict(zip(COLUMNS, (images, world, *wrong(images, world)), strict=True)))


if __name__ == "__main__":
    main()
