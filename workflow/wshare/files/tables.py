"""CSV tables with a header line."""

import csv
import io
import json
from pathlib import Path

from wshare.errors import FormatError, one_line
from wshare.files.atomic import remedy, write_text
from wshare.files.sealed import TEXT_VERSION, check_version, sha256_text

# Readers of tables take what follows as a comment, if told so.
SEAL = "# "


def write_table(path: Path, columns: list[str], rows: list[dict]) -> None:
    """Write rows atomically, for people and other programs; floats keep all their digits."""
    write_text(path, _text(columns, rows))


def write_sealed(path: Path, columns: list[str], rows: list[dict], made_from: dict[str, str]) -> None:
    """Write rows for a stage to read: a last line, which starts with #, tells version, `made_from` and checksum."""
    text = _text(columns, rows)
    seal = {"version": TEXT_VERSION, "made_from": made_from, "checksum": _checksum(text, made_from)}
    write_text(path, f"{text}{SEAL}{json.dumps(seal)}\n")


def read_sealed(path: Path, columns: list[str] | None = None) -> tuple[list[dict[str, str]], dict[str, str]]:
    """Rows as text by column, and what they were made from.

    FormatError unless version and checksum are right, and the columns are as expected, if that is told.
    """
    try:
        # Line ends as they are: a changed one is damage too.
        text = path.read_bytes().decode()
        text, _, last = text.rpartition(SEAL)
        seal = json.loads(last)
        version, made_from, checksum = seal.get("version"), seal["made_from"], seal["checksum"]
    except FileNotFoundError:
        raise FormatError(f"{path}: no such file; {remedy(path)}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(
            f"{path}: not a whole table ({type(error).__name__}: {one_line(error)}); {remedy(path)}"
        ) from None
    check_version(path, version)
    if checksum != _checksum(text, made_from):
        raise FormatError(f"{path}: damaged (checksum differs); {remedy(path)}")
    reader = csv.DictReader(io.StringIO(text, newline=""))
    if columns and reader.fieldnames != columns:
        raise FormatError(f"{path}: not a table of {', '.join(columns)}; {remedy(path)}")
    return list(reader), made_from


def _text(columns: list[str], rows: list[dict]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _checksum(text: str, made_from: dict[str, str]) -> str:
    return sha256_text(text + json.dumps(made_from))
