"""CSV tables with a header line."""

import csv
import io
from pathlib import Path

from wshare.errors import FormatError
from wshare.storage import write_text

# Columns of answers.csv; a label is empty where the dataset has none.
ANSWERS = ["image", "label", "float32", "compressed"]


def write_table(path: Path, columns: list[str], rows: list[dict]) -> None:
    """Write rows atomically; floats keep all their digits."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def read_table(path: Path, columns: list[str]) -> list[dict[str, str]]:
    """Rows as text by column; FormatError unless the columns are as expected and every row is whole."""
    with open(path, encoding="utf-8", newline="") as file:
        text = file.read()
    reader = csv.DictReader(io.StringIO(text, newline=""), restkey="", restval=None)
    names, rows = reader.fieldnames, list(reader)
    # A last row cut off within its last value has all its columns.
    if names != columns or not text.endswith("\n") or any("" in row or None in row.values() for row in rows):
        raise FormatError(f"{path}: not a whole table of {', '.join(columns)}; delete it and run again")
    return rows
