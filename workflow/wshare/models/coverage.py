"""How much of a network is shared, and what keeps the rest: from the parameters that layers.json lists.

Without torch, since it is read while the workflow is planned.
"""

import math
from collections.abc import Iterable, Mapping

# Below this share of a network's parameters, what is left out costs more than a search can save.
LOUD = 0.9
# Reasons that one line names.
MOST = 3


def covered(parameters: Iterable[Mapping]) -> float:
    """Share of a network's parameters that are shared, of those that `wshare.models.layers.inspect` lists."""
    sizes = [(_size(entry), entry["status"] == "shared") for entry in parameters]
    return sum(size for size, shared in sizes if shared) / max(1, sum(size for size, _ in sizes))


def told(parameters: Iterable[Mapping]) -> str:
    """One line: the share, and, if it is below `LOUD`, what is kept and why, the most first."""
    parameters = list(parameters)
    total, share = max(1, sum(map(_size, parameters))), covered(parameters)
    line = f"{share:.1%} of {total:,} parameters are shared"
    if share >= LOUD:
        return line
    kept: dict[str, list[Mapping]] = {}
    for entry in parameters:
        if entry["status"] != "shared":
            kept.setdefault(entry["reason"], []).append(entry)
    groups = sorted(kept.items(), key=lambda group: -sum(map(_size, group[1])))
    reasons = [
        f"{sum(map(_size, entries)) / total:.1%} {_names(entries)} ({reason})" for reason, entries in groups[:MOST]
    ]
    more = f"; and {len(groups) - MOST} more reasons" if len(groups) > MOST else ""
    return f"ONLY {line}; kept as they are: {'; '.join(reasons)}{more}"


def _names(entries: list[Mapping]) -> str:
    """The largest by name, and how many there are besides."""
    first = max(entries, key=_size)["name"]
    return first if len(entries) == 1 else f"{first} and {len(entries) - 1} more"


def _size(entry: Mapping) -> int:
    return math.prod(entry["shape"])
