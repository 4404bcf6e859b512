"""calibration.h5: the calibration statistics of both halves of the search images."""

from functools import partial
from itertools import product
from pathlib import Path

import h5py

from wshare.data.images import Images
from wshare.errors import FormatError
from wshare.files.atomic import remedy
from wshare.files.hdf5 import create_h5, get_text, open_h5, read_arrays, set_text, write_arrays
from wshare.names import folder_name
from wshare.quantize.statistics import Calibration, InputStatistics, Statistics

KIND = "calibration"
BORDERS = ("border", "further_border")


def write_calibration(path: Path, calibration: Calibration, settings: dict, made_from: dict[str, str]) -> None:
    """Write a group a half, and two of further images if there are any, with a group a layer in each.

    `made_from` as for `create_h5`.
    """
    with create_h5(path, KIND, settings, made_from) as file:
        # The number of parts, so that one that is lost does not pass for one that never was.
        file.attrs.update({name: getattr(calibration, name) for name in BORDERS}, parts=len(calibration.parts))
        for number, part in enumerate(calibration.parts):
            for name, layer in part.items():
                group = file.create_group(f"{number}/{folder_name(name)}")
                set_text(group.attrs, layer=name)
                group.attrs.update(images=layer.images, positions=layer.positions)
                write_arrays(group, compressed=False, mean=layer.mean, second=layer.second)


def read_calibration(path: Path, layers: list[str], made_from: dict[str, str] | None = None) -> Calibration:
    """Statistics of these layers, read as they are asked for.

    FormatError if one is missing, damaged, or not made from what `made_from` tells.
    """
    with open_h5(path, KIND, made_from) as file:
        (border, further_border), parts = (int(file.attrs[name]) for name in BORDERS), range(file.attrs["parts"])
        for part, name in product(parts, layers):
            _group(path, file, part, name)
    first, second, *rest = (Statistics(layers, partial(_read, path, part)) for part in parts)
    return Calibration((first, second), border, tuple(rest) or None, further_border)


def further_origin(further: Images | None) -> dict[str, str]:
    """Entry of `made_from` for the images that are no search images."""
    return {"further images": further.fingerprint if further else "none"}


def check_further(path: Path, further: Images | None) -> None:
    """FormatError unless these are the images that statistics were measured on beside the search images."""
    with open_h5(path, KIND, further_origin(further)):
        pass


def _read(path: Path, part: int, name: str) -> InputStatistics:
    with open_h5(path, KIND) as file:
        group = _group(path, file, part, name)
        return InputStatistics(
            *read_arrays(group, "mean", "second"), int(group.attrs["images"]), int(group.attrs["positions"])
        )


def _group(path: Path, file: h5py.File, part: int, name: str) -> h5py.Group:
    group = file[str(part)].get(folder_name(name))
    if group is None or get_text(group.attrs, "layer") != name:
        raise FormatError(f"{path}: no layer {name!r}; {remedy(path)}")
    return group
