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
from wshare.packed.format import BatchNorm, FoldedNorm, load_packed, read_index, write_packed
from wshare.packed.hashes import weights_hash
from wshare.quantize.codebooks import Layout, Shared, nearest_indices

GOLDEN = Path(__file__).parents[2] / "data" / "golden_v1.safetensors"


def sample_parts():
    """Arguments of `write_packed` with every kind of entry of version 2, twice where it has two forms."""
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
def test_decoder_of_the_text_gives_the_same_bits_for_version_2(tmp_path, form):
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
    assert read_index(path)["float32"] == expected
    assert_same(read(path), load_packed(path))


def test_decoder_of_the_text_gives_the_same_bits_for_version_1():
    assert_same(read(GOLDEN), load_packed(GOLDEN))


def test_decoder_of_the_text_reads_batch_norms_without_weight_and_bias(tmp_path):
    norm = BatchNorm(np.array([0.3, 7], np.float32), np.array([0.1, -2], np.float32), 0.0, False)
    path = tmp_path / "packed.safetensors"
    write_packed(path, {}, {}, {"bn": norm}, {}, {}, "fixed")
    assert_same(read(path), load_packed(path))


@pytest.mark.parametrize("scale", [0.3, 2, 40, 5000])
def test_decoder_of_the_text_reads_coded_integers_of_any_spread(scale):
    values = np.abs(np.random.default_rng(0).normal(scale=scale, size=3000)).astype(np.int64)
    octets = entropy.encode(values)
    assert octets[0] & 0x80, "the example has to use a stream"
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
TYPES = {"F16": "<f2", "F32": "<f4", "U8": "|u1"}


def read(path):
    """State dict of a packed file: arrays by name."""
    octets = memoryview(path.read_bytes())
    length = int.from_bytes(octets[:8], "little")
    header, data = json.loads(bytes(octets[8 : 8 + length])), octets[8 + length :]
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


def packed_bits(octets, bits, count):
    """Integers [count] of `bits` bits each."""
    stream = np.unpackbits(np.frombuffer(octets, np.uint8), bitorder="little")[: count * bits]
    return (stream.reshape(count, bits).astype(np.int64) << np.arange(bits)).sum(1)


def coded(octets, count):
    """Integers [count] of coded integers."""
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
