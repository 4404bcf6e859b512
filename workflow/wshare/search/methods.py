"""The table of search methods.

A row says what a method is called, where it lives and what it reads; `wshare.search.method` tells what the module has
to offer. Rules and stages go by the row alone, so that a new method is a row, a module, and its block of the schema.
"""

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wshare.quantize.formats import CODINGS

if TYPE_CHECKING:
    from wshare.search.method import SearchMethod


@dataclass(frozen=True)
class Method:
    """A search method: `module`, below `wshare.search`, holds it as `METHOD`.

    Of the files in `wshare.search.artifacts.Files` it `needs` some to search, and realises a recipe from those in
    `realised_from`.
    """

    name: str
    module: str
    needs: tuple[str, ...]
    realised_from: tuple[str, ...]

    def load(self) -> "SearchMethod":
        """The method itself; only its own module is imported."""
        return importlib.import_module(f"wshare.search.{self.module}").METHOD


# What the methods by k read, and the one that feeds errors back.
BY_K = {"needs": ("clusters", "sensitivity"), "realised_from": ("clusters",)}
CALIBRATED = {"needs": ("layer_weights", "calibration"), "realised_from": ("layer_weights", "calibration")}
METHODS = {
    row.name: row
    for row in (
        Method("rate_distortion", "rate_distortion.search", **CALIBRATED),
        Method("slope", "by_k.slope", **BY_K),
        Method("milp", "by_k.milp", **BY_K),
        Method("greedy", "by_k.greedy", **BY_K),
        Method("two_step", "by_k.two_step", **BY_K),
        Method("uniform", "by_k.uniform", **BY_K),
    )
}
# What the API and the command line take where no method is named.
DEFAULT = "rate_distortion"


def packing_of(options: dict) -> dict:
    """Settings of packing that a search sets for itself, among its options."""
    return {"format": CODINGS[options["format"]]} if "format" in options else {}
