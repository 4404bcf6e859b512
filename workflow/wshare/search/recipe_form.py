"""The form of a recipe: what applying it reads, as far as that does not depend on the method."""

import math
from collections.abc import Callable
from typing import Any

from wshare.packed.container import FORMATS

# A test of a value, or the forms of a mapping's entries; `*` stands for every entry of it.
Form = Callable[[Any], bool] | dict[str, "Form"]


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 1


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_whole(value: object) -> bool:
    # A seed among them: torch's generators take no more.
    return type(value) is int and 0 <= value < 1 << 63


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_switch(value: object) -> bool:
    return isinstance(value, bool)


def _are_counts(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_count, value))


def _one_of(*choices: str) -> Callable[[Any], bool]:
    return lambda value: _is_text(value) and value in choices


# What tells whether this version reads the rest.
HEAD: Form = {"versions": {"recipe": _is_whole, "method": _is_whole}, "settings": {"method": _is_text}}
REST: Form = {
    "task": _is_text,
    "model": {"sha256": _is_text},
    "search_images": _is_text,
    "made_from": {"*": _is_text},
    "settings": {"seed": _is_whole, "options": {}},
    "packing": {"format": _one_of(*FORMATS), "batch_norm": _one_of("auto", "float16", "float32")},
    "artifacts": {},
    "temperature": _is_number,
    "layers": {"*": {"shape": _are_counts}},
    "on_search_images": {"kl_high": _is_number},
}
_MEASURED: Form = {"images": _is_count, "seed": _is_whole}
_CLUSTERED: Form = {
    # Those of `wshare.quantize.kmeans`, which a search by k does not import.
    "method": _one_of("exact", "lloyd", "sklearn"),
    "weighting": _one_of("none", "importance"),
    "candidates": _are_counts,
    "k_max": _is_count,
    "bins": _is_count,
    "keep_zeros": _is_switch,
    "seed": _is_whole,
}


def artifacts_form(realised_from: tuple[str, ...], layers: list[str]) -> Form:
    """Form of the settings with which the artifacts of a method's row are measured again."""
    forms: dict[str, Form] = {}
    if "layer_weights" in realised_from:
        forms["importance"] = _MEASURED
    if "calibration" in realised_from:
        forms["calibration"] = _MEASURED
    if "clusters" in realised_from:
        forms["clustering"] = dict.fromkeys(layers, _CLUSTERED)
    return forms


def first_wrong(value: object, form: Form, place: tuple[str, ...] = ()) -> tuple[str, ...] | None:
    """Path of the first entry that is missing or not of its form; None if all are."""
    if callable(form):
        return None if form(value) else place
    if not isinstance(value, dict):
        return place
    for key, inner in form.items():
        for name in value if key == "*" else (key,):
            if name not in value:
                return (*place, name)
            wrong = first_wrong(value[name], inner, (*place, name))
            if wrong is not None:
                return wrong
    return None
