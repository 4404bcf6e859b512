"""Images that a table lists, a CSV or JSON file of paths and labels, in any folders."""

import csv
import io
import json
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from wshare.data.dataset import Dataset, read_file
from wshare.data.datasets.class_map import ClassMap
from wshare.data.masks import read_mask
from wshare.errors import UserError, one_line
from wshare.names import closest

# What a table may say of its images, each in a column; of `labels` several in a text, with one of these between.
KINDS = ("label", "labels", "mask")
SEPARATORS = re.compile("[;|]")


def open_table(settings: Mapping[str, Any]) -> Dataset:
    """Images of the column `image`, paths relative to the table's folder, with what it says of them.

    A column `label` holds a class of each, an index or a name, whose index is that of the `class_map`, or else its
    place among the sorted names, or among the network's where they are the same. A column `labels` holds any number of
    classes, in CSV with semicolons or bars between them, or spaces between indices: labels are then 0 or 1, int64 [N,
    classes]. A column `mask` holds paths of masks, whose pixels' classes are their values or those of the `class_map`.
    The setting `labels` may also list columns of numbers: labels are those, [N, columns]. Other columns are left alone.
    UserError names what is wrong, and where.
    """
    path = Path(settings["path"]).expanduser()
    rows = _rows(path)
    keys, paths = _files(rows, "image", path)
    twice = {key for key in keys if keys.count(key) > 1} if len(set(keys)) < len(keys) else ()
    if twice:
        raise UserError(f"{path}: lists {min(twice)} more than once; leave it in one row")
    images = Dataset(None, keys, partial(read_file, path.parent, paths), None, apart=True)
    wanted, class_map = settings.get("labels", True), settings.get("class_map")
    if not wanted:
        return images
    if isinstance(wanted, list):
        return replace(images, labels=_numbers(rows, wanted, path), classes=len(wanted))
    found = [kind for kind in KINDS if kind in rows[0]]
    if len(found) > 1:
        raise UserError(f"{path}: has columns {' and '.join(found)}; leave one")
    classes = ClassMap(class_map) if class_map not in (None, "sorted") else None
    if found == ["mask"]:
        _, masks = _files(rows, "mask", path)
        return replace(images, masks=partial(_read_mask, path.parent, masks, paths, classes))
    if found == ["label"]:
        labels, names = _indices([_class(_text(row, "label", path, i)) for i, row in enumerate(rows, 1)], path, classes)
        return replace(images, labels=labels, classes=names and len(names), folders=names)
    if found == ["labels"]:
        labels, names = _sets(_several(rows, path), path, classes)
        return replace(images, labels=labels, folders=names, sparse=names is None)
    if classes:
        raise UserError(f"{path}: has no column {', '.join(KINDS)} for the class_map; add one, or remove the class_map")
    return images


