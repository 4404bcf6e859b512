"""Which source files a stage runs, and their hash."""

import ast
import hashlib
from functools import cache
from pathlib import Path

from wshare.config.validation import PACKAGE
from wshare.search.methods import METHODS

# Modules of `sources` that a model of each source is built with.
_SOURCE_MODULES = {
    "train": (),
    "torchvision": ("torchvision", "file"),
    "timm": ("timm", "file"),
    "wheel": ("wheel", "file"),
    "file": ("file", "torchvision", "timm", "python"),
    "python": ("python",),
}


@cache
def code_files(stage: str, source: str = "file", method: str | None = None) -> tuple[str, ...]:
    """Source files of the package that a stage's module imports, directly or not, sorted.

    Read from the import statements, wherever they stand, so that no list has to be kept by hand. Of the model
    sources only those count that a model of `source` needs, of the search methods only `method`, or all.
    """
    table = PACKAGE / "search" / "methods.py"
    found: set[Path] = set()
    waiting = [PACKAGE / "stages" / f"{stage}.py"]
    while waiting:
        file = waiting.pop()
        foreign = file.parent.name == "sources" and file.stem not in ("__init__", *_SOURCE_MODULES[source])
        if file not in found and not foreign:
            found.add(file)
            waiting += _imports(file)
            if file == table:
                rows = [METHODS[method]] if method else METHODS.values()
                waiting += [found for row in rows for found in _files(f"wshare.search.{row.module}")]
    return tuple(sorted(str(file) for file in found))


@cache
def code_hash(stage: str, source: str = "file", method: str | None = None) -> str:
    """SHA-256 over names and contents of a stage's code files.

    For a rule's parameters: source files among its inputs would be looked at by their dates first, and a release that
    is unpacked brings old ones.
    """
    digest = hashlib.sha256()
    for file in code_files(stage, source, method):
        content = Path(file).read_bytes()
        digest.update(f"{Path(file).relative_to(PACKAGE).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


@cache
def _imports(file: Path) -> tuple[Path, ...]:
    modules = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("wshare"):
            modules += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return tuple(path for module in modules for path in _files(module))


def _files(module: str) -> list[Path]:
    """Files of the package that an import of a name reads: a module, or what a module holds."""
    base = PACKAGE.joinpath(*module.split(".")[1:])
    files = (base.with_suffix(".py"), base / "__init__.py", base.parent / "__init__.py")
    # The package's own __init__ is a door for users: what it offers is written elsewhere.
    return [path for path in files if path.is_file() and path != PACKAGE / "__init__.py"]
