"""The table of search methods, and that nobody but the table asks which method a search is."""

import ast
import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from wshare.config.validation import schema
from wshare.search.artifacts import Files
from wshare.search.methods import DEFAULT, METHODS, packing_of

ROOT = Path(__file__).parents[3]
WORKFLOW = ROOT / "workflow"
# `slope` is a word for other things too: only comparisons with it ask for the method.
UNMISTAKABLE = METHODS.keys() - {"slope"}


def sources() -> list[Path]:
    files = (WORKFLOW / "wshare").rglob("*.py")
    return [file for file in files if "search" not in file.relative_to(WORKFLOW / "wshare").parts]


def docstrings(tree: ast.AST) -> set[int]:
    kinds = (ast.Module, ast.FunctionDef, ast.ClassDef)
    return {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, kinds) and node.body and isinstance(node.body[0], ast.Expr)
    }


@pytest.mark.parametrize("file", sources(), ids=lambda file: file.relative_to(WORKFLOW).as_posix())
def test_no_module_outside_search_names_a_method(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    told = docstrings(tree)
    named = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value in UNMISTAKABLE and id(node) not in told
    }
    compared = {
        constant.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare)
        for constant in ast.walk(node)
        if isinstance(constant, ast.Constant) and constant.value in METHODS
    }
    assert named | compared == set()


@pytest.mark.parametrize(
    "file",
    [*sorted(WORKFLOW.glob("rules/*.smk")), WORKFLOW / "Snakefile", *sorted(ROOT.glob("profiles/*/profile.yaml"))],
    ids=lambda file: file.relative_to(ROOT).as_posix(),
)
def test_no_rule_or_profile_names_a_method(file):
    # Snakemake has a scheduler of that name.
    words = set(re.findall(r"[a-z_]+", file.read_text(encoding="utf-8").replace("scheduler: greedy", "")))
    assert words & UNMISTAKABLE == set()
    assert not words & {f"search_{name}" for name in METHODS}


def test_rows_need_known_artifacts_and_load_what_they_say():
    artifacts = {field.name for field in fields(Files)}
    for name, row in METHODS.items():
        assert row.name == name
        assert set(row.realised_from) <= set(row.needs) <= artifacts
        method = row.load()
        assert isinstance(method.version, int)
        assert all(callable(getattr(method, part)) for part in ("prepare", "budget", "search", "realise"))
    assert DEFAULT in METHODS


def test_the_schema_lists_the_methods_of_the_table_each_with_options_of_its_own():
    schema = yaml.safe_load((WORKFLOW / "schemas" / "config.schema.yaml").read_text())
    search = schema["$defs"]["search"]
    assert search["properties"]["method"]["enum"] == list(METHODS)
    blocks = {rule["if"]["properties"]["method"]["const"] for rule in search["allOf"]}
    assert blocks == METHODS.keys() <= schema["$defs"].keys()


def test_a_search_for_another_runtime_has_its_packed_file_entropy_coded():
    formats = schema()["$defs"]["rate_distortion"]["properties"]["format"]["enum"]
    found = {name: packing_of({"format": name, "max_kl": None}) for name in formats}
    assert found.pop("fixed") == {"format": "fixed"}
    assert set(found) > {"entropy"}
    assert all(packing == {"format": "entropy"} for packing in found.values())
    assert packing_of({"evaluations": 3}) == {}
