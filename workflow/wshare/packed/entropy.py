"""Non-negative integers as bytes: fixed-width bits, and range asymmetric numeral systems (Duda 2013).

Layout of coded integers; the reader knows how many there are and a bound that they stay below:

    u8            low bits b in bits 0 to 6; bit 7: a table and a stream follow; 127 for `wshare.packed.adaptive`
    u8            precision p less 1 in the upper half, field width w less 1 in the lower        if bit 7
    u16           alphabet size n less 1, little-endian                                          if bit 7
    table         n frequencies that sum to 2^p, w bits each, packed as below                    if bit 7
    low bits      the b lowest bits of every integer, packed as below
    stream        the rest: the integers >> b, all 0 without bit 7                               if bit 7

Packed integers take their bits lowest first, without gaps between them; the last byte is filled with zeros.

The stream is what the library `constriction` calls an ANS coder: a state of 64 bits, words of 32 bits, probabilities of
24 bits. Words are little-endian, zero bytes at the end left out. With F_i the sum of the frequencies before symbol i,
its share of the 2^24 starts at c_i = floor(f32(F_i / 2^p) * f32(2^24 - n)) + i, the product rounded to float32; the
last share ends at 2^24. F_i / 2^p is exact in float32, so every platform decodes the same. To decode, take words off
the end: the state starts as 0 and is filled with up to two of them (state = state << 32 | word). Then, for every
integer, r = state mod 2^24, the symbol is the i with c_i <= r < c_(i+1), the state becomes
(state >> 24) (c_(i+1) - c_i) + r - c_i, and takes another word if it is below 2^32 and a word is left. At the end the
state is 0 and no word is left. A stream cut short may decode, to other integers that end in zeros: a checksum outside
has to tell.
"""

import math
from collections.abc import Iterator, Sequence

import constriction
import numpy as np

# Integers handled at once; a multiple of 8, so that every block but the last ends on a byte.
BLOCK = 1 << 16
MAX_PRECISION = 16
MAX_ALPHABET = 1 << 16
TABLE = 0x80
# In place of a number of low bits: what follows is `wshare.packed.adaptive`'s. That imports numba, which takes half a
# second, and so is imported where integers are coded.
ADAPTIVE = 127
# Adaptive coding takes twice the time: it must save a byte for each of so many integers. Of EfficientNet-Lite0 that
# leaves it to small and depthwise layers, and the file is read as fast as without it.
LEAST_SAVED = 128


def pack_indices(indices: np.ndarray, bits: int) -> np.ndarray:
    """Bit-packed indices, uint8 [ceil(n bits / 8)], from integers below 2^bits of any shape, in C order."""
    flat = np.ravel(indices)
    places = np.arange(bits, dtype=np.uint16)
    blocks = [
        np.packbits((flat[start : start + BLOCK, None] >> places & 1).astype(np.uint8), bitorder="little")
        for start in range(0, flat.size, BLOCK)
    ]
    return np.concatenate(blocks) if bits and blocks else np.zeros(0, np.uint8)


