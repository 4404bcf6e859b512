"""Names: of layers as folders and by patterns, and what was meant by one that is unknown."""

import difflib
import re
from collections.abc import Container, Iterable
from urllib.parse import quote, unquote

from wshare.errors import UserError

# How alike a known name has to be to one that is unknown (difflib's ratio), and how many are listed where none is.
LEAST_ALIKE, MOST_LISTED = 0.5, 12
# Where a configuration's reader finds the names of layers.
LISTED = "`inspect_model` lists them in layers.json"


def folder_name(layer: str) -> str:
    """Layer name as one safe path component: percent-encoded, so that no name leaves its folder."""
    if layer.strip(".") == "" or len(quote(layer, safe="")) > 200:
        raise UserError(f"layer {layer!r}: this name cannot be a folder; rename the module")
    return quote(layer, safe="")


def layer_name(folder: str) -> str:
    """Layer name of a folder made by `folder_name`."""
    return unquote(folder)


def layer_of_tensor(tensor: str) -> str:
    """Name of the layer whose weight this is: that of the module that has it as `weight`, or else the tensor's own."""
    return tensor.removesuffix(".weight")


def tensor_of_layer(layer: str, tensors: Container[str]) -> str:
    """Name of a layer's weight among names of tensors: the other way round."""
    return layer if layer in tensors else f"{layer}.weight"


def matches(pattern: str, name: str) -> bool:
    """Whether an exact name, or a `re:` regular expression, names the whole of `name`."""
    if pattern.startswith("re:"):
        return re.fullmatch(pattern[3:], name) is not None
    return pattern == name


def check_patterns(patterns: Iterable[str], names: list[str], key: str, listed: str = LISTED) -> None:
    """UserError if a pattern matches none of the layer names; `key` is its place, `listed` says where names are."""
    for pattern in patterns:
        if not any(matches(pattern, name) for name in names):
            hint = closest(pattern.removeprefix("re:"), names)
            raise UserError(f"{key}.{pattern!r}: no such layer. {hint} {listed}")


def did_you_mean(name: object, known: Iterable[object]) -> str:
    """`Did you mean 'a'?`, of the closest name; empty if none is close."""
    near = difflib.get_close_matches(str(name), list(map(str, known)), n=1, cutoff=LEAST_ALIKE)
    return f"Did you mean {near[0]!r}?" if near else ""


def closest(name: object, known: Iterable[object]) -> str:
    """What may be put in place of an unknown name, as a sentence: the closest one, or else the first that there are.

    Never empty, so that a message can go on behind it.
    """
    known = list(map(str, known))
    more = f" and {len(known) - MOST_LISTED} more" if len(known) > MOST_LISTED else ""
    listed = ", ".join(map(repr, known[:MOST_LISTED]))
    return did_you_mean(name, known) or (f"Known: {listed}{more}." if known else "There is none.")
