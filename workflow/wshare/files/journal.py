"""A search's measurements, kept line by line so that a killed search goes on where it stopped."""

import json
import os
import shlex
import zlib
from pathlib import Path

from wshare.errors import FormatError
from wshare.files.atomic import write_errors, write_text

# What was measured, as JSON can hold it.
Key = tuple


class Journal:
    """Measurements by key, appended to a file of JSON lines and read back on the next start.

    The first line is `header`; a file that opens with another one is started anew, and a last line cut off by a kill
    is dropped. FormatError if another line is damaged; UserError if the disk does not take the file.
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

    def __contains__(self, key: Key) -> bool:
        return key in self._entries

    def __getitem__(self, key: Key) -> dict:
        return self._entries[key]

    def append(self, key: Key, measurement: dict) -> None:
        """Add a measurement; it is on disk when this returns."""
        self._entries[key] = measurement
        line = json.dumps([key, measurement, _checksum(key, measurement)]) + "\n"
        rest = line.encode()
        with write_errors(self._path):
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())


def _whole_lines(path: Path) -> list[str]:
    # What follows the last line break is empty, or a line that was never finished.
    return path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]


def _entries(path: Path, lines: list[str]) -> dict[Key, dict]:
    """Measurements of the lines behind the header."""
    entries: dict[Key, dict] = {}
    for number, line in enumerate(lines[1:], start=2):
        try:
            key, measurement, checksum = json.loads(line)
            if checksum != _checksum(key, measurement):
                raise ValueError("checksum differs")
            entries[tuple(key)] = measurement
        except (ValueError, TypeError, RecursionError) as error:
            raise FormatError(
                f"{path}: line {number} is damaged ({error}); remove it, to measure anew, with: "
                f"rm {shlex.quote(str(path))}"
            ) from None
    return entries


def _checksum(key: Key, measurement: dict) -> int:
    return zlib.crc32(json.dumps([key, measurement]).encode())
