"""front.csv: what a search measured."""

from collections.abc import Iterable, Sequence

from wshare.artifacts.front import LAYER
from wshare.search.evaluator import Evaluator
from wshare.search.method import Found

QUALITY = ("relative_quality", "low", "expected", "expected_low", "kl", "kl_high")


def quality_columns(task_columns: Iterable[str]) -> list[str]:
    """Columns that tell quality on the search images, for a task whose own figures these are."""
    return ["images", *task_columns, *QUALITY]


def front_columns(task_columns: Iterable[str], found: Found, layers: Sequence[str]) -> list[str]:
    """All columns, in order."""
    own = list(next(iter(found.points.values()), {}))
    return [
        *("evaluation", "bits", "compression_rate_analytic"),
        *quality_columns(task_columns),
        *("met", "pareto", "chosen"),
        *own,
        *(f"{LAYER}{layer}" for layer in layers),
    ]


def front_rows(evaluator: Evaluator, found: Found, layers: Sequence[str], dense_bits: int) -> list[dict]:
    """A row for each point, by ascending bits.

    `evaluation` counts from 1 in the order of measurement. `met` marks the points whose quality the method takes
    for that of the target, `pareto` those whose relative quality none of fewer bits reaches, `chosen` the one chosen.
    A layer's column holds its number of shared values, or "dense".
    """
    measured = evaluator.measured
    order = {key: place for place, key in enumerate((key for key in measured if key in found.points), start=1)}
    rows, best = [], float("-inf")
    for key in sorted(order, key=lambda key: (measured[key]["bits"], -measured[key]["relative_quality"])):
        quality = {name: measured[key][name] for name in quality_columns(evaluator.task.COLUMNS)}
        bits = measured[key]["bits"]
        rows.append(
            {"evaluation": order[key], "bits": bits, "compression_rate_analytic": dense_bits / bits}
            | quality
            | {"met": int(key in found.met)}
            | {"pareto": int(quality["relative_quality"] > best), "chosen": int(key == found.chosen)}
            | found.points[key]
            | {f"{LAYER}{layer}": measured[key]["k"].get(layer, "dense") for layer in layers}
        )
        best = max(best, quality["relative_quality"])
    return rows
