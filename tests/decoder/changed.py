"""Packed files changed at random in the places that decide, with hashes that fit the change."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import safe_open, save

from wshare.packed.hashes import array_hash, byte_hash

from ..fuzz.targets import seal, split, with_hash, without_hash

DATA = Path(__file__).parents[1] / "data"
FIRST = DATA / "golden_v1.safetensors"
SECOND, THIRD = (
    [DATA / f"golden_{version}_{form}.safetensors" for form in ("entropy", "fixed")] for version in ("v2", "v3")
)
# What a text of JSON is changed by.
PIECES = [
    *(
        b"0",
        b"-0",
        b"-1",
        b"1.0",
        b"1e3",
        b"1.5",
        b"00",
        b"NaN",
        b"null",
        b"true",
        b"[]",
        b"{}",
        b'""',
        b'"x"',
        b"\xff",
    ),
    *(b"\\u0041", b"\\ud800", b"\\udc00", b"\\ud83d\\ude00", b"\\/", b"\\x", b"\xc3\xa9", b"\n", b" ", b",", b":"),
    *(b"9" * 25, b"9007199254740993e-16", b"4.9e-324", b"1e-400", b"0." + b"0" * 30 + b"1", b"1" * 41, b"67108865"),
    *(b'"hash":', b',"hash":"x"', b"/", b"\t", b"\0", b"2e-05", b"-1e-05", b"[", b"]", b"}", b'"'),
]


def flipped(rng: np.random.Generator, content: bytes, start: int = 0) -> bytes:
    """One to three bytes from `start` on changed, most often near to it."""
    changed = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        stop = int(rng.integers(start + 1, len(changed) + 1))
        changed[int(rng.integers(start, stop))] = int(rng.choice([rng.integers(256), 0, 127, 128, 255]))
    return bytes(changed)


def spliced(rng: np.random.Generator, text: bytes) -> bytes:
    """A piece of text replaced, put in, or taken out."""
    place, size = int(rng.integers(len(text))), int(rng.integers(4))
    digits = [place for place, octet in enumerate(text) if octet in b"0123456789"]
    if rng.integers(2):
        place, size = digits[rng.integers(len(digits))], 1
    piece = PIECES[rng.integers(len(PIECES))] if rng.integers(8) else b""
    return text[:place] + piece + text[place + size :]


def contained(text: bytes, data: bytes, tensors: bytes) -> bytes:
    """A container whose index is any text of UTF-8, or of none; `tensors` are the other entries of its header."""
    quoted = json.dumps(text.decode(errors="replace"), ensure_ascii=False).encode()
    header = b'{"__metadata__":{"wshare":' + quoted + b"}" + tensors + b"}"
    return len(header).to_bytes(8, "little") + header + data


def third(rng: np.random.Generator) -> bytes:
    """Version 3: bytes of header or sections."""
    return with_hash(flipped(rng, without_hash(THIRD[rng.integers(2)]), int(rng.choice([0, 0, 330]))))


def second(rng: np.random.Generator) -> bytes:
    """Version 2: bytes of sections."""
    index, payload = split(SECOND[rng.integers(2)])
    return seal(index, flipped(rng, payload))


def second_text(rng: np.random.Generator) -> bytes:
    """Version 2: the text of the index, whose hash is that of the changed text."""
    index, payload = split(SECOND[rng.integers(2)])
    tensors = b',"payload":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}' % (len(payload), len(payload))
    return contained(rehashed(spliced(rng, index)), payload, tensors)


def first(rng: np.random.Generator) -> bytes:
    """Version 1: bytes of arrays, and their types and shapes."""
    with safe_open(FIRST, "numpy") as file:
        index = json.loads(file.metadata()["wshare"])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    name = sorted(arrays)[rng.integers(len(arrays))]
    array = arrays[name]
    kind = array.dtype if rng.integers(4) else np.dtype(rng.choice(["f2", "f4", "u1", "b1", "i8"]))
    content = flipped(rng, array.tobytes()) if array.size and rng.integers(4) else array.tobytes()
    arrays[name] = np.frombuffer(content[: len(content) // kind.itemsize * kind.itemsize], kind)
    for entry, parts in (("shared", ("codebook", "indices")), ("batch_norm", ("scale", "shift"))):
        for module, value in index[entry].items():
            value[1] = array_hash(*(arrays[f"{module}.{part}"] for part in parts))
    index["kept"] = {module: array_hash(arrays[module]) for module in index["kept"]}
    text = json.dumps(index, separators=(",", ":")).encode()
    return save(arrays, {"wshare": rehashed(text).decode()})


def first_text(rng: np.random.Generator) -> bytes:
    """Version 1: the text of the index."""
    return with_text(lambda text: spliced(rng, text))


def with_text(change: Callable[[bytes], bytes]) -> bytes:
    """The golden file of version 1 with another text as its index, whose hash fits."""
    content = FIRST.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    text = rehashed(change(header.pop("__metadata__")["wshare"].encode()))
    tensors = b"," + json.dumps(header, separators=(",", ":")).encode()[1:-1]
    return contained(text, content[8 + size :], tensors)


def header(rng: np.random.Generator) -> bytes:
    """Any version: the header of the container, whose length fits."""
    content = [FIRST, *SECOND, *THIRD][rng.integers(5)].read_bytes()
    size = int.from_bytes(content[:8], "little")
    text = spliced(rng, content[8 : 8 + size])
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


WAYS: dict[str, Callable[[np.random.Generator], bytes]] = {
    way.__name__: way for way in (third, second, second_text, first, first_text, header)
}


def changed(way: str, count: int, seed: int = 0) -> Iterator[bytes]:
    """So many files changed in one of the ways."""
    rng = np.random.default_rng(seed)
    return (WAYS[way](rng) for _ in range(count))


def rehashed(text: bytes) -> bytes:
    """The text with a hash that fits it, if there is one in it."""
    start, found, _ = text.rpartition(b',"hash":')
    return start + found + b'"' + byte_hash(start + b"}").encode() + b'"}' if found else text
