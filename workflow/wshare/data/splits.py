"""Which images are for training, for the search, and held out."""

from collections.abc import Mapping, Sized

import numpy as np

from wshare.data.dataset import Dataset
from wshare.errors import UserError

SPLITS = ("train", "search", "held_out")


def splits_of(dataset: Dataset, sizes: Mapping[str, int | float], seed: int) -> Mapping[str, np.ndarray]:
    """Image indices of each split: those of the source where it deals them out, else `split_indices`."""
    return split_indices(dataset.keys, sizes, seed) if dataset.splits is None else dataset.splits


def held_out_count(held_out: float, total: int, where: str) -> int:
    """So many of `total` images are held out, of a share below 1 or a count.

    UserError, opening with `where`, unless one is held out and two are left to search with.
    """
    count = int(held_out * total + 1e-9) if held_out < 1 else int(held_out)
    if not 1 <= count <= total - 2:
        raise UserError(f"{where}: {held_out} of {total} images; it takes one held-out image and two search images")
    return count


def split_indices(images: Sized, sizes: Mapping[str, int | float], seed: int) -> dict[str, np.ndarray]:
    """Disjoint image indices of each split named in `sizes`, int64 [size] each, ascending.

    A size is a count, or a fraction of all N images in (0, 1), rounded down. A permutation seeded with `seed`
    is dealt out to train, search and held_out, in this order. UserError for an unknown name, a size that is
    neither, a fraction that leaves no image, a negative seed, or sizes that sum to more than N.
    """
    total = len(images)
    for name in sizes:
        if name not in SPLITS:
            raise UserError(f"split {name!r}: no such split; known are {', '.join(SPLITS)}")
    if seed < 0:
        raise UserError(f"seed {seed}: must be 0 or more")
    counts = {name: _count(name, sizes[name], total) for name in SPLITS if name in sizes}
    if sum(counts.values()) > total:
        wanted = " + ".join(f"{name} {count}" for name, count in counts.items())
        raise UserError(f"splits: {wanted} = {sum(counts.values())} images, but the data set has {total}; lower them")
    order = np.random.default_rng(seed).permutation(total)
    ends = np.cumsum(list(counts.values()), dtype=np.int64)
    parts = np.split(order, ends)[: len(counts)]
    return {name: np.sort(part) for name, part in zip(counts, parts, strict=True)}


def _count(name: str, size: int | float, total: int) -> int:
    if isinstance(size, int) and not isinstance(size, bool) and size >= 0:
        return size
    if isinstance(size, float) and 0 < size < 1:
        # 0.29 * 100 is 28.999...; the margin is far below one image.
        count = int(size * total + 1e-9)
        if count == 0:
            raise UserError(f"split {name!r}: {size} of {total} images is no image; raise it or give a count")
        return count
    raise UserError(f"split {name!r}: size {size!r} is neither a count nor a fraction between 0 and 1")
