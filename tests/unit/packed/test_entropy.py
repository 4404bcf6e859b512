import math

import constriction
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wshare.packed import entropy
from wshare.packed.entropy import decode, encode, encode_split, pack_indices, unpack_indices
from wshare.quantize.cost import index_bits

LIMIT = 1 << 31
SHARES = 1 << 24


def test_indices_come_back_for_every_k_from_1_to_4096():
    rng = np.random.default_rng(0)
    for k in range(1, 4097):
        indices = rng.integers(k, size=rng.integers(1, 6, size=rng.integers(1, 5)))
        indices.flat[0] = k - 1
        bits = index_bits(k)
        octets = pack_indices(indices.astype(np.uint16), bits)
        assert 2**bits >= k > 2**bits // 2
        assert octets.dtype == np.uint8
        assert octets.shape == (math.ceil(indices.size * bits / 8),)
        assert np.array_equal(unpack_indices(octets, bits, indices.size), indices.ravel())


@pytest.mark.slow
@given(st.integers(1, 31), st.lists(st.integers(0, 2**31 - 1), max_size=50), st.sampled_from([8, 16, 64]))
def test_blocks_join_without_a_gap(bits, values, block):
    indices = np.array(values, dtype=np.uint32) & np.uint32(2**bits - 1)
    whole = pack_indices(indices, bits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entropy, "BLOCK", block)
        assert np.array_equal(pack_indices(indices, bits), whole)
        assert np.array_equal(unpack_indices(whole, bits, len(indices)), indices)


def test_indices_lie_lowest_bit_first():
    assert pack_indices(np.array([1, 2, 3], np.uint16), 3).tolist() == [0b11_010_001, 0]
    assert pack_indices(np.array([4095, 1], np.uint16), 12).tolist() == [0xFF, 0x1F, 0x00]


@pytest.mark.slow
@given(st.integers(1, 31).flatmap(lambda bits: st.lists(st.integers(0, 2**bits - 1), max_size=300)))
def test_integers_come_back(values):
    octets = encode(np.array(values, np.int64))
    assert decode(octets, len(values), LIMIT).tolist() == values
    widest = max(values, default=0).bit_length()
    plain = encode(np.array(values, np.int64), widest)
    assert decode(plain, len(values), LIMIT).tolist() == values
    assert len(plain) == 1 + math.ceil(len(values) * widest / 8)
    assert len(octets) <= len(plain) + 4


@given(st.lists(st.integers(0, 20), max_size=300), st.sampled_from([8, 16, 64]))
def test_blocks_of_a_stream_join(values, block):
    octets = encode(np.array(values * 5, np.int64))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entropy, "BLOCK", block)
        assert decode(octets, len(values) * 5, 21).tolist() == values * 5


