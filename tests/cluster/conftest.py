"""The small study, run on this machine alone: what every run on a cluster must equal."""

from pathlib import Path

import pytest
import yaml

from ..runs import ROOT, command, files, run_to_end
from .slurm import slurm

# One search of each kind; together they run every rule but `fetch_model`.
SEARCHES = ("rate_distortion", "uniform")
# So small a network takes one thread by itself.
THREADS = ("--set-threads", "search=4")


def write_study(folder: Path) -> Path:
    """`folder`, with the configuration of the small study."""
    config = yaml.safe_load((ROOT / "tests/workflow/config.yaml").read_text())
    config["searches"] = {name: config["searches"][name] for name in SEARCHES}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture(scope="session")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Working directory of a run without a cluster."""
    folder = write_study(tmp_path_factory.mktemp("local"))
    run = run_to_end(command(folder, "--cores", "2"))
    assert run.returncode == 0, run.stdout + run.stderr
    assert sum(name.endswith("packed.safetensors") for name in files(folder)) == len(SEARCHES)
    return folder


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory):
    """Environment in which Slurm's commands talk to a Slurm of two nodes on this machine."""
    with slurm(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment
