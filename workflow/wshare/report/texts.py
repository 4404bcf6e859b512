"""Numbers as a report writes them."""

from collections.abc import Iterable
from itertools import groupby


def counted(number: int, thing: str) -> str:
    """A number of things: 1 model, 1,500 models."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def size(nbytes: float) -> str:
    """Bytes in decimal units: 950 B, 10.9 kB, 1.61 MB."""
    if nbytes < 1000:
        return f"{nbytes:.0f} B"
    return f"{nbytes / 1000:.1f} kB" if nbytes < 1e6 else f"{nbytes / 1e6:.2f} MB"


def percent(share: float, target: float | None = None) -> str:
    """A share as a percentage of two decimals, or of as many more as it takes to be seen below a target."""
    digits = 2
    # A share that differs in the last bits of a float alone is the target, written with the most digits.
    while target is not None and share < target and digits < 12 and float(f"{100 * share:.{digits}f}") >= 100 * target:
        digits += 1
    return f"{100 * share:.{digits}f} %"


def duration(seconds: float) -> str:
    """Seconds, or minutes and seconds, or hours and minutes."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def memory(mebibytes: float | None) -> str:
    """Memory in MiB or GiB."""
    if mebibytes is None:
        return "not measured"
    return f"{mebibytes:.0f} MiB" if mebibytes < 1024 else f"{mebibytes / 1024:.2f} GiB"


def shape(axes: Iterable[int]) -> str:
    """A tensor's shape: 32 x 3 x 3 x 3."""
    return " x ".join(map(str, axes)) or "scalar"


def recipe(ks: Iterable[str], most: int = 14) -> str:
    """Numbers of shared values in the network's order, repeats gathered and the middle left out: 128 x3, 64, ..., 8."""
    runs = [(k, len(list(same))) for k, same in groupby(ks)]
    words = [k if count == 1 else f"{k} x{count}" for k, count in runs]
    if len(words) > most:
        words = [*words[: most // 2], "…", *words[len(words) - most // 2 :]]
    return ", ".join(words)


def told_skipped(baseline: dict) -> str:
    """How many images of each split were skipped, by a baseline/metrics.json: 2 search, 3 held-out; empty if none."""
    counts = {"search": baseline["search"]["skipped"], "held-out": baseline["held_out"]["skipped"]}
    return ", ".join(f"{count:,} {split}" for split, count in counts.items() if count)


def significant(value: float, digits: int = 5) -> float:
    """The number rounded to so many digits: enough for a chart, and a smaller page."""
    return float(f"{value:.{digits}g}")
