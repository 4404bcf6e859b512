"""The rooms of the package: imports point one way and in no circle, and a subpackage imports nothing by itself.

Imports are read from the source, those within functions too.
"""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "workflow" / "wshare"
# From the ground up: a room imports from rooms below it, and from itself.
FLOORS = (
    {"errors", "progress", "version"},
    {"names"},
    {"files", "quantize"},
    {"models"},
    {"data"},
    {"artifacts", "tasks"},
    {"evaluation"},
    {"calibration", "packed"},
    {"search", "report", "exports", "nn"},
    {"config"},
    {"api", "data_free"},
    {"stages", "commands"},
    {"cli"},
    {"__main__"},
)
MODULES = {
    ".".join(("wshare", *file.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): file
    for file in PACKAGE.rglob("*.py")
}


@cache
def nodes(module: str) -> list[ast.AST]:
    """All nodes of a module's source."""
    return list(ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))))


@cache
def imports(module: str) -> set[str]:
    """Modules of the package that a module imports."""
    found = set()
    for node in nodes(module):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "wshare":
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in MODULES else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "wshare"}
    return found - {module, "wshare"}


def floor(module: str) -> int:
    room = module.split(".")[1]
    (place,) = [place for place, rooms in enumerate(FLOORS) if room in rooms]
    return place


def room(module: str) -> str:
    return module.split(".")[1]


def test_every_module_lies_in_a_room():
    assert {room(module) for module in MODULES if module != "wshare"} == set().union(*FLOORS)


def test_no_import_runs_up_or_across():
    wrong = [
        f"{module} -> {other}"
        for module in MODULES
        if module != "wshare"
        for other in imports(module)
        if room(module) != room(other) and floor(module) <= floor(other)
    ]
    assert wrong == []


def test_no_imports_run_in_a_circle():
    left = {module: imports(module) for module in MODULES if module != "wshare"}
    while free := [module for module, others in left.items() if not others & left.keys()]:
        for module in free:
            del left[module]
    assert left == {}


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*/__init__.py")), ids=lambda file: file.parent.name)
def test_a_subpackage_imports_nothing_by_itself(file):
    nodes = ast.parse(file.read_text(encoding="utf-8")).body
    assert [type(node) for node in nodes] == [ast.Expr], "a docstring, and nothing else"


def test_import_of_the_package_loads_no_library():
    program = "import sys, wshare; print(sorted({'torch', 'numpy', 'h5py', 'yaml', 'jsonschema'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


LONG = {"report/charts.py"}


def test_no_function_is_longer_than_sixty_lines():
    long = []
    for module, file in MODULES.items():
        if file.relative_to(PACKAGE).as_posix() not in LONG:
            for node in nodes(module):
                if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 60:
                    long.append(f"{file.name}:{node.name} has {node.end_lineno - node.lineno + 1} lines")
    assert long == []


def test_no_stage_takes_more_than_ten_arguments():
    many = []
    for file in (PACKAGE / "stages").glob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and len(node.args.args) > 10:
                many.append(f"{file.name}:{node.name}")
    assert many == []


def test_library_code_does_not_print():
    talking = [
        f"{module}:{node.lineno}"
        for module in MODULES
        if module != "wshare" and room(module) not in ("stages", "commands", "cli", "__main__", "config")
        for node in nodes(module)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert talking == []
