"""Non-negative integers as bytes by binary decisions whose probabilities adapt, so that no table is stored.

Layout; the reader knows how many integers there are, the length of a row, and a bound that they stay below:

    u8            bits 0 to 5: scale s plus 32; bit 6: 0; bit 7: contexts
    varint        centre
    u16           mean, from 1, little-endian                        if contexts
    stream        to the end

A varint has 7 bits in each byte, the lowest first; bit 7 says that another byte follows. An integer is centre + v.
With e the number of bits of |v|, e decisions "1" and a "0" are coded, then the sign (1 if negative) if e > 0, and the
bits of |v| below its highest, from the highest: the first two by adaptive decisions, the others at one half each.

A decision has a probability p of "1", in 65,536ths, and a count n. After it p += ((65,535 or 0) - p) * floor(65,536 /
(n + 2)) / 65,536, rounded down, and n grows by one up to 254. These are kept for the i-th decision that tells e, for
each i and context c; for the first bit below the highest, for each e and c; for the second, for each e and first bit;
and for the sign. They start at a half and n = 0, but those that tell e at PRIOR[clip(2 i - s - SHIFTS[c] + 16, 0, 23)]
and n = 6, as if the integers had a Laplace distribution of standard deviation 2^(s/2), which grows with the context;
without contexts SHIFTS are 0.

Without contexts c is 6. With them, c = min(11, floor(3 (column + row) / mean)), where column and row are running means
of |v|, in 256ths: `mean` at first, that of the row again at the start of every row; after an integer, with
x = min(|v|, 32767), they become column - floor(column / 16) + 16 x and row - floor(row / 32) + 8 x. Each place in a row
has a column.

The stream is a range coder's (Martin 1979): a range of 32 bits, at first 2^32 - 1, and a number of as many, the first
four bytes, highest first. A decision cuts the range at bound = floor(range / 4096) * clip(floor(p / 16), 1, 4095).
Below the bound it is "1" and the range becomes the bound, else both lose the bound. While the range is below 2^24, it
is taken 256 times, and the number too, plus the next byte. Bytes past the end are 0; zeros at the end are left out.
"""

import numpy as np
from numba import njit

from wshare.packed.varint import read_varint, varint

CONTEXTS, CLASSES = 12, 33
NO_CONTEXT = 6
MOST, FIRST = 254, 6
# Scales go from -MIDDLE to MIDDLE - 1 half octaves.
MIDDLE, CONTEXT = 32, 128
# Integers from which on their number pays for contexts alone, and share of all from which on the most frequent integer
# is the centre.
LARGE, OFTEN = 1 << 16, 1 / 16
SHIFTS = np.array([-7, -4, -3, -2, -1, 0, 0, 1, 1, 1, 2, 2])
# 65,536 exp(-2^(h / 2) / sqrt(2)), h from -16 to 7, within what a decision may have.
PRIOR = np.array(
    [65355, 65280, 65175, 65025, 64814, 64517, 64100, 63513, 62692, 61547, 59955, 57759, 54917, 50990, 46020, 39749,
     32312, 24109, 15933, 8869, 3874, 1200, 229, 24]
)  # fmt: skip
# Places of the decisions: the first bits below the highest, the second ones, the sign.
TOP = CONTEXTS * CLASSES
SECOND = 2 * TOP
SIGN = SECOND + 2 * CLASSES
HALF = 1 << 15
# By count; a division each time would take as long as all else.
RATES = 65536 // (np.arange(MOST + 1) + 2)
WIDEST_MEAN = 32767


