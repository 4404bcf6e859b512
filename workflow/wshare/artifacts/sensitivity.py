"""The columns of sensitivity.csv."""

from collections.abc import Iterable


def columns(profiled: Iterable[str]) -> list[str]:
    """All columns; `profiled` are those that the task of the network adds."""
    return ["layer", "k", "inertia", "weighted_inertia", *profiled, "images"]
