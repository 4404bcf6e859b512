"""README.md and docs/benchmarks.md hold the figures that the files in benchmarks/results hold, and no others."""

import importlib
import re
from pathlib import Path

import pytest

from . import claims
from .figures import BLOCK, COMPARISON, LEFT_OUT, NUMBER, problems

ROOT = Path(__file__).parents[3]
STATED = {
    "README.md": (claims.README, claims.README_STATED),
    "docs/benchmarks.md": (claims.BENCHMARKS, claims.BENCHMARKS_STATED),
}


@pytest.fixture(scope="module")
def tables():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("tables")


@pytest.fixture(scope="module")
def check(tables):
    """A function of a page's name and text that gives its problems."""
    files = tables.Files()
    blocks = {
        name: {block: "\n".join(lines(files)) + "\n" for block, lines in tables.PAGES[name].items()}
        for name in tables.PAGES
    }
    return lambda name, text: problems(text, blocks[name], *STATED[name], files)


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", STATED)
def test_every_figure_and_comparison_of_a_page_comes_from_a_file(check, name):
    assert check(name, read(name)) == [], "renew the tables: python benchmarks/tables.py; prose: claims.py"


@pytest.mark.parametrize("page", ["docs/verdict.md", "docs/decoder.md", "docs/exports.md"])
def test_tables_of_other_pages_are_those_of_the_files(tables, page):
    files, found = tables.Files(), dict(BLOCK.findall(read(page)))
    assert found == {name: "\n".join(lines(files)) + "\n" for name, lines in tables.PAGES[page].items()}


def outside_code(text):
    """Places that belong to code, to targets of links or to comments."""
    blocks = [match.span() for match in BLOCK.finditer(text)]
    return [
        match.span()
        for match in LEFT_OUT.finditer(text)
        if not any(start <= match.start() < end for start, end in blocks)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", STATED)
def test_a_change_of_any_number_of_a_page_is_seen(check, name):
    text, unseen, tried = read(name), [], 0
    code = outside_code(text)
    for match in NUMBER.finditer(text):
        if any(start <= match.start() < end for start, end in code):
            continue
        for nonsense in (f"9{match[0]}", re.sub(r"\d", lambda digit: str((int(digit[0]) + 1) % 10), match[0], count=1)):
            tried += 1
            if not check(name, text[: match.start()] + nonsense + text[match.end() :]):
                unseen.append((text[: match.start()].count("\n") + 1, match[0], nonsense))
    assert unseen == []
    assert tried > 100


@pytest.mark.parametrize(
    ("name", "said", "instead"),
    [
        ("README.md", "smaller than nncodec's with its defaults", "larger than nncodec's with its defaults"),
        ("docs/benchmarks.md", "so few images the searches gain", "so few images the searches gain less"),
        ("docs/benchmarks.md", "Inputs gain most.", "Inputs gain least."),
        ("docs/benchmarks.md", "Lite1 and Lite2 (", "Lite1, which meets its target, and Lite2 ("),
    ],
)
def test_a_change_of_a_word_that_compares_is_seen(check, name, said, instead):
    text = read(name)
    assert said in text
    assert check(name, text.replace(said, instead)) != []


@pytest.mark.parametrize("name", STATED)
def test_a_change_of_a_verdict_or_a_block_is_seen(check, name):
    text = read(name)
    for block in BLOCK.finditer(text):
        for match in COMPARISON.finditer(block[2]):
            start = block.start(2) + match.start()
            assert check(name, text[:start] + "perfect" + text[start + len(match[0]) :]) != []
    assert check(name, text + "\n<!-- made_up -->\nIt is 12x smaller.\n<!-- end -->\n") != []
    assert check(name, text + "\nIt is 12x smaller.\n") != []


def test_a_claim_whose_words_are_untrue_is_seen(check):
    untrue = claims.Claim("Lite2 is smaller", holds=lambda files: False)
    assert problems("Lite2 is smaller.", {}, [untrue], [], None) == ["not so: Lite2 is smaller"]
    assert problems("Lite2 is smaller.", {}, [], [], None) != []


@pytest.mark.parametrize(
    "name", ["study", "splits", "demo", "photos", "peers", "networks", "gpu_stages", "gpu_kernels"]
)
def test_every_row_tells_which_version_measured_it(tables, name):
    assert all(re.fullmatch(r"\S+, \d{4}-\d\d-\d\d", row["measured"]) for row in tables.Files()[name])


def test_the_headline_is_the_mean_of_five_splits_at_least(tables):
    seeds = {
        name: {row["seed"] for row in tables.Files()["splits"] if row["search"] == name} for name in tables.TARGETS
    }
    assert min(len(found) for found in seeds.values()) >= 5