def _files(rows: Sequence[Mapping], column: str, path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Files of a column, as the table writes them, and their paths from its folder; UserError if some are missing."""
    keys = tuple(_text(row, column, path, place) for place, row in enumerate(rows, 1))
    paths = tuple(_place(path.parent, key) for key in keys)
    missing = [key for key, found in zip(keys, paths, strict=True) if not _is_there(path.parent / found)]
    if missing:
        raise UserError(
            f"{path}: {len(missing)} of {len(keys)} {column}s are not there, such as {path.parent / missing[0]}; "
            "paths are relative to the table's folder"
        )
    return keys, paths


def _read_mask(
    folder: Path, masks: Sequence[str], images: Sequence[str], classes: ClassMap | None, index: int
) -> np.ndarray:
    return read_mask(folder / masks[index], folder / images[index], classes)


def _numbers(rows: Sequence[Mapping], columns: Sequence[str], path: Path) -> np.ndarray:
    """Numbers of columns [N, columns]: int64 if all are 0 or 1, else float32."""
    known = [name for name in rows[0] if name]
    for name in columns:
        if name not in known:
            raise UserError(f"{path}: has no column {name!r}. {closest(name, known)}")
    found = np.array([[_number(row, name, path, i) for name in columns] for i, row in enumerate(rows, 1)])
    return found.astype(np.int64 if np.isin(found, (0, 1)).all() else np.float32)


def _number(row: Mapping[str, object], column: str, path: Path, place: int) -> float:
    try:
        value = float(row.get(column))
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{path}: row {place} has {row.get(column)!r} in column {column!r}; give a number")
    return value


def _sets(
    several: Sequence[Sequence[int | str]], path: Path, class_map: ClassMap | None
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """1 for each class of an image and 0 for others, int64 [N, classes], and names as `_indices` gives them."""
    indices, names = _indices([entry for entries in several for entry in entries], path, class_map)
    count = len(names) if names else int(indices.max(initial=-1)) + 1
    labels, place = np.zeros((len(several), count), np.int64), 0
    for row, entries in zip(labels, several, strict=True):
        row[indices[place : place + len(entries)]] = 1
        place += len(entries)
    return labels, names


def _rows(path: Path) -> list[dict]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {one_line(error)}; give a CSV or JSON file that lists the images") from None
    rows = _json_rows(text, path) if path.suffix.lower() in (".json", ".jsonl") else _csv_rows(text, path)
    if not rows:
        raise UserError(f"{path}: lists no image")
    if "image" not in rows[0]:
        known = [name for name in rows[0] if name]
        raise UserError(f"{path}: has no column 'image', but {', '.join(known)}. {closest('image', known)}")
    return rows


def _place(folder: Path, key: str) -> str:
    """Path of an image that may have its accents as characters of their own in the table, and not in its name."""
    spellings = (key, *(unicodedata.normalize(form, key) for form in ("NFC", "NFD")))
    return next((path for path in spellings if _is_there(folder / path)), key)


def _is_there(path: Path) -> bool:
    # A link that leads nowhere is an unreadable image, as in folders.
    return path.is_file() or path.is_symlink()


def _csv_rows(text: str, path: Path) -> list[dict]:
    try:
        table = csv.DictReader(io.StringIO(text, newline=""))
        table.fieldnames = [name.strip() for name in table.fieldnames or ()]
        return list(table)
    except csv.Error as error:
        raise UserError(f"{path}: not CSV ({one_line(error)}); correct it") from None


def _json_rows(text: str, path: Path) -> list[dict]:
    try:
        lines = text.split("\n") if path.suffix.lower() == ".jsonl" else None
        rows = json.loads(text) if lines is None else [json.loads(line) for line in lines if line.strip()]
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({one_line(error)}); correct it") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f'{path}: must be a list of objects, such as [{{"image": "a.png", "label": 3}}]')
    return rows


def _text(row: Mapping[str, object], column: str, path: Path, place: int) -> str:
    value = row.get(column)
    if value is None or isinstance(value, bool | float | list | dict) or str(value) == "":
        raise UserError(f"{path}: row {place} has {value!r} in column {column!r}; fill it in, or remove the row")
    return str(value)


def _several(rows: Sequence[Mapping], path: Path) -> list[list[int | str]]:
    """Classes of each row, of the column `labels`."""
    lists = [_entries(row.get("labels"), path, place) for place, row in enumerate(rows, 1)]
    if not any(SEPARATORS.search(row["labels"]) for row in rows if isinstance(row.get("labels"), str)):
        lists = [[part for entry in entries for part in _unspaced(entry, path)] for entries in lists]
    return [[_class(entry) for entry in entries if entry] for entries in lists]


def _entries(value: object, path: Path, place: int) -> list[str]:
    entries = SEPARATORS.split(value or "") if isinstance(value, str | None) else value
    if not isinstance(entries, list) or not all(isinstance(x, str | int) and not isinstance(x, bool) for x in entries):
        raise UserError(
            f"{path}: row {place} has {value!r} in column 'labels'; give a list of classes, which may be empty"
        )
    return [str(entry).strip() for entry in entries]


def _unspaced(entry: str, path: Path) -> list[str]:
    """Indices that have spaces between them; a name may hold some."""
    parts = entry.split()
    if len(parts) > 1 and not all(isinstance(_class(part), int) for part in parts):
        raise UserError(
            f"{path}: {entry!r} in column 'labels' may be one name or several; put semicolons between names, as in "
            f"{';'.join(parts)!r}, or give lists in JSON"
        )
    return parts


def _class(text: str) -> int | str:
    return int(text) if text.isascii() and text.isdigit() else text


def _indices(
    classes: Sequence[int | str], path: Path, class_map: ClassMap | None = None
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Index of each class, int64, and the names by index, or None where the classes, or the class map, are indices."""
    if class_map is not None:
        return np.array([class_map.index(str(x), f"{x!r} of {path}") for x in classes], dtype=np.int64), None
    if all(isinstance(entry, int) for entry in classes):
        return np.array(classes, dtype=np.int64), None
    if any(isinstance(entry, int) for entry in classes):
        number = next(entry for entry in classes if isinstance(entry, int))
        name = next(entry for entry in classes if isinstance(entry, str))
        raise UserError(f"{path}: has classes as indices ({number}) and as names ({name!r}); give one of the two")
    names = tuple(sorted(set(classes)))
    places = {name: place for place, name in enumerate(names)}
    return np.array([places[entry] for entry in classes], dtype=np.int64), names