@pytest.mark.parametrize("k", [2, 8, 30, 300])
def test_size_is_the_entropy_and_the_table(k):
    values = np.clip(np.random.default_rng(k).laplace(scale=k / 12, size=100_000).round() + k // 2, 0, k - 1)
    octets = encode(values.astype(np.uint16))
    shares = np.bincount(values.astype(int)) / len(values)
    ideal = -(shares[shares > 0] @ np.log2(shares[shares > 0])) * len(values) / 8
    assert len(octets) <= 1.01 * ideal + 2 * k
    assert len(octets) >= ideal
    assert np.array_equal(decode(octets, len(values), k), values)


def test_a_rare_symbol_among_many_costs_no_more_than_its_share():
    """One in 2,000: a table of eight bits could not tell it from one in 256, and would take half as much again."""
    values = np.zeros(200_000, np.uint16)
    values[::2000] = 1
    shares = np.bincount(values) / len(values)
    ideal = -(shares @ np.log2(shares)) * len(values) / 8
    octets = encode_split(values.astype(np.uint32))
    assert len(octets) <= 1.02 * ideal + 12
    assert np.array_equal(decode(octets, len(values), 2), values)


def table_of(octets: bytes) -> tuple[int, list[int]]:
    """Precision and frequencies of coded integers."""
    precision, width = (octets[1] >> 4) + 1, (octets[1] & 15) + 1
    alphabet = int.from_bytes(octets[2:4], "little") + 1
    table = np.frombuffer(octets[4 : 4 + math.ceil(alphabet * width / 8)], np.uint8)
    return precision, unpack_indices(table, width, alphabet).tolist()


@pytest.mark.parametrize(
    ("counts", "precision", "frequencies", "size"),
    [
        # Shares of 64 are 47.8, 14.3, 1.4 and 0.5: rounded down, but for the last, they leave one.
        ([100, 30, 3, 1], 6, [48, 14, 1, 1], 26),
        # Shares of 16 are 12.8, 2.9, 0 and 0.3: the one left saves the second symbol most.
        ([40, 9, 0, 1], 4, [12, 3, 0, 1], 14),
        # Shares of 64 are 62.3, 0.7, 0.7 and 0.3. With one for each that rounds to none that is one too many.
        ([186, 2, 2, 1], 6, [60, 2, 1, 1], 15),
    ],
)
def test_frequencies_that_are_left_over_go_where_they_save_most(counts, precision, frequencies, size):
    octets = encode_split(np.repeat(np.arange(len(counts)), counts).astype(np.uint32))
    assert table_of(octets) == (precision, frequencies)
    assert len(octets) == size


@given(st.lists(st.integers(0, 300), min_size=2, max_size=12))
def test_frequencies_sum_to_the_precision_and_are_none_where_nothing_occurs(counts):
    octets = encode_split(np.repeat(np.arange(len(counts)), counts).astype(np.uint32))
    if octets[0] == entropy.TABLE:
        precision, frequencies = table_of(octets)
        assert sum(frequencies) == 1 << precision
        assert [bool(found) for found in frequencies] == [bool(count) for count in counts[: len(frequencies)]]


def test_equal_zeros_and_nothing_cost_one_byte():
    for count in (0, 1, 1 << 20):
        octets = encode(np.zeros(count, np.uint16))
        assert len(octets) == 1
        assert decode(octets, count, 1).shape == (count,)


def test_wide_values_split_into_coded_and_plain_bits():
    values = np.random.default_rng(0).laplace(scale=2000, size=5000).astype(np.int64) + 40_000
    octets = encode_split(values.astype(np.uint32))
    assert octets[0] & entropy.TABLE
    assert 0 < octets[0] & 31 < 16
    assert len(octets) < 0.9 * math.ceil(5000 * 16 / 8)
    assert np.array_equal(decode(octets, 5000, 1 << 17), values)


@pytest.mark.parametrize(("limit", "kind"), [(2, np.uint16), (1 << 16, np.uint16), ((1 << 16) + 1, np.uint32)])
def test_decoded_integers_take_two_bytes_each_where_that_is_enough(limit, kind):
    values = np.array([0, limit - 1, 0, 1])
    found = decode(encode(values), 4, limit)
    assert found.dtype == kind
    assert found.tolist() == values.tolist()


def decode_as_described(octets: bytes, count: int) -> list[int]:
    """A second decoder, from the text of the module alone."""

    def fields(data: bytes, bits: int, number: int) -> list[int]:
        whole = int.from_bytes(data, "little")
        return [whole >> bits * place & ((1 << bits) - 1) for place in range(number)]

    low = octets[0] & 127
    size = (count * low + 7) // 8
    if not octets[0] & 128:
        return fields(octets[1:], low, count)
    precision, width = (octets[1] >> 4) + 1, (octets[1] & 15) + 1
    alphabet = int.from_bytes(octets[2:4], "little") + 1
    table = (alphabet * width + 7) // 8
    frequencies = fields(octets[4 : 4 + table], width, alphabet)
    scale = np.float32(SHARES - alphabet)
    sums = [sum(frequencies[:i]) for i in range(alphabet)]
    starts = [int(np.float32(total / 2**precision) * scale) + i for i, total in enumerate(sums)] + [SHARES]
    lows = fields(octets[4 + table : 4 + table + size], low, count)
    stream = octets[4 + table + size :]
    words = np.frombuffer(stream + bytes(-len(stream) % 4), "<u4").tolist()
    state = 0
    for _ in range(min(2, len(words))):
        state = state << 32 | words.pop()
    values = []
    for rest in lows:
        place = state % SHARES
        symbol = int(np.searchsorted(starts, place, side="right")) - 1
        values.append(symbol << low | rest)
        state = (state >> 24) * (starts[symbol + 1] - starts[symbol]) + place - starts[symbol]
        if state < 1 << 32 and words:
            state = state << 32 | words.pop()
    assert (state, words) == (0, [])
    return values


@pytest.mark.parametrize(("scale", "count"), [(0.3, 400), (2, 1000), (20, 3000), (3000, 5000)])
def test_the_description_is_enough_to_decode(scale, count):
    values = np.abs(np.random.default_rng(1).laplace(scale=scale, size=count).round().astype(np.int64))
    octets = encode_split(values.astype(np.uint32))
    assert octets[0] & entropy.TABLE
    assert decode_as_described(octets, count) == values.tolist()


def craft(frequencies: list[int], precision: int, symbols: list[int], bits: int = 0, low: bytes = b"") -> bytes:
    """Coded integers with any table; the stream is made with shares that fit it."""
    width = max(1, max(frequencies).bit_length())
    head = bytes([bits | 0x80, precision - 1 << 4 | width - 1]) + (len(frequencies) - 1).to_bytes(2, "little")
    coder = constriction.stream.stack.AnsCoder()
    shares = np.array(frequencies, np.float32) / np.float32(sum(frequencies))
    model = constriction.stream.model.Categorical(shares, perfect=False)
    coder.encode_reverse(np.array(symbols, np.int32), model)
    stream = coder.get_compressed().astype("<u4").tobytes().rstrip(b"\0")
    return head + pack_indices(np.array(frequencies, np.uint16), width).tobytes() + low + stream


SYMBOLS = [0, 1, 2, 1, 0, 2, 2, 1] * 20


def test_crafted_integers_that_are_right_are_decoded():
    """The other crafted bytes differ from these in one thing each."""
    assert decode(craft([1, 2, 1], 2, SYMBOLS), 160, 3).tolist() == SYMBOLS


@pytest.mark.parametrize(
    ("octets", "message"),
    [
        (b"", "no coded"),
        (b"\x80", "cut short"),
        (b"\x80\x11\x02", "cut short"),
        (b"\x80\xff\xff\xff", "does not fit"),
        (b"\x80\x00\x00\x00\x01", "does not fit"),
        (b"\x03" + bytes(60), "too many"),
        (b"\x7e" + bytes(60), "too many"),
        (b"\x02" + bytes(39), "do not hold"),
        (b"\x02" + bytes(41), "do not hold"),
        (b"\x00\x00", "do not hold"),
        (b"\x02" + b"\xff" * 40, "not below"),
        (craft([1, 2, 2], 2, SYMBOLS), "do not sum"),
        (craft([1, 1, 1], 2, SYMBOLS), "do not sum"),
        (craft([1, 2, 1], 3, SYMBOLS), "do not sum"),
        (craft([1, 1, 1, 1], 2, SYMBOLS), "does not fit"),
        (craft([1, 2, 1], 2, [*SYMBOLS, 1, 2]), "does not end"),
        (craft([1, 2, 1], 2, SYMBOLS) + b"\x01", "does not end"),
        (craft([1, 2, 1], 2, SYMBOLS) + b"\x00", "zero byte"),
        (craft([1, 2, 1], 2, SYMBOLS) + bytes(4), "zero byte"),
        (craft([1, 1], 1, [1] * 160, 1, bytes([255] * 20)), "not below"),
    ],
)
def test_wrong_bytes_are_refused(octets, message):
    with pytest.raises(ValueError, match=message):
        decode(octets, 160, 3)


def test_padding_must_be_zero():
    assert decode(bytes([2, 0b00_10_01_00]), 3, 3).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="not zero"):
        decode(bytes([2, 0b01_10_01_00]), 3, 3)


@given(st.binary(max_size=60), st.integers(0, 200), st.sampled_from([1, 2, 3, 30, 1 << 16, LIMIT]))
def test_any_bytes_give_integers_below_the_limit_or_a_value_error(octets, count, limit):
    try:
        values = decode(octets, count, limit)
    except ValueError:
        return
    assert values.shape == (count,)
    assert int(values.max(initial=0)) < limit