def _probabilities(scale: int, contexts: bool) -> np.ndarray:
    """Probabilities and counts of all decisions at the start: int64 [decisions, 2]."""
    state = np.zeros((SIGN + 1, 2), np.int64)
    state[:, 0] = HALF
    places = np.arange(TOP)
    shift = SHIFTS[places // CLASSES] if contexts else 0
    state[:TOP, 0] = PRIOR[np.clip(2 * (places % CLASSES) - scale + 16 - shift, 0, len(PRIOR) - 1)]
    state[:TOP, 1] = FIRST
    return state


@njit(cache=True, nogil=True)
def _adapted(state, place, bit):
    p, n = state[place]
    state[place, 0] = p + (((65535 if bit else 0) - p) * RATES[n] >> 16)
    if n < MOST:
        state[place, 1] = n + 1


@njit(cache=True, nogil=True)
def _bound(span, p):
    return (span >> 12) * min(max(p >> 4, 1), 4095)


@njit(cache=True, nogil=True)
def _put(coder, out, bound, bit):
    """Narrow the range; `coder` is low, range, bytes written. Bytes beyond the room are counted, not written."""
    if bit:
        coder[1] = bound
    else:
        coder[0] += bound
        coder[1] -= bound
    if coder[0] >> 32:
        coder[0] &= 0xFFFFFFFF
        _carry(out, coder[2])
    while coder[1] < 1 << 24:
        if coder[2] < len(out):
            out[coder[2]] = coder[0] >> 24
        coder[2] += 1
        coder[0] = (coder[0] << 8) & 0xFFFFFFFF
        coder[1] <<= 8


@njit(cache=True, nogil=True)
def _carry(out, written):
    place = min(written, len(out)) - 1
    while place >= 0 and out[place] == 255:
        out[place] = 0
        place -= 1
    if place >= 0:
        out[place] += 1


@njit(cache=True, nogil=True)
def _encode(values, row, mean, state, out):
    """Bytes that the stream takes; `out` holds them if there is room. `values` is int64, `mean` 0 for no contexts."""
    coder = np.array([0, 0xFFFFFFFF, 0])
    columns = np.full(row if mean else 0, mean)
    along = mean
    for i in range(len(values)):
        value = values[i]
        size = abs(value)
        c, column = NO_CONTEXT, i % row
        if mean:
            if column == 0:
                along = mean
            c = min(CONTEXTS - 1, 3 * (columns[column] + along) // mean)
        bits = 0
        while size >> bits:
            bits += 1
        for e in range(bits + 1):
            bit = e < bits
            place = c * CLASSES + e
            _put(coder, out, _bound(coder[1], state[place, 0]), bit)
            _adapted(state, place, bit)
        if bits:
            bit = value < 0
            _put(coder, out, _bound(coder[1], state[SIGN, 0]), bit)
            _adapted(state, SIGN, bit)
        first = 0
        for low in range(bits - 2, -1, -1):
            bit = (size >> low & 1) == 1
            if low == bits - 2:
                place, first = TOP + c * CLASSES + bits, 1 if bit else 0
            else:
                place = SECOND + 2 * bits + first
            if low >= bits - 3:
                _put(coder, out, _bound(coder[1], state[place, 0]), bit)
                _adapted(state, place, bit)
            else:
                _put(coder, out, _bound(coder[1], HALF), bit)
        if mean:
            x = min(size, WIDEST_MEAN)
            columns[column] += (x << 4) - (columns[column] >> 4)
            along += (x << 3) - (along >> 5)
    # The number within the range that ends in most zeros.
    for zeros in range(32, 23, -1):
        number = (coder[0] + (1 << zeros) - 1) >> zeros << zeros
        if number < coder[0] + coder[1]:
            break
    if number >> 32:
        _carry(out, coder[2])
    for shift in (24, 16, 8, 0):
        if coder[2] < len(out):
            out[coder[2]] = number >> shift & 255
        coder[2] += 1
    return coder[2]


@njit(cache=True, nogil=True)
def _take(number, span, read, stream, bound):
    """The next decision, and number, range and bytes read after it."""
    bit = number < bound
    if bit:
        span = bound
    else:
        number -= bound
        span -= bound
    while span < 1 << 24:
        number = number << 8 | (stream[read] if read < len(stream) else 0)
        span <<= 8
        read += 1
    return bit, number, span, read


@njit(cache=True, nogil=True)
def _decode(stream, row, mean, state, centre, limit, values):
    """Fill `values`; returns bytes read, or -1 where one is not in [0, limit)."""
    number, span, read = 0, 0xFFFFFFFF, 4
    for i in range(4):
        number = number << 8 | (stream[i] if i < len(stream) else 0)
    if number == span:
        return -1
    columns = np.full(row if mean else 0, mean)
    along, column, c = mean, -1, NO_CONTEXT
    for i in range(len(values)):
        column += 1
        if column == row:
            column, along = 0, mean
        if mean:
            c = min(CONTEXTS - 1, 3 * (columns[column] + along) // mean)
        bits, bit = -1, True
        while bit:
            bits += 1
            if bits == CLASSES:
                return -1
            place = c * CLASSES + bits
            bit, number, span, read = _take(number, span, read, stream, _bound(span, state[place, 0]))
            _adapted(state, place, bit)
        negative, size, first = False, min(bits, 1), 0
        if bits:
            negative, number, span, read = _take(number, span, read, stream, _bound(span, state[SIGN, 0]))
            _adapted(state, SIGN, negative)
        for low in range(bits - 2, -1, -1):
            place = TOP + c * CLASSES + bits if low == bits - 2 else SECOND + 2 * bits + first
            p = state[place, 0] if low >= bits - 3 else HALF
            bit, number, span, read = _take(number, span, read, stream, _bound(span, p))
            if low >= bits - 3:
                _adapted(state, place, bit)
            size = size << 1 | bit
            if low == bits - 2:
                first = size & 1
        value = centre - size if negative else centre + size
        if not 0 <= value < limit:
            return -1
        values[i] = value
        if mean:
            x = min(size, WIDEST_MEAN)
            columns[column] += (x << 4) - (columns[column] >> 4)
            along += (x << 3) - (along >> 5)
    return read


def encode(values: np.ndarray, row: int, room: int) -> bytes | None:
    """The shortest coded integers found, of at most `room` bytes, or None; of uint32 [n] in rows of `row`."""
    if not values.size or room < 1:
        return None
    centre = _centre(values)
    offsets = values.astype(np.int64) - centre
    spread = float(np.abs(offsets).mean())
    # Of a Laplace distribution.
    scale = round(2 * np.log2(max(spread, 2.0**-8)) + 1)
    mean = min(max(round(256 * spread), 1), 65535)
    # Contexts pay where there are many integers, and the scale, soon forgotten, where there are few.
    tried = [(0, s) for s in (scale - 1, scale, scale + 1)] if values.size < LARGE else []
    tried += [(mean, scale)] if 1 < row < values.size else []
    found = (_coded(offsets, centre, row, own, s, room) for own, s in tried)
    return min((coded for coded in found if coded is not None), key=len, default=None)


def _centre(values: np.ndarray) -> int:
    """The integer that is there most often, or the middle one where no other is often."""
    if int(values.max()) < 1 << 16:
        counts = np.bincount(values)
        if counts.max() > values.size * OFTEN:
            return int(counts.argmax())
    return int(np.partition(values, values.size // 2)[values.size // 2])


def _coded(offsets: np.ndarray, centre: int, row: int, mean: int, scale: int, room: int) -> bytes | None:
    scale = min(max(scale, -MIDDLE), MIDDLE - 1)
    head = bytes([scale + MIDDLE | CONTEXT * (mean > 0)]) + varint(centre)
    head += mean.to_bytes(2, "little") if mean else b""
    # Up to four zeros at the end are left out.
    out = np.zeros(room + 4, np.uint8)
    used = _encode(offsets, row, mean, _probabilities(scale, mean > 0), out)
    coded = head + out[:used].tobytes().rstrip(b"\0")
    return coded if used <= len(out) and len(coded) <= room else None


def decode(coded: memoryview, count: int, row: int, limit: int) -> np.ndarray:
    """Integers below `limit` that `encode` coded: uint16 [count], or uint32 if `limit` is above 2^16.

    ValueError says what is wrong.
    """
    if not coded or coded[0] & ~(CONTEXT | 2 * MIDDLE - 1):
        raise ValueError("no scale")
    scale, has_mean = (coded[0] & 2 * MIDDLE - 1) - MIDDLE, coded[0] & CONTEXT
    centre, rest = read_varint(coded[1:])
    if centre >= limit or (has_mean and len(rest) < 2):
        raise ValueError("the centre is out of bounds, or there is no mean")
    mean, rest = (int.from_bytes(rest[:2], "little"), rest[2:]) if has_mean else (0, rest)
    if has_mean and not mean:
        raise ValueError("a mean of 0")
    stream = np.frombuffer(rest, np.uint8)
    if stream.size and not stream[-1]:
        raise ValueError("the stream ends in a zero byte")
    values = np.zeros(count, np.uint16 if limit <= 1 << 16 else np.uint32)
    used = _decode(stream, max(row, 1), mean, _probabilities(scale, mean > 0), centre, limit, values)
    if used < 0:
        raise ValueError(f"an integer is not below {limit}")
    if used < stream.size:
        raise ValueError("the stream does not end with the last integer")
    return values
