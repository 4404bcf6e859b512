"""A second decoder, written from docs/format.md alone, gives the same bits as wshare.

Nothing of wshare is used below the line "The decoder"; the tests use wshare only to make files and to compare.
"""

import base64
import hashlib
import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest

from wshare.packed import entropy
from wshare.packed.entropy import ADAPTIVE
from wshare.packed.format import BatchNorm, FoldedNorm, load_packed, read_index, write_packed
from wshare.packed.hashes import weights_hash
from wshare.quantize.codebooks import Layout, Shared, nearest_indices

DATA = Path(__file__).parents[2] / "data"
GOLDEN = ("v1", "v2_entropy", "v2_fixed", "v3_entropy", "v3_fixed")


def sample_parts():
    """Arguments of `write_packed` with every kind of entry, twice where it has two forms."""
    rng = np.random.default_rng(0)
    conv, wide = rng.normal(size=(6, 2, 3, 3)).astype(np.float32), rng.normal(size=(4, 600)).astype(np.float32)
    turned, by_second = rng.normal(size=(4, 3, 2)).astype(np.float32), Layout(1, 2)
    few, many = np.array([-1.1, -0.2, 0, 0.3, 1.2], np.float32), np.arange(-6, 6, dtype=np.float32) / 4
    shared = {
        "conv.weight": Shared(few, nearest_indices(conv, few), np.array([-9, 0, 3, 8, 1, 2], np.int16)),
        "wide.weight": Shared(many, nearest_indices(wide, many)),
        "constant": Shared(few[:1], np.zeros((2, 3), np.uint16)),
        # Outputs by the second axis, 3 in each of 2 groups.
        "turned.weight": Shared(few, nearest_indices(turned, few), np.array([1, -3, 0, 9, 2, 5], np.int16), by_second),
    }
    folded = {
        "conv.bn": FoldedNorm("conv.weight", np.array([-70_000, 5, 0, 2, -2, 9], np.int32), 0.01, 1e-3, True),
        "wide.bn": FoldedNorm("wide.weight", np.array([1, 2, 3, 2], np.int32), 0.5, 1e-5, False),
        "turned.bn": FoldedNorm("turned.weight", np.array([1, 2, 3, 4, 5, -6], np.int32), 0.5, 1e-5, True),
    }
    norms = {
        "bn": BatchNorm(np.array([1, 2], np.float32), np.array([0.5, -1], np.float32), 1e-3, True),
        "plain": BatchNorm(np.array([3], np.float16), np.array([0.25], np.float16), 1e-5, False),
    }
    state = {"conv.weight": conv, "wide.weight": wide, "constant": np.zeros((2, 3), np.float32)}
    state["turned.weight"] = turned
    state |= {"counter": np.array(7), "mask": np.array([True, False]), "bias": rng.normal(size=6).astype(np.float16)}
    return state, shared, norms, folded, {"tied.weight": "conv.weight"}


@pytest.mark.parametrize("form", ["fixed", "entropy"])
def test_decoder_of_the_text_gives_the_same_bits(tmp_path, form):
    path = tmp_path / "packed.safetensors"
    write_packed(path, *sample_parts(), form)
    assert_same(read(path), load_packed(path))


@pytest.mark.parametrize("form", ["fixed", "entropy"])
@pytest.mark.parametrize("k", [1, 2, 3, 17, 300])
def test_decoder_of_the_text_reads_skewed_indices_of_every_shape(tmp_path, form, k):
    rng = np.random.default_rng(k)
    values = np.sort(rng.normal(size=k)).astype(np.float32)
    # Values that float16 holds and a shape of no axis; the normal weights below use few of the outer values.
    state = {
        f"layer{i}": rng.normal(size=shape).astype(np.float32) / 3 for i, shape in enumerate([(), (9, 200), (0, 4)])
    }
    shared = {name: Shared(values, nearest_indices(weights, values)) for name, weights in state.items()}
    rows = np.array([-1008, 1000, *range(-3, 4)], np.int16)
    shared["layer1"] = Shared(np.sort(values.astype(np.float16).astype(np.float32)), shared["layer1"].indices, rows)
    path = tmp_path / "packed.safetensors"
    write_packed(path, state, shared, {}, {}, {}, form)
    assert_same(read(path), load_packed(path))


