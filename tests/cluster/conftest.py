"""The small study, run on this machine alone: what every run on a cluster must equal."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from .slurm import slurm

ROOT = Path(__file__).parents[2]
# One search of each kind; together they run every rule but `fetch_model`.
SEARCHES = ("rate_distortion", "uniform")
# Logs, times, the reports, which show them, and Snakemake's own records differ from run to run.
VARYING = ("logs", "benchmarks", "report", "summary.txt", "summary.csv")


def command(folder: Path, profile: str, *arguments: str) -> list[str]:
    """Command that runs the project's workflow with a profile, and `folder` as working directory."""
    return [
        *(sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)),
        *("--workflow-profile", str(ROOT / "profiles" / profile), "--configfile", str(folder / "config.yaml")),
        *arguments,
    ]


def clean(environment: dict[str, str]) -> dict[str, str]:
    """The environment without what the tests put there: jobs must find the package by themselves."""
    return {key: value for key, value in environment.items() if key != "PYTHONPATH"}


def write_study(folder: Path) -> Path:
    """`folder`, with the configuration of the small study."""
    config = yaml.safe_load((ROOT / "tests/workflow/config.yaml").read_text())
    config["searches"] = {name: config["searches"][name] for name in SEARCHES}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def results(folder: Path) -> dict[str, str]:
    """SHA-256 of every result by its path, metrics.json without the seconds that a run took."""
    found = {}
    for path in sorted((folder / "results").rglob("*")):
        name = path.relative_to(folder / "results")
        if path.is_dir() or set(VARYING) & set(name.parts):
            continue
        content = path.read_bytes()
        if path.name == "metrics.json":
            metrics = json.loads(content)
            # The checksum covers the seconds.
            metrics = {key: value for key, value in metrics.items() if key not in ("seconds", "checksum")}
            content = json.dumps(metrics).encode()
        found[str(name)] = hashlib.sha256(content).hexdigest()
    return found


@pytest.fixture(scope="session")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Working directory of a run without a cluster."""
    folder = write_study(tmp_path_factory.mktemp("local"))
    run = subprocess.run(
        command(folder, "default", "--cores", "2"), env=clean(os.environ), capture_output=True, text=True, timeout=600
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert sum(name.endswith("packed.safetensors") for name in results(folder)) == len(SEARCHES)
    return folder


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory):
    """Environment in which Slurm's commands talk to a Slurm of two nodes on this machine."""
    with slurm(tmp_path_factory.mktemp("slurm")) as environment:
        yield clean(environment)
