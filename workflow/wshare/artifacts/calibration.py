"""calibration.h5: the calibration statistics of both halves of the search images."""

from pathlib import Path

import h5py

from wshare.errors import FormatError
from wshare.files.atomic import remedy
from wshare.files.hdf5 import create_h5, get_text, open_h5, read_arrays, set_text, write_arrays
from wshare.names import folder_name
from wshare.quantize.statistics import Calibration, InputStatistics

KIND = "calibration"


def write_calibration(path: Path, calibration: Calibration, settings: dict, made_from: dict[str, str]) -> None:
    """Write a group a half, and one of further images if there are any, with a group a layer in it.

    `made_from` as for `create_h5`.
    """
    with create_h5(path, KIND, settings, made_from) as file:
        # The number of parts, so that one that is lost does not pass for one that never was.
        file.attrs.update(border=calibration.border, parts=len(calibration.parts))
        for number, part in enumerate(calibration.parts):
            for name, layer in part.items():
                group = file.create_group(f"{number}/{folder_name(name)}")
                set_text(group.attrs, layer=name)
                group.attrs.update(images=layer.images, positions=layer.positions)
                write_arrays(group, compressed=False, mean=layer.mean, second=layer.second)


def read_calibration(path: Path, layers: list[str], made_from: dict[str, str] | None = None) -> Calibration:
    """Statistics of these layers; FormatError if one is missing, or not made from what `made_from` tells."""
    with open_h5(path, KIND, made_from) as file:
        parts = [file[str(number)] for number in range(file.attrs["parts"])]
        first, second, *rest = ({name: _read(path, part, name) for name in layers} for part in parts)
        return Calibration((first, second), int(file.attrs["border"]), *rest)


def _read(path: Path, half: h5py.Group, name: str) -> InputStatistics:
    group = half.get(folder_name(name))
    if group is None or get_text(group.attrs, "layer") != name:
        raise FormatError(f"{path}: no layer {name!r}; {remedy(path)}")
    return InputStatistics(
        *read_arrays(group, "mean", "second"), int(group.attrs["images"]), int(group.attrs["positions"])
    )
