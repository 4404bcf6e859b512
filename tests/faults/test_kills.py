"""Jobs and runs that are killed, and what the next run makes of what they left."""

import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest

from ..runs import command, started
from .conftest import (
    CONFIG,
    REPORTS,
    Row,
    Study,
    before_report,
    check_same,
    check_whole,
    finished,
    leftovers,
    report_files,
    snakemake,
    stage_of,
    watched,
)
from .supervisor import Ended, kill

# All go by a run of the whole workflow.
pytestmark = pytest.mark.slow

# All that the study runs but the reports.
JOBS = (
    "train_model",
    "prepare_images",
    "inspect_model",
    "evaluate_dense",
    "extract_weights",
    "measure_inputs",
    "cluster_layer fc",
    "profile_layers",
    "gather_sensitivity",
    "search slope",
    "search rate_distortion",
    "pack_model slope",
    "pack_model rate_distortion",
    "evaluate_packed slope",
    "summarise",
)
ROUNDS = 4
KILLED = "kill -9 of a job before a random one of its writes"
AFTER_KILL = "each file absent or whole; the next run leaves the undisturbed result and no temporary file"


@pytest.mark.parametrize("job", JOBS)
def test_a_job_killed_at_a_random_write(job: str, study: Study, run_stage: Callable[..., Ended], fault):
    row = fault(2, KILLED, where=job.split()[0], data=AFTER_KILL)
    folder, calls = watched(study, job, run_stage)
    for n in random.Random(job).sample(range(1, len(calls) + 1), ROUNDS):
        study.clear(folder, job)
        ended = run_stage(folder, study.jobs[job], kill(n))
        assert ended.code == -9
        check_whole(folder, study, job)
        assert run_stage(folder, study.jobs[job]).code == 0
        check_same(folder, study)
        row.round(True)
    assert leftovers(folder) == []


@pytest.mark.parametrize(("job", "rounds"), REPORTS.items())
def test_a_report_killed_at_a_random_write(job: str, rounds: int, study: Study, run_stage: Callable[..., Ended], fault):
    row = fault(2, KILLED, where=job, data=AFTER_KILL)
    folder, whole = before_report(study, job)
    # Each of the two makes 30 calls at least, for three files.
    for n in random.Random(job).sample(range(1, 31), rounds):
        study.clear(folder, job)
        assert run_stage(folder, study.jobs[job], kill(n)).code == -9
        assert report_files(folder, study, job).items() <= whole.items()
        assert run_stage(folder, study.jobs[job]).code == 0
        assert report_files(folder, study, job) == whole
        check_same(folder, study)
        row.round(True)


def test_snakemake_names_rule_and_log_of_a_killed_job(study: Study, fault):
    row = fault(
        2,
        "kill -9 of a job under Snakemake",
        where="search",
        data="Snakemake fails and names rule and log; the next run leaves the undisturbed result",
    )
    folder = study.copy()
    study.clear(folder, "search slope")
    log = folder / "results/tiny/logs/search/slope/search.log"
    log.unlink()
    terminal, recipe = folder / "terminal.txt", "results/tiny/search/slope/recipe.json"
    run = started(command(folder, "--cores", "1", recipe), terminal)
    while not log.exists() or not log.read_text():
        assert run.poll() is None, terminal.read_text()
        time.sleep(0.02)
    os.kill(stage_of(run), signal.SIGKILL)
    assert run.wait(timeout=120) == 1
    printed = terminal.read_text()
    assert "Error in rule search:" in printed
    assert "log: results/tiny/logs/search/slope/search.log" in printed
    check_whole(folder, study, "search slope")
    end = snakemake(folder, "--cores", "1", recipe)
    assert end.returncode == 0, end.stdout + end.stderr
    check_same(folder, study)
    row.round(True)


