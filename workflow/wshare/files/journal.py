"""A search's measurements, kept line by line so that a killed search goes on where it stopped."""

import json
import os
import shlex
import zlib
from pathlib import Path

from wshare.errors import FormatError
from wshare.files.atomic import write_errors, write_text

# What was measured: a combination, or for searches by price the name of the measurement and the price.
Key = tuple
# That name for a price, by the precision it was measured in.
PRICE_NAMES = {"float32": "slope", "float16": "half"}


class Journal:
    """Measurements by combination, appended to a file of JSON lines and read back on the next start.

    The first line is `header`; a file that opens with another one is started anew, and a last line cut
    off by a kill is dropped.
    """

    def __init__(self, path: Path, header: dict):
        first = json.dumps(header, sort_keys=True)
        lines = _whole_lines(path) if path.exists() else []
        whole = lines if lines[:1] == [first] else [first]
        self._entries = _entries(path, whole)
        write_text(path, "".join(line + "\n" for line in whole))
        self._path = path
        with write_errors(path):
            # Without a buffer, which would be written when the file is closed, after a write that failed.
            self._file = path.open("ab", buffering=0)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, combination: Key) -> bool:
        return combination in self._entries

    def __getitem__(self, combination: Key) -> dict:
        return self._entries[combination]

    def entries(self) -> dict[Key, dict]:
        """All measurements by combination."""
        return dict(self._entries)

    def append(self, combination: Key, measurement: dict) -> None:
        """Add a measurement; it is on disk when this returns."""
        self._entries[combination] = measurement
        line = json.dumps([combination, measurement, _checksum(combination, measurement)]) + "\n"
        rest = line.encode()
        with write_errors(self._path):
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())


def read_journal(path: Path) -> dict[Key, dict]:
    """All measurements of a journal, in the order in which they were made; FormatError if a line is damaged."""
    return _entries(path, _whole_lines(path))


def _whole_lines(path: Path) -> list[str]:
    # What follows the last line break is empty, or a line that was never finished.
    return path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]


def _entries(path: Path, lines: list[str]) -> dict[Key, dict]:
    """Measurements of the lines behind the header."""
    entries: dict[Key, dict] = {}
    for number, line in enumerate(lines[1:], start=2):
        try:
            combination, measurement, checksum = json.loads(line)
            if checksum != _checksum(combination, measurement):
                raise ValueError("checksum differs")
            entries[tuple(combination)] = measurement
        except (ValueError, TypeError, RecursionError) as error:
            raise FormatError(
                f"{path}: line {number} is damaged ({error}); remove it, to measure anew, with: "
                f"rm {shlex.quote(str(path))}"
            ) from None
    return entries


def _checksum(combination: Key, measurement: dict) -> int:
    return zlib.crc32(json.dumps([combination, measurement]).encode())
