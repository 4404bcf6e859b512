"""A finished run of the small study, shared by the tests of this folder."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFIG = Path(__file__).with_name("config.yaml")


def snakemake(folder: Path, *arguments: str, snakefile: str = "Snakefile") -> subprocess.CompletedProcess:
    """Run Snakemake on the project's workflow, with `folder` as working directory."""
    command = [
        *(sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / snakefile), "--directory", str(folder)),
        *("--workflow-profile", str(ROOT / "profiles" / "default"), "--configfile", str(folder / "config.yaml")),
        *arguments,
    ]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=850)


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Working directory of a finished run."""
    folder = tmp_path_factory.mktemp("study")
    shutil.copy(CONFIG, folder)
    run = snakemake(folder, "--cores", "2")
    assert run.returncode == 0, run.stdout + run.stderr
    (folder / "terminal.txt").write_text(run.stdout + run.stderr)
    return folder
