"""Which source files a stage runs, and their hash."""

import hashlib
import importlib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from wshare.config.validation import PACKAGE

# An import of parts of the package, wherever it stands. Syntax trees of the package would take half a second, which
# Snakemake and each of its jobs would wait for.
IMPORT = re.compile(r"^[ \t]*from (wshare[\w.]*) import (\([^)]*\)|[^\n]+)", re.MULTILINE)


@dataclass(frozen=True)
class Table:
    """A list of modules, of which a stage runs those that the configuration chooses.

    Its rows stand in `rows` of `module`, a mapping by name or a list, each with a `module` below `base`, or with
    several `modules`; without `base` their names are whole. `choice` is the argument of `code_files` that names the row
    in use; without one all are.
    """

    module: str
    rows: str
    base: str
    choice: str | None = None

    def modules(self, chosen: dict[str, str | None]) -> list[str]:
        """Modules that a stage runs for what is chosen, or of all rows where nothing is."""
        rows = getattr(importlib.import_module(self.module), self.rows)
        rows = list(rows.values()) if isinstance(rows, dict) else list(rows)
        name = chosen.get(self.choice) if self.choice else None
        if name is not None:
            rows = [row for row in rows if row.name == name]
            if not rows:
                raise ValueError(f"{name!r} is not in {self.module}.{self.rows}")
        found = [part for row in rows for part in getattr(row, "modules", None) or (row.module,)]
        return [f"{self.base}.{module}" if self.base else module for module in found]


TABLES = (
    Table("wshare.models.sources.table", "SOURCES", "wshare.models", "source"),
    Table("wshare.data.datasets.table", "SOURCES", "wshare.data.datasets", "dataset"),
    Table("wshare.search.methods", "METHODS", "wshare.search", "method"),
    Table("wshare.tasks.table", "TASKS", "", "task"),
)


@cache
def code_files(
    stage: str,
    *,
    source: str | None = None,
    dataset: str | None = None,
    method: str | None = None,
    task: str | None = None,
) -> tuple[str, ...]:
    """Source files of the package that a stage's module imports, directly or not, sorted.

    Read from the import statements, wherever they stand, so that no list has to be kept by hand. Where a table of
    modules is imported, those of the rows that are chosen count too: the `source` of the model and that of its
    `dataset`, the `method` of the search, the `task`. None is for stages that serve all of them.
    """
    chosen = {"source": source, "dataset": dataset, "method": method, "task": task}
    tables = {_file(table.module): table for table in TABLES}
    found: set[Path] = set()
    waiting = [_file(f"wshare.stages.{stage}")]
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            waiting += _imports(file)
            if file in tables:
                own = (_file(module) for module in tables[file].modules(chosen))
                waiting += [module for module in own if module.is_file()]
    doors = {folder / "__init__.py" for file in found for folder in file.parents if folder.is_relative_to(PACKAGE)}
    # The package's own __init__ is a door for users: what it offers is written elsewhere.
    return tuple(sorted(str(file) for file in (found | doors) - {PACKAGE / "__init__.py"}))


@cache
def code_hash(
    stage: str,
    *,
    source: str | None = None,
    dataset: str | None = None,
    method: str | None = None,
    task: str | None = None,
) -> str:
    """SHA-256 over names and contents of a stage's code files.

    For a rule's parameters: source files among its inputs would be looked at by their dates first, and a release that
    is unpacked brings old ones.
    """
    digest = hashlib.sha256()
    for file in code_files(stage, source=source, dataset=dataset, method=method, task=task):
        content = Path(file).read_bytes()
        digest.update(f"{Path(file).relative_to(PACKAGE).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _file(module: str) -> Path:
    """File of a module of the package, there or not."""
    base = PACKAGE.joinpath(*module.split(".")[1:])
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")


def imported(source: str) -> list[tuple[str, str]]:
    """Module and name of all that source code imports from the package."""
    return [
        (module, name.split()[0])
        for module, names in IMPORT.findall(source)
        for name in names.strip("()").split(",")
        if name.strip()
    ]


@cache
def _imports(file: Path) -> tuple[Path, ...]:
    found = imported(file.read_text(encoding="utf-8"))
    modules = dict.fromkeys(part for module, name in found for part in (module, f"{module}.{name}"))
    files = (_file(module) for module in modules)
    return tuple(path for path in files if path.is_file() and path != PACKAGE / "__init__.py")
