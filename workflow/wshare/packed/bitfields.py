"""Indices of any width as fields of 8, 4, 2 and 1 bits, which byte operations alone put together again."""

import numpy as np

from wshare.packed.entropy import pack_indices


def widths(bits: int) -> list[int]:
    """Widths of the fields that an index of so many bits is cut into, its lowest bits first: 13 gives 8, 4 and 1."""
    return [8] * (bits // 8) + [width for width in (4, 2, 1) if bits & width]


def fields(indices: np.ndarray, bits: int) -> list[np.ndarray]:
    """Each field of all indices in C order, as `pack_indices` packs it: uint8 [ceil(n width / 8)]; in all n bits."""
    flat, place, packed = np.ravel(indices).astype(np.uint16), 0, []
    for width in widths(bits):
        packed.append(pack_indices(flat >> np.uint16(place) & np.uint16((1 << width) - 1), width))
        place += width
    return packed
