"""A finished run of the small study, shared by the tests of this folder."""

import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from .. import runs
from ..runs import ROOT

CONFIG = Path(__file__).with_name("config.yaml")


def snakemake(folder: Path, *arguments: str, snakefile: str = "Snakefile", **more: str) -> subprocess.CompletedProcess:
    """Run Snakemake with `folder` as working directory, on the project in or linked into `folder`."""
    return runs.run_to_end(command(folder, *arguments, snakefile=snakefile), **more)


def command(folder: Path, *arguments: str, snakefile: str = "Snakefile") -> list[str]:
    """Command of such a run."""
    # Linked, so that a copy of the folder may have a program of its own in its place.
    project = folder / "project"
    if not project.exists():
        project.symlink_to(ROOT)
    return runs.command(folder, *arguments, project=project, snakefile=snakefile)


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Working directory of a finished run."""
    return runs.made_once(tmp_path_factory, "study", run_study)


def run_study(folder: Path) -> None:
    shutil.copy(CONFIG, folder)
    run = snakemake(folder, "--cores", "2", **runs.DRAWN)
    assert run.returncode == 0, run.stdout + run.stderr
    (folder / "terminal.txt").write_text(run.stdout + run.stderr)


def run_network(folder: Path, config: dict, network: ModuleType) -> None:
    """A run of a configuration whose network and images come from a module, which is copied beside it."""
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    shutil.copy(network.__file__, folder)
    run = snakemake(folder, "--cores", "2")
    assert run.returncode == 0, run.stdout + run.stderr


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of this folder run the workflow."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("slow")
