"""Images that changed by a number: what tasks without classes tell of predictions.csv."""

from collections.abc import Callable, Sequence

import numpy as np

# Images that a report shows.
SHOWN = 8
COLUMNS = ["image", "changed", "float32", "compressed"]


def rows_of(keys: Sequence[str], *columns: np.ndarray | None) -> list[dict]:
    """Rows with a number in each column, empty where there is none; four digits, since further ones say nothing."""
    texts = [
        [""] * len(keys) if column is None else [float(f"{value:.4g}") for value in column.tolist()]
        for column in columns
    ]
    return [dict(zip(COLUMNS, row, strict=True)) for row in zip(keys, *texts, strict=True)]


def most_changed(
    rows: Sequence[dict[str, str]], words: Callable[[str, str, str], str], lines: Callable[[dict], Sequence[str]]
) -> tuple[str, list[tuple[int, tuple[str, ...]]]]:
    """A sentence, and place and lines of the images that changed most, the first of them most.

    `words` makes the sentence of the median change, the largest one, and the number of images; `lines` tells of a row.
    """
    changed = [float(row["changed"]) for row in rows]
    order = sorted(range(len(rows)), key=lambda place: (-changed[place], place))[:SHOWN]
    shown = [place for place in order if changed[place] > 0]
    if not shown:
        return f"No output of {len(rows):,} held-out images changed.", []
    told = words(f"{np.median(changed):.2%}", f"{max(changed):.2%}", f"{len(rows):,}")
    return f"{told} Those that changed most:", [(place, tuple(lines(rows[place]))) for place in shown]
