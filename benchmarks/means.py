"""How often the verdict on quality that is no count is wrong, by simulation: benchmarks/results/means.csv, numbers.csv.

    python benchmarks/means.py

The first is of means of image-wise scores, the second of numbers for all images. In each world the true share of
float32's quality is the target, so that "met" and "missed" are both wrong.
"""

import csv
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from wshare.evaluation.means import Means

RESULTS = Path(__file__).parent / "results"
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
    return _shares([Means.of(*WORLDS[world](rng, images)) for _ in range(draws)], 1 - LOSS)


# Predictions after compression and before it, and labels, of so many images; and the number.
Predicted = tuple[np.ndarray, np.ndarray, np.ndarray]


def _yes_or_no(rng: np.random.Generator, images: int) -> Predicted:
    """Three in ten are yes, float32 is wrong on a tenth, and 4 % of its answers change."""
    labels = rng.random(images) < 0.3
    before = labels ^ (rng.random(images) < 0.1)
    return before ^ (rng.random(images) < 0.04), before, labels


def _numbers(rng: np.random.Generator, images: int) -> Predicted:
    labels = rng.normal(size=images)
    before = labels + 0.4 * rng.normal(size=images)
    return before + 0.3 * rng.standard_t(4, size=images), before, labels


def _errors(rng: np.random.Generator, images: int) -> Predicted:
    """Squared errors of images, lognormal; the labels are 0."""
    before = 0.01 * np.exp(rng.normal(size=images))
    return before + 0.002 * np.exp(rng.normal(size=images)), before, np.zeros(images)


def _f1(found: np.ndarray, labels: np.ndarray) -> float:
    return 2 * float((found & labels).sum()) / max(float(found.sum() + labels.sum()), 1)


def _correlation(found: np.ndarray, labels: np.ndarray) -> float:
    return float(np.corrcoef(found, labels)[0, 1])


def _psnr(found: np.ndarray, labels: np.ndarray) -> float:
    return float(-10 * np.log10((found - labels).mean()))


NUMBERS: dict[str, tuple[Callable, Callable]] = {
    "F1": (_yes_or_no, _f1),
    "correlation": (_numbers, _correlation),
    "PSNR": (_errors, _psnr),
}
NUMBERED, FEWER_DRAWS, MANY = (50, 100, 200, 1000), 400, 2_000_000


def wrong_numbers(images: int, name: str, draws: int = FEWER_DRAWS) -> tuple[float, float]:
    """As `wrong`, of a number; the true share is that of very many images."""
    world, number = NUMBERS[name]

    def functions(rng: np.random.Generator, count: int) -> tuple[Callable, Callable]:
        *both, labels = world(rng, count)
        return tuple(lambda places, found=found: number(found[places], labels[places]) for found in both)

    after, before = functions(np.random.default_rng(0), MANY)
    true, rng = after(np.arange(MANY)) / before(np.arange(MANY)), np.random.default_rng(images)
    return _shares([Means.of_numbers(*functions(rng, images), images) for _ in range(draws)], true)


def _shares(found: list[Means], true: float) -> tuple[float, float]:
    """Shares of intervals above the truth, and below it."""
    return tuple(float(np.mean(wrongly)) for wrongly in ([x.low > true for x in found], [x.high < true for x in found]))


def _write(name: str, worlds: Iterable[str], sizes: tuple[int, ...], wrong: Callable) -> None:
    with open(RESULTS / f"{name}.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        for world in worlds:
            for images in sizes:
                table.writerow(dict(zip(COLUMNS, (images, world, *wrong(images, world)), strict=True)))


def main() -> None:
    """Write both tables, a row a world."""
    _write("means", WORLDS, SIZES, wrong)
    _write("numbers", NUMBERS, NUMBERED, wrong_numbers)


if __name__ == "__main__":
    main()
