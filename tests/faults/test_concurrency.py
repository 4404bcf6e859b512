"""Runs that are stopped by a scheduler, started twice, or given other numbers of cores."""

import hashlib
import http.server
import json
import os
import pty
import random
import shutil
import signal
import subprocess
import sys
import termios
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from ..runs import ROOT, command, environment, files, started
from .conftest import CONFIG, REPORTS, Study, check_same, finished, jobs_of, snakemake, stage_of
from .supervisor import Ended, kill

# All go by a run of the whole workflow.
pytestmark = pytest.mark.slow

PIECE, PIECES = bytes(range(256)) * 64, 20
# Seconds that a scheduler gives a job after SIGTERM.
GRACE = 5


def measured(journal: Path) -> list[str]:
    """Whole lines of a journal, without its header."""
    return journal.read_text().split("\n")[1:-1] if journal.exists() else []


@pytest.mark.parametrize("job", ["search slope", "search rate_distortion"])
def test_a_search_stopped_by_sigterm_goes_on_from_its_journal(
    job: str, study: Study, run_stage: Callable[..., Ended], fault
):
    row = fault(
        12,
        "SIGTERM to a search after each of its measurements",
        where=job.split()[0],
        data="exit code 143; every measurement kept and not made again, the undisturbed result in the end",
    )
    folder = study.copy()
    study.clear(folder, job)
    arguments = study.jobs[job]
    journal = folder / arguments[arguments.index("--journal") + 1]
    calls = run_stage(folder, arguments).calls
    total = measured(journal)
    study.clear(folder, job)
    # Each start writes one line more and is stopped before that is synced.
    name = str(journal.relative_to(folder))
    first = calls.index(("fsync", name)) + 1
    for kept in range(1, len(total) + 1):
        ended = run_stage(folder, arguments, kill(first, signal.SIGTERM))
        assert ended.code == 143, ended
        assert "stopped by SIGTERM; run again to go on" in ended.printed
        assert measured(journal) == total[:kept]
        row.round(True)
    assert run_stage(folder, arguments).code == 0
    check_same(folder, study)


def test_a_long_stage_stops_at_once(study: Study, fault):
    row = fault(
        12, "SIGTERM to a stage at work", where="train_model", data="exit code 143 within the grace time of 5 s"
    )
    folder = study.copy()
    arguments = list(study.jobs["train_model"])
    settings = arguments.index("--settings") + 1
    endless = json.loads(arguments[settings])
    endless["training"]["epochs"] = 1_000_000
    arguments[settings] = json.dumps(endless)
    # A bar of epochs moves on a terminal alone.
    screen, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    run = subprocess.Popen(
        [sys.executable, "-m", "wshare", *arguments],
        cwd=folder,
        env=environment(PYTHONPATH=str(ROOT / "workflow")),
        stderr=terminal,
    )
    os.close(terminal)
    printed = b""
    # Reading fails when the stage has ended.
    while b"epoch" not in printed:
        printed += os.read(screen, 4096)
    run.send_signal(signal.SIGTERM)
    assert run.wait(timeout=GRACE) == 143
    with suppress(OSError):
        while True:
            printed += os.read(screen, 4096)
    os.close(screen)
    assert b"stopped by SIGTERM; run again to go on" in printed
    check_same(folder, study)
    row.round(True)


# For the path of Python's modules: the disk takes for ever to sync a measurement, which then stands there already.
SLOW_DISK = """
import os, time
sync = os.fsync
def slow(handle):
    sync(handle)
    name = os.readlink(f"/proc/self/fd/{handle}")
    if name.endswith("/journal.jsonl") and ".tmp" not in name:
        time.sleep(600)
os.fsync = slow
"""


def stuck(run: subprocess.Popen, journal: Path, lines: int) -> None:
    """Wait until the run's search has made so many measurements and syncs the last of them."""
    start = time.monotonic()
    while len(measured(journal)) < lines:
        assert run.poll() is None
        assert time.monotonic() < start + 120
        time.sleep(0.02)


