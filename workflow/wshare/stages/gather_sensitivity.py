"""Gather the groups' sensitivity tables into one."""

from pathlib import Path

from wshare.errors import FormatError
from wshare.storage import write_text


def gather_sensitivity(tables: list[Path], sensitivity: Path) -> None:
    """Write all rows, in the network's order; FormatError if the tables differ in their columns."""
    texts = [table.read_text(encoding="utf-8") for table in tables]
    headers = [text.partition("\n")[0] for text in texts]
    for table, header in zip(tables, headers, strict=True):
        if header != headers[0]:
            raise FormatError(f"{table}: other columns than {tables[0]}; delete it and run again")
    write_text(sensitivity, headers[0] + "\n" + "".join(text.partition("\n")[2] for text in texts))