def test_the_hash_of_the_float32_weights_is_that_of_the_text(tmp_path):
    state, shared, *rest = sample_parts()
    path = tmp_path / "packed.safetensors"
    write_packed(path, state, shared, *rest, "entropy", weights_hash(state, shared))
    octets = b"".join(f"<f4{state[name].shape}".encode() + state[name].tobytes() for name in shared)
    expected = base64.b64encode(hashlib.sha256(octets).digest()).decode().rstrip("=")
    assert read_index(path)["float32"] == expected[:12]
    assert_same(read(path), load_packed(path))


@pytest.mark.parametrize("name", GOLDEN)
def test_decoder_of_the_text_gives_the_same_bits_for_every_version(name):
    path = DATA / f"golden_{name}.safetensors"
    assert_same(read(path), load_packed(path))


def test_decoder_of_the_text_reads_batch_norms_without_weight_and_bias(tmp_path):
    norm = BatchNorm(np.array([0.3, 7], np.float32), np.array([0.1, -2], np.float32), 0.0, False)
    path = tmp_path / "packed.safetensors"
    write_packed(path, {}, {}, {"bn": norm}, {}, {}, "fixed")
    assert_same(read(path), load_packed(path))


@pytest.mark.parametrize("scale", [0.3, 2, 40, 5000])
def test_decoder_of_the_text_reads_coded_integers_of_any_spread(scale):
    values = np.abs(np.random.default_rng(0).normal(scale=scale, size=3000)).astype(np.int64)
    for octets in (entropy.encode(values), entropy.encode_split(values.astype(np.uint32))):
        assert octets[0] & 0x80 or octets[0] == ADAPTIVE, "the example has to use a stream"
        assert coded(memoryview(octets), values.size).tolist() == values.tolist()


@pytest.mark.parametrize("place", [-1, -40])
def test_decoder_of_the_text_finds_a_changed_byte(tmp_path, place):
    path = tmp_path / "packed.safetensors"
    write_packed(path, *sample_parts(), "entropy")
    octets = bytearray(path.read_bytes())
    octets[place] ^= 4
    path.write_bytes(octets)
    with pytest.raises(AssertionError, match="payload"):
        read(path)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        array = tensor.numpy()
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert found[name].tobytes() == array.tobytes(), name


# The decoder.

EIGHTHS = np.array([1, 1.0905077, 1.1892071, 1.2968396, 1.4142135, 1.5422108, 1.6817929, 1.8340081], np.float32)
KINDS = ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"]
TYPES = {"F16": "<f2", "F32": "<f4", "U8": "|u1"}