def locked(folder: Path) -> bool:
    """Whether a run holds the folder, or left its lock there."""
    return any((folder / ".snakemake/locks").glob("*"))


def test_a_preempted_run_is_queued_again(study: Study, fault, tmp_path: Path):
    """As under Slurm: SIGTERM, a time of grace, SIGKILL to what is left, and the same command again."""
    row = fault(
        12,
        "SIGTERM and 5 s later SIGKILL to Snakemake in the midst of a search, queued again",
        where="search",
        data="no measurement made again, no other job repeated, the undisturbed result",
    )
    folder, job, terminal = study.copy(), "search slope", tmp_path / "terminal.txt"
    arguments = study.jobs[job]
    journal, recipe = (arguments[arguments.index(flag) + 1] for flag in ("--journal", "--recipe"))
    log = folder / "results/tiny/logs/search/slope/search.log"
    total = measured(folder / journal)
    study.clear(folder, job)
    (tmp_path / "sitecustomize.py").write_text(SLOW_DISK)
    queued = command(folder, "--cores", "1", "--retries", "2", "--", recipe)
    slow = {"PYTHONPATH": str(tmp_path)}

    # To all processes, as a scheduler does by itself: Snakemake ends in time, and takes its lock away.
    run = started(queued, terminal, **slow)
    stuck(run, folder / journal, 1)
    os.killpg(run.pid, signal.SIGTERM)
    assert run.wait(timeout=GRACE) == 1
    # The shell between them is gone first: Snakemake may have shown the log before the stage has had its say.
    start = time.monotonic()
    while "wshare: stopped by SIGTERM; run again to go on" not in log.read_text():
        assert time.monotonic() < start + GRACE
        time.sleep(0.02)
    assert "Will exit after finishing currently running jobs" in terminal.read_text()
    assert not locked(folder)
    row.round(True)

    # To Snakemake alone, as a script hands it on: it waits for its jobs until all are killed, and its lock stays.
    run = started(queued, terminal, **slow)
    stuck(run, folder / journal, 2)
    run.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        run.wait(timeout=GRACE)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    assert locked(folder)
    assert snakemake(folder, "--unlock").returncode == 0
    row.round(True)

    # To the job alone, whose node is taken away: Snakemake tries it again by itself.
    assert len(total) > 3
    run = started(queued, terminal, **slow)
    stuck(run, folder / journal, 3)
    os.kill(stage_of(run), signal.SIGTERM)
    stuck(run, folder / journal, 4)
    assert measured(folder / journal) == total[:4]
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    assert snakemake(folder, "--unlock").returncode == 0
    row.round(True)

    run = started(queued, terminal)
    assert run.wait(timeout=300) == 0, terminal.read_text()
    assert finished(terminal.read_text()) == Counter([job.split()[0]])
    assert log.read_text().startswith("4 measurements are in the journal, of ")
    check_same(folder, study)


def test_two_runs_in_one_folder(study: Study, fault):
    row = fault(
        12,
        "two runs at once in one folder, the second at random times",
        data="the second refuses, says that the folder is locked and changes nothing; the first ends as ever",
    )
    folder, delays = study.copy(), random.Random(0)
    for job in ("pack_model slope", "evaluate_packed slope", "summarise"):
        study.clear(folder, job)
    terminal, target = folder / "terminal.txt", "results/summary.txt"
    first = started(command(folder, "--cores", "1", target), terminal)
    while not locked(folder):
        assert first.poll() is None, terminal.read_text()
        time.sleep(0.01)
    for _ in range(6):
        # The first waits meanwhile, so that what changes is by the second.
        time.sleep(delays.uniform(0, 0.5))
        os.killpg(first.pid, signal.SIGSTOP)
        assert locked(folder)
        before = files(folder)
        second = snakemake(folder, "--cores", "1", target)
        assert second.returncode != 0
        assert "cannot be locked" in second.stdout + second.stderr
        assert files(folder) == before
        os.killpg(first.pid, signal.SIGCONT)
        row.round(True)
    assert first.wait(timeout=300) == 0, terminal.read_text()
    check_same(folder, study)


