"""calibration.h5: the calibration statistics of both halves of the search images."""

from pathlib import Path

import h5py

from wshare.errors import FormatError
from wshare.files.atomic import remedy
from wshare.files.hdf5 import create_h5, get_text, open_h5, read_arrays, set_text, write_arrays
from wshare.names import folder_name
from wshare.quantize.statistics import InputStatistics

KIND = "inputs"


def write_statistics(
    path: Path, folds: list[dict[str, InputStatistics]], settings: dict, made_from: dict[str, str]
) -> None:
    """Write a group a fold with a group a layer in it; `made_from` as for `create_h5`."""
    with create_h5(path, KIND, settings, made_from) as file:
        for number, fold in enumerate(folds):
            for name, layer in fold.items():
                group = file.create_group(f"{number}/{folder_name(name)}")
                set_text(group.attrs, layer=name)
                group.attrs.update(images=layer.images, positions=layer.positions)
                write_arrays(group, compressed=False, mean=layer.mean, second=layer.second)


def read_statistics(
    path: Path, layers: list[str], made_from: dict[str, str] | None = None
) -> list[dict[str, InputStatistics]]:
    """Statistics by layer, of each fold; FormatError if one is missing, or not made from what `made_from` tells."""
    with open_h5(path, KIND, made_from) as file:
        return [{name: _read(path, file[fold], name) for name in layers} for fold in sorted(file)]


def _read(path: Path, fold: h5py.Group, name: str) -> InputStatistics:
    group = fold.get(folder_name(name))
    if group is None or get_text(group.attrs, "layer") != name:
        raise FormatError(f"{path}: no layer {name!r}; {remedy(path)}")
    return InputStatistics(
        *read_arrays(group, "mean", "second"), int(group.attrs["images"]), int(group.attrs["positions"])
    )
