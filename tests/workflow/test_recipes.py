"""A recipe applied again, by `wshare apply`, gives the very bytes of the file that the workflow packed."""

import shutil
import sys
from pathlib import Path

import pytest
import yaml

from wshare.files.sealed import read_json
from wshare.search.methods import METHODS

from ..runs import made_once, run_to_end
from .conftest import CONFIG, snakemake

SEARCHES = yaml.safe_load(CONFIG.read_text())["searches"]
# Other settings of all that codebooks and the packed file depend on, one of them for one layer alone.
OTHERS = {
    "seed": 3,
    "clustering": {
        "k_max": 64,
        "candidates": [2, 4, 16],
        "method": "lloyd",
        "bins": 256,
        "weighting": "importance",
        "keep_zeros": True,
    },
    "importance": {"images": 20},
    "calibration": {"images": 50},
    "packing": {"format": "entropy", "batch_norm": "float32"},
    "searches": {
        "milp": {"method": "milp", "quality_target": 0.9, "confidence": 0.5, "options": {"evaluations": 2}},
        "greedy": {"method": "greedy", "quality_target": 0.9, "confidence": 0.5, "options": {"evaluations": 2}},
        "rate": {"method": "rate_distortion", "options": {"compression_rate": 8, "evaluations": 3, "keep_zeros": True}},
        "integers": {"method": "rate_distortion", "options": {"format": "int4", "compression_rate": 6}},
    },
}
LAYERS = {
    "exclude": ["conv"],
    "overrides": {"depthwise": {"k_max": 32, "weighting": "none"}, "fc": {"method": "exact"}},
}


def test_every_method_is_among_the_searches():
    methods = {search["method"] for search in (*SEARCHES.values(), *OTHERS["searches"].values())}
    assert methods == set(METHODS)


@pytest.fixture(scope="module")
def others(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the small study's network with other settings."""
    return made_once(tmp_path_factory, "others", lambda folder: run_others(study, folder))


def run_others(study: Path, folder: Path) -> None:
    shutil.copytree(study, folder, symlinks=True, dirs_exist_ok=True)
    shutil.rmtree(folder / "results/tiny/search")
    config = yaml.safe_load(CONFIG.read_text()) | OTHERS
    config["models"]["tiny"]["layers"] = LAYERS
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    run = snakemake(folder, "--cores", "2")
    assert run.returncode == 0, run.stdout + run.stderr


def applied(folder: Path, search: str, output: Path) -> bytes:
    """The packed file that `wshare apply` makes of a search's recipe."""
    results = folder / "results/tiny"
    command = [sys.executable, "-m", "wshare", "apply", "--recipe", str(results / "search" / search / "recipe.json")]
    command += ["--spec", str(results / "model/model.json"), "--search-images", str(results / "images/search.h5")]
    run = run_to_end([*command, "--output", str(output)], PYTHONPATH=str(folder / "project/workflow"))
    assert run.returncode == 0, run.stdout + run.stderr
    return output.read_bytes()


@pytest.mark.parametrize("search", SEARCHES)
def test_a_recipe_gives_the_packed_file_again(study: Path, tmp_path: Path, search: str):
    packed = study / "results/tiny/search" / search / "packed.safetensors"
    assert applied(study, search, tmp_path / "again.safetensors") == packed.read_bytes()


@pytest.mark.parametrize("search", OTHERS["searches"])
def test_a_recipe_holds_settings_that_are_no_defaults(others: Path, tmp_path: Path, search: str):
    folder = others / "results/tiny/search" / search
    assert read_json(folder / "recipe.json")["packing"] == OTHERS["packing"]
    assert applied(others, search, tmp_path / "again.safetensors") == (folder / "packed.safetensors").read_bytes()
