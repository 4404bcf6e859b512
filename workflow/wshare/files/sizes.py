"""Sizes as people write them."""

import re
from numbers import Integral

from wshare.errors import UserError

UNITS = {"": 1, "b": 1} | {
    f"{prefix}{unit}": base**power
    for power, prefix in enumerate("kmgt", 1)
    for unit, base in (("b", 1000), ("ib", 1024))
}
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.ASCII)


def parse_size(given: object, name: str) -> int:
    """Bytes: an integer as it is, or text with a unit in either case, "20 MB" (1000s) or "512 KiB" (1024s).

    Parts of a byte are left out. UserError, opening with `name`, for anything else.
    """
    if isinstance(given, Integral) and not isinstance(given, bool) and given >= 0:
        return int(given)
    if isinstance(given, str) and (found := SIZE.fullmatch(given.strip().lower())) and found[2] in UNITS:
        return int(float(found[1]) * UNITS[found[2]])
    raise UserError(f'{name}: {given!r} is no size; give bytes as an integer, or text such as "20 MB" or "512 KiB"')