def unpack_indices(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Indices, uint16 [count] (uint32 from 17 bits on), of bytes made by `pack_indices`."""
    indices = np.zeros(count, dtype=np.uint16 if bits <= 16 else np.uint32)
    for start in range(0, count if bits else 0, BLOCK):
        stop = min(start + BLOCK, count)
        part = packed[start * bits // 8 : -(-stop * bits // 8)]
        stream = np.unpackbits(part, count=(stop - start) * bits, bitorder="little").reshape(-1, bits)
        for place in range(bits):
            indices[start:stop] |= stream[:, place].astype(indices.dtype) << indices.dtype.type(place)
    return indices


def encode(values: np.ndarray, low_bits: int | None = None) -> bytes:
    """Coded integers, of at least one byte, from integers of any shape in [0, 2^31), in C order.

    With `low_bits` each takes that many bits, which must hold the largest; without, the cheapest split is taken, or
    adaptive coding where that is cheaper by as many bytes as its time is worth. Rows are those of the first axis.
    """
    flat = np.ravel(values).astype(np.uint32)
    coded = encode_split(flat, low_bits)
    if low_bits is not None:
        return coded
    from wshare.packed import adaptive

    row = row_length(np.shape(values))
    adapted = adaptive.encode(flat, row, len(coded) - 2 - flat.size // LEAST_SAVED)
    return coded if adapted is None else bytes([ADAPTIVE]) + adapted


def row_length(shape: Sequence[int]) -> int:
    """Integers in a row of an array."""
    return math.prod(shape[1:]) if len(shape) > 1 else math.prod(shape)


def encode_split(flat: np.ndarray, low_bits: int | None = None) -> bytes:
    """Coded integers as `encode` gives them, of uint32 [n], but never by adaptive coding."""
    bits, frequencies = (low_bits, None) if low_bits is not None else _split(flat)
    low = pack_indices(flat & np.uint32((1 << bits) - 1), bits).tobytes()
    if frequencies is None:
        return bytes([bits]) + low
    coder = constriction.stream.stack.AnsCoder()
    coder.encode_reverse((flat >> np.uint32(bits)).astype(np.int32), _model(frequencies))
    stream = coder.get_compressed().astype("<u4").tobytes().rstrip(b"\0")
    precision, width = int(frequencies.sum()).bit_length() - 1, int(frequencies.max()).bit_length()
    head = bytes([bits | TABLE, precision - 1 << 4 | width - 1]) + (len(frequencies) - 1).to_bytes(2, "little")
    return head + pack_indices(frequencies.astype(np.uint32), width).tobytes() + low + stream


def decode(coded: bytes, count: int, limit: int, row: int | None = None) -> np.ndarray:
    """Integers below `limit` that `encode` coded: uint16 [count], or uint32 if `limit` is above 2^16.

    They came in rows of `row`, or in one row.

    ValueError says what is wrong. Beside the result, memory is that of one block and of the table.
    """
    rest = memoryview(coded)
    if rest and rest[0] == ADAPTIVE:
        from wshare.packed import adaptive

        return adaptive.decode(rest[1:], count, count if row is None else row, limit)
    bits, frequencies, rest = _read_head(rest, limit)
    size = -(-count * bits // 8)
    low, stream = np.frombuffer(rest[:size], np.uint8), bytes(rest[size:])
    if len(low) != size or (stream and frequencies is None):
        raise ValueError(f"{len(rest)} bytes do not hold {count} integers")
    if count * bits % 8 and low[-1] >> count * bits % 8:
        raise ValueError("the bits after the last integer are not zero")
    values = np.zeros(count, np.uint16 if limit <= 1 << 16 else np.uint32)
    for start, high in _high(stream, frequencies, count):
        block = values[start : start + len(high)]
        block[:] = high
        if bits:
            block[:] = high.astype(np.uint32) << np.uint32(bits)
            block |= unpack_indices(low[start * bits // 8 :], bits, len(high))
        if int(block.max(initial=0)) >= limit:
            raise ValueError(f"an integer is not below {limit}")
    return values


def _read_head(rest: memoryview, limit: int) -> tuple[int, np.ndarray | None, memoryview]:
    """Low bits, frequencies (None without a stream) and what follows the table."""
    if not rest:
        raise ValueError("no coded integers")
    bits = rest[0] & ~TABLE
    # A bit more than the bound needs would let a value leave its type before it is compared.
    if bits > (limit - 1).bit_length():
        raise ValueError(f"{bits} low bits are too many for integers below {limit}")
    if not rest[0] & TABLE:
        return bits, None, rest[1:]
    if len(rest) < 4:
        raise ValueError("the frequencies are cut short")
    precision, width = (rest[1] >> 4) + 1, (rest[1] & 15) + 1
    alphabet = int.from_bytes(rest[2:4], "little") + 1
    size = -(-alphabet * width // 8)
    table = np.frombuffer(rest[4 : 4 + size], np.uint8)
    if len(table) != size or not 2 <= alphabet <= (limit - 1 >> bits) + 1:
        raise ValueError(f"a table of {alphabet} frequencies does not fit integers below {limit}")
    frequencies = unpack_indices(table, width, alphabet)
    if int(frequencies.sum(dtype=np.int64)) != 1 << precision:
        raise ValueError(f"the frequencies do not sum to 2^{precision}")
    return bits, frequencies, rest[4 + size :]


def _high(stream: bytes, frequencies: np.ndarray | None, count: int) -> Iterator[tuple[int, np.ndarray]]:
    """Start and integers, int32, of one block after another; all 0 without frequencies."""
    starts = range(0, count, BLOCK)
    if frequencies is None:
        yield from ((start, np.zeros(min(BLOCK, count - start), np.int32)) for start in starts)
        return
    if stream.endswith(b"\0"):
        raise ValueError("the stream ends in a zero byte")
    words = np.frombuffer(stream + bytes(-len(stream) % 4), "<u4").astype(np.uint32)
    coder, model = constriction.stream.stack.AnsCoder(words), _model(frequencies)
    yield from ((start, coder.decode(model, min(BLOCK, count - start))) for start in starts)
    if not coder.is_empty():
        raise ValueError("the stream does not end with the last integer")


def _model(frequencies: np.ndarray) -> constriction.stream.model.Categorical:
    """Entropy model; frequencies are integers that sum to a power of two, so float32 holds them exactly."""
    shares = (frequencies / frequencies.sum(dtype=np.int64)).astype(np.float32)
    return constriction.stream.model.Categorical(shares, perfect=False)


def _split(flat: np.ndarray) -> tuple[int, np.ndarray | None]:
    """Low bits and frequencies of the rest that take the fewest bytes; None if plain bits do."""
    largest = int(flat.max(initial=0))
    widest = largest.bit_length()
    first = max(0, widest - MAX_ALPHABET.bit_length() + 1)
    histogram = np.bincount((flat >> np.uint32(first)).astype(np.int64))
    cost, best = -(-flat.size * widest // 8), (widest, None)
    for bits in range(first, widest):
        # Fewer used symbols than there are at most need no more precision than their number of bits.
        least = max(1, (int(np.count_nonzero(histogram)) - 1).bit_length())
        for precision in range(least, MAX_PRECISION + 1):
            frequencies = _quantised(histogram, precision)
            if frequencies.max() < 1 << 16 and (found := _cost(histogram, frequencies, bits)) < cost:
                cost, best = found, (bits, frequencies)
        histogram = np.append(histogram, np.zeros(len(histogram) % 2, np.int64)).reshape(-1, 2).sum(1)
    return best


def _cost(histogram: np.ndarray, frequencies: np.ndarray, bits: int) -> float:
    """Bytes beyond those of plain bits' head: head, table, low bits and, estimated, stream."""
    used = histogram > 0
    entropy = histogram[used] @ -np.log2(frequencies[used] / frequencies.sum())
    table = -(-len(frequencies) * int(frequencies.max()).bit_length() // 8)
    # A stream ends on a byte, after a state that is a few bits longer than its content.
    return 3 + table + -(-int(histogram.sum()) * bits // 8) + float(entropy) / 8 + 1


def _quantised(histogram: np.ndarray, precision: int) -> np.ndarray:
    """Frequencies, int64, that sum to 2^precision and are 0 only where the histogram is."""
    total, used = 1 << precision, histogram > 0
    exact = histogram * (total / histogram.sum())
    frequencies = np.maximum(np.floor(exact).astype(np.int64), used)
    if frequencies.sum() > total:
        free = total - np.count_nonzero(used)
        frequencies = used + np.floor(histogram * (free / histogram.sum())).astype(np.int64)
    # What is left, less than one each, goes where it saves most bits.
    gain = np.where(used, histogram * np.log1p(1 / np.maximum(frequencies, 1)), -1)
    left = total - int(frequencies.sum())
    frequencies[np.argsort(-gain, kind="stable")[:left]] += 1
    return frequencies
