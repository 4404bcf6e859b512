"""weights.h5: a group a layer with its weight, its importance and the sum of it; one writer, many readers."""

import json
from pathlib import Path

import numpy as np

from wshare.errors import FormatError
from wshare.files.atomic import remedy
from wshare.files.hdf5 import create_h5, get_text, open_h5, origin, read_arrays, set_text, write_arrays
from wshare.names import folder_name

KIND = "weights"


def write_weights(
    path: Path,
    weights: dict[str, np.ndarray],
    importance: dict[str, np.ndarray],
    fisher: dict[str, float],
    settings: dict,
    made_from: dict[str, str],
) -> None:
    """Write all layers; `fisher` is the sum of each one's importance, `made_from` as for `create_h5`."""
    with create_h5(path, KIND, settings, made_from) as file:
        set_text(file.attrs, layers=json.dumps(list(weights)))
        for name, weight in weights.items():
            group = file.create_group(folder_name(name))
            set_text(group.attrs, layer=name)
            group.attrs["fisher"] = fisher[name]
            write_arrays(group, weight=weight, importance=importance[name])


def read_layer(
    path: Path, layer: str, made_from: dict[str, str] | None = None
) -> tuple[np.ndarray, np.ndarray, dict[str, str]]:
    """Weight and importance of one layer, and what they were made from; FormatError if they are not whole."""
    with open_h5(path, KIND, made_from) as file:
        if folder_name(layer) not in file:
            raise FormatError(f"{path}: no layer {layer!r}; {remedy(path)}")
        weight, importance = read_arrays(file[folder_name(layer)], "weight", "importance")
        return weight, importance, origin(file)


def read_fisher(path: Path, made_from: dict[str, str] | None = None) -> dict[str, float]:
    """Sum of each layer's importance, in the network's order; no array is read."""
    with open_h5(path, KIND, made_from) as file:
        names = json.loads(get_text(file.attrs, "layers"))
        return {name: float(file[folder_name(name)].attrs["fisher"]) for name in names}