# The log of each job in whose course the whole run is killed; it is there from the job's start on.
LOGS = {
    "train_model": "train_model.log",
    "prepare_images": "prepare_images.log",
    "inspect_model": "inspect_model.log",
    "evaluate_dense": "evaluate_dense.log",
    "extract_weights": "extract_weights.log",
    "cluster_layer fc": "cluster_layer/fc.log",
    "measure_inputs": "measure_inputs.log",
    "profile_layers": "profile_layers/0.log",
    "gather_sensitivity": "gather_sensitivity.log",
    "search rate_distortion": "search/rate_distortion/search.log",
    "pack_model rate_distortion": "search/rate_distortion/pack_model.log",
    "search slope": "search/slope/search.log",
    "pack_model slope": "search/slope/pack_model.log",
    "evaluate_packed slope": "search/slope/evaluate_packed.log",
}
# Seconds from the start of a job to the kill, at most: some jobs are at their imports then, some at their end.
LATEST = 3.0


def kill_run(folder: Path, logs: set[Path], delay: float, *targets: str) -> str:
    """Run Snakemake until one of the logs appears, and soon after kill it with all its jobs: what it had printed."""
    # Of the run before: `--unlock` does no more, and takes as long as a start.
    for lock in (folder / ".snakemake/locks").glob("*"):
        lock.unlink()
    terminal = folder / "terminal.txt"
    run = started(command(folder, "--cores", "1", *targets), terminal)
    while not any(log.exists() for log in logs):
        assert run.poll() is None, terminal.read_text()
        time.sleep(0.02)
    time.sleep(delay)
    os.killpg(run.pid, signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL, terminal.read_text()
    return terminal.read_text()


def test_the_whole_run_killed_in_stage_after_stage(study: Study, fault, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("killed")
    shutil.copy(CONFIG, folder)
    row = fault(
        1,
        "kill -9 of Snakemake with all its jobs",
        data="after `snakemake --unlock` the next run goes on: no file removed by hand, no finished job repeated, the "
        "undisturbed result, no temporary file",
    )

    def killed(job: str) -> None:
        row.add(Row(row.number, row.name, row.data, [job.split()[0]], rounds=1, survived=1))

    delays = random.Random(0)
    logs = {job: folder / "results/tiny/logs" / name for job, name in LOGS.items()}
    done: Counter[str] = Counter()
    passed = []
    while waiting := {log for log in logs.values() if not log.exists()}:
        done.update(finished(kill_run(folder, waiting, delays.uniform(0, LATEST))))
        begun = sorted((log for log in waiting if log.exists()), key=lambda log: log.stat().st_mtime)
        *over, last = [job for log in begun for job in logs if logs[job] == log]
        passed += over
        killed(last)
    assert snakemake(folder, "--unlock").returncode == 0
    # Every stage of the study has then run as a process of its own, with its own imports; see `tests.forked`.
    end = snakemake(folder, "--cores", "1", alone=True)
    assert end.returncode == 0, end.stdout + end.stderr
    done.update(finished(end.stdout + end.stderr))
    once = Counter(job.split()[0] for job in study.jobs)
    # The target itself is a rule, too. A job may end unheard, just before the kill: none is heard of twice.
    assert not done - (once + Counter(["compress"]))
    check_same(folder, study)

    # Jobs that were over before the kill: again, one by one.
    # A journal is no output of a rule.
    again = {
        job: [f"results/{name}" for name in study.outputs(job) if not name.endswith("journal.jsonl")] for job in passed
    }
    for job, outputs in again.items():
        logs[job].unlink()
        study.clear(folder, job)
        kill_run(folder, {logs[job]}, delays.uniform(0, LATEST / 10), *outputs)
        killed(job)
    assert snakemake(folder, "--unlock").returncode == 0
    end = snakemake(folder, "--cores", "1", "compress", *chain(*again.values()))
    assert end.returncode == 0, end.stdout + end.stderr
    check_same(folder, study)
    assert row.rounds == len(LOGS)
