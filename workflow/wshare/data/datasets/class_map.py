"""The file that tells which class a name is: of a folder, in a table, or of a pixel's value."""

import json
import unicodedata
from pathlib import Path

from wshare.errors import UserError, one_line


class ClassMap:
    """Class indices by name, from a JSON file {name: class index}; UserError if it is none."""

    def __init__(self, path: str | Path):
        self.path = Path(path).expanduser()
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"class_map {self.path}: {error.strerror}; give a JSON file, or 'sorted'") from None
        except ValueError as error:
            raise UserError(f"class_map {self.path}: not JSON ({one_line(error)}); correct it") from None
        if not isinstance(found, dict):
            raise UserError(f"class_map {self.path}: must be an object {{folder: class index}}; correct it")
        # A Mac writes an accent as a character of its own, most programs with its letter.
        self._indices = {unicodedata.normalize("NFC", key): index for key, index in found.items()}

    def index(self, name: str, what: str) -> int:
        """Class index of a name; UserError, with `what` it is the name of, if the file gives none."""
        name = unicodedata.normalize("NFC", name)
        if name not in self._indices:
            raise UserError(f"class_map {self.path}: no index for {what}; add {name!r} to the map")
        index = self._indices[name]
        if type(index) is not int or index < 0:
            raise UserError(f"class_map {self.path}: {name!r} is {index!r}; give an integer from 0 on")
        return index
