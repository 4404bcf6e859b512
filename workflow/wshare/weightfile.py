"""weights.h5: a group a layer with its weight and importance; one writer, many readers."""

import json
from pathlib import Path

import numpy as np

from wshare.errors import FormatError
from wshare.names import folder_name
from wshare.storage import COMPRESSED, create_h5, get_text, open_h5, set_text, sha256_arrays

KIND = "weights"


def write_weights(
    path: Path, weights: dict[str, np.ndarray], importance: dict[str, np.ndarray], provenance: dict, settings: dict
) -> None:
    """Write all layers; `provenance` maps attribute names to text, such as hashes of model and images."""
    with create_h5(path, KIND, settings) as file:
        set_text(file.attrs, layers=json.dumps(list(weights)), **provenance)
        for name, weight in weights.items():
            group = file.create_group(folder_name(name))
            set_text(group.attrs, layer=name, sha256=sha256_arrays(weight, importance[name]))
            group.create_dataset("weight", data=weight, chunks=True, **COMPRESSED)
            group.create_dataset("importance", data=importance[name], chunks=True, **COMPRESSED)


def read_layer(path: Path, layer: str) -> tuple[np.ndarray, np.ndarray]:
    """Weight and importance of one layer; FormatError if it is missing or does not match its checksum."""
    with open_h5(path, KIND) as file:
        if folder_name(layer) not in file:
            raise FormatError(f"{path}: no layer {layer!r}; delete the file and run again")
        group = file[folder_name(layer)]
        weight, importance = group["weight"][:], group["importance"][:]
        if sha256_arrays(weight, importance) != get_text(group.attrs, "sha256"):
            raise FormatError(f"{path}: layer {layer!r} does not match its checksum; delete the file and run again")
        return weight, importance


def layer_names(path: Path) -> list[str]:
    """Names of all layers, in the network's order."""
    with open_h5(path, KIND) as file:
        return json.loads(get_text(file.attrs, "layers"))
