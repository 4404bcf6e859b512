"""A disk that does not take what a stage writes: full, broken, without rights, beyond a limit."""

import errno
from collections.abc import Callable

import pytest

from ..runs import command, run_to_end
from .conftest import Study, check_same, check_whole, leftovers, snakemake, watched
from .supervisor import REMOVE, Ended, broken, full

# A stage for each library that writes, with every call: text, HDF5, the journal, safetensors; others with some.
THOROUGH = ("gather_sensitivity", "cluster_layer fc", "search", "pack_model")
OTHERS = ("inspect_model", "evaluate_dense", "extract_weights", "measure_inputs", "profile_layers", "summarise")
JOBS = (*THOROUGH, *OTHERS)


def writes(calls: list[tuple[str, str]], every: bool) -> list[int]:
    """Which of the calls that a disk can refuse are tried; of those in a row on one file the first and the last two."""
    refusable = [call for call in calls if call[0] not in REMOVE]
    numbers = range(1, len(refusable) + 1)
    if every:
        return list(numbers)

    def inside(i: int) -> bool:
        return 0 < i < len(refusable) - 2 and len({*refusable[i - 1 : i + 3]}) == 1

    return [n for n in numbers if not inside(n - 1)]


def check_refused(ended: Ended, study: Study, job: str, reason: str, cure: str) -> None:
    """Assert that a stage ended with code 1 and one line that names one of its files, the reason and the cure."""
    assert ended.code == 1, ended
    assert "Traceback" not in ended.printed
    (line,) = (line for line in ended.printed.splitlines() if line.startswith("wshare "))
    start, _, message = line.partition(": error: results/")
    assert start == f"wshare {job.split()[0]}"
    name, _, rest = message.partition(": cannot be written ")
    assert name in study.outputs(job)
    assert rest == f"({reason}); {cure} and run again"


@pytest.mark.parametrize("job", JOBS)
def test_a_disk_that_is_full_from_any_write_on(job: str, study: Study, run_stage: Callable[..., Ended], fault):
    every = job in THOROUGH
    row = fault(
        8,
        "disk full from the n-th write on, for every n" if every else "disk full from the n-th write on",
        where=job.split()[0],
        data="exit code 1 and one line with file and cure; earlier results as they were, no half file, nothing left "
        "over; the next run gives the undisturbed result",
    )
    folder, calls = watched(study, job, run_stage)
    for n in writes(calls, every):
        study.clear(folder, job)
        ended = run_stage(folder, study.jobs[job], full(n))
        check_refused(ended, study, job, "No space left on device", "free space on its disk")
        check_whole(folder, study, job)
        assert leftovers(folder) == []
        row.round(True)
    assert run_stage(folder, study.jobs[job], full(len(calls) + 1)).code == 0
    check_same(folder, study)


@pytest.mark.parametrize("job", OTHERS)
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


@pytest.mark.parametrize("job", THOROUGH)
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
    for n in (n for n in writes(calls, every=False) if not made[n - 1].startswith("mkdir")):
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
    for job in ("pack_model", "evaluate_packed slope", "summarise"):
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
