"""The program that looks for slips of the hand which no test sees: `make mutation`."""

import ast

import pytest

from ...mutation import __main__ as program
from ...mutation.mutants import mutants


def changes(source):
    return {(mutant.before, mutant.after) for mutant in mutants(source)}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a = b < c", {("b < c", "b <= c"), ("b < c", "b > c")}),
        ("a = b + c * d", {("b + c * d", "b - c * d"), ("c * d", "c / d")}),
        ("a = 3", {("3", "4")}),
        ("a = 0.25", {("0.25", "0.5")}),
        ("a = True", {("True", "False")}),
        ("a = not b", {("not b", "b")}),
        ("a = b and c", {("b and c", "b or c"), ("b and c", "b"), ("b and c", "c")}),
        ("a = b if c else d", {("b if c else d", "b"), ("b if c else d", "d")}),
        ("a = max(b, c)", {("max(b, c)", "min(b, c)")}),
        ("a += b", {("a += b", "a -= b")}),
        ("if a:\n    b()", {("a", "True"), ("a", "False")}),
        ("a = [b for b in c if d]", {("d", "True")}),
        ("def f(a, b):\n    return g(a, b)", {("return g(a, b)", "return a")}),
        ("def f(a):\n    return a", set()),
        ('"""Text 1."""\na: Literal[2] = b', set()),
        ("raise E(f'{a + 1}')", set()),
    ],
)
def test_a_module_is_changed_in_one_place_at_a_time(source, expected):
    assert changes(source) == expected


def test_a_mutant_is_the_whole_module_with_its_place_changed_also_behind_letters_of_two_bytes():
    source = "a = 'ü'; b = c < d  # é\ne = f(\n    g\n    + h\n)\n"
    assert [(mutant.line, mutant.source) for mutant in mutants(source)] == [
        (1, source.replace("c < d", "(c <= d)")),
        (1, source.replace("c < d", "(c > d)")),
        (3, source.replace("g\n    + h", "(g - h)")),
    ]


@pytest.mark.slow
def test_every_module_and_every_test_that_the_program_names_exists_and_mutants_can_be_compiled():
    for module, tests in program.MODULES.items():
        assert all((program.ROOT / name).exists() for name in tests)
        found = mutants((program.ROOT / program.PACKAGE / module).read_text(encoding="utf-8"))
        assert len(found) > 5
        for mutant in found[::20]:
            ast.parse(mutant.source)


@pytest.mark.slow
def test_a_mutant_that_the_tests_do_not_see_survives(tmp_path, capsys, monkeypatch):
    package = tmp_path / program.PACKAGE
    package.mkdir(parents=True)
    (package / "sums.py").write_text("def total(a, b):\n    return a + b if a < 9 else b\n")
    (tmp_path / "test_sums.py").write_text(
        f"import sys\nsys.path.insert(0, {str(package)!r})\nfrom sums import total\n\n"
        "def test_total():\n    assert total(1, 2) == 3\n"
    )
    monkeypatch.setitem(program.MODULES, "sums.py", ("test_sums.py",))
    found = [mutant for mutant in mutants((package / "sums.py").read_text()) if mutant.before in ("a < 9", "a + b")]
    alive = {(mutant.before, mutant.after) for mutant in program.survivors(tmp_path, "sums.py", found)}
    assert alive == {("a < 9", "a <= 9")}
    assert f"{program.PACKAGE / 'sums.py'}:2: a < 9 -> a <= 9\n" in capsys.readouterr().out