def read(path):
    """State dict of a packed file: arrays by name."""
    octets = memoryview(path.read_bytes())
    length = int.from_bytes(octets[:8], "little")
    header, data = json.loads(bytes(octets[8 : 8 + length])), octets[8 + length :]
    if "__metadata__" not in header:
        assert list(header) == ["wshare"]
        return read_third(data)
    text = header.pop("__metadata__")["wshare"]
    index = json.loads(text)
    assert digest((text[: text.rindex(',"hash":')] + "}").encode()) == index["hash"], "the index is damaged"
    arrays = {
        name: np.frombuffer(data[slice(*entry["data_offsets"])], TYPES[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in header.items()
    }
    state = {1: read_first, 2: read_second}[index["version"]](index, arrays)
    return state | {alias: state[name] for alias, name in index["aliases"].items()}


def digest(octets):
    return base64.b64encode(hashlib.sha256(octets).digest()).decode().rstrip("=")


def read_first(index, arrays):
    state = {}
    for name, (shape, expected) in index["shared"].items():
        codebook, octets = checked([arrays[f"{name}.codebook"], arrays[f"{name}.indices"]], expected)
        indices = packed_bits(octets, math.ceil(math.log2(len(codebook))), math.prod(shape))
        state[name] = codebook[indices].reshape(shape)
    for name, (eps, expected) in index["batch_norm"].items():
        state |= batch_norm(name, *checked([arrays[f"{name}.scale"], arrays[f"{name}.shift"]], expected), eps)
    for name, expected in index["kept"].items():
        (state[name],) = checked([arrays[name]], expected)
    return state


def checked(entry, expected):
    text = b"".join(f"{array.dtype.str}{array.shape}".encode() + array.tobytes() for array in entry)
    assert digest(text) == expected, "an entry is damaged"
    return entry


def read_second(index, arrays):
    payload = memoryview(arrays["payload"])
    assert digest(payload) == index["payload"], "the payload is damaged"
    state, powers = {}, []

    def section(size):
        nonlocal payload
        checksum, content, payload = payload[:4], payload[4:size], payload[size:]
        assert zlib.crc32(content) == int.from_bytes(checksum, "little"), "a section is damaged"
        return content

    for name, (shape, k, size) in index["shared"].items():
        content = section(size)
        half, scaled = content[0] & 1, content[0] & 2
        axis, groups, rest = 0, 1, content[1:]
        if content[0] & 4:
            axis, groups, rest = rest[0], int.from_bytes(rest[1:5], "little"), rest[5:]
        content, end = rest, (2 if half else 4) * k
        codebook, content = np.frombuffer(content[:end], "<f2" if half else "<f4").astype("<f4"), content[end:]
        outputs = shape[0] if axis == 0 and shape else groups * shape[axis] if shape else 1
        power = np.ones(outputs, np.float32)
        if scaled:
            length, content = int.from_bytes(content[:3], "little"), content[3:]
            exponents = int.from_bytes(content[:2], "little", signed=True) + coded(content[2:length], outputs)
            power = np.ldexp(EIGHTHS[exponents % 8], exponents // 8)
            content = content[length:]
        weights = codebook[coded(content, math.prod(shape))].reshape(shape)
        if scaled:
            place = np.indices(shape)
            group = place[0] // (shape[0] // groups) if axis else 0
            weights = weights * power[group * shape[axis] + place[axis]]
        state[name] = weights
        powers.append(power)
    for name, (position, eps, size) in index["folded"].items():
        content, power = section(size), powers[position]
        unit = np.frombuffer(content[:4], "<f4").astype(float)
        steps = int.from_bytes(content[4:8], "little", signed=True) + coded(content[8:], len(power))
        shift = (steps.astype(float) * unit * power).astype("<f4")
        state |= batch_norm(name, np.ones_like(shift), shift, eps)
    for name, (channels, eps, kind) in index["batch_norm"].items():
        values = np.frombuffer(section(4 + 2 * channels * int(kind[1])), f"<{kind}")
        state |= batch_norm(name, values[:channels], values[channels:], eps)
    for name, (shape, kind) in index["kept"].items():
        state[name] = np.frombuffer(section(4 + math.prod(shape) * int(kind[1])), f"<{kind}").reshape(shape)
    assert not payload, "bytes are left"
    return state


def batch_norm(name, scale, shift, eps):
    scale, shift = scale.astype("<f4"), shift.astype("<f4")
    if math.copysign(1, eps) > 0:
        mean, variance = np.zeros_like(scale), np.full_like(scale, 1 - eps)
        affine = {f"{name}.weight": scale, f"{name}.bias": shift}
    else:
        mean, variance, affine = -shift / scale, 1 / scale**2 - np.float32(abs(eps)), {}
    counter = np.zeros((), np.int64)
    statistics = {"running_mean": mean, "running_var": variance, "num_batches_tracked": counter}
    return affine | {f"{name}.{leaf}": array for leaf, array in statistics.items()}


def read_third(data):
    content, rest = data[:-8], data[2:-8]
    assert hashlib.sha256(content).digest()[:8] == data[-8:], "the payload is damaged"
    assert data[0] == 3
    rest = rest[9:] if data[1] & 2 else rest

    def varint():
        nonlocal rest
        number, place = 0, 0
        while rest[place] & 128:
            number |= (rest[place] & 127) << 7 * place
            place += 1
        number |= rest[place] << 7 * place
        rest = rest[place + 1 :]
        return number

    def signed():
        number = varint()
        return -(number + 1) // 2 if number % 2 else number // 2

    def take(size):
        nonlocal rest
        part, rest = rest[:size], rest[size:]
        return bytes(part)

    def offset(count):
        least, shift = signed(), take(1)[0]
        return least + (coded(rest, count) << shift)

    counts = [varint() for _ in range(5)]
    all_eps = [float(np.frombuffer(take(8), "<f8")[0]) for _ in range(varint())]
    names = []
    for _ in range(sum(counts) + counts[4]):
        back, first, last, own = (varint() for _ in range(4))
        other = names[-back] if back else b""
        names.append(other[:first] + take(own) + other[len(other) - last :])
    names = iter([name.decode() for name in names])
    shared, folded, norms, kept = ([next(names) for _ in range(count)] for count in counts[:4])
    aliases = [(next(names), next(names)) for _ in range(counts[4])]
    shared = [(name, [varint() for _ in range(varint())], varint(), varint()) for name in shared]
    folded = [(name, varint(), all_eps[varint()], varint()) for name in folded]
    norms = [(name, varint(), all_eps[varint()], KINDS[take(1)[0]]) for name in norms]
    for place, name in enumerate(kept):
        kind = take(1)[0]
        shape = [varint() for _ in range(varint())]
        kept[place] = (name, shape, KINDS[kind % 16], kind // 16, varint() if kind // 16 == 2 else None)

    state, powers = {}, []
    for name, shape, k, size in shared:
        after, rest = rest[size:], rest[:size]
        flags = take(1)[0]
        axis, groups = (varint(), varint()) if flags & 4 else (0, 1)
        if flags & 8:
            step, least = np.frombuffer(b"\0\0" + take(2), "<f4").astype(float), signed()
        else:
            codebook = np.frombuffer(take((2 if flags & 1 else 4) * k), "<f2" if flags & 1 else "<f4").astype("<f4")
        outputs = (shape[0] if axis == 0 else groups * shape[axis]) if shape else 1
        power = np.ones(outputs, np.float32)
        if flags & 2:
            length = varint()
            indices, rest = rest[length:], rest[:length]
            exponents = offset(outputs)
            power, rest = np.ldexp(EIGHTHS[exponents % 8], exponents // 8), indices
        integers = coded(rest, math.prod(shape), math.prod(shape[1:]))
        if flags & 8:
            assert len(np.unique(integers)) == k
            weights = (step * (least + integers)).astype("<f4").reshape(shape)
        else:
            weights = codebook[integers].reshape(shape)
        if flags & 2:
            place = np.indices(shape)
            group = place[0] // (shape[0] // groups) if axis else 0
            weights = weights * power[group * shape[axis] + place[axis]]
        state[name], rest = weights, after
        powers.append(power)
    for name, position, eps, size in folded:
        after, rest, power = rest[size:], rest[:size], powers[position]
        unit = np.frombuffer(take(4), "<f4").astype(float)
        shift = (offset(len(power)) * unit * power).astype("<f4")
        state, rest = state | batch_norm(name, np.ones_like(shift), shift, eps), after
    for name, channels, eps, kind in norms:
        values = np.frombuffer(take(2 * channels * int(kind[1])), f"<{kind}")
        state |= batch_norm(name, values[:channels], values[channels:], eps)
    for name, shape, kind, coding, size in kept:
        if coding == 2:
            after, rest = rest[size:], rest[:size]
            unit = 2.0 ** signed()
            state[name], rest = (offset(math.prod(shape)) * unit).astype("<f4").reshape(shape), after
            continue
        stored = "f2" if coding == 1 else kind
        values = np.frombuffer(take(math.prod(shape) * int(stored[1])), f"<{stored}").reshape(shape)
        state[name] = values.astype("<f4") if coding == 1 else values
    assert not rest, "bytes are left"
    return state | {alias: state[name] for alias, name in aliases}


def packed_bits(octets, bits, count):
    """Integers [count] of `bits` bits each."""
    stream = np.unpackbits(np.frombuffer(octets, np.uint8), bitorder="little")[: count * bits]
    return (stream.reshape(count, bits).astype(np.int64) << np.arange(bits)).sum(1)


PRIOR = [65355, 65280, 65175, 65025, 64814, 64517, 64100, 63513, 62692, 61547, 59955, 57759]
PRIOR += [54917, 50990, 46020, 39749, 32312, 24109, 15933, 8869, 3874, 1200, 229, 24]
SHIFTS = [-7, -4, -3, -2, -1, 0, 0, 1, 1, 1, 2, 2]


def adaptive(octets, count, row):
    """Integers [count] of adaptive integers, from behind the mark."""
    scale, contexts, octets = (octets[0] & 63) - 32, octets[0] & 128, octets[1:]
    centre, place = 0, 0
    while octets[place] & 128:
        centre, place = centre | (octets[place] & 127) << 7 * place, place + 1
    centre, octets = centre | octets[place] << 7 * place, octets[place + 1 :]
    mean, octets = (int.from_bytes(octets[:2], "little"), octets[2:]) if contexts else (0, octets)
    number, span, taken = int.from_bytes(bytes(octets[:4]).ljust(4, b"\0"), "big"), 2**32 - 1, 4
    states = {}

    def decision(kind, *key, start=(32768, 0)):
        nonlocal number, span, taken
        p, n = states.get((kind, *key), start)
        bound = span // 4096 * min(max(p // 16, 1), 4095)
        bit = number < bound
        number, span = (number, bound) if bit else (number - bound, span - bound)
        while span < 2**24:
            number = number * 256 + (octets[taken] if taken < len(octets) else 0)
            span, taken = span * 256, taken + 1
        if kind != "even":
            states[(kind, *key)] = p + ((65535 * bit - p) * (65536 // (n + 2))) // 65536, min(n + 1, 254)
        return int(bit)

    columns, along, values = [mean] * row, mean, []
    for i in range(count):
        along = along if i % row else mean
        c = min(11, 3 * (columns[i % row] + along) // mean) if mean else 6
        bits = 0
        while True:
            at = min(max(2 * bits - scale - (SHIFTS[c] if mean else 0) + 16, 0), 23)
            if not decision("bits", c, bits, start=(PRIOR[at], 6)):
                break
            bits += 1
        sign = -1 if bits and decision("sign") else 1
        size = min(bits, 1)
        for low in range(bits - 2, -1, -1):
            key = {bits - 2: ("first", c, bits), bits - 3: ("second", bits, size % 2)}.get(low, ("even",))
            size = 2 * size + decision(*key)
        values.append(centre + sign * size)
        if mean:
            x = min(size, 32767)
            columns[i % row] += 16 * x - columns[i % row] // 16
            along += 8 * x - along // 32
    assert taken >= len(octets), "the stream does not end with the last integer"
    return np.array(values, np.int64)


def coded(octets, count, row=None):
    """Integers [count] of coded integers."""
    if octets[0] == 127:
        return adaptive(octets[1:], count, count if row is None else row)
    bits, has_stream, octets = octets[0] & 127, octets[0] >> 7, octets[1:]
    if has_stream:
        precision, width, size = (octets[0] >> 4) + 1, (octets[0] & 15) + 1, int.from_bytes(octets[1:3], "little") + 1
        end = 3 + -(-size * width // 8)
        frequencies, octets = packed_bits(octets[3:end], width, size), octets[end:]
        assert frequencies.sum() == 2**precision, "the frequencies are damaged"
    end = -(-count * bits // 8)
    low = packed_bits(octets[:end], bits, count)
    return low + (stream_of(bytes(octets[end:]), frequencies, precision, count) << bits) if has_stream else low


def stream_of(octets, frequencies, precision, count):
    """Symbols [count] of a stream."""
    size = len(frequencies)
    before = (np.cumsum(frequencies) - frequencies) / 2**precision
    starts = np.floor(before.astype(np.float32) * np.float32(2**24 - size)).astype(np.int64) + np.arange(size)
    starts = [*starts.tolist(), 2**24]
    words = np.frombuffer(octets + bytes(-len(octets) % 4), "<u4").tolist()
    state, symbols = 0, np.zeros(count, np.int64)
    for _ in range(2):
        state = state << 32 | words.pop() if words else state
    for place in range(count):
        r = state % 2**24
        symbol = int(np.searchsorted(starts, r, side="right")) - 1
        state = (state >> 24) * (starts[symbol + 1] - starts[symbol]) + r - starts[symbol]
        if state < 2**32 and words:
            state = state << 32 | words.pop()
        symbols[place] = symbol
    assert (state, words) == (0, []), "the stream does not end with the last integer"
    return symbols
