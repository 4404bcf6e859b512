"""Names: of layers as folders and by patterns, and what was meant by one that is unknown."""

import difflib
import re
from collections.abc import Iterable
from urllib.parse import quote, unquote

from wshare.errors import UserError


def folder_name(layer: str) -> str:
    """Layer name as one safe path component: percent-encoded, so that no name leaves its folder."""
    if layer.strip(".") == "" or len(quote(layer, safe="")) > 200:
        raise UserError(f"layer {layer!r}: this name cannot be a folder; rename the module")
    return quote(layer, safe="")


def layer_name(folder: str) -> str:
    """Layer name of a folder made by `folder_name`."""
    return unquote(folder)


def matches(pattern: str, name: str) -> bool:
    """Whether an exact name, or a `re:` regular expression, names the whole of `name`."""
    if pattern.startswith("re:"):
        return re.fullmatch(pattern[3:], name) is not None
    return pattern == name


def check_patterns(patterns: Iterable[str], names: list[str], where: str) -> None:
    """UserError if a pattern matches none of the layer names; `where` is its place in the configuration."""
    for pattern in patterns:
        if not any(matches(pattern, name) for name in names):
            close = difflib.get_close_matches(pattern.removeprefix("re:"), names, n=1, cutoff=0)
            hint = f" Closest: {close[0]!r}." if close else ""
            raise UserError(f"{where}.{pattern!r}: no such layer.{hint} `inspect_model` lists them in layers.json")


def closest(name: str, names: Iterable[str]) -> str:
    """`Closest: 'a', 'b'.` of `names`, or all of them if none is close and they are few."""
    names = sorted(names)
    near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)
    if near or len(names) > 12:
        return f"Closest: {', '.join(map(repr, near or names[:3]))}."
    return f"Known: {', '.join(map(repr, names))}."
