"""Which images are for training, for the search, and held out."""

from collections.abc import Mapping, Sequence
from itertools import islice

import numpy as np

from wshare.data.dataset import Dataset
from wshare.data.datasets.table import ALL
from wshare.errors import UserError

SPLITS = ("train", "search", "held_out")


def splits_of(dataset: Dataset, sizes: Mapping[str, int | float | str], seed: int) -> Mapping[str, np.ndarray]:
    """Image indices of each split: those of the source where it deals them out, else `split_indices`."""
    if dataset.splits is not None:
        return dataset.splits
    return split_indices(len(dataset.keys), kinds_of(dataset.labels), sizes, seed)


def kinds_of(labels: np.ndarray | None) -> np.ndarray | None:
    """Labels by which images are dealt, class indices [N]; None of others, such as masks and sets of labels."""
    return labels if labels is not None and labels.ndim == 1 and labels.dtype.kind == "i" else None


def held_out_count(held_out: float, total: int, where: str) -> int:
    """So many of `total` images are held out, of a share below 1 or a count.

    UserError, opening with `where`, unless one is held out and two are left to search with.
    """
    count = int(held_out * total + 1e-9) if held_out < 1 else int(held_out)
    if not 1 <= count <= total - 2:
        raise UserError(f"{where}: {held_out} of {total} images; it takes one held-out image and two search images")
    return count


def split_indices(
    total: int, labels: np.ndarray | None, sizes: Mapping[str, int | float | str], seed: int
) -> dict[str, np.ndarray]:
    """Disjoint image indices of each split named in `sizes`, int64 [size] each, ascending.

    A size is a count, a fraction of all `total` images in (0, 1), rounded down, or "all". Each split gets of each of
    the `labels` [total] its share, rounded up or down. Which images, and which way a share is rounded, is drawn from
    `seed`, so that labels of few images come into each split as often as others. Beside a train split the held-out
    images are dealt from what it and the search leave, by their shares of that: their number must not change what a
    network is trained on. UserError for an unknown name, a size that is neither, a fraction that leaves no image, a
    negative seed, or sizes that sum to more than `total`.
    """
    for name in sizes:
        if name not in SPLITS:
            raise UserError(f"split {name!r}: no such split; known are {', '.join(SPLITS)}")
    if seed < 0:
        raise UserError(f"seed {seed}: must be 0 or more")
    counts = {name: _count(name, sizes[name], total) for name in SPLITS if name in sizes}
    if sum(counts.values()) > total:
        wanted = " + ".join(f"{name} {count}" for name, count in counts.items())
        raise UserError(f"splits: {wanted} = {sum(counts.values())} images, but the data set has {total}; lower them")
    random = np.random.default_rng(seed)
    order = random.permutation(total)
    _, places, left = np.unique(np.zeros(total) if labels is None else labels, return_inverse=True, return_counts=True)
    # Images of one label stand together, in random order; each split takes the next ones of each label.
    images = np.split(order[np.argsort(places[order], kind="stable")], np.cumsum(left)[:-1])
    chosen = {}
    for names in (("train", "search"), ("held_out",)) if "train" in counts else (SPLITS,):
        names = [name for name in names if name in counts]
        wanted = [counts[name] for name in names]
        table = whole_shares(left, [*wanted, left.sum() - sum(wanted)], random)
        for name, column in zip(names, table.T, strict=False):
            parts = [rest[:count] for rest, count in zip(images, column, strict=True)]
            chosen[name] = np.sort(np.concatenate(parts))
            images = [rest[count:] for rest, count in zip(images, column, strict=True)]
            left = left - column
    return chosen


def whole_shares(rows: np.ndarray, columns: Sequence[int], random: np.random.Generator) -> np.ndarray:
    """Whole numbers, int64 [rows, columns], whose sums are `rows` and `columns`, which have the same sum N.

    Each is rows[i] * columns[j] / N, rounded up or down, and that on average. Source: L. H. Cox, "A constructive
    procedure for unbiased controlled rounding", Journal of the American Statistical Association 82 (1987): in a
    loop of cells fractions are moved, by chance one way or the other, until one is gone; all sums stay as they are.
    """
    unit = max(int(np.sum(rows)), 1)
    # Fractions are counted in units of 1 / N: whole numbers have no rounding errors.
    whole, fractions = np.divmod(np.outer(rows, columns), unit)
    waiting = iter(np.flatnonzero(fractions.any(axis=1)).tolist())
    # As many rows as there are columns, each with two fractions or more, have a loop.
    window = list(islice(waiting, len(columns)))
    while window:
        moved = fractions[window]
        loop = _loop(moved > 0)
        raised, lowered = tuple(zip(*loop[::2], strict=True)), tuple(zip(*loop[1::2], strict=True))
        up = min(unit - moved[raised].max(), moved[lowered].min())
        down = min(moved[raised].min(), unit - moved[lowered].max())
        step = up if random.integers(up + down) < down else -down
        moved[raised] += step
        moved[lowered] -= step
        whole[window] += moved == unit
        fractions[window] = moved % unit
        window = [row for row in window if fractions[row].any()]
        window += islice(waiting, len(columns) - len(window))
    return whole


def _loop(fractional: np.ndarray) -> list[tuple[int, int]]:
    """Cells of a closed path through the fractional ones that goes along a row and along a column by turns."""
    alive = fractional.copy()
    while True:
        # What has no other in its row or column is in no loop.
        single = alive & ((alive.sum(axis=0) < 2) | (alive.sum(axis=1) < 2)[:, None])
        if not single.any():
            break
        alive &= ~single
    row = int(np.argmax(alive.any(axis=1)))
    cells, entered, column = [], {("row", row): 0}, -1
    while True:
        column = next(other for other in np.flatnonzero(alive[row]).tolist() if other != column)
        cells.append((row, column))
        if ("column", column) in entered:
            return cells[entered["column", column] :]
        entered["column", column] = len(cells)
        row = next(other for other in np.flatnonzero(alive[:, column]).tolist() if other != row)
        cells.append((row, column))
        if ("row", row) in entered:
            return cells[entered["row", row] :]
        entered["row", row] = len(cells)


def _count(name: str, size: int | float | str, total: int) -> int:
    if size == ALL:
        return total
    if isinstance(size, int) and not isinstance(size, bool) and size >= 0:
        return size
    if isinstance(size, float) and 0 < size < 1:
        # 0.29 * 100 is 28.999...; the margin is far below one image.
        count = int(size * total + 1e-9)
        if count == 0:
            raise UserError(f"split {name!r}: {size} of {total} images is no image; raise it or give a count")
        return count
    raise UserError(f"split {name!r}: size {size!r} is neither a count, a fraction between 0 and 1 nor {ALL!r}")