CORES = {
    "name": "whole runs on 1, 4 and 16 cores",
    "data": "every file has the same bytes",
}


def test_sixteen_cores_do_not_change_a_byte(study: Study, fault, tmp_path: Path):
    """A whole run, from nothing to the summary, in which each job takes all the threads that it may."""
    row = fault(12, **CORES)
    shutil.copy(CONFIG, tmp_path)
    rules = sorted({arguments[0] for arguments in study.jobs.values() if "--threads" in arguments})
    threads = [f"{rule}=16" for rule in rules]
    target = "results/summary.txt"
    run = snakemake(tmp_path, "--cores", "16", "--printshellcmds", "--set-threads", *threads, "--", target)
    assert run.returncode == 0, run.stdout + run.stderr
    jobs = jobs_of(run.stdout + run.stderr)
    used = {
        job: arguments[arguments.index("--threads") + 1] for job, arguments in jobs.items() if "--threads" in arguments
    }
    assert {job.split()[0] for job in used} == set(rules)
    assert set(used.values()) == {"16"}
    check_same(tmp_path, study)
    row.round(True)


def test_one_core_does_not_change_a_byte(study: Study, run_stage: Callable[..., Ended], fault, tmp_path: Path):
    """The same with one thread for each job; Snakemake itself works with one core while it is killed elsewhere."""
    row = fault(12, **CORES)
    # The summary shows the seconds of a search, which Snakemake measures.
    benchmarks = "results/tiny/benchmarks"
    shutil.copytree(study.folder / benchmarks, tmp_path / benchmarks)
    for job, arguments in study.jobs.items():
        if job in REPORTS:
            continue
        given = list(arguments)
        if "--threads" in given:
            given[given.index("--threads") + 1] = "1"
        ended = run_stage(tmp_path, given)
        assert ended.code == 0, ended
    check_same(tmp_path, study)
    row.round(True)


class Slow(http.server.BaseHTTPRequestHandler):
    """Serves bytes piece by piece, so that downloads overlap."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(PIECE) * PIECES))
        self.end_headers()
        for _ in range(PIECES):
            self.wfile.write(PIECE)
            time.sleep(0.02)

    def log_message(self, *_):
        pass


@pytest.fixture
def url():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/weights.pth"
        server.shutdown()
        thread.join()


def test_runs_that_share_the_cache_of_downloads(url: str, tmp_path: Path, fault):
    row = fault(
        12,
        "three runs that fetch one file into a shared cache, one killed on the way",
        where="fetch_model",
        data="the file is absent or whole at any time; no temporary file is left",
    )
    target = tmp_path / "cache" / "weights.pth"
    program = "import sys; from pathlib import Path; from wshare.files.downloads import download\n"
    program += "download(sys.argv[1], Path(sys.argv[2]), sha256=sys.argv[3])"
    arguments = [sys.executable, "-c", program, url, str(target), hashlib.sha256(PIECE * PIECES).hexdigest()]
    for _ in range(2):
        shutil.rmtree(target.parent, ignore_errors=True)
        runs = [
            subprocess.Popen(arguments, env=environment(PYTHONPATH=str(ROOT / "workflow")), stderr=subprocess.DEVNULL)
            for _ in range(3)
        ]
        part = target.parent / ".weights.pth.tmp" / "weights.pth"
        while not part.exists():
            time.sleep(0.01)
        runs[0].kill()
        while any(run.poll() is None for run in runs):
            assert not target.exists() or target.read_bytes() == PIECE * PIECES
            time.sleep(0.01)
        assert [run.returncode for run in runs[1:]] == [0, 0]
        assert [path.name for path in target.parent.iterdir()] == ["weights.pth"]
        row.round(True)
