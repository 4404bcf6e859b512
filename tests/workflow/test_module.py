"""The workflow as a module of another one, in another folder, with its own configuration and other names of rules."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ..runs import run_to_end
from .conftest import CONFIG, ROOT

# One search of each kind.
SEARCHES = ("rate_distortion", "uniform")
SNAKEFILE = """
configfile: "study.yaml"


module wshare:
    snakefile:
        {snakefile!r}
    config:
        config["compression"]
    prefix:
        "networks"


use rule * from wshare as wshare_*


rule mine:
    input:
        summary=rules.wshare_summarise.output.summary,
        packed="networks/results/tiny/search/uniform/packed.safetensors",
        page="networks/results/tiny/report/index.html",
    output:
        "mine.txt",
    default_target: True
    shell:
        "cp {{input.summary}} {{output}}"
"""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Snakemake in that folder, which finds no profile there."""
    # Other hashes, and with them another order of sets, than in the run that it is compared with.
    return run_to_end([sys.executable, "-m", "snakemake", *arguments], folder, PYTHONHASHSEED="1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of another workflow that imports this one."""
    folder = tmp_path_factory.mktemp("another")
    study = yaml.safe_load(CONFIG.read_text())
    study["searches"] = {name: study["searches"][name] for name in SEARCHES}
    (folder / "study.yaml").write_text(yaml.safe_dump({"compression": study, "models": "something else"}))
    (folder / "Snakefile").write_text(SNAKEFILE.format(snakefile=str(ROOT / "workflow" / "Snakefile")))
    return folder


def test_rules_keep_their_threads_and_memory_without_our_profiles(folder: Path):
    planned = run(folder, "--dry-run", "--cores", "8")
    assert planned.returncode == 0, planned.stdout + planned.stderr
    listing = planned.stdout.partition("rule wshare_search:")[2].partition("\n\n")[0]
    assert "threads: 4" in listing
    assert "mem_mb=6000" in listing
    assert "runtime=480" in listing


@pytest.mark.slow
def test_another_workflow_runs_this_one_below_a_prefix(folder: Path, study: Path):
    made = run(folder, "--cores", "2")
    assert made.returncode == 0, made.stdout + made.stderr
    assert "uniform: " in (folder / "mine.txt").read_text()
    results = folder / "networks" / "results" / "tiny"
    assert (results / "search" / "uniform" / "journal.jsonl").exists()
    assert '"cluster_layer": ' in (results / "search" / "uniform" / "timings.json").read_text()
    assert not (folder / "results").exists()
    # Two runs of one study: another folder, other threads, other searches beside.
    for search in SEARCHES:
        for name in ("metrics.json", "predictions.csv", "packed.safetensors", "recipe.json", "front.csv", "losses.csv"):
            again = results / "search" / search / name
            assert again.read_bytes() == (study / "results/tiny/search" / search / name).read_bytes(), again
    again = run(folder, "--dry-run")
    assert "Nothing to be done" in again.stdout + again.stderr


def test_a_git_address_ends_in_one_line(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(ROOT / "workflow", source / "workflow", ignore=shutil.ignore_patterns("__pycache__"))
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    for command in (["init", "--quiet"], ["add", "--all"], [*identity, "commit", "--quiet", "--message", "all"]):
        subprocess.run(["git", *command], cwd=source, check=True)
    address = f'gitfile({str(source)!r}, path="workflow/Snakefile", ref="HEAD")'
    lines = ['configfile: "study.yaml"', "module wshare:", f"    snakefile: {address}", "    config: config"]
    (tmp_path / "Snakefile").write_text("\n".join([*lines, "use rule * from wshare as wshare_*", ""]))
    shutil.copy(CONFIG, tmp_path / "study.yaml")
    done = run(tmp_path, "--dry-run", "--cores", "1")
    assert done.returncode == 1
    assert (
        "workflow/rules@HEAD: the rules run the Python package beside them; clone the repository"
        in done.stdout + done.stderr
    )
    assert "TypeError" not in done.stdout + done.stderr
