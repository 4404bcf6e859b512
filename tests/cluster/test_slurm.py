"""profiles/slurm on a real Slurm of two nodes: the results of a local run, whatever befalls nodes and jobs."""

import re
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from ..runs import command, files, run_to_end, started
from .conftest import THREADS, write_study
from .slurm import run

# Accounting is off here, so that squeue is asked; and not every 40 s, since jobs of the small study take some seconds.
# Arrays of two tasks at most make two of the three layers.
OPTIONS = (
    *("--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "1"),
    *("--seconds-between-status-checks", "1", "--slurm-array-limit", "2"),
    *THREADS,
)


def jobs(environment: dict[str, str]) -> list[SimpleNamespace]:
    """Jobs that Slurm knows of, ended ones too: number, rule with wildcards, state and node."""
    lines = run(environment, "squeue", "--states=all", "--noheader", "--array", "--format=%i|%k|%T|%N").splitlines()
    names = ("id", "rule", "state", "node")
    return [SimpleNamespace(**dict(zip(names, line.split("|"), strict=True))) for line in lines]


@pytest.fixture(scope="module")
def stormy(cluster: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A run during which one node was drained and given back, and one task of an array cancelled."""
    folder = write_study(tmp_path_factory.mktemp("stormy"))
    log = folder / "terminal.txt"
    process = started(command(folder, *OPTIONS, profile="slurm"), log, **cluster)

    def first(rule: str, state: str, task: str = "") -> SimpleNamespace:
        """First job of the rule that is seen in the state."""
        end = time.monotonic() + 300
        while time.monotonic() < end and process.poll() is None:
            for job in jobs(cluster):
                if job.rule.startswith(f"rule_{rule}_wildcards_") and job.state == state and job.id.endswith(task):
                    return job
            time.sleep(0.1)
        raise AssertionError(f"no job of {rule} was {state}\n{log.read_text()}")

    try:
        train = first("train_model", "RUNNING")
        run(cluster, "scontrol", "update", f"nodename={train.node}", "state=drain", "reason=test")
        task = first("cluster_layer", "RUNNING", task="_2")
        run(cluster, "scancel", task.id)
        first("search", "RUNNING")
        seen = jobs(cluster)
        state = run(cluster, "sinfo", "--noheader", "--Node", f"--nodes={train.node}", "--format=%T")
        run(cluster, "scontrol", "update", f"nodename={train.node}", "state=resume")
        returncode = process.wait(300)
    finally:
        process.terminate()
        process.wait(60)
    return SimpleNamespace(
        folder=folder, returncode=returncode, log=log.read_text(), train=train, task=task, seen=seen, drained=state
    )


def test_results_are_the_bytes_of_a_local_run(stormy: SimpleNamespace, local: Path):
    assert stormy.returncode == 0, stormy.log
    assert files(stormy.folder) == files(local)


def test_layers_are_tasks_of_arrays(stormy: SimpleNamespace):
    tasks = [job.id for job in stormy.seen if job.rule.startswith("rule_cluster_layer_") and "_" in job.id]
    assert len(tasks) == 3, stormy.seen
    assert {task.split("_")[1] for task in tasks} == {"1", "2", "3"}
    assert len(re.findall("Submitted array job with Snakemake IDs", stormy.log)) >= 2


def test_cancelled_job_is_tried_again_with_more_memory(stormy: SimpleNamespace):
    assert f"SLURM-job '{stormy.task.id}' failed, SLURM status is: 'CANCELLED'" in stormy.log
    # The announcements of jobs alone: the message of the failed job also names its rule, but no memory.
    asked = re.findall(r"(?m)^rule cluster_layer:\n(?: +.*\n)*? +resources: .*?mem_mb=(\d+)", stormy.log)
    assert sorted(map(int, asked)) == [1000] * 3 + [2000]


def test_drained_node_gets_no_job_and_the_run_goes_on(stormy: SimpleNamespace):
    assert stormy.drained == "drained"
    others = {job.node for job in stormy.seen if job.node and job.id != stormy.train.id}
    assert len(others) == 1
    assert stormy.train.node not in others


def test_threads_memory_and_time_of_the_rule_reach_slurm(stormy: SimpleNamespace, cluster: dict[str, str]):
    (job,) = [job for job in jobs(cluster) if job.rule == "rule_search_wildcards_tiny_uniform"]
    asked = run(cluster, "scontrol", "show", "job", job.id)
    assert "NumCPUs=4 " in asked
    assert "MinMemoryNode=6000M" in asked
    assert "TimeLimit=08:00:00" in asked


def test_message_of_a_failed_job_leads_to_its_log(stormy: SimpleNamespace, cluster: dict[str, str]):
    folder = shutil.copytree(stormy.folder, stormy.folder.with_name("failing"))
    (folder / "results/tiny/weights.h5").write_bytes(b"not HDF5")
    targets = ("results/tiny/sensitivity.csv", "results/tiny/search/rate_distortion/recipe.json")
    failed = run_to_end(command(folder, *OPTIONS, "--retries", "0", *targets, profile="slurm"), alone=True, **cluster)
    assert failed.returncode == 1
    # Snakemake inside a job names the log of the rule alone, and its lines are printed with the job's log.
    logs = re.findall(r"^ +log: (.*/slurm_logs/.*) \(check log file", failed.stderr, flags=re.MULTILINE)
    # Three tasks of arrays and one job of its own.
    assert len(logs) == 4, failed.stderr
    for line in logs:
        log = line.split(", ")[0]
        text = (folder / log).read_text()
        assert "weights.h5" in text
        # `show-failed-logs` prints it too.
        assert text.strip().splitlines()[-1] in failed.stderr
    (single,) = [line.split(", ")[1] for line in logs if "logs/search/rate_distortion/" in line]
    assert "log: results/tiny/logs/search/rate_distortion/search.log" in Path(single).read_text()
