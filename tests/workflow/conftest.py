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
    """Run Snakemake with `folder` as working directory, on the project in or linked into `folder`."""
    return subprocess.run(
        command(folder, *arguments, snakefile=snakefile),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=850,
    )


def command(folder: Path, *arguments: str, snakefile: str = "Snakefile") -> list[str]:
    """Command of such a run."""
    project = folder / "project"
    # Code files are inputs, relative to `folder`: with the project inside, a folder that is copied stays finished.
    if not project.exists():
        project.symlink_to(ROOT)
    return [
        *(sys.executable, "-m", "snakemake", "--snakefile", str(project / snakefile), "--directory", str(folder)),
        *("--workflow-profile", str(project / "profiles" / "default"), "--configfile", str(folder / "config.yaml")),
        *arguments,
    ]


def environment() -> dict[str, str]:
    """Environment of such a run: the workflow finds its package by itself."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Working directory of a finished run."""
    folder = tmp_path_factory.mktemp("study")
    shutil.copy(CONFIG, folder)
    run = snakemake(folder, "--cores", "2")
    assert run.returncode == 0, run.stdout + run.stderr
    (folder / "terminal.txt").write_text(run.stdout + run.stderr)
    return folder
