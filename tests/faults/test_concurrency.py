"""Runs that are stopped by a scheduler, started twice, or given other numbers of cores."""

import hashlib
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ..runs import ROOT, command, environment, files, started
from .conftest import Study, check_same, leftovers, snakemake
from .supervisor import Ended, kill

PIECE, PIECES = bytes(range(256)) * 64, 20


def measured(journal: Path) -> list[str]:
    """Whole lines of a journal, without its header."""
    return journal.read_text().split("\n")[1:-1] if journal.exists() else []


@pytest.mark.parametrize("job", ["search", "search_rate_distortion"])
def test_a_search_stopped_by_sigterm_goes_on_from_its_journal(
    job: str, study: Study, run_stage: Callable[..., Ended], fault
):
    row = fault(
        12,
        "SIGTERM to a search after each of its measurements",
        where=job,
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
    log = folder / "printed.txt"
    with log.open("w") as printed:
        run = subprocess.Popen(
            [sys.executable, "-m", "wshare", *arguments],
            cwd=folder,
            env=environment(PYTHONPATH=str(ROOT / "workflow")),
            stderr=printed,
        )
        while "epoch" not in log.read_text():
            assert run.poll() is None
            time.sleep(0.05)
        run.send_signal(signal.SIGTERM)
        assert run.wait(timeout=5) == 143
    assert "stopped by SIGTERM; run again to go on" in log.read_text()
    check_same(folder, study)
    row.round(True)


def test_two_runs_in_one_folder(study: Study, fault):
    row = fault(
        12,
        "two runs at once in one folder",
        data="the second refuses, says that the folder is locked and changes nothing; the first ends as ever",
    )
    folder = study.copy()
    (folder / "results/summary.txt").unlink()
    terminal = folder / "terminal.txt"
    first = started(command(folder, "--cores", "1"), terminal)
    while not any((folder / ".snakemake/locks").glob("*")):
        assert first.poll() is None, terminal.read_text()
        time.sleep(0.01)
    os.killpg(first.pid, signal.SIGSTOP)
    before = files(folder)
    for _ in range(2):
        second = snakemake(folder, "--cores", "1")
        assert second.returncode != 0
        assert "cannot be locked" in second.stdout + second.stderr
        assert files(folder) == before
        row.round(True)
    os.killpg(first.pid, signal.SIGCONT)
    assert first.wait(timeout=300) == 0, terminal.read_text()
    check_same(folder, study)


@pytest.mark.parametrize("threads", [1, 16])
def test_threads_do_not_change_a_byte(threads: int, study: Study, run_stage: Callable[..., Ended], fault):
    row = fault(12, "1, 4 and 16 cores", data="every file has the same bytes")
    folder = study.copy()
    for job, arguments in study.jobs.items():
        if "--threads" in arguments:
            study.clear(folder, job)
            changed = list(arguments)
            changed[changed.index("--threads") + 1] = str(threads)
            assert run_stage(folder, changed).code == 0
            row.round(True)
    check_same(folder, study)
    assert leftovers(folder) == []


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
    program = "import sys; from pathlib import Path; from wshare.downloads import download\n"
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
