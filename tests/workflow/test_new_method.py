"""A search method added as docs/extending.md says goes through the workflow, `wshare apply` and the report."""

import re
from pathlib import Path

import pytest
import yaml

from wshare.files.sealed import read_json

from ..runs import made_once
from ..unit.documents.test_extending import SECTIONS, STEP, change
from .conftest import CONFIG, snakemake
from .test_recipes import applied
from .test_reruns import own_code, planned, searched

MODULE = "search/grid.py"
TARGETS = {"mesh": 0.9, "coarse": 0.6}


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a program that has one method more; no search of it is by k."""
    return made_once(tmp_path_factory, "extended", run_extended)


def run_extended(folder: Path) -> None:
    config = yaml.safe_load(CONFIG.read_text())
    config["searches"] = {
        name: {"method": "grid", "quality_target": target, "confidence": None, "options": {"evaluations": 3}}
        for name, target in TARGETS.items()
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    own_code(folder)
    for verb, path, where, anchor, text in STEP.findall(dict(SECTIONS)["A search method"]):
        if verb == "Create":
            (folder / "project" / path).write_text(text)
        elif verb == "In":
            change(folder / "project" / path, where, anchor, text)
    run = snakemake(folder, "--cores", "2")
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_method_adds_one_module_and_no_job_but_its_own(extended: Path):
    assert (extended / "project/workflow/wshare" / MODULE).is_file()
    results = extended / "results/tiny"
    for search in TARGETS:
        recipe = read_json(results / "search" / search / "recipe.json")
        assert recipe["settings"]["method"] == "grid"
        assert all(layer["step"] > 0 for layer in recipe["layers"].values())
        assert recipe["on_search_images"]["meets_target"]
    # It needs no artifact of other methods, and none was made.
    for name in ("weights.h5", "calibration.h5", "sensitivity.csv", "layers"):
        assert not (results / name).exists()


@pytest.mark.parametrize("search", TARGETS)
def test_its_recipe_gives_the_packed_file_again(extended: Path, tmp_path: Path, search: str):
    packed = extended / "results/tiny/search" / search / "packed.safetensors"
    assert applied(extended, search, tmp_path / "again.safetensors") == packed.read_bytes()


def test_reports_name_its_searches(extended: Path):
    page = (extended / "results/tiny/report/index.html").read_text()
    summary = (extended / "results/summary.txt").read_text()
    for search in TARGETS:
        assert f'<article data-search="{search}">' in page
        assert f"{search} (grid)" in page
        assert f"{search}: " in summary
    assert re.search(r"<h3>.*mesh", page)
    assert "mesh" in (extended / "results/report/index.html").read_text()


def test_a_change_of_its_module_reruns_its_searches(extended: Path):
    assert planned(extended) == set()
    module = extended / "project/workflow/wshare" / MODULE
    text = module.read_text()
    try:
        module.write_text(text + "\n")
        assert planned(extended) == searched("tiny", *TARGETS)
    finally:
        module.write_text(text)
