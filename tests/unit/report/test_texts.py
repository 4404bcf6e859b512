"""Numbers as a report writes them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wshare.report.texts import percent


@pytest.mark.parametrize(
    ("share", "target", "text"),
    [
        (0.98967, None, "98.97 %"),
        (0.98967, 0.99, "98.97 %"),
        (0.98997, 0.99, "98.997 %"),
        (0.9899999, 0.99, "98.99999 %"),
        (0.99, 0.99, "99.00 %"),
        (0.990001, 0.99, "99.00 %"),
        (1.0034, 0.99, "100.34 %"),
        (0.98765, 0.98765, "98.77 %"),
        (0.98764, 0.98765, "98.76 %"),
    ],
)
def test_a_share_below_its_target_never_reads_as_the_target(share, target, text):
    assert percent(share, target) == text


@given(st.floats(0.5, 1), st.floats(1e-9, 0.4))
def test_however_little_a_share_lies_below_its_target_it_reads_below(target, less):
    assert float(percent(target - less, target).removesuffix(" %")) < 100 * target


def test_a_share_that_differs_in_the_last_bit_of_a_float_has_an_end():
    assert percent(math.nextafter(0.29, 0), 0.29) == "29.000000000000 %"
