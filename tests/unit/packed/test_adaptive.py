import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wshare.packed import entropy
from wshare.packed.adaptive import decode, encode
from wshare.packed.varint import LONGEST, read_varint, unzigzag, varint, zigzag

LIMIT = 1 << 31
ROOM = 1 << 20


def coded(values: np.ndarray, row: int | None = None) -> bytes:
    return encode(values.astype(np.uint32), values.size if row is None else row, ROOM)


@pytest.mark.slow
@given(
    st.integers(1, 31).flatmap(lambda bits: st.lists(st.integers(0, 2**bits - 1), min_size=1, max_size=200)),
    st.integers(1, 9),
)
def test_integers_come_back(values, row):
    octets = coded(np.array(values), row)
    assert decode(memoryview(octets), len(values), row, LIMIT).tolist() == values


@pytest.mark.parametrize("scale", [0.1, 1, 30, 3000])
def test_a_few_integers_take_little_more_than_their_entropy(scale):
    """A table would take many bytes: most integers are there once."""
    values = np.rint(np.random.default_rng(0).laplace(scale=scale, size=300)).astype(int)
    values -= values.min()
    octets, others = coded(values), entropy.encode_split(values.astype(np.uint32))
    laplace = max(0, np.log2(2 * np.e * scale)) * 300 / 8
    assert len(octets) < 1.15 * laplace + 16
    assert len(octets) < len(others) or scale <= 1


def test_columns_of_different_sizes_take_less_than_the_entropy_of_all():
    scales = np.where(np.arange(50) % 5, 0.2, 6)
    values = np.rint(np.random.default_rng(0).laplace(scale=scales, size=(80, 50))).astype(int)
    values -= values.min()
    octets = coded(values.ravel(), 50)
    shares = np.unique(values, return_counts=True)[1] / values.size
    assert octets[0] & 0x80
    assert len(octets) < 0.8 * -(shares @ np.log2(shares)) * values.size / 8
    assert np.array_equal(decode(memoryview(octets), values.size, 50, 1 << 16), values.ravel())
    # What rows are comes from outside, and decides what is decoded.
    assert not np.array_equal(entropy.decode(entropy.encode(values), values.size, 1 << 16, 50), np.zeros(values.size))


def test_the_time_of_adaptive_coding_has_to_be_worth_its_bytes():
    values = np.rint(np.random.default_rng(0).normal(scale=2, size=(200, 500))).astype(int)
    assert entropy.encode(values - values.min())[0] != entropy.ADAPTIVE


def test_what_does_not_fit_is_not_coded():
    values = np.arange(100, dtype=np.uint32) * 77 % 1000
    size = len(encode(values, 100, ROOM))
    assert len(encode(values, 100, size)) == size
    assert encode(values, 100, size - 1) is None
    assert encode(values[:0], 0, ROOM) is None


@pytest.mark.parametrize(
    ("octets", "limit", "message"),
    [
        (b"", 9, "no scale"),
        (b"\x40\0", 9, "no scale"),
        (b"\x20", 9, "cut short"),
        (b"\x20\x09", 9, "centre"),
        (b"\xa0\0\1", 9, "mean"),
        (b"\xa0\0\0\0", 9, "a mean of 0"),
        (b"\x20\0\1\0", 9, "ends in a zero"),
        (b"\x20\0\xff\xff\xff\xff", 9, "not below 9"),
        (b"\x3f\0\1\1", 9, "not below 9"),
        (b"\x20\4\x80" + bytes(40) + b"\1", 9, "does not end"),
    ],
)
def test_bytes_that_are_no_integers_are_refused(octets, limit, message):
    with pytest.raises(ValueError, match=message):
        decode(memoryview(octets), 3, 3, limit)


@given(st.integers(0, 2**63 - 1), st.binary(max_size=3))
def test_varints_come_back(number, rest):
    found, left = read_varint(memoryview(varint(number) + rest))
    assert (found, bytes(left)) == (number, rest)
    assert unzigzag(zigzag(-number)) == -number
    assert unzigzag(zigzag(number)) == number


@pytest.mark.parametrize("octets", [b"", b"\x80", b"\x80" * LONGEST + b"\1", b"\x81\0"])
def test_varints_that_are_none_are_refused(octets):
    with pytest.raises(ValueError, match="an integer is"):
        read_varint(memoryview(octets))


@pytest.mark.parametrize("number", [-1, 2**63])
def test_what_no_varint_holds_is_refused(number):
    with pytest.raises(ValueError, match="is not in"):
        varint(number)
