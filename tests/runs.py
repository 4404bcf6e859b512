"""Runs of the workflow as a user starts them, and what of their results does not depend on the clock."""

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .forked import forked

ROOT = Path(__file__).parents[1]
# For copies of the package: without what Python compiled, but with what numba did, which takes it many seconds. Files
# that are being written may be gone by the time that they are copied.
PASSING = shutil.ignore_patterns("*.pyc*", "*.tmp.*")

# Drawing the figures of a small study's reports takes longer than the whole study.
UNDRAWN = {"PYTHONPATH": str(ROOT / "tests" / "undrawn")}
DRAWN = {"PYTHONPATH": ""}


def command(
    folder: Path, *arguments: str, project: Path = ROOT, snakefile: str = "Snakefile", profile: str = "default"
) -> list[str]:
    """Command line of Snakemake with `folder` as working directory, which holds config.yaml.

    A profile other than the default one comes on top of it.
    """
    profiles = ["--workflow-profile", str(project / "profiles" / "default")]
    if profile != "default":
        profiles += ["--profile", str(project / "profiles" / profile)]
    return [
        *(sys.executable, "-m", "snakemake", "--snakefile", str(project / snakefile), "--directory", str(folder)),
        *profiles,
        *("--configfile", str(folder / "config.yaml")),
        *arguments,
    ]


def environment(**more: str) -> dict[str, str]:
    """Environment of a user, but for the figures of reports, which are not drawn unless `more` says `DRAWN`.

    The package is not on the path, and the workflow finds it by itself.
    """
    return os.environ | UNDRAWN | more


def run_to_end(
    command: list[str], folder: Path | None = None, *, alone: bool = False, **more: str
) -> subprocess.CompletedProcess:
    """A command run to its end, in a folder if one is given; `more` are environment variables.

    Snakemake and its jobs are spared their imports, which take longer than a small study's work, if it is not `alone`.
    """
    variables = environment(**more)
    if not alone:
        command, variables = forked(command, variables)
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=1750, check=False)


def started(command: list[str], terminal: Path, **more: str) -> subprocess.Popen:
    """A command that goes on by itself, in a process group of its own, and writes to the file `terminal`."""
    with terminal.open("w") as printed:
        return subprocess.Popen(
            command, env=environment(**more), stdout=printed, stderr=subprocess.STDOUT, start_new_session=True
        )


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Folder of that name that `make` fills, once for all processes that pytest-xdist runs tests in."""
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder, done = base / name, base / f"{name}.done"
    with open(base / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


def without_times(path: Path) -> bytes:
    """Bytes of a result, without what depends on the clock."""
    if path.name == "summary.csv":
        return b"\n".join(line.rpartition(b",")[0] for line in path.read_bytes().splitlines())
    return path.read_bytes()


def files(folder: Path) -> dict[str, bytes]:
    """Content of all results by path, but for logs, recorded times and the reports, which show them."""
    clocks = {"logs", "benchmarks", "report", "timings.json"}
    found = {}
    for path in sorted((folder / "results").rglob("*")):
        name = path.relative_to(folder / "results")
        if path.is_file() and ".tmp" not in str(name) and not clocks & set(name.parts):
            found[str(name)] = without_times(path)
    return found
