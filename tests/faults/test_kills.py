"""Jobs and runs that are killed, and what the next run makes of what they left."""

import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from ..runs import command, started
from .conftest import CONFIG, Study, check_same, check_whole, finished, leftovers, snakemake, watched
from .supervisor import Ended, kill

JOBS = (
    "inspect_model",
    "evaluate_dense",
    "extract_weights",
    "measure_inputs",
    "cluster_layer fc",
    "profile_layers",
    "gather_sensitivity",
    "search",
    "pack_model",
    "summarise",
)
ROUNDS = 5


@pytest.mark.parametrize("job", JOBS)
def test_a_job_killed_at_a_random_write(job: str, study: Study, run_stage: Callable[..., Ended], fault):
    row = fault(
        2,
        "kill -9 of a job before a random one of its writes",
        where=job.split()[0],
        data="each file absent or whole; the next run leaves the undisturbed result and no temporary file",
    )
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


# The log of each job in whose course the whole run is killed; it is there from the job's start on.
LOGS = {
    "train_model": "train_model.log",
    "prepare_images": "prepare_images.log",
    "evaluate_dense": "evaluate_dense.log",
    "cluster_layer": "cluster_layer/fc.log",
    "measure_inputs": "measure_inputs.log",
    "profile_layers": "profile_layers/0.log",
    "search_rate_distortion": "search/rate_distortion/search_rate_distortion.log",
    "pack_rate_distortion": "search/rate_distortion/pack_rate_distortion.log",
    "search": "search/slope/search.log",
    "pack_model": "search/slope/pack_model.log",
    "evaluate_packed": "search/slope/evaluate_packed.log",
}
# Seconds from the start of a job to the kill, at most: some jobs are at their imports then, some at their end.
LATEST = 3.0


def killed_run(folder: Path, logs: set[Path], delay: float) -> tuple[Path, str]:
    """Run Snakemake until one of the logs appears, and kill it with all its jobs: the log, and what was printed."""
    terminal = folder / "terminal.txt"
    run = started(command(folder, "--cores", "1"), terminal)
    while not (found := [log for log in logs if log.exists()]):
        assert run.poll() is None, terminal.read_text()
        time.sleep(0.02)
    time.sleep(delay)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    return found[0], terminal.read_text()


def test_the_whole_run_killed_in_stage_after_stage(study: Study, fault, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("killed")
    shutil.copy(CONFIG, folder)
    row = fault(
        1,
        "kill -9 of Snakemake with all its jobs",
        data="after `snakemake --unlock` the next run goes on: no file removed by hand, no finished job repeated, the "
        "undisturbed result, no temporary file",
    )
    delays = random.Random(0)
    stages = {folder / "results/tiny/logs" / name: stage for stage, name in LOGS.items()}
    done: Counter[str] = Counter()
    while waiting := {log for log in stages if not log.exists()}:
        log, printed = killed_run(folder, waiting, delays.uniform(0, LATEST))
        done.update(finished(printed))
        assert snakemake(folder, "--unlock").returncode == 0
        row.where.append(stages[log])
        row.round(True)
    last = snakemake(folder, "--cores", "1")
    assert last.returncode == 0, last.stdout + last.stderr
    done.update(finished(last.stdout + last.stderr))
    once = Counter(job.split()[0] for job in study.jobs)
    # The target itself is a rule, too. A job may end unheard, just before the kill: none is heard of twice.
    assert not done - (once + Counter(["compress"]))
    check_same(folder, study)
