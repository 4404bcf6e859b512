"""Gather the groups' sensitivity tables into one."""

from pathlib import Path

from wshare.errors import FormatError
from wshare.files.atomic import remedy
from wshare.files.sealed import check_origin
from wshare.files.tables import read_sealed, write_sealed


def gather_sensitivity(tables: list[Path], sensitivity: Path) -> None:
    """Write all rows, in the network's order; FormatError if the tables differ in their columns or their origin."""
    parts = [read_sealed(table) for table in tables]
    columns, made_from = list(parts[0][0][0]), parts[0][1]
    for table, (rows, found) in zip(tables, parts, strict=True):
        # Each group has clusters of its own.
        check_origin(table, made_from | found, made_from)
        made_from = made_from | found
        if list(rows[0]) != columns:
            raise FormatError(f"{table}: other columns than {tables[0]}; {remedy(table)}")
    write_sealed(sensitivity, columns, [row for rows, _ in parts for row in rows], made_from)
