"""A disk that does not take what a stage writes: full, broken, without rights, beyond a limit."""

import errno
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from ..runs import command, run_to_end
from .conftest import (
    REPORTS,
    Study,
    before_report,
    check_same,
    check_whole,
    leftovers,
    report_files,
    snakemake,
    watched,
)
from .supervisor import REMOVE, Ended, broken, full

# All go by a run of the whole workflow.
pytestmark = pytest.mark.slow

# A stage for each library that writes: text, HDF5, the journal, safetensors.
LIBRARIES = ("gather_sensitivity", "cluster_layer fc", "search slope", "pack_model slope")
# With every write.
THOROUGH = (
    *LIBRARIES,
    *("inspect_model", "evaluate_dense", "extract_weights", "profile_layers", "evaluate_packed slope", "summarise"),
)
# Of many writes in a row on one file the first and the last two.
LONG = ("prepare_images", "measure_inputs")
# Some seconds of work before each write: that many at random.
SLOW = {"train_model": 3, "search rate_distortion": 3, "pack_model rate_distortion": 3}
JOBS = (*THOROUGH, *LONG, *SLOW)
SURVIVED = (
    "exit code 1 and one line with file and cure; earlier results as they were, no half file, nothing left over; "
    "the next run gives the undisturbed result"
)


def writes(calls: list[tuple[str, str]]) -> list[int]:
    """Which of the calls that a disk can refuse are tried; of those in a row on one file the first and the last two."""
    refusable = [call for call in calls if call[0] not in REMOVE]

    def inside(i: int) -> bool:
        return 0 < i < len(refusable) - 2 and len({*refusable[i - 1 : i + 3]}) == 1

    return [i + 1 for i in range(len(refusable)) if not inside(i)]


def tried(job: str, calls: list[tuple[str, str]]) -> list[int]:
    """Which of a job's writes a full disk refuses."""
    numbers = range(1, 1 + sum(name not in REMOVE for name, _ in calls))
    if job in SLOW:
        return random.Random(job).sample(numbers, SLOW[job])
    return list(numbers) if job in THOROUGH else writes(calls)


def check_refused(ended: Ended, study: Study, job: str, reason: str, cure: str) -> None:
    """Assert that a stage ended with code 1 and one line that names one of its files, the reason and the cure."""
    assert ended.code == 1, ended
    assert "Traceback" not in ended.printed
    (line,) = (line for line in ended.printed.splitlines() if line.startswith("wshare "))
    start, _, message = line.partition(": error: results/")
    assert start == f"wshare {job.split()[0]}"
    name, _, rest = message.partition(": cannot be written ")
    # The figures of a report have a folder.
    assert any(Path(name).is_relative_to(output) for output in study.outputs(job))
    assert rest == f"({reason}); {cure} and run again"


@pytest.mark.parametrize("job", JOBS)
def test_a_disk_that_is_full_from_any_write_on(job: str, study: Study, run_stage: Callable[..., Ended], fault):
    name = "disk full from the n-th write on" + (", for every n" if job in THOROUGH else "")
    row = fault(8, name, where=job.split()[0], data=SURVIVED)
    folder, calls = watched(study, job, run_stage)
    for n in tried(job, calls):
        study.clear(folder, job)
        ended = run_stage(folder, study.jobs[job], full(n))
        check_refused(ended, study, job, "No space left on device", "free space on its disk")
        check_whole(folder, study, job)
        assert leftovers(folder) == []
        row.round(True)
    assert run_stage(folder, study.jobs[job], full(len(calls) + 1)).code == 0
    check_same(folder, study)


@pytest.mark.parametrize(("job", "rounds"), REPORTS.items())
def test_a_disk_that_is_full_under_a_report(
    job: str, rounds: int, study: Study, run_stage: Callable[..., Ended], fault
):
    row = fault(8, "disk full from the n-th write on", where=job, data=SURVIVED)
    folder, whole = before_report(study, job)
    # Each of the two writes three files at least, by eight calls that a disk can refuse.
    for n in random.Random(job).sample(range(1, 25), rounds):
        study.clear(folder, job)
        ended = run_stage(folder, study.jobs[job], full(n))
        check_refused(ended, study, job, "No space left on device", "free space on its disk")
        assert report_files(folder, study, job).items() <= whole.items()
        check_same(folder, study)
        row.round(True)
    assert run_stage(folder, study.jobs[job]).code == 0
    assert report_files(folder, study, job) == whole


@pytest.mark.parametrize("job", [job for job in JOBS if job not in LIBRARIES])
def test_a_folder_that_may_not_be_written(job: str, study: Study, run_stage: Callable[..., Ended], fault):
    row = fault(
        8,
        "read-only file system",
        where=job.split()[0],
        data="exit code 1 and one line with file and cure; all files as they were",
    )
    folder = study.copy()
    ended = run_stage(folder, study.jobs[job], lambda _: errno.EROFS)
    check_refused(ended, study, job, "Read-only file system", "make its folder writable")
    check_same(folder, study)
    row.round(True)


@pytest.mark.parametrize("job", LIBRARIES)
def test_one_write_that_breaks(job: str, study: Study, run_stage: Callable[..., Ended], fault):
    row = fault(
        8,
        "I/O error at the n-th write alone",
        where=job.split()[0],
        data="exit code 1 and one line with file and cure; no half file, nothing left over; the next run gives the "
        "undisturbed result",
    )
    folder, calls = watched(study, job, run_stage)
    # A folder that is there already need not be made.
    made = [name for name, _ in calls if name not in REMOVE]
    for n in (n for n in writes(calls) if not made[n - 1].startswith("mkdir")):
        study.clear(folder, job)
        ended = run_stage(folder, study.jobs[job], broken(n))
        check_refused(ended, study, job, "Input/output error", "check its disk")
        check_whole(folder, study, job)
        assert leftovers(folder) == []
        row.round(True)
    assert run_stage(folder, study.jobs[job]).code == 0
    check_same(folder, study)


def test_snakemake_names_rule_log_and_cause_of_a_failed_write(study: Study, fault):
    row = fault(
        8,
        "limit of file sizes below that of a result, through Snakemake",
        where="pack_model",
        data="Snakemake fails, names rule and log and shows the line; with the limit raised the next run gives the "
        "undisturbed result",
    )
    folder = study.copy()
    for job in ("pack_model slope", "evaluate_packed slope", "summarise"):
        study.clear(folder, job)
    results = folder / "results/tiny/search/slope"
    limit = len(study.files["tiny/search/slope/dense.safetensors"]) - 1
    limited = ["bash", "-c", f'ulimit -f {limit // 1024}; exec "$@"', "bash"]
    bounded = run_to_end([*limited, *command(folder, "--cores", "1")])
    printed = bounded.stdout + bounded.stderr
    assert bounded.returncode != 0
    assert "Error in rule pack_model" in printed
    assert "results/tiny/logs/search/slope/pack_model.log" in printed
    assert f"{results.relative_to(folder)}/dense.safetensors: cannot be written (File too large)" in printed
    assert not (results / "dense.safetensors").exists()
    run = snakemake(folder, "--cores", "1")
    assert run.returncode == 0, run.stdout + run.stderr
    check_same(folder, study)
    row.round(True)
