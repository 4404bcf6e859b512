"""profiles/cluster-generic with a stub of a scheduler, which starts jobs in a bare environment."""

import os
import signal
import time
from pathlib import Path

import pytest

from ..runs import command, files, started
from .conftest import THREADS, write_study

STUB = Path(__file__).with_name("scheduler")
OPTIONS = (
    *("--cluster-generic-submit-cmd", f"{STUB}/submit {{rule}} {{threads}} {{resources.mem_mb}} {{resources.runtime}}"),
    *("--cluster-generic-status-cmd", f"{STUB}/status", "--cluster-generic-cancel-cmd", f"{STUB}/cancel"),
    *("--seconds-between-status-checks", "1"),
    *THREADS,
)


def asked(folder: Path) -> dict[int, list[str]]:
    """What was asked for each job, by its number: rule, threads, memory, run time, job script."""
    return {int(path.stem): path.read_text().split() for path in (folder / ".scheduler").glob("*.asked")}


def first(folder: Path, rule: str) -> int:
    """Number of the first job of the rule, once it has begun to work."""
    end = time.monotonic() + 300
    while time.monotonic() < end:
        for number, words in asked(folder).items():
            if words[0] == rule and (folder / f".scheduler/{number}.log").exists():
                return number
        time.sleep(0.1)
    raise AssertionError(f"no job of {rule} was submitted\n{(folder / 'terminal.txt').read_text()}")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Working directory of a run during which the scheduler killed one job."""
    folder = write_study(tmp_path_factory.mktemp("generic"))
    process = started(command(folder, *OPTIONS, profile="cluster-generic"), folder / "terminal.txt")
    try:
        os.killpg(first(folder, "cluster_layer"), signal.SIGKILL)
        returncode = process.wait(400)
    finally:
        process.terminate()
        process.wait(60)
    assert returncode == 0, (folder / "terminal.txt").read_text()
    return folder


def test_results_are_the_bytes_of_a_local_run(finished: Path, local: Path):
    assert files(finished) == files(local)


def test_killed_job_is_tried_again_and_resources_reach_the_submit_command(finished: Path):
    words = sorted(words[:4] for words in asked(finished).values())
    assert [line for line in words if line[0] == "cluster_layer"] == [
        *[["cluster_layer", "1", "1000", "30"]] * 3,
        ["cluster_layer", "1", "2000", "60"],
    ]
    assert ["search", "4", "6000", "480"] in words
