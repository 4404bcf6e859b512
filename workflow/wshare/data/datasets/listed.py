"""Images that a table lists, a CSV or JSON file of paths and labels, in any folders."""

import csv
import io
import json
import unicodedata
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from wshare.data.dataset import Dataset, read_file
from wshare.errors import UserError, one_line
from wshare.names import closest

COLUMNS = ("image", "label", "labels")
# Between several labels of an image in a CSV file.
SEPARATOR = ";"


def open_table(settings: Mapping[str, Any]) -> Dataset:
    """Images of the column `image`, paths relative to the table's folder, with what it says of them.

    A column `label` holds a class of each, an index or a name, whose index is then its place among the sorted names,
    or among the network's where they are the same. A column `labels` holds any number of classes, in CSV with
    semicolons between them: labels are then 0 or 1, int64 [N, classes]. Other columns are left alone. UserError names
    what is wrong, and where.
    """
    path = Path(settings["path"]).expanduser()
    rows = _rows(path)
    keys = [_text(row, "image", path, place) for place, row in enumerate(rows, 1)]
    twice = {key for key in keys if keys.count(key) > 1} if len(set(keys)) < len(keys) else ()
    if twice:
        raise UserError(f"{path}: lists {min(twice)} more than once; leave it in one row")
    paths = tuple(_place(path.parent, key) for key in keys)
    missing = [key for key, found in zip(keys, paths, strict=True) if not _is_there(path.parent / found)]
    if missing:
        raise UserError(
            f"{path}: {len(missing)} of {len(keys)} images are not there, such as {path.parent / missing[0]}; "
            "paths are relative to the table's folder"
        )
    read = partial(read_file, path.parent, paths)
    columns = set(rows[0])
    if not settings.get("labels", True) or not columns & {"label", "labels"}:
        return Dataset(None, tuple(keys), read, None, apart=True)
    if {"label", "labels"} <= columns:
        raise UserError(f"{path}: has columns label and labels; leave one")
    if "label" in columns:
        classes = [_class(_text(row, "label", path, place)) for place, row in enumerate(rows, 1)]
        labels, names = _indices(classes, path)
        return Dataset(labels, tuple(keys), read, names and len(names), folders=names, apart=True)
    several = [_classes(row.get("labels"), path, place) for place, row in enumerate(rows, 1)]
    indices, names = _indices([entry for entries in several for entry in entries], path)
    count = len(names) if names else int(indices.max(initial=-1)) + 1
    labels, place = np.zeros((len(rows), count), np.int64), 0
    for row, entries in zip(labels, several, strict=True):
        row[indices[place : place + len(entries)]] = 1
        place += len(entries)
    return Dataset(labels, tuple(keys), read, None, apart=True)


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


def _classes(value: object, path: Path, place: int) -> list[int | str]:
    entries = (
        value if isinstance(value, list) else (value or "").split(SEPARATOR) if isinstance(value, str | None) else 0
    )
    if entries == 0 or not all(isinstance(entry, str | int) and not isinstance(entry, bool) for entry in entries):
        raise UserError(
            f"{path}: row {place} has {value!r} in column 'labels'; give a list of classes, which may be empty"
        )
    return [_class(str(entry).strip()) for entry in entries if str(entry).strip()]


def _class(text: str) -> int | str:
    return int(text) if text.isascii() and text.isdigit() else text


def _indices(classes: Sequence[int | str], path: Path) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Index of each class, int64, and the names by index, or None where the classes are indices."""
    if all(isinstance(entry, int) for entry in classes):
        return np.array(classes, dtype=np.int64), None
    if any(isinstance(entry, int) for entry in classes):
        number = next(entry for entry in classes if isinstance(entry, int))
        name = next(entry for entry in classes if isinstance(entry, str))
        raise UserError(f"{path}: has classes as indices ({number}) and as names ({name!r}); give one of the two")
    names = tuple(sorted(set(classes)))
    return np.array([names.index(entry) for entry in classes], dtype=np.int64), names
