"""The header of a packed file of version 3: its index as bytes. `wshare.packed.format` describes it.

In memory an index is that of version 2 (a dict of entries by name for each kind), whichever version it came from.
"""

import base64
import struct

from wshare.packed import sections
from wshare.packed.varint import read_varint, varint

VERSION = 3
FORMATS = ("fixed", "entropy")
KINDS = ("shared", "folded", "batch_norm", "kept")
# Bit of the form's byte by which a hash of the float32 weights follows, and bytes of this hash: 12 letters in base64.
HASHED, HASH_BYTES, HASH_LETTERS = 2, 9, 12
# Earlier names that a name may be written after, and bytes of all names together: a long one could be copied each time.
WINDOW = 64
MOST_NAMES = 1 << 24


def write_header(index: dict) -> bytes:
    """Bytes of an index."""
    norms = [entry for kind in ("folded", "batch_norm") for entry in index[kind].values()]
    all_eps = list(dict.fromkeys(struct.pack("<d", entry[1]) for entry in norms))
    float32 = base64.b64decode(index["float32"]) if "float32" in index else b""
    parts = [bytes([VERSION, FORMATS.index(index["form"]) | (HASHED if float32 else 0)]), float32]
    parts += [varint(len(index[kind])) for kind in (*KINDS, "aliases")]
    parts += [varint(len(all_eps)), *all_eps]
    names = [name for kind in KINDS for name in index[kind]]
    parts.append(_write_names([*names, *(name for pair in index["aliases"].items() for name in pair)]))
    for shape, k, size in index["shared"].values():
        parts += [_write_shape(shape), varint(k), varint(size)]
    for position, eps, size in index["folded"].values():
        parts += [varint(position), varint(all_eps.index(struct.pack("<d", eps))), varint(size)]
    for channels, eps, kind in index["batch_norm"].values():
        parts += [varint(channels), varint(all_eps.index(struct.pack("<d", eps))), bytes([sections.TYPES.index(kind)])]
    for shape, kind, coding, size in index["kept"].values():
        parts += [bytes([sections.TYPES.index(kind) | coding << 4]), _write_shape(shape)]
        parts += [varint(size)] if coding == sections.STEPPED else []
    return b"".join(parts)


def read_header(data: memoryview) -> tuple[dict, memoryview]:
    """Index and what follows it; ValueError or IndexError for bytes that are none. The version has been checked."""
    reader = _Reader(data[1:])
    form = reader.octet()
    index: dict = {"version": VERSION, "form": FORMATS[form & ~HASHED]}
    if form & HASHED:
        index["float32"] = base64.b64encode(reader.bytes(HASH_BYTES)).decode()
    counts = {kind: reader.varint() for kind in (*KINDS, "aliases")}
    all_eps = [struct.unpack("<d", reader.bytes(8))[0] for _ in range(reader.varint())]
    aliases = counts.pop("aliases")
    names = iter(reader.names(sum(counts.values()) + 2 * aliases))
    entries = {
        "shared": lambda: [reader.shape(), reader.varint(), reader.varint()],
        "folded": lambda: [reader.varint(), all_eps[reader.varint()], reader.varint()],
        "batch_norm": lambda: [reader.varint(), all_eps[reader.varint()], sections.TYPES[reader.octet()]],
        "kept": reader.kept,
    }
    of_kind = {kind: [next(names) for _ in range(count)] for kind, count in counts.items()}
    index["aliases"] = _by_name([next(names), next(names)] for _ in range(aliases))
    for kind, read in entries.items():
        index[kind] = _by_name((name, read()) for name in of_kind[kind])
    return index, reader.rest


def _by_name(pairs) -> dict:
    found: dict = {}
    for name, entry in pairs:
        if name in found:
            raise ValueError(f"{name!r} is there twice")
        found[name] = entry
    return found


class _Reader:
    """Takes parts off the start of bytes."""

    def __init__(self, data: memoryview):
        self.rest = data

    def octet(self) -> int:
        return self.bytes(1)[0]

    def bytes(self, size: int) -> memoryview:
        part, self.rest = sections.cut(self.rest, size)
        return part

    def varint(self) -> int:
        number, self.rest = read_varint(self.rest)
        return number

    def shape(self) -> list[int]:
        axes = self.varint()
        if axes > sections.MOST_AXES:
            raise ValueError("no shape")
        return [self.varint() for _ in range(axes)]

    def kept(self) -> list:
        octet = self.octet()
        kind, coding, shape = sections.TYPES[octet & 15], octet >> 4, self.shape()
        return [shape, kind, coding, self.varint() if coding == sections.STEPPED else None]

    def names(self, count: int) -> list[str]:
        """Names, each written after an earlier one."""
        found: list[bytes] = []
        total = 0
        for _ in range(count):
            back, first, last, own = (self.varint() for _ in range(4))
            if back > len(found):
                raise ValueError("a name is written after none")
            other = found[-back] if back else b""
            if first + last > len(other):
                raise ValueError("a name takes more of another than there is")
            found.append(other[:first] + bytes(self.bytes(own)) + other[len(other) - last :])
            total += len(found[-1])
            if total > MOST_NAMES:
                raise ValueError(f"names of more than {MOST_NAMES} bytes")
        return [name.decode() for name in found]


def _write_names(names: list[str]) -> bytes:
    """Each name after the earlier one that leaves the fewest bytes of its own."""
    parts, found = [], [name.encode() for name in names]
    for place, name in enumerate(found):
        written = [_after(b"", name, 0)]
        written += [_after(found[place - back], name, back) for back in range(1, min(place, WINDOW) + 1)]
        parts.append(min(written, key=len))
    return b"".join(parts)


def _after(other: bytes, name: bytes, back: int) -> bytes:
    first = _common(other, name)
    last = _common(other[first:][::-1], name[first:][::-1])
    own = name[first : len(name) - last]
    return varint(back) + varint(first) + varint(last) + varint(len(own)) + own


def _common(first: bytes, second: bytes) -> int:
    """Bytes that both start with."""
    length = min(len(first), len(second))
    differ = int.from_bytes(first[:length], "little") ^ int.from_bytes(second[:length], "little")
    return (differ & -differ).bit_length() - 1 >> 3 if differ else length


def _write_shape(shape: list[int]) -> bytes:
    return varint(len(shape)) + b"".join(varint(axis) for axis in shape)
