"""Sizes as people write them."""

import numpy as np
import pytest

from wshare.errors import UserError
from wshare.files.sizes import parse_size


@pytest.mark.parametrize(
    ("given", "nbytes"),
    [
        (0, 0),
        (7, 7),
        (np.int64(7), 7),
        ("20", 20),
        ("20 MB", 20_000_000),
        (" 20mb ", 20_000_000),
        ("512 KiB", 524_288),
        ("1.5 kB", 1500),
        ("1.0009 kB", 1000),
        ("2 GiB", 2 << 30),
        ("1 TB", 10**12),
        ("3 b", 3),
    ],
)
def test_sizes_are_integers_or_text_with_a_unit(given, nbytes):
    assert parse_size(given, "budget") == nbytes


@pytest.mark.parametrize(
    "given", ["", "MB", "1,5 MB", "-3", "1e6", "20 MB/s", "20 m", "٣ MB", "inf", -1, 1.0, True, None]
)
def test_all_else_is_refused_in_one_line(given):
    with pytest.raises(UserError, match="^budget: .* is no size; give bytes as an integer, or text such as .*$"):
        parse_size(given, "budget")
