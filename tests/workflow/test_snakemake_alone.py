"""Snakemake in an environment that holds nothing else, with the jobs in environments of their own: `--sdm conda`.

The environment holds Snakemake and what its distribution requires, linked from this one. A program stands for conda:
the environments that it makes run this one's Python (by `tests.forked`), which has all that any job needs.
"""

import importlib.metadata
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ..forked import client
from ..runs import UNDRAWN
from .conftest import CONFIG, ROOT

CONDA = """#!/bin/sh
case "$*" in
--version) echo conda 25.1.0 ;;
"info --json") echo '{{"conda_prefix": "{prefix}", "platform": "linux-64"}}' ;;
clean*) ;;
config*) echo '{{"get": {{"channel_priority": "strict"}}}}' ;;
*create*)
    while [ "$1" != --prefix ]; do shift; done
    mkdir -p "$2/bin" "$2/conda-meta"
    printf '#!/bin/sh\\necho %s >> {used}\\nPYTHONPATH=$PYTHONPATH:{path} exec {python} "$@"\\n' "$2" > "$2/bin/python"
    chmod +x "$2/bin/python" ;;
*) echo "conda $*: not known here" >&2; exit 1 ;;
esac
"""
PROGRAM = """
import sys
from snakemake.cli import main
try:
    main({arguments!r})
finally:
    print("LOADED", *(name for name in ("numpy", "h5py", "torch", "wshare.config.slices") if name in sys.modules))
"""


def required(name: str) -> set[str]:
    """Names of a distribution and of all that it requires."""
    found, waiting = set(), [name]
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name not in found:
            found.add(name)
            requirements = map(Requirement, importlib.metadata.requires(name) or [])
            waiting += [one.name for one in requirements if one.marker is None or one.marker.evaluate({"extra": ""})]
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment that holds Snakemake alone."""
    folder = tmp_path_factory.mktemp("alone")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for name in required("snakemake"):
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files} - {"..", "__pycache__"}:
            if not (packages / top).exists():
                (packages / top).symlink_to(Path(distribution.locate_file(top)).resolve())
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Working directory with a small study, and with what stands for conda in `bin`."""
    folder = tmp_path_factory.mktemp("study")
    study = yaml.safe_load(CONFIG.read_text())
    study["searches"] = {"uniform": study["searches"]["uniform"]}
    (folder / "config.yaml").write_text(yaml.safe_dump(study))
    (folder / "bin").mkdir()
    (folder / "bin" / "activate").write_text('export PATH="$1/bin:$PATH"\n')
    conda = folder / "bin" / "conda"
    given = {"used": folder / "used.txt", "python": shlex.join(client()), "path": UNDRAWN["PYTHONPATH"]}
    conda.write_text(CONDA.format(prefix=folder, **given))
    conda.chmod(0o755)
    return folder


def run(alone: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """A run of Snakemake in that environment, which prints which packages it had loaded in the end."""
    options = ["--snakefile", str(ROOT / "Snakefile"), "--configfile", "config.yaml"]
    options += ["--workflow-profile", str(ROOT / "profiles" / "default"), *arguments]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    environment["PATH"] = f"{folder / 'bin'}:/usr/bin:/bin"
    command = [str(alone), "-c", PROGRAM.format(arguments=options)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_environment_holds_no_package_that_jobs_need(alone: Path):
    for package in ("numpy", "h5py", "torch", "safetensors", "tqdm", "wshare"):
        found = subprocess.run([str(alone), "-c", f"import {package}"], cwd="/", capture_output=True, check=False)
        assert (found.returncode == 0) == (package in required("snakemake")), package


@pytest.mark.slow
def test_the_workflow_runs_with_its_jobs_in_environments_of_their_own(alone: Path, folder: Path):
    planned = run(alone, folder, "--dry-run")
    assert planned.returncode == 0, planned.stdout + planned.stderr
    assert planned.stdout.splitlines()[-1] == "LOADED wshare.config.slices"
    made = run(alone, folder, "--cores", "2", "--software-deployment-method", "conda")
    assert made.returncode == 0, made.stdout + made.stderr
    assert made.stdout.splitlines()[-1] == "LOADED wshare.config.slices"
    assert (folder / "results" / "tiny" / "report" / "index.html").exists()
    # All three environments were made, and jobs ran in each.
    assert len(set((folder / "used.txt").read_text().splitlines())) == len(list((ROOT / "envs").glob("*.yaml")))
    # Behind the checkpoint too.
    again = run(alone, folder, "--dry-run", "--software-deployment-method", "conda")
    assert "Nothing to be done" in again.stdout + again.stderr
    assert again.stdout.splitlines()[-1] == "LOADED wshare.config.slices"
